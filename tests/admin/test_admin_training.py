"""Queues, runs, imports and examples in the admin."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import (
    Correction,
    Image,
    Style,
    Viewer,
)
from tests.admin.rows import make_captions, make_examples, make_run, make_version, scores, text_of
from training import services as training_services
from training.admin import examples as training_examples
from training.models import Example, Import, RejectedRow, TrainingRun
from training.worker import TrainingEngine

pytestmark = pytest.mark.django_db


# Queues


def test_workers_of_a_paused_queue_claim_nothing(
    boss: Client, style: Style, viewer: Viewer, photo: bytes, engine: CaptionEngine
) -> None:
    request = services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["humorous"])
    boss.post(reverse("admin:pause-queue", args=["captions"]), {"reason": "new graphics card"})
    assert "new graphics card" in text_of(boss.get(reverse("admin:dashboard")))
    assert engine.work() == 0
    assert request.captions.get().status == Status.QUEUED
    boss.post(reverse("admin:resume-queue", args=["captions"]))
    assert engine.work() == 1
    assert request.captions.get().status == Status.SUCCEEDED
    make_run(style)
    services.pause_queue(name="training")
    assert TrainingEngine(engine).work() == 0
    assert TrainingRun.objects.get().status == Status.QUEUED


# Runs


def test_a_run_page_shows_how_far_it_is_and_stops_asking_when_it_has_ended(run: TrainingRun, boss: Client) -> None:
    address = reverse("admin:training_trainingrun_live", args=[run.pk])
    page = text_of(boss.get(address))
    for text in ('max="90" value="30"', "2 min left", "412 captions/s", "0.0003", "the photos are ready", "every 2s"):
        assert text in page
    assert page.count("<span>a dog <") == 1  # epochs 1 and 2 wrote the same
    assert "&lt;b&gt;two dogs&lt;/b&gt;" in page
    boss.post(reverse("admin:training_trainingrun_cancel", args=[run.pk]))
    page = text_of(boss.get(address))
    assert "every 2s" not in page
    assert "Resume from the last checkpoint" in page
    boss.post(reverse("admin:training_trainingrun_resume", args=[run.pk]))
    run.refresh_from_db()
    assert run.status == Status.QUEUED


def test_a_finished_run_shows_its_verdict_and_the_photos_that_differ_most(
    run: TrainingRun, images: list[Image], boss: Client
) -> None:
    version = make_version(run.style, verdict="better")
    run.status, run.finished_at, run.lease_token, run.lease_expires_at = Status.SUCCEEDED, timezone.now(), None, None
    run.verdict, run.version = TrainingRun.Verdict.BETTER, version
    run.metrics = {
        "images": 20,
        "candidate": scores(0.5),
        "active": scores(0.4),
        "active_version": "humorous v1",
        "metric": "Bleu_4",
        "margin": 0.0,
        "difference": {"mean": 0.1, "low": 0.05, "high": 0.15},
    }
    run.comparison = [
        {"image": str(images[0].pk), "candidate": "new", "active": "old", "references": ["ours"], "scores": [1.0, 0.2]}
    ]
    run.save()
    page = text_of(boss.get(reverse("admin:training_trainingrun_change", args=[run.pk])))
    for text in (
        "Better",
        '<td class="number">0.400</td>',
        '<tr><th scope="row">BLEU-4</th>',
        "Difference in BLEU-4: 0.100, 95 % from 0.050 to 0.150",
        "Promote humorous v2",
        "new",
        "old",
        "ours",
    ):
        assert text in page
    assert "v2 is better than v1: BLEU-4 +0.10, 95 % interval 0.05 to 0.15, on 20 photos." in page
    assert "Bleu_4" not in page
    policy = text_of(boss.get(reverse("admin:captioner_style_change", args=[run.style_id])))
    assert '<option value="Bleu_4">BLEU-4</option>' in policy


def test_options_without_sense_are_refused_beside_their_field(style: Style, images: list[Image], boss: Client) -> None:
    address = reverse("admin:captioner_style_retrain", args=[style.pk])
    given = {"start": "scratch", "mapper": "mlp", "prefix_length": 10, "layers": 4, "epochs": 2, "learning_rate": ""}
    given |= {"batch_size": 40, "noise": 0.25, "seed": 0, "sources": ["imported", "correction"]}
    given |= {
        "accumulation": 1,
        "rank": 8,
        "targets": "mlp",
        "language_model": "",
        "language_model_learning_rate": "",
        "recompute": "",
    }
    page = text_of(boss.post(address, {**given, "prefix_length": 65}))
    assert re.search(r'errors field-prefix_length">\s*<ul class="errorlist"[^>]*><li>prefix_length must be', page)
    assert "at least" in text_of(boss.post(address, given))  # too few examples
    Example.objects.bulk_create(
        Example(style=style, image=image, text="a dog", source="imported", held_out=i < 8)
        for i, image in enumerate(images)
    )
    answer = boss.post(address, given)
    run = TrainingRun.objects.get()
    assert text_of(answer) == reverse("admin:training_trainingrun_change", args=[run.pk])
    assert (run.options["mapper"], run.options["targets"]) == ("mlp", "mlp")
    assert run.options["sources"] == ["imported", "correction"]
    assert run.person == User.objects.get(username="boss")
    assert "a run of Humorous is unfinished" in text_of(boss.post(address, given))


def test_several_styles_are_retrained_from_the_list(
    styles: dict[str, Style], images: list[Image], boss: Client
) -> None:
    for style in (styles["humorous"], styles["romantic"]):
        Example.objects.bulk_create(
            Example(style=style, image=image, text="a dog", source="imported", held_out=i < 8)
            for i, image in enumerate(images)
        )
    chosen = {"action": "retrain_chosen", "_selected_action": [style.pk for style in styles.values()]}
    page = text_of(boss.post(reverse("admin:captioner_style_changelist"), chosen, follow=True))
    assert "2 runs were queued" in page
    assert "1 failed: Factual has captions of 0 images" in page


# Examples


def test_an_upload_of_examples_is_queued_and_its_rejected_rows_can_be_downloaded(style: Style, boss: Client) -> None:
    address = reverse("admin:captioner_style_import", args=[style.pk])
    assert "empty" in text_of(boss.post(address, {"file": SimpleUploadedFile("photos.zip", b"")}))
    answer = boss.post(address, {"file": SimpleUploadedFile("photos.zip", b"PK")})
    batch = Import.objects.get()
    assert text_of(answer) == reverse("admin:training_import_change", args=[batch.pk])
    RejectedRow.objects.create(batch=batch, file="=captions.csv", line=3, reason="the image x.jpg is missing")
    page = text_of(boss.get(text_of(answer)))
    assert "the image x.jpg is missing" in page
    response: Any = boss.get(reverse("admin:training_import_rejected", args=[batch.pk]))
    rows = list(csv.reader(io.StringIO(b"".join(response.streaming_content).decode())))
    assert rows == [["file", "line", "reason"], ["'=captions.csv", "3", "the image x.jpg is missing"]]


def test_corrections_are_taken_one_by_one_or_all_at_once(style: Style, images: list[Image], boss: Client) -> None:
    captions = make_captions(style, images, 5)
    for caption in captions:
        boss.post(reverse("admin:captioner_caption_correct", args=[caption.pk]), {"text": "a dog with a plan"})
    assert Correction.objects.count() == 5
    first = Correction.objects.first()
    assert first
    chosen = {"action": "take_chosen", "_selected_action": [first.pk]}
    boss.post(reverse("admin:captioner_correction_changelist"), chosen)
    assert [example.correction for example in Example.objects.all()] == [first]
    page = text_of(boss.get(reverse("admin:captioner_correction_changelist") + "?taken=no"))
    assert "4 corrections" in page
    boss.post(reverse("admin:captioner_style_take", args=[style.pk]))
    assert Example.objects.filter(source=Example.Source.CORRECTION).count() == 5


def test_a_stored_photo_is_added_by_hand(style: Style, images: list[Image], boss: Client) -> None:
    address = reverse("admin:training_example_add")
    boss.post(address, {"style": style.pk, "image": images[0].pk, "text": " a  dog "})
    example = Example.objects.get()
    assert (example.text, example.source) == ("a dog", Example.Source.STORED)
    for text in ("a dog", "a  dog"):
        given = {"style": style.pk, "image": images[0].pk, "text": text}
        assert "already exists" in text_of(boss.post(address, given))
    given = {"style": style.pk, "image": images[0].pk, "text": "…"}
    assert "contains no words" in text_of(boss.post(address, given))


def test_examples_are_deleted_from_the_list_after_asking(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_examples, "PART", 2)
    make_examples(style, images[:6])
    kept, *gone = Example.objects.all()
    address = reverse("admin:training_example_changelist")
    chosen = {"action": "delete_chosen", "_selected_action": [example.pk for example in gone]}
    asked = text_of(boss.post(address, chosen))
    assert "Delete 5 examples?" in asked
    given = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked)
    assert Example.objects.count() == 6
    again = {name: [value for key, value in given if key == name] for name, _ in given}
    page = text_of(boss.post(address, again, follow=True))
    assert "5 examples were deleted" in page
    assert "delete_selected" not in page
    assert Example.objects.get() == kept
    logged = LogEntry.objects.filter(action_flag=DELETION).values_list("object_id", flat=True)
    assert set(logged) == {str(example.pk) for example in gone}


def test_examples_that_come_while_deleting_is_asked_about_stay(style: Style, images: list[Image], boss: Client) -> None:
    make_examples(style, images[:3])
    address = reverse("admin:training_example_changelist")
    all_of_them = {"action": "delete_chosen", "_selected_action": [1], "select_across": "1", "index": "0"}
    asked = text_of(boss.post(address, all_of_them))
    assert "Delete 3 examples?" in asked
    training_services.add_example(style=style, image=images[0], text="a late dog", source="stored")
    given = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked))
    assert "3 examples were deleted" in text_of(boss.post(address, given, follow=True))
    assert Example.objects.get().text == "a late dog"


def test_more_examples_than_can_be_deleted_at_once_stay(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_examples, "COUNTED", 5)
    make_examples(style, images[:6])
    some = {"action": "delete_chosen", "_selected_action": [1], "select_across": "1", "index": "0", "sure": "1"}
    page = text_of(boss.post(reverse("admin:training_example_changelist"), some, follow=True))
    assert "More than 5 rows are selected" in page
    assert Example.objects.count() == 6


def test_the_dataset_page_tells_what_there_is(style: Style, images: list[Image], boss: Client) -> None:
    for image in images[:10]:
        training_services.add_example(style=style, image=image, text="a dog with a plan", source="imported")
    page = text_of(boss.get(reverse("admin:captioner_style_dataset", args=[style.pk])))
    for text in ("a dog with a plan", "<b>10</b> examples", "5.0 words on average"):
        assert text in page
