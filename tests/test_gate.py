"""What the gate found, in sentences."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

from captioner.models import Image, MapperVersion, Style
from captioner.reports import VersionReport
from captioner.services import too_few, verdict_sentence
from captioner.services.gate import decimal
from clipcap.evaluation.comparison import verdict
from tests.people import client_of, member
from training import services
from training.models import Example, TrainingRun


def report(mean: float, low: float, high: float, images: int = 312, **other: Any) -> VersionReport:
    scored = {"scores": {"CIDEr": 0.5}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}
    difference = {"mean": mean, "low": low, "high": high}
    found = VersionReport.read({"difference": difference}).difference
    assert found
    judged = {"verdict": verdict(found, other.get("margin", 0.0), images), "images": images, "candidate": scored}
    return VersionReport.read(
        {"active_version": "humorous v2", "metric": "CIDEr", "margin": 0.0, "difference": difference} | judged | other
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (report(0.04, 0.01, 0.07), "v3 is better than v2: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos"),
        (
            report(0.04, 0.01, 0.07, metric="Bleu_4"),
            "v3 is better than v2: BLEU-4 +0.04, 95 % interval 0.01 to 0.07, on 312 photos",
        ),
        (report(-0.2, -0.3, -0.1), "v3 is worse than v2: CIDEr −0.20, 95 % interval −0.30 to −0.10, on 312 photos"),  # noqa: RUF001
        (
            report(0.02, -0.02, 0.06, images=100),
            "v3 may be better or worse than v2: CIDEr +0.02, 95 % interval −0.02 to 0.06, on 100 photos; if that is "  # noqa: RUF001
            "the true difference, about 400 held-out photos will show it",
        ),
        (
            report(0.0, -0.05, 0.05),
            "v3 may be better or worse than v2: CIDEr 0.00, 95 % interval −0.05 to 0.05, on 312 photos",  # noqa: RUF001
        ),
        (
            report(0.001, -0.05, 0.05),
            "v3 may be better or worse than v2: CIDEr 0.00, 95 % interval −0.05 to 0.05, on 312 photos",  # noqa: RUF001
        ),
        (
            report(0.04, 0.01, 0.07, margin=0.02),
            "v3 may be better or worse than v2: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos; if that is the "
            "true difference, about 710 held-out photos will show it",
        ),
        (
            report(0.04, 0.01, 0.07, images=5),
            "5 held-out photos are too few to judge v3 by; 20 are needed: add about 150 captioned photos",
        ),
        (
            report(0.04, 0.01, 0.07, verdict="unclear"),
            "v3 was not judged, since the metric that its style is judged by was not computed: CIDEr +0.04, 95 % "
            "interval 0.01 to 0.07, on 312 photos",
        ),
        (
            report(0, 0, 0, verdict="first", difference=None, metric=None, version_in_service=None),
            "v3 is the first version, so there is nothing to compare it with: CIDEr 0.50 on 312 photos",
        ),
        (
            report(0, 0, 0, verdict="first", difference=None, images=1),
            "v3 is the first version, so there is nothing to compare it with; 1 photo tells nothing of its quality",
        ),
        (
            report(0, 0, 0, verdict="unclear", difference=None, metric=None, version_in_service=None),
            "v3 could not be compared with the version in service; alone, it reaches CIDEr 0.50 on 312 photos",
        ),
        (report(0, 0, 0, verdict=None, difference=None), "v3 reaches CIDEr 0.50 on 312 photos"),
        (VersionReport(), ""),
    ],
)
def test_a_verdict_is_a_sentence_with_its_numbers_and_the_remedy(found: VersionReport, says: str) -> None:
    assert verdict_sentence("v3", found) == says


def test_one_photo_is_too_few_in_good_english() -> None:
    assert too_few(1).startswith("1 held-out photo is too few to judge a version by; 20 are needed: add about 190 ")


def test_numbers_are_in_the_readers_locale() -> None:
    with translation.override("de"):
        assert "CIDEr +0,04, 95 % interval 0,01 to 0,07, on 1.312 photos" in verdict_sentence(
            "v3", report(0.04, 0.01, 0.07, images=1312)
        )


@pytest.mark.parametrize(("score", "shown"), [(0.207, "0.21"), (0.2999, "0.30"), (0.204, "0.20"), (0.996, "1.00")])
def test_scores_are_rounded_and_not_cut(score: float, shown: str) -> None:
    assert decimal(score) == shown


# Before a run, and where the sentences are read


@pytest.fixture
def humorous(styles: dict[str, Style]) -> Style:
    return styles["humorous"]


@pytest.fixture
def trainer(db: None) -> Client:
    return client_of(member("tess", "Trainers", is_staff=True))


def fill(style: Style, training: int, held_out: int) -> None:
    start = Image.objects.count()
    images = Image.objects.bulk_create(
        Image(sha256=f"{start + n:064x}", file=f"{n}.jpg", thumbnail="t.jpg", width=4, height=3, size=9)
        for n in range(training + held_out)
    )
    Example.objects.bulk_create(
        Example(style=style, image=image, text="a dog", source="stored", held_out=n < held_out)
        for n, image in enumerate(images)
    )


def finished(style: Style, found: VersionReport) -> TrainingRun:
    """A run that ended with a version and this report."""
    version = style.versions.create(number=2, sha256="0" * 64, origin=MapperVersion.Origin.TRAINED)
    MapperVersion.objects.filter(pk=version.pk).update(metrics=found.to_json())
    now = timezone.now()
    ended = {"status": "succeeded", "created_at": now, "finished_at": now, "deadline_at": now}
    return TrainingRun.objects.create(
        style=style, version=version, metrics=found.to_json(), verdict=found.verdict or "", **ended
    )


def test_before_a_run_one_reads_what_the_gate_will_be_able_to_tell(humorous: Style, style: Style) -> None:
    fill(humorous, 1, 0)
    assert services.prospect(humorous).detail == (
        "1 photo will be trained on, and 0 held out to judge by; at least 2 and 1 are needed to train at all"
    )
    fill(humorous, 7, 5)
    assert services.prospect(humorous) == services.Prospect(
        8,
        5,
        False,
        "8 photos will be trained on. 5 held-out photos are too few to judge a version by; 20 are needed: add about "
        "150 captioned photos",
    )
    fill(humorous, 0, 20)
    enough = "8 photos will be trained on, and 25 held out to judge by: enough to tell better from worse"
    assert services.prospect(humorous) == services.Prospect(8, 25, True, enough)
    run = finished(humorous, report(0.04, 0.02, 0.06, images=100))
    assert services.prospect(humorous).detail == f"{enough}, if they differ by about CIDEr 0.04 or more"
    run.delete()
    finished(Style.objects.create(slug="x", name="X"), report(0.04, 0.02, 0.06))
    assert services.prospect(humorous).detail == enough, "another style's runs tell nothing"
    fill(style, 30, 30)
    assert "no version in service to compare with" in services.prospect(style).detail
    last = humorous.examples.order_by("pk").first()
    assert last is not None
    assert services.prospect(humorous, last=last.pk).training == 1


def test_pages_of_run_version_promotion_and_style_begin_with_the_verdict(humorous: Style, client: Client) -> None:
    client.force_login(User.objects.create_superuser("boss"))
    run = finished(humorous, report(0.04, 0.01, 0.07))
    assert run.version is not None
    says = "v2 is better than v2: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos."
    for name, pk in (
        ("training_trainingrun_change", run.pk),
        ("captioner_mapperversion_change", run.version.pk),
        ("captioner_mapperversion_promote", run.version.pk),
        ("captioner_style_change", humorous.pk),
    ):
        page = client.get(reverse(f"admin:{name}", args=[pk])).content.decode()
        assert says in page, name
    other = humorous.versions.create(number=3, sha256="0" * 64, origin=MapperVersion.Origin.IMPORTED)
    page = client.get(reverse("admin:captioner_mapperversion_promote", args=[other.pk])).content.decode()
    assert "Nobody has scored it yet" in page


def test_the_form_and_the_page_of_a_run_say_what_can_be_concluded(humorous: Style, trainer: Client) -> None:
    fill(humorous, 8, 5)
    says = "5 held-out photos are too few to judge a version by"
    retrain = reverse("admin:captioner_style_retrain", args=[humorous.pk])
    assert says in trainer.get(retrain).content.decode()
    run = services.start_run(style=humorous)
    fill(humorous, 0, 40)
    assert says in trainer.get(reverse("admin:training_trainingrun_change", args=[run.pk])).content.decode()


def test_programs_read_the_same_sentences(humorous: Style, trainer: Client, client: Client) -> None:
    fill(humorous, 8, 5)
    address = "/api/styles/humorous/training-prospect/"
    body = trainer.get(address).json()
    assert (body["training"], body["held_out"], body["judged"]) == (8, 5, False)
    assert body["detail"] == services.prospect(humorous).detail
    client.force_login(User.objects.create_user("nobody"))
    assert client.get(address).status_code == 403
    run = finished(humorous, report(0.04, 0.01, 0.07))
    body = trainer.get(f"/api/training-runs/{run.pk}/").json()
    assert body["verdict_detail"].startswith("v2 is better than v2: CIDEr +0.04")
