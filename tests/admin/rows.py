"""What the tests of the admin put into the database, and how they read its pages."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from captioner import services
from captioner.jobs.job import Status
from captioner.models import (
    Caption,
    CaptionRequest,
    Image,
    MapperVersion,
    Style,
)
from captioner.reports import VersionReport
from training import services as training_services
from training.models import TrainingRun
from training.options import RunOptions

GROUPS = ("Viewers", "Labellers", "Trainers")
SHIPPED = settings.MODELS / "styles" / "romantic.safetensors"


def make_run(style: Style, **fields: Any) -> TrainingRun:
    options = RunOptions().to_json()
    ends = timezone.now() + timedelta(days=1)
    return TrainingRun.objects.create(
        style=style, options=options, base=style.version_in_service, deadline_at=ends, **fields
    )


def make_captions(style: Style, images: list[Image], count: int, **fields: Any) -> list[Caption]:
    now = timezone.now()
    fields = {"status": Status.SUCCEEDED, "finished_at": now, "text": "a dog", **fields}
    request = CaptionRequest.objects.create()
    return Caption.objects.bulk_create(
        Caption(
            request=request,
            image=images[i % len(images)],
            style=style,
            version=style.version_in_service if fields["status"] == Status.SUCCEEDED else None,
            **{"created_at": now - timedelta(seconds=i), "deadline_at": now, **fields},
        )
        for i in range(count)
    )


def make_examples(style: Style, images: list[Image]) -> None:
    for image in images:
        training_services.add_example(style=style, image=image, text="a dog", source="stored")


def make_version(style: Style, **metrics: Any) -> MapperVersion:
    report = VersionReport.read(metrics)
    return services.register_version(style=style, path=SHIPPED, origin=MapperVersion.Origin.TRAINED, report=report)


def scores(value: float) -> dict[str, Any]:
    return {"scores": {"CIDEr": value, "Bleu_4": value / 4}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}


def text_of(response: Any) -> str:
    if response.status_code == 302:
        return str(response.url)
    return re.sub(r"</?data[^>]*>", "", response.content.decode())  # numbers, which browsers put as the reader does
