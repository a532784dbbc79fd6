"""Labelling: one caption after the other, by people."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from captioner import services, uploads
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import (
    Caption,
    Correction,
    Draft,
    DraftRequest,
    Image,
    MapperVersion,
    Skip,
    Style,
    Viewer,
)
from captioner.services import LabelOrder
from tests.pages.captions import jpeg
from tests.people import client_of, member
from training import services as training_services
from training.models import Example

DOUBT, DISPUTE, RANDOM = LabelOrder.DOUBT, LabelOrder.DISPUTE, LabelOrder.RANDOM
PAGE = reverse("label")

Make = Callable[..., Caption]


def order_for(viewer: Viewer, style: Style, count: int, order: LabelOrder = DOUBT) -> list[str]:
    """The texts of the captions that pressing "Next" shows."""
    seen: list[Caption] = []
    for _ in range(count):
        found = services.caption_to_label(viewer, style, order, after=seen[-1].pk if seen else None)
        assert found
        seen.append(found)
    return [caption.text for caption in seen]


def test_the_least_sure_comes_first_the_unknown_last_and_after_the_last_the_first(
    make: Make, style: Style, bob: Viewer
) -> None:
    for text, confidence in (("sure", 0.9), ("unknown", None), ("unsure", 0.1), ("so so", 0.5), ("so too", 0.5)):
        make(text, confidence)
    first, *between, fourth, fifth, again = order_for(bob, style, 6)
    assert (first, sorted(between), fourth, fifth, again) == (
        "unsure",
        ["so so", "so too"],
        "sure",
        "unknown",
        "unsure",
    )


def test_those_that_two_versions_disagree_on_come_alone(make: Make, style: Style, bob: Viewer) -> None:
    first, second = (
        style.versions.create(number=n, sha256=str(n) * 64, origin=MapperVersion.Origin.TRAINED) for n in (8, 9)
    )
    photos = [uploads.store(jpeg(colour=colour).read()) for colour in ("red", "green", "blue", "white")]
    kept, drafted, agreed, alone = (
        make(text, confidence, image=photo, version=first)
        for photo, (text, confidence) in zip(
            photos, (("a cat", 0.5), ("a dog", 0.4), ("a bird", 0.5), ("a tree", 0.5)), strict=True
        )
    )
    make("a lion", 0.9, image=kept.image, version=second)
    comparison = DraftRequest.objects.create()
    for caption, text in ((drafted, "a wolf"), (agreed, "a bird")):
        Draft.objects.create(
            request=comparison,
            image=caption.image,
            version=second,
            text=text,
            status=Status.SUCCEEDED,
            deadline_at=timezone.now(),
            finished_at=timezone.now(),
        )
    assert order_for(bob, style, 4, DISPUTE) == ["a dog", "a cat", "a lion", "a dog"]
    page = client_of(bob.user).get(PAGE, {"order": "dispute"}).content.decode()
    assert "Versions disagree" in page
    assert "a dog" in page
    Caption.objects.exclude(pk=alone.pk).update(labelled=True)
    page = client_of(bob.user).get(PAGE, {"order": "dispute"}).content.decode()
    assert "Versions disagree on none of them" in page


def test_captions_in_random_order_all_come_and_never_the_one_just_shown(
    make: Make, style: Style, bob: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = {make(f"caption {i}", i / 10).pk for i in range(3)}
    seen = set()
    for place in (0, 1):
        monkeypatch.setattr("random.randrange", lambda _, place=place: place)
        for shown in captions:
            found = services.caption_to_label(bob, style, RANDOM, after=shown)
            assert found
            assert found.pk != shown
            seen.add(found.pk)
    assert seen == captions


def test_the_only_one_left_is_shown_again(make: Make, style: Style, bob: Viewer) -> None:
    only = make()
    for order in (DOUBT, RANDOM):
        assert services.caption_to_label(bob, style, order, after=only.pk) == only


def test_only_finished_captions_of_the_style_are_asked_about(make: Make, style: Style, bob: Viewer) -> None:
    make("not yet", status=Status.QUEUED, finished_at=None)
    make("of another style", style=Style.objects.create(slug="other", name="Other"))
    assert services.caption_to_label(bob, style, DOUBT) is None
    assert services.label_progress(bob, style).left == 0


def test_a_withheld_caption_can_be_written_but_not_confirmed(make: Make, bob: Viewer) -> None:
    caption = make("", 0.1, min_confidence=0.5)
    client = client_of(bob.user)
    page = client.get(PAGE).content.decode()
    assert "its confidence is below the requested minimum" in page
    assert "Fine as it is" not in page
    client.post(reverse("label-save", args=[caption.pk]), {"text": "a dog"})
    assert not Correction.objects.get().confirms


def test_labellers_are_asked_about_all_captions_others_about_their_own(
    make: Make, style: Style, bob: Viewer, viewer: Viewer
) -> None:
    make("mine", owner=viewer.user)
    make("nobody's", 0.1)
    make("bob's", 0.2, owner=bob.user)
    seeing = Viewer(member("sam", "Viewers"))
    assert [services.label_progress(who, style).left for who in (bob, viewer, seeing)] == [3, 1, 0]
    assert order_for(viewer, style, 2) == ["mine", "mine"]


def test_fine_as_it_is_is_kept_with_who_and_when_and_asked_no_more(make: Make, style: Style, bob: Viewer) -> None:
    caption, start = make("a dog  on a beach"), timezone.now()
    client_of(bob.user).post(reverse("label-save", args=[caption.pk]), {"text": caption.text})
    kept = Correction.objects.get()
    assert (kept.caption, kept.confirms, kept.author, kept.text) == (caption, True, bob.user, "a dog on a beach")
    assert kept.created_at >= start
    assert services.caption_to_label(bob, style, DOUBT) is None
    assert services.label_progress(bob, style) == services.LabelProgress(today=1, left=0)


def test_what_was_changed_is_a_correction_and_confirms_nothing(make: Make, bob: Viewer) -> None:
    caption = make("a dog")
    client_of(bob.user).post(reverse("label-save", args=[caption.pk]), {"text": "a cat"})
    assert not Correction.objects.get().confirms


def test_what_a_person_found_right_stays_what_they_saw_when_the_caption_is_regenerated(make: Make, bob: Viewer) -> None:
    caption = make("a dog")
    Caption.objects.update(text="a cat")
    kept = services.correct_caption(bob, caption.pk, "a dog")
    assert (kept.text, kept.confirms) == ("a dog", False)


def test_a_confirmed_caption_becomes_a_training_example_like_a_correction(
    make: Make, style: Style, image: Image, bob: Viewer
) -> None:
    services.correct_caption(bob, make("a dog").pk, "a dog")
    assert training_services.take_corrections(training_services.open_corrections(style)) == 1
    example = Example.objects.get()
    assert (example.style, example.image, example.text, example.source) == (style, image, "a dog", "correction")
    assert example.correction
    assert example.correction.confirms


def test_pages_and_the_api_say_that_a_caption_was_found_right_not_corrected(make: Make, bob: Viewer) -> None:
    caption = make("a dog")
    client = client_of(bob.user)
    client.post(f"/api/captions/{caption.pk}/corrections/", {"text": "a dog"}, "application/json")
    assert client.get(f"/api/captions/{caption.pk}/").json()["correction"]["confirms"] is True
    page = client.get(reverse("image", args=[caption.image_id])).content.decode()
    assert "Found right by bob" in page
    assert "Corrected by" not in page
    assert "Original caption" not in page
    gallery = client.get(reverse("gallery")).content.decode()
    assert ">checked<" in gallery
    assert ">corrected<" not in gallery


def test_a_skipped_caption_is_still_asked_of_others(make: Make, style: Style, bob: Viewer, eve: Viewer) -> None:
    caption = make()
    for _ in range(2):
        client_of(bob.user).post(reverse("label-skip", args=[caption.pk]))
    assert Skip.objects.get().person == bob.user
    assert services.caption_to_label(bob, style, DOUBT) is None
    assert services.caption_to_label(eve, style, DOUBT) == caption
    assert services.label_progress(bob, style) == services.LabelProgress(today=0, left=0)


def test_without_signing_in_nothing_is_skipped(make: Make) -> None:
    with pytest.raises(Refused, match="sign in"):
        services.skip_caption(Viewer(), make().pk)


def test_labels_of_yesterday_do_not_count_for_today(make: Make, style: Style, bob: Viewer) -> None:
    services.correct_caption(bob, make().pk, "a dog")
    services.skip_caption(bob, make().pk)
    for rows in (Correction.objects, Skip.objects):
        rows.update(created_at=timezone.now() - timedelta(days=1))
    assert services.label_progress(bob, style).today == 0
    assert services.last_label(bob) is None


@pytest.mark.parametrize(
    ("seconds", "left", "says"),
    [
        ([10] * 10, 200, "6 a minute, about 34\xa0minutes left"),
        ([5] * 10, 6, "12 a minute, about 1\xa0minute left"),
        ([5] * 10, 0, "12 a minute"),
        ([90] * 10, 80, "40 an hour, about 2\xa0hours left"),
        ([10] * 5 + [3600] + [10] * 5, 6, "6 a minute, about 1\xa0minute left"),  # after a break
        ([100] * 40 + [10] * 29, 6, "6 a minute, about 1\xa0minute left"),  # they have become faster
        ([10] * 4, 6, ""),
        ([0] * 10, 6, ""),  # a program
    ],
)
def test_the_pace_is_that_of_the_newest_labels_without_breaks(
    make: Make, style: Style, bob: Viewer, eve: Viewer, seconds: list[int], left: int, says: str
) -> None:
    noon = timezone.localtime().replace(hour=12)
    times = [noon + timedelta(seconds=sum(seconds[:count])) for count in range(len(seconds) + 1)]
    labels = [Correction(caption=make(), text="a dog", author=bob.user, created_at=time) for time in times]
    Correction.objects.bulk_create(labels)
    assert replace(services.label_progress(bob, style), left=left).pace == says
    assert services.label_progress(eve, style).pace == ""


def test_undo_takes_back_one_label_after_the_other_and_shows_its_caption(make: Make, bob: Viewer) -> None:
    client, captions = client_of(bob.user), [make(f"caption {i}", i / 10) for i in range(3)]
    client.post(reverse("label-save", args=[captions[0].pk]), {"text": "caption 0"})
    client.post(reverse("label-skip", args=[captions[1].pk]))
    client.post(reverse("label-save", args=[captions[2].pk]), {"text": "another"})
    for caption in reversed(captions):
        assert reverse("label-undo", args=[caption.pk]) in client.get(PAGE).content.decode()
        answer = client.post(reverse("label-undo", args=[caption.pk]))
        assert client.get(answer["Location"]).context["caption"] == caption
    assert not Correction.objects.exists()
    assert not Skip.objects.exists()
    assert "Undo" not in client.get(PAGE).content.decode()


def test_undo_pressed_twice_takes_back_one_label(make: Make, bob: Viewer) -> None:
    client, captions = client_of(bob.user), [make(), make()]
    for caption in captions:
        client.post(reverse("label-save", args=[caption.pk]), {"text": "a dog"})
    codes = [client.post(reverse("label-undo", args=[captions[1].pk])).status_code for _ in range(2)]
    assert codes == [302, 409]
    assert Correction.objects.get().caption == captions[0]


def test_nobody_undoes_what_another_labelled(make: Make, bob: Viewer, eve: Viewer) -> None:
    caption = make()
    services.correct_caption(bob, caption.pk, "a dog")
    with pytest.raises(Refused, match="not your last label"):
        services.undo_label(eve, caption.pk)


def test_a_label_that_became_an_example_is_not_undone(make: Make, style: Style, bob: Viewer) -> None:
    caption = make()
    services.correct_caption(bob, caption.pk, "a dog")
    training_services.take_corrections(training_services.open_corrections(style))
    answer = client_of(bob.user).post(reverse("label-undo", args=[caption.pk]))
    assert answer.status_code == 409
    assert "cannot be undone" in answer.content.decode()
    assert Example.objects.get().correction == Correction.objects.get()


def test_a_label_undone_while_examples_are_made_becomes_none_and_breaks_nothing(
    make: Make, style: Style, bob: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [make(f"a dog {i}") for i in range(2)]
    for caption in captions:
        services.correct_caption(bob, caption.pk, caption.text)
    lock = Image.lock

    def undone_first(pks: Any) -> Any:
        monkeypatch.setattr(Image, "lock", lock)
        services.undo_label(bob, captions[1].pk)
        return lock(pks)

    monkeypatch.setattr(Image, "lock", undone_first)
    assert training_services.take_corrections(training_services.open_corrections(style)) == 1
    assert Example.objects.get().text == "a dog 0"


def test_an_empty_edit_is_refused_with_a_sentence(make: Make, bob: Viewer) -> None:
    answer = client_of(bob.user).post(reverse("label-save", args=[make().pk]), {"text": " "})
    assert answer.status_code == 422
    assert "1 to 500 characters" in answer.content.decode()


def test_the_page_keeps_style_and_order_and_goes_on_after_the_caption(make: Make, style: Style, bob: Viewer) -> None:
    caption = make()
    client = client_of(bob.user)
    page = client.get(PAGE, {"style": style.slug, "order": "random"}).content.decode()
    (action, *_) = re.findall(r'action="(/label/[^"]+/save/[^"]*)"', page)
    answer = client.post(action.replace("&amp;", "&"), {"text": "a dog"})
    chosen = {"style": [style.slug], "order": ["random"], "after": [str(caption.pk)]}
    assert parse_qs(urlsplit(answer["Location"]).query) == chosen


@pytest.mark.parametrize("query", ["?order=none", "?at=1&after=1", "?at=00000000-0000-0000-0000-000000000000"])
def test_what_the_address_does_not_know_is_ignored(make: Make, bob: Viewer, query: str) -> None:
    caption = make()
    assert client_of(bob.user).get(PAGE + query).context["caption"] == caption


def test_a_style_that_does_not_exist_is_not_found(bob: Viewer, style: Style) -> None:
    assert client_of(bob.user).get(PAGE, {"style": "none"}).status_code == 404


def test_without_any_style_the_page_says_so(bob: Viewer) -> None:
    answer = client_of(bob.user).get(PAGE)
    assert answer.status_code == 404
    assert "There is no style yet" in answer.content.decode()


def test_labelling_reads_captions_by_an_index(make: Make, style: Style, bob: Viewer, viewer: Viewer) -> None:
    before = make("before", 0.3, owner=viewer.user)
    make("after", 0.4, owner=viewer.user)
    for who, index in ((bob, "caption_to_label"), (viewer, "caption_of_owner_to_label")):
        client = client_of(who.user)
        with CaptureQueriesContext(connection) as queries:
            client.get(PAGE)
            client.get(PAGE, {"after": str(before.pk)})
            client.get(PAGE, {"order": "random"})
        asked = [q["sql"] for q in queries if q["sql"].startswith("SELECT") and '"labelled" IN' in q["sql"]]
        assert len(asked) >= 7
        for sql in asked:
            with connection.cursor() as cursor:
                cursor.execute("EXPLAIN QUERY PLAN " + sql)
                plan = "\n".join(row[3] for row in cursor.fetchall())
            assert f"SEARCH captioner_caption USING COVERING INDEX {index} " in plan, (sql, plan)
            assert "TEMP B-TREE" not in plan, (sql, plan)
