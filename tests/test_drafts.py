"""What versions write beside what is in service: comparisons on photos, and a style's captions written anew."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.errors import Refused
from captioner.inference.engine import DRAFTS_FIRST, CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Caption, Draft, DraftRequest, Image, MapperVersion, Style, Viewer
from clipcap.prefixes import distances, mean_distance

PHOTOS = sorted((Path(__file__).parent.parent / "examples/coco_cc").glob("*.jpg"))[:6]


@pytest.fixture
def style(styles: dict[str, Style]) -> Style:
    return styles["factual"]


@pytest.fixture
def other(style: Style) -> MapperVersion:
    """A version of the factual style that is not in service, and writes otherwise: romantic's mapper."""
    return services.register_version(style=style, path=shipped("romantic"), origin=MapperVersion.Origin.TRAINED)


@pytest.fixture
def boss(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("boss", password="boss"))
    return client


def shipped(style: str) -> Path:
    return Path(__file__).parent.parent / "models" / "base" / "styles" / f"{style}.safetensors"


def uploads(count: int) -> list[services.Upload]:
    return [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:count]]


def captions(style: Style, count: int, engine: CaptionEngine, **more: Any) -> list[Caption]:
    """So many photos captioned in the style."""
    request = services.request_captions(viewer=Viewer(), images=uploads(count), styles=[style.slug], **more)
    while engine.work():
        pass
    return list(request.captions.order_by("pk"))


def active(style: Style) -> MapperVersion:
    version = style.active_version
    assert version
    return version


# Comparisons


def test_versions_in_service_or_not_write_about_the_same_photos(
    style: Style, styles: dict[str, Style], other: MapperVersion, engine: CaptionEngine
) -> None:
    versions = [active(style), other]
    request = services.compare_versions(versions=versions, images=uploads(2))
    assert engine.work() == 4
    drafts = {(d.image.sha256, d.version): d for d in request.drafts.all()}
    assert len(drafts) == 4
    written = {
        version: [d.text for d in request.drafts.filter(version=version).order_by("image__sha256")]
        for version in versions
    }
    for slug, version in (("factual", versions[0]), ("romantic", other)):
        rows = captions(styles[slug], 2, engine)
        assert written[version] == [row.text for row in sorted(rows, key=lambda row: row.image.sha256)]


def test_a_draft_keeps_what_its_prefix_says_and_photos_have_different_ones(style: Style, engine: CaptionEngine) -> None:
    request = services.compare_versions(versions=[active(style)], images=uploads(2))
    engine.work()
    first, second = request.drafts.all()
    assert len(first.prefix_words) == active(style).config["prefix_length"] == 8
    for words in first.prefix_words:
        likenesses = [likeness for _, likeness in words]
        assert likenesses == sorted(likenesses, reverse=True)
        assert all(-1 <= likeness <= 1 for likeness in likenesses)
    prefixes = np.stack([np.frombuffer(bytes(draft.prefix or b""), "<f2").reshape(8, -1) for draft in (first, second)])
    assert distances(prefixes)[0, 0] == pytest.approx(0, abs=1e-3)
    assert 0.01 < mean_distance(prefixes) < 2


def test_comparisons_are_in_no_list_of_captions_and_keep_no_version_from_being_deleted(
    other: MapperVersion, engine: CaptionEngine
) -> None:
    services.compare_versions(versions=[other], images=uploads(1))
    engine.work()
    assert not Caption.objects.exists()
    services.delete_version(other)
    assert not Draft.objects.exists()


def test_a_version_that_cannot_be_loaded_waits_alone_and_says_why(
    style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    other.file.storage.delete(str(other.file.name))
    request = services.compare_versions(versions=[active(style), other], images=uploads(1))
    engine.work()
    assert request.drafts.get(version=active(style)).status == Status.SUCCEEDED
    waiting = request.drafts.get(version=other)
    (failure,) = waiting.failures
    assert (waiting.status, failure["code"]) == (Status.QUEUED, "version_unavailable")
    assert str(other) in failure["detail"]
    assert "/" not in failure["detail"]


def test_too_much_or_nothing_to_compare_is_refused(style: Style, settings: Any) -> None:
    with pytest.raises(Refused, match="between 1 and 24 photos"):
        services.compare_versions(versions=[active(style)], images=[])
    with pytest.raises(Refused, match="between 1 and 6 versions"):
        services.compare_versions(versions=[], images=uploads(1))
    with pytest.raises(Refused, match="this is not a picture"):
        services.compare_versions(versions=[active(style)], images=[services.Upload(b"nonsense")])
    assert not DraftRequest.objects.exists()


def test_captions_pass_drafts_but_not_for_ever(style: Style, engine: CaptionEngine) -> None:
    request = services.compare_versions(versions=[active(style)], images=uploads(1))
    waiting = request.drafts.get()
    for turn in range(1, DRAFTS_FIRST + 1):
        services.request_captions(viewer=Viewer(), images=uploads(1), styles=["factual"], options={"method": "greedy"})
        assert engine.work() == 1
        waiting.refresh_from_db()
        assert waiting.finished == (turn == DRAFTS_FIRST)


# Captions written anew


def test_captions_of_another_version_are_written_anew_and_corrections_stay(
    style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    rows = captions(style, 3, engine)
    kept = services.correct_caption(Viewer(), rows[0].pk, "What a person wrote.")
    services.promote(version=other, reason="to see")
    fresh = captions(style, 1, engine)
    request = services.rewrite_captions(style=style)
    assert request.drafts.count() == 3, "the fresh one is by the version in service already"
    assert [row.text for row in Caption.objects.filter(pk__in=[r.pk for r in rows]).order_by("pk")] == [
        row.text for row in rows
    ], "each keeps its text until the new one is there"
    while engine.work():
        pass
    for row in rows:
        now = Caption.objects.get(pk=row.pk)
        assert (now.version, now.status) == (other, Status.SUCCEEDED)
        assert now.text != row.text
        assert (now.created_at, now.name) == (row.created_at, row.name)
    now = Caption.objects.get(pk=rows[0].pk)
    assert (now.best_text, now.corrections.get()) == (kept.text, kept)
    assert Caption.objects.get(pk=fresh[0].pk).text == fresh[0].text
    with pytest.raises(Refused, match="has already written all captions"):
        services.rewrite_captions(style=style)


def test_what_was_withheld_is_withheld_again_when_it_is_written_anew(
    style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    (row,) = captions(style, 1, engine, min_confidence=1.0)
    services.promote(version=other, reason="to see")
    services.rewrite_captions(style=style)
    while engine.work():
        pass
    row.refresh_from_db()
    assert (row.version, row.text, row.alternatives) == (other, "", [])
    assert row.withheld
    assert row.withheld["code"] == "low_confidence"


def test_more_captions_than_fit_into_one_transaction_are_all_written_anew(
    boss: Client, style: Style, other: MapperVersion, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.drafts, "PART", 2)
    rows = captions(style, 5, engine)
    services.promote(version=other, reason="to see")
    request = services.rewrite_captions(style=style)
    assert request.drafts.count() == 2, "the rest is looked up by the workers"
    address = reverse("admin:captioner_draftrequest_live", args=[request.pk])
    assert "more are being queued" in boss.get(address).content.decode()
    while services.list_rewritings():
        pass
    assert set(request.drafts.values_list("caption", flat=True)) == {row.pk for row in rows}
    assert "more are being queued" not in boss.get(address).content.decode()
    while engine.work():
        pass
    assert set(Caption.objects.values_list("version", flat=True)) == {other.pk}


def test_captions_that_were_not_looked_up_yet_are_canceled_too(
    style: Style, other: MapperVersion, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.drafts, "PART", 2)
    captions(style, 5, engine)
    services.promote(version=other, reason="to see")
    request = services.rewrite_captions(style=style)
    assert services.cancel_drafts(request) == 2
    assert services.list_rewritings() == 0
    assert request.drafts.count() == 2


def test_captions_are_written_by_the_version_that_was_in_service_when_it_was_asked(
    style: Style, other: MapperVersion, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.drafts, "PART", 2)
    first = active(style)
    captions(style, 5, engine)
    services.promote(version=other, reason="to see")
    request = services.rewrite_captions(style=style)
    services.promote(version=first, reason="back")
    while services.list_rewritings():
        pass
    assert set(request.drafts.values_list("version", flat=True)) == {other.pk}
    assert request.drafts.count() == 5


def test_begun_twice_each_caption_is_written_once(style: Style, other: MapperVersion, engine: CaptionEngine) -> None:
    captions(style, 2, engine)
    services.promote(version=other, reason="to see")
    services.rewrite_captions(style=style)
    with pytest.raises(Refused):
        services.rewrite_captions(style=style)
    assert Draft.objects.count() == 2


def test_a_caption_that_is_deleted_meanwhile_stays_so(
    style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    (row,) = captions(style, 1, engine)
    services.promote(version=other, reason="to see")
    services.rewrite_captions(style=style)
    services.delete_caption(Viewer(), row.pk)
    assert engine.work() == 0
    assert not Caption.objects.exists()
    assert not Image.objects.exists()


def test_a_rewriting_that_fails_leaves_the_caption_as_it_was_and_can_be_begun_again(
    style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    (row,) = captions(style, 1, engine)
    services.promote(version=other, reason="to see")
    services.rewrite_captions(style=style)
    other.file.storage.delete(str(other.file.name))
    assert engine.work() == 1
    Draft.objects.update(deadline_at=timezone.now())
    assert Draft.objects.all().reap() == 1
    now = Caption.objects.get(pk=row.pk)
    assert (now.text, now.version, now.status) == (row.text, row.version, Status.SUCCEEDED)
    assert services.rewrite_captions(style=style).drafts.count() == 1


def test_what_is_canceled_is_not_written(style: Style, other: MapperVersion, engine: CaptionEngine) -> None:
    captions(style, 2, engine)
    services.promote(version=other, reason="to see")
    request = services.rewrite_captions(style=style)
    assert services.cancel_drafts(request) == 2
    assert engine.work() == 0
    with pytest.raises(Refused, match="already"):
        services.cancel_drafts(request)


def test_old_drafts_are_pruned_with_their_images(style: Style, engine: CaptionEngine) -> None:
    request = services.compare_versions(versions=[active(style)], images=uploads(1))
    old = timezone.now() - timedelta(days=400)
    DraftRequest.objects.update(created_at=old)
    Image.objects.update(created_at=old)
    services.prune(timedelta(days=30))
    assert request.drafts.count() == 1, "it is not written yet"
    engine.work()
    services.prune(timedelta(days=30))
    assert not DraftRequest.objects.exists()
    assert not Image.objects.exists()


# In the admin


def test_photos_are_chosen_and_uploaded_and_the_page_shows_what_each_version_writes(
    boss: Client, style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    (row,) = captions(style, 1, engine)
    page = boss.get(reverse("admin:captioner_mapperversion_compare") + f"?version={other.pk}").content.decode()
    assert f'value="{row.image_id}"' in page
    upload = SimpleUploadedFile("a.jpg", PHOTOS[1].read_bytes(), "image/jpeg")
    answer = boss.post(
        reverse("admin:captioner_mapperversion_photos"),
        {"version": [active(style).pk, other.pk], "photo": [row.image_id], "upload": [upload]},
    )
    waiting = boss.get(answer.headers["Location"]).content.decode()
    assert "0</b> of 4 written" in waiting
    assert "hx-get" in waiting
    engine.work()
    live = boss.get(reverse("admin:captioner_draftrequest_live", args=[DraftRequest.objects.get().pk])).content.decode()
    assert "4</b> of 4 written" in live
    assert "hx-get" not in live
    for draft in Draft.objects.all():
        assert draft.text in live.replace("&#x27;", "'")
    assert live.count("<svg") == 2
    assert "hardly readable" in live


def test_nothing_chosen_is_said_where_it_was_to_be_chosen(boss: Client, style: Style) -> None:
    address = reverse("admin:captioner_mapperversion_compare") + f"?version={active(style).pk}"
    answer = boss.post(
        reverse("admin:captioner_mapperversion_photos"),
        {"version": [active(style).pk]},
        headers={"referer": f"http://testserver{address}"},
        follow=True,
    )
    assert "Choose between 1 and 24 photos, not 0." in answer.content.decode()


def test_a_style_is_rewritten_from_its_page(
    boss: Client, style: Style, other: MapperVersion, engine: CaptionEngine
) -> None:
    captions(style, 2, engine)
    services.promote(version=other, reason="to see")
    asked = boss.get(reverse("admin:captioner_style_rewrite", args=[style.pk])).content.decode()
    assert "2 captions were written by another version" in asked
    page = boss.post(reverse("admin:captioner_style_rewrite", args=[style.pk]), follow=True)
    assert "0</b> of 2 written" in page.content.decode()
    address = reverse("admin:captioner_draftrequest_cancel", args=[DraftRequest.objects.get().pk])
    boss.post(address)
    assert set(Draft.objects.values_list("status", flat=True)) == {"canceled"}


def test_an_address_of_no_draft_leads_nowhere(boss: Client) -> None:
    assert boss.get(reverse("admin:captioner_draftrequest_live", args=[uuid.uuid4()])).status_code == 404
