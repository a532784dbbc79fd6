"""A style in service, a run in the middle of its training, browsers of each group, and one of every page."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.jobs.job import Status
from captioner.models import (
    DraftRequest,
    Image,
    Style,
    Viewer,
)
from tests.admin.rows import GROUPS, make_run, make_version, scores
from tests.people import client_of, member
from training.models import EpochReport, Import, RunEvent, TrainingRun


@pytest.fixture
def boss(db: None) -> Client:
    """A superuser's browser."""
    return client_of(User.objects.create_superuser("boss", password="boss"))


@pytest.fixture
def members(db: None) -> dict[str, Client]:
    """A browser of a member of each ready group, and of `Promoters`, Viewers who may promote, by the group."""
    found = {}
    for name in GROUPS:
        found[name] = client_of(member(name, name, is_staff=True))
    return found


@pytest.fixture
def style(styles: dict[str, Style]) -> Style:
    return styles["humorous"]


@pytest.fixture
def images(media: Path, db: None) -> list[Image]:
    """Pictures without files: lists show none of their bytes."""
    return Image.objects.bulk_create(
        Image(sha256=f"{i:064x}", file=f"images/{i}.jpg", thumbnail=f"t/{i}.jpg", width=40, height=30, size=100)
        for i in range(40)
    )


@pytest.fixture
def run(style: Style, images: list[Image]) -> TrainingRun:
    """A run in the middle of its training."""
    lease = {"lease_token": uuid.UUID(int=1), "lease_expires_at": timezone.now() + settings.LEASE}
    run = make_run(style, status=Status.RUNNING, **lease)
    run.progress = {
        "phase": "training",
        "step": 30,
        "steps": 90,
        "eta_seconds": 130.0,
        "samples_per_second": 412.0,
        "learning_rate": 3e-4,
    }
    run.curve = [[step, 5 - step / 10, 1e-3] for step in range(1, 31)]
    run.save()
    for epoch, text in ((1, "a dog"), (2, "a dog"), (3, "a dog with a plan")):
        samples = [{"image": str(images[0].pk), "text": text, "reference": "<b>two dogs</b>"}]
        EpochReport.objects.create(
            run=run, epoch=epoch, step=10 * epoch, training_loss=4.5, validation_loss=4.6, samples=samples
        )
    RunEvent.objects.create(run=run, message="the photos are ready")
    return run


@pytest.fixture
def addresses(style: Style, run: TrainingRun, photo: bytes, viewer: Viewer) -> dict[str, str]:
    """One of every page and button."""
    request = services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["humorous"])
    caption = request.captions.get()
    now = timezone.now()
    batch = Import.objects.create(style=style, name="photos.zip", deadline_at=now + timedelta(days=1))
    version = make_version(style, candidate=scores(0.4))
    drafts = DraftRequest.objects.create()
    objects: dict[str, Any] = {"style": style, "captioner_caption": caption, "run": run, "import": batch}
    objects |= {"version": version, "drafts": drafts}

    def at(name: str, key: str) -> str:
        return reverse(f"admin:{name}", args=[objects[key].pk])

    return {
        "dashboard": reverse("admin:index"),
        "style": at("captioner_style_change", "style"),
        "captions": reverse("admin:captioner_caption_changelist"),
        "caption": at("captioner_caption_change", "captioner_caption"),
        "image": reverse("image-thumbnail", args=[caption.image_id]),
        "version": at("captioner_mapperversion_change", "version"),
        "compare": reverse("admin:captioner_mapperversion_compare") + f"?version={version.pk}",
        "run": at("training_trainingrun_change", "run"),
        "run-live": at("training_trainingrun_live", "run"),
        "dataset": at("captioner_style_dataset", "style"),
        "import": at("training_import_change", "import"),
        "caption-correct": at("captioner_caption_correct", "captioner_caption"),
        "caption-retry": at("captioner_caption_retry", "captioner_caption"),
        "caption-cancel": at("captioner_caption_cancel", "captioner_caption"),
        "style-take": at("captioner_style_take", "style"),
        "example-add": reverse("admin:training_example_add"),
        "style-add": reverse("admin:captioner_style_add"),
        "style-default": at("captioner_style_default", "style"),
        "style-sentences": at("captioner_style_sentences", "style"),
        "style-train": at("captioner_style_train", "style"),
        "style-retrain": at("captioner_style_retrain", "style"),
        "style-import": at("captioner_style_import", "style"),
        "style-rewrite": at("captioner_style_rewrite", "style"),
        "versions-photos": reverse("admin:captioner_mapperversion_photos"),
        "drafts-cancel": at("captioner_draftrequest_cancel", "drafts"),
        "import-cancel": at("training_import_cancel", "import"),
        "import-resume": at("training_import_resume", "import"),
        "run-cancel": at("training_trainingrun_cancel", "run"),
        "run-resume": at("training_trainingrun_resume", "run"),
        "version-import": reverse("admin:captioner_mapperversion_import"),
        "version-promote": at("captioner_mapperversion_promote", "version"),
        "version-remove": at("captioner_mapperversion_remove", "version"),
        "queue-pause": reverse("admin:pause-queue", args=["captions"]),
        "queue-resume": reverse("admin:resume-queue", args=["captions"]),
    }
