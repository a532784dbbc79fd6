"""Which version captions a row, and a cache of the mappers used recently."""

from __future__ import annotations

import logging
import tempfile
from collections import OrderedDict
from pathlib import Path

from django.db.models import Max

from captioner.errors import cause_of
from captioner.inference.failures import storage_gives_others
from captioner.jobs.job import Failure
from captioner.models import Caption, Draft, MapperVersion, Promotion, Style
from clipcap.captioner import Captioner
from clipcap.model import ClipCaptionModel

log = logging.getLogger(__name__)

MAPPERS_KEPT = 64
Writer = tuple[MapperVersion, ClipCaptionModel]


class MapperCache:
    """Mappers by version, the last ones used."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self._mappers: OrderedDict[int, ClipCaptionModel] = OrderedDict()

    def writer(self, row: Caption | Draft) -> Writer | Failure:
        """What is to write a row: the version that a draft names, or the one in service in a caption's style."""
        if not isinstance(row, Draft):
            return self._active(row.style_id)
        version = MapperVersion.objects.select_related("style").get(pk=row.version_id)
        try:
            return version, self.load(version)
        except Exception as error:  # storages and damaged files raise all kinds
            log.exception("a version cannot be loaded", extra={"version": version.pk})
            detail = f"{version} cannot be loaded: {cause_of(error)}"[:500]
            return Failure("version_unavailable", detail, others_succeeded=storage_gives_others())

    def _active(self, style_id: int) -> Writer | Failure:
        """The style's newest promoted version that can be loaded, and its mapper."""
        latest = Promotion.objects.filter(style=style_id).values("version").annotate(last=Max("pk")).order_by("-last")
        for entry in latest[:5]:
            version = MapperVersion.objects.get(pk=entry["version"])
            try:
                return version, self.load(version)
            except Exception as error:  # an older version serves on
                message = f"{type(error).__name__}: {cause_of(error)}"[:500]
                if version.load_error != message:
                    log.exception("a version cannot be loaded", extra={"version": version.pk})
                    MapperVersion.objects.filter(pk=version.pk).update(load_error=message)
        style = Style.objects.get(pk=style_id)
        reason = (
            f"no version of {style.name!r} could be loaded; if this persists, an administrator must promote another"
        )
        return Failure("style_unavailable", reason, others_succeeded=storage_gives_others())

    def load(self, version: MapperVersion, *, fresh: bool = False) -> ClipCaptionModel:
        """The version's mapper, loaded once; `fresh` for one that nobody else uses, to be trained further.

        Raises:
            CheckpointError: the file is unusable, or made for other models.
            ValueError: the file is another than was filed.
            OSError: the storage cannot give it.
        """
        mapper = None if fresh else self._mappers.get(version.pk)
        if mapper is None:
            with tempfile.TemporaryDirectory(prefix="clipcap-mapper-") as folder:
                mapper = self.captioner.load_model(version.copied_to(Path(folder)))
            if fresh:
                return mapper
            self._mappers[version.pk] = mapper
        if version.load_error:  # which another worker may have met, for reasons of its own
            MapperVersion.objects.filter(pk=version.pk).update(load_error="")
        self._mappers.move_to_end(version.pk)
        if len(self._mappers) > MAPPERS_KEPT:
            self._mappers.popitem(last=False)
        return mapper
