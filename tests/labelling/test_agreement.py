"""Two people label a share of the photos, and one sees how far they agree."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from captioner import services
from captioner.models import Caption, Style, Viewer
from captioner.services import LabelOrder
from captioner.services.agreement import Agreement, compared
from tests.admin.rows import text_of
from tests.people import client_of, member

Make = Callable[..., Caption]
FINE, EDITED = (True, "a dog"), (False, "a cat on a mat")


@pytest.fixture
def people(bob: Viewer, eve: Viewer) -> list[Viewer]:
    return [bob, eve, Viewer(member("kim", "Labellers"))]


def asked(viewer: Viewer, style: Style) -> bool:
    return services.caption_to_label(viewer, style, LabelOrder.DOUBT) is not None


def test_two_people_are_asked_about_a_photo_of_the_share_and_never_a_third(
    make: Make, style: Style, people: list[Viewer], settings: Any
) -> None:
    settings.LABELLED_TWICE = 1.0
    caption, (bob, eve, _) = make(), people
    services.correct_caption(bob, caption.pk, "a cat")
    assert [asked(viewer, style) for viewer in people] == [False, True, True]
    services.correct_caption(bob, caption.pk, "a cat on a mat")  # changed their mind: that is no second person
    assert asked(eve, style)
    page = client_of(eve.user)
    assert "a cat" not in page.get(reverse("label")).content.decode()
    services.correct_caption(eve, caption.pk, "a dog")
    assert [asked(viewer, style) for viewer in people] == [False] * 3
    services.undo_label(eve, caption.pk)
    assert [asked(viewer, style) for viewer in people] == [False, True, True]
    services.undo_label(bob, caption.pk)
    services.undo_label(bob, caption.pk)
    assert asked(bob, style)


def test_without_a_share_one_person_is_asked(make: Make, style: Style, people: list[Viewer], settings: Any) -> None:
    settings.LABELLED_TWICE = 0.0
    services.correct_caption(people[0], make().pk, "a cat")
    assert [asked(viewer, style) for viewer in people] == [False] * 3


def test_the_share_is_about_what_the_setting_says(settings: Any) -> None:
    rng = random.Random(0)
    images = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(4000)]
    for share in (0.0, 0.1, 0.5, 1.0):
        settings.LABELLED_TWICE = share
        assert sum(map(services.asked_twice, images)) / len(images) == pytest.approx(share, abs=0.03)


def test_agreement_is_put_in_words_with_a_figure() -> None:
    found = compared([(FINE, FINE)] * 25 + [(EDITED, EDITED)] * 15 + [(FINE, EDITED)] * 2)
    assert (found.captions, found.fine, found.edited, found.split) == (42, 25, 15, 2)
    assert found.sentence == (
        "Two people labelled 42 captions, and agree on 40 of them (95 %) whether they are fine as they are: people "
        "agree well, and one person's labels can be trusted (Krippendorff's alpha 0.90)"
    )


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([(FINE, FINE)] * 16 + [(EDITED, EDITED)] * 16 + [(FINE, EDITED)] * 4, "fairly well"),
        ([(FINE, FINE)] * 10 + [(EDITED, FINE)] * 10, "too little to trust one person's labels"),
        ([(FINE, FINE)] * 30, "everybody always said the same"),
        ([(FINE, EDITED)] * 3, "too few to tell"),
    ],
)
def test_what_agreement_means_is_said_in_words(pairs: list[Any], sentence: str) -> None:
    assert sentence in compared(pairs).sentence


def test_nothing_is_said_where_nobody_labelled_a_caption_twice() -> None:
    assert (Agreement().sentence, Agreement().alpha, Agreement().alike) == ("", None, None)


def test_edits_are_alike_as_far_as_they_have_words_in_common() -> None:
    assert compared([((False, "A dog runs"), (False, "a dog runs"))]).alike == 1
    assert compared([((False, "a dog"), (False, "the cats"))]).alike == 0
    assert compared([((False, "a red dog"), (False, "a dog"))]).alike == pytest.approx(0.8)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_figure_is_1_where_all_agree_and_near_0_by_chance(fine: int, edited: int, split: int) -> None:
    alpha = Agreement(fine, edited, split).alpha
    if alpha is None:
        assert not split
        return
    assert -1 <= alpha <= 1
    assert (alpha == 1) == (split == 0)
    # As defined: disagreement that is observed, over that of labels paired at random.
    labels = [1] * (2 * fine + split) + [0] * (2 * edited + split)
    unlike = 2 * sum(labels) * (len(labels) - sum(labels)) / (len(labels) * (len(labels) - 1))
    assert alpha == pytest.approx(1 - split / (fine + edited + split) / unlike)


@pytest.fixture
def admin(db: None) -> Client:
    return client_of(User.objects.create_superuser("boss"))


def test_the_page_of_progress_shows_who_did_what_and_how_far_they_agree(
    make: Make, style: Style, people: list[Viewer], admin: Client, settings: Any
) -> None:
    settings.LABELLED_TWICE = 1.0
    address = reverse("admin:captioner_correction_labelling", args=[style.pk])
    bob, eve, _ = people
    page = admin.get(address).content.decode()
    assert "No caption has been labelled by two people yet. When a second person labels" in page
    assert "Nobody has labelled a caption of this style yet." in page
    texts = ["a dog"] * 10 + ["a cat"] * 10
    for text in texts:
        caption = make()
        services.correct_caption(bob, caption.pk, text)
        services.correct_caption(eve, caption.pk, text)
    services.correct_caption(bob, make().pk, "a dog")
    page = text_of(admin.get(address))
    assert "<b>1</b> caption left to label" in page
    assert "Two people labelled 20 captions, and agree on 20 of them (100 %)" in page
    assert "Krippendorff&#x27;s alpha 1.00" in page
    assert '<th scope="row">bob</th><td class="number">21</td><td class="number">11</td>' in page
    assert 'Words that two changed texts have in common, on average</th><td class="number">100 %' in page
    assert address in admin.get(reverse("admin:captioner_style_change", args=[style.pk])).content.decode()


def test_without_a_share_the_page_says_what_to_set(style: Style, admin: Client, settings: Any) -> None:
    settings.LABELLED_TWICE = 0.0
    page = admin.get(reverse("admin:captioner_correction_labelling", args=[style.pk])).content.decode()
    assert "Set CLIPCAP_LABELLED_TWICE" in page
