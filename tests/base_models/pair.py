"""A pair of small base models with a worker that has loaded them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from django.utils import timezone

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import (
    BaseModels,
    Caption,
    MapperVersion,
    Style,
    Viewer,
    Worker,
)
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.mapper import MapperConfig, build_mapper

PHOTOS = Path(__file__).parents[2] / "examples/coco_cc"
CONFIG = MapperConfig("mlp", 16, 32, prefix_length=3, hidden_size=8)
SHORT = {"method": "greedy", "max_length": 3}


@dataclass
class Base:
    """Base models with a caption worker that has loaded them."""

    engine: CaptionEngine
    sources: dict[str, str]

    @property
    def identities(self) -> dict[str, str]:
        models = self.engine.captioner
        return {"encoder": models.encoder.identity, "language_model": models.language_model.identity}

    def starts(self) -> BaseModels:
        """What a worker does when it starts: it records its models, and reports."""
        row = BaseModels.record(**self.identities, **self.sources)
        Worker.objects.update_or_create(
            name=self.engine.name,
            defaults={
                "queue": "captions",
                "seen_at": timezone.now() + timedelta(hours=1),  # the machine may be busy
                "models_loaded": ", ".join(self.identities.values()),
                "encoder": self.identities["encoder"],
            },
        )
        return row

    def mapper(self, path: Path, seed: int = 0) -> Path:
        """A file of a mapper for these models."""
        torch.manual_seed(seed)
        save_mapper(MapperCheckpoint(build_mapper(CONFIG), **self.identities), path)  # type: ignore[arg-type]
        return path

    def version(self, style: Style, folder: Path) -> MapperVersion:
        """A version of a style for these models."""
        path = self.mapper(folder / f"{style.slug}.safetensors", style.versions.count())
        return services.register_version(style=style, path=path, origin=MapperVersion.Origin.TRAINED)


def ask(photo: bytes, style: Style) -> Caption:
    request = services.request_captions(
        viewer=Viewer(), images=[services.Upload(photo)], styles=[style.slug], options=SHORT
    )
    return request.captions.get()


def written(caption: Caption) -> MapperVersion | None:
    """The version that has written a caption, if it is finished."""
    caption.refresh_from_db()
    assert caption.status not in (Status.FAILED, Status.CANCELED), caption.error_detail
    return caption.version
