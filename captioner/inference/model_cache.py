"""Which version captions a row, and a cache of the versions' models, within a budget in bytes.

A batch keeps what it uses: that is never evicted, and what finds no room beside it waits for a later batch. A large
file is read in another thread while other rows are captioned; the rows that need it are postponed until it is read.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.db.models import Max

from captioner.errors import cause_of
from captioner.inference.failures import is_out_of_memory, storage_gives_others
from captioner.jobs.job import Failure
from captioner.models import BaseModels, Caption, Draft, MapperVersion, Promotion, Style
from clipcap.captioner import Captioner
from clipcap.checkpoint import load_mapper
from clipcap.device import free_bytes
from clipcap.model import ClipCaptionModel

log = logging.getLogger(__name__)

SHARE = 0.25  # of the memory that is free once the base models are loaded, unless a budget is set
FAILED = 60  # seconds before a large file that is unusable is read again, for it may have been restored
LARGE = 64 * 2**20  # bytes of a file that is read in another thread; a smaller one is read in a moment
Writer = tuple[MapperVersion, ClipCaptionModel]


class Postponed(Exception):
    """A model cannot be had now, but soon: its file is being read, or what is in use leaves no room for it."""


class NoRoom(MemoryError):
    """A model is larger than what a worker may keep or has."""


class ModelCache:
    """The versions' models, those used last, by version."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        free = free_bytes(captioner.language_model.device)
        self.budget = settings.MODEL_CACHE_BYTES or int(free * SHARE)
        self._models: OrderedDict[int, ClipCaptionModel] = OrderedDict()
        self._in_use: set[int] | None = None  # by the batches under way; None outside of any
        self._reader = ThreadPoolExecutor(1, "models")
        self._reading: tuple[MapperVersion, Future[ClipCaptionModel]] | None = None
        self._failed: dict[int, tuple[float, ValueError]] = {}  # when their large files were read, and why not used

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let nothing that is loaded in the block be evicted before its end. Blocks may be nested."""
        before = self._in_use
        self._in_use = set(before or ())
        try:
            yield
        finally:
            self._in_use = before

    def writer(self, row: Caption | Draft, base: BaseModels | None = None) -> Writer | Failure | None:
        """What is to write a row: the version that a draft names, or the one in service in a caption's style. None if
        it cannot be had yet.

        Args:
            base: the models that are loaded; None for those in service.
        """
        try:
            return self._named(row.version_id) if isinstance(row, Draft) else self._in_service(row.style_id, base)
        except Postponed as reason:
            log.info("postponed", extra={"reason": str(reason)})
            return None

    def _named(self, version_id: int) -> Writer | Failure:
        version = MapperVersion.objects.select_related("style").get(pk=version_id)
        try:
            return version, self._load_soon(version)
        except Postponed:
            raise
        except Exception as error:  # storages and damaged files raise all kinds
            if is_out_of_memory(error):
                return self._too_large(version, error)
            _tell(version, error)
            detail = f"{version} cannot be loaded: {cause_of(error)}"[:500]
            return Failure("version_unavailable", detail, others_succeeded=storage_gives_others())

    def _in_service(self, style_id: int, base: BaseModels | None) -> Writer | Failure:
        """The style's newest promoted version that can be loaded, of the loaded models, and its model."""
        promoted = Promotion.objects.on(base).filter(style=style_id)
        latest = promoted.values("version").annotate(last=Max("pk")).order_by("-last")
        load = self._load_soon
        for entry in latest[:5]:
            version = MapperVersion.objects.select_related("style").get(pk=entry["version"])
            try:
                return version, load(version)
            except Postponed:
                raise
            except Exception as error:  # an older version stays in service
                if is_out_of_memory(error):  # which is not the version's fault
                    return self._too_large(version, error)
                message = f"{type(error).__name__}: {cause_of(error)}"[:500]
                if version.load_error != message:
                    _tell(version, error)
                    MapperVersion.objects.filter(pk=version.pk).update(load_error=message)
                load = self.load  # now: when this one had been read, it would be the first one's turn again
        style = Style.objects.get(pk=style_id)
        reason = (
            f"no version of {style.name!r} could be loaded; if this persists, an administrator must promote another"
        )
        return Failure("style_unavailable", reason, others_succeeded=storage_gives_others())

    def _too_large(self, version: MapperVersion, error: Exception) -> Failure:
        log.warning("no memory for a version", extra={"version": version.pk, "error": repr(error)})
        self.captioner.backend.release()
        detail = str(error) if isinstance(error, NoRoom) else f"the worker does not have enough memory for {version}"
        return Failure("out_of_memory", detail)

    def load(self, version: MapperVersion, *, fresh: bool = False) -> ClipCaptionModel:
        """The version's model, loaded once; `fresh` for one that nobody else uses, to be trained further.

        Raises:
            CheckpointError: the file is unusable, or made for other models.
            ValueError: the file is another than was filed.
            OSError: the storage cannot give it.
            NoRoom: it is larger than the budget or the free memory.
            Postponed: what is in use leaves no room for it.
        """
        if not fresh and version.pk in self._models:
            self._models.move_to_end(version.pk)
            model = self._models[version.pk]
        elif fresh:
            return self._tried(self._read(version))
        else:
            model = self._add(version)
        if version.load_error:  # which another worker may have met, for reasons of its own
            MapperVersion.objects.filter(pk=version.pk).update(load_error="")
        if self._in_use is not None:
            self._in_use.add(version.pk)
        return model

    def _add(self, version: MapperVersion) -> ClipCaptionModel:
        self._make_room(version, version.size)
        self._check_free(version)
        model = self._tried(self._taken_from_reader(version) or self._read(version))
        self._make_room(version, model.bytes)  # a file may be in half precision
        self._models[version.pk] = model
        return model

    def _load_soon(self, version: MapperVersion) -> ClipCaptionModel:
        """As `load`, but a large file is read in another thread.

        Raises:
            Postponed: it is being read.
            ValueError: as `load`, now or within the last minute: reading takes seconds each time.
        """
        if version.pk in self._models or version.size < LARGE:
            return self.load(version)
        if self._reading and self._reading[1].done():
            if self._reading[0].pk == version.pk:
                try:
                    return self.load(version)
                except ValueError as error:
                    self._failed[version.pk] = time.monotonic(), error
                    raise
            self._reading = None  # nobody came for it
        at, unusable = self._failed.get(version.pk, (0.0, None))
        if unusable and time.monotonic() - at < FAILED:
            raise unusable.with_traceback(None)
        if self._reading is None:
            self._make_room(version, version.size)
            self._check_free(version)
            self._reading = version, self._reader.submit(self._read, version)
        raise Postponed(f"the file of {version} is being read")

    def _taken_from_reader(self, version: MapperVersion) -> ClipCaptionModel | None:
        """What the other thread has read of this version, if it has; waits for it.

        Raises:
            Exception: whatever kept it from reading.
        """
        if self._reading is None or self._reading[0].pk != version.pk:
            return None
        (_, future), self._reading = self._reading, None
        return future.result()

    def _make_room(self, version: MapperVersion, size: int) -> None:
        """Evict what was used longest ago until there is room for so many bytes.

        Raises:
            NoRoom: there never is.
            Postponed: there is when what is in use is not any more.
        """
        if size > self.budget:
            raise NoRoom(
                f"{version} takes {size / 2**20:,.0f} MiB, and this worker may keep {self.budget / 2**20:,.0f} MiB of "
                f"models; set CLIPCAP_MODEL_CACHE_BYTES to more"
            )
        for pk in [pk for pk in self._models if pk not in (self._in_use or ())]:
            if self._bytes_beside(version) + size <= self.budget:
                break
            del self._models[pk]
        if self._bytes_beside(version) + size <= self.budget:
            return
        if self._reading and self._reading[1].done() and self._reading[0].pk != version.pk:
            self._reading = None  # perhaps nobody comes for it
            self._make_room(version, size)
            return
        raise Postponed(f"there is no room for {version} beside the models in use")

    def _check_free(self, version: MapperVersion) -> None:
        """Refuse what the machine has no memory for, unless it is in memory already.

        Raises:
            NoRoom: it has not.
        """
        if self._reading and self._reading[0].pk == version.pk:
            return
        size = version.size
        free = free_bytes(self.captioner.language_model.device)
        if size > free:
            raise NoRoom(f"{version} takes {size / 2**20:,.0f} MiB, and this worker has {free / 2**20:,.0f} MiB free")

    def _bytes_beside(self, version: MapperVersion) -> int:
        """What the models of other versions take, the one that is being read included."""
        reading = self._reading[0].size if self._reading and self._reading[0].pk != version.pk else 0
        return sum(model.bytes for model in self._models.values()) + reading

    def _read(self, version: MapperVersion) -> ClipCaptionModel:
        """In another thread perhaps, which has no database: the version comes with its style. It runs no model."""
        with tempfile.TemporaryDirectory(prefix="clipcap-mapper-") as folder:
            path = version.copied_to(Path(folder))
            return self.captioner.build(load_mapper(path, lm_size=self.captioner.language_model.size))

    def _tried(self, model: ClipCaptionModel) -> ClipCaptionModel:
        self.captioner.try_out(model)
        return model

    def clear(self) -> None:
        """Forget all models."""
        self._models.clear()
        self._failed.clear()
        self._reading = None


def _tell(version: MapperVersion, error: Exception) -> None:
    """Of what a file or a storage can be to blame for, the message says it all; only of the rest it takes a trace."""
    trace = None if isinstance(error, ValueError | OSError) else error
    log.error("a version cannot be loaded", exc_info=trace, extra={"version": version.pk, "error": str(error)})
