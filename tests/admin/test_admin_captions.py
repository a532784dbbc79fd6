"""Captions in the admin: found, tried again and canceled, and what the dashboard tells of failures."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.jobs.job import Failure, Status
from captioner.models import (
    Caption,
    Image,
    Style,
    Viewer,
    Worker,
)
from tests.admin.rows import make_captions, text_of
from training.models import Import, TrainingRun
from training.options import RunOptions

pytestmark = pytest.mark.django_db


def test_failed_captions_are_tried_again_and_queued_ones_canceled_from_the_list(
    style: Style, images: list[Image], boss: Client
) -> None:
    failed = make_captions(style, images, 3, status=Status.FAILED, error_code="worker_lost", error_detail="lost")
    done = make_captions(style, images, 2)
    address = reverse("admin:captioner_caption_changelist")
    chosen = {"_selected_action": [caption.pk for caption in failed + done]}
    page = text_of(boss.post(address, {**chosen, "action": "retry_chosen"}, follow=True))
    assert "3 captions were queued again" in page
    assert "2 failed" in page
    boss.post(address, {**chosen, "action": "cancel_chosen"})
    assert Caption.objects.filter(status=Status.CANCELED).count() == 3


def test_captions_that_the_models_are_not_sure_about_are_found_and_shown_as_such(
    style: Style, images: list[Image], boss: Client
) -> None:
    others = [{"text": "a wolf", "confidence": 0.1, "log_probability": -1.5}]
    unsure, corrected = make_captions(style, images, 2, text="a dog", confidence=0.3, alternatives=others)
    services.correct_caption(Viewer(User.objects.get(username="boss")), corrected.pk, "A cat.")
    make_captions(style, images, 1, text="a house", confidence=0.9)
    least = {"text": "", "confidence": 0.2, "min_confidence": 0.5}
    withheld = make_captions(style, images, 1, **least)[0]
    address = reverse("admin:captioner_caption_changelist")
    page = text_of(boss.get(address))
    for words in ("90 %", "30 %, not sure", "withheld: its confidence is below the requested minimum"):
        assert page.count(words) == 1
    doubtful, others_ = (text_of(boss.get(f"{address}?unsure={value}")) for value in ("true", "false"))
    for caption in (unsure, withheld):
        assert f"{caption.pk}/change/" in doubtful
        assert f"{caption.pk}/change/" not in others_
    assert f"{corrected.pk}/change/" in others_
    shown = text_of(boss.get(reverse("admin:captioner_caption_change", args=[unsure.pk])))
    assert "Not sure about this one: see the alternatives." in shown
    assert "10 %" in shown
    shown = text_of(boss.get(reverse("admin:captioner_caption_change", args=[corrected.pk])))
    assert "30 %, for the original caption" in shown
    assert "Not sure" not in shown


def test_a_failure_is_tried_again_from_the_dashboard(style: Style, images: list[Image], boss: Client) -> None:
    caption = make_captions(style, images, 1, status=Status.FAILED, error_code="x", error_detail="it was lost")[0]
    retry = reverse("admin:captioner_caption_retry", args=[caption.pk])
    page = text_of(boss.get(reverse("admin:index")))
    assert "it was lost" in page
    assert retry in page
    answer = boss.post(retry, headers={"Referer": "http://testserver/admin/"})
    assert text_of(answer) == "http://testserver/admin/"
    caption.refresh_from_db()
    assert caption.status == Status.QUEUED
    answer = boss.post(retry, headers={"Referer": "http://evil.example/"})
    assert text_of(answer) == reverse("admin:captioner_caption_changelist")


def test_the_dashboard_shows_the_last_failure_first_whatever_was_asked_for_last(
    style: Style, images: list[Image], boss: Client
) -> None:
    now = timezone.now()
    rows = make_captions(style, images, 2, status=Status.FAILED, error_code="x", error_detail="lost")
    for row, asked, failed in zip(rows, (5, 2), (1, 2), strict=True):
        times = {"created_at": now - timedelta(hours=asked), "finished_at": now - timedelta(hours=failed)}
        Caption.objects.filter(pk=row.pk).update(**times)
    page = text_of(boss.get(reverse("admin:dashboard")))
    last, first = (page.index(reverse("admin:captioner_caption_retry", args=[row.pk])) for row in rows)
    assert last < first
    assert "1\xa0hour ago" in page[:last]
    assert "5\xa0hours ago" not in page


def test_a_failed_run_is_resumed_from_the_dashboard(style: Style, boss: Client) -> None:
    now = timezone.now()
    failed = {"status": Status.FAILED, "error_code": "x", "error_detail": "the loss is no number"}
    run = TrainingRun.objects.create(
        style=style, options=RunOptions().to_json(), deadline_at=now, finished_at=now, **failed
    )
    resume = reverse("admin:training_trainingrun_resume", args=[run.pk])
    page = text_of(boss.get(reverse("admin:dashboard")))
    assert f"Run {run.pk} of {style}" in page
    assert f'action="{resume}"' in page
    boss.post(resume)
    run.refresh_from_db()
    assert run.status == Status.QUEUED


def test_a_failed_import_is_on_the_dashboard(style: Style, members: dict[str, Client]) -> None:
    now = timezone.now()
    failed = {"status": Status.FAILED, "error_code": "bad_zip", "error_detail": "it is no zip", "deadline_at": now}
    batch = Import.objects.create(style=style, name="photos.zip", finished_at=now, **failed)
    Import.objects.create(style=style, name="old.zip", finished_at=now - timedelta(days=2), **failed)
    for group, client in members.items():
        page = text_of(client.get(reverse("admin:dashboard")))
        assert reverse("admin:training_import_change", args=[batch.pk]) in page
        assert "it is no zip" in page
        assert "old.zip" not in page
        assert (reverse("admin:training_import_resume", args=[batch.pk]) in page) == (group == "Trainers")


def test_tries_that_failed_and_workers_that_paused_themselves_are_shown(
    style: Style, images: list[Image], boss: Client, run: TrainingRun
) -> None:
    (row,) = make_captions(style, images, 1, status=Status.QUEUED, finished_at=None, text="")
    Caption.objects.update(deadline_at=timezone.now() + timedelta(hours=1))
    (row,) = Caption.objects.claim("w1@host", 1)
    row.hand_back(Failure("out_of_memory", "the worker has too little memory"))
    page = text_of(boss.get(reverse("admin:captioner_caption_change", args=[row.pk])))
    assert "w1@host" in page
    assert "the worker has too little memory" in page

    TrainingRun.objects.filter(pk=run.pk).update(attempts=1)
    assert run.hand_back(Failure("image_missing", "the stored image cannot be read"))
    page = text_of(boss.get(reverse("admin:training_trainingrun_change", args=[run.pk])))
    assert "the stored image cannot be read" in page

    Worker.objects.create(name="w1@host", queue="captions", trouble="the worker has too little memory")
    page = text_of(boss.get(reverse("admin:dashboard")))
    assert "paused automatically" in page
    assert "the worker has too little memory" in page
