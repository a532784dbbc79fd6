"""Labelling in a real Chromium: the orders, the pace, and how far people agree."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from captioner import services
from captioner.models import Caption, Draft, DraftRequest, Poll, Style, Viewer, Worker
from tests.browser.visits import PHOTOS, press, sign_in
from tests.people import member
from training.models import Policy

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


@pytest.fixture
def ada(db: None) -> Viewer:
    """An administrator here, who sees how far labelling is."""
    return Viewer(User.objects.create_superuser("ada", password="lovelace"))


@pytest.fixture
def captions(styles: dict[str, Style], ada: Viewer) -> list[Caption]:
    """Of nine photos, in the factual style."""
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:9]]
    request = services.request_captions(viewer=ada, images=photos)
    for place, caption in enumerate(request.captions.order_by("index")):
        Caption.objects.filter(pk=caption.pk).update(
            status="succeeded",
            finished_at=timezone.now(),
            text=f"caption {place}",
            confidence=place / 10,
            version=styles["factual"].version_in_service,
        )
    return list(request.captions.order_by("confidence"))


def written_otherwise(caption: Caption, text: str) -> Draft:
    """What another version has written about the photo, in a comparison."""
    today = caption.style.version_in_service
    assert today
    version = caption.style.versions.filter(number=2).first() or caption.style.versions.create(
        number=2, sha256="1" * 64, origin="trained", config={"prefix_length": 1}, file=today.file.name
    )
    now = timezone.now()
    fields: dict[str, Any] = {"status": "succeeded", "finished_at": now, "deadline_at": now}
    request = DraftRequest.objects.create()
    return Draft.objects.create(request=request, image=caption.image, version=version, text=text, **fields)


def test_the_orders_are_chosen_and_the_pace_is_told(page: Page, captions: list[Caption]) -> None:
    written_otherwise(captions[5], "another caption")
    sign_in(page)
    page.goto("/label/")
    asked, order = page.locator(".label .text"), page.get_by_role("navigation", name="Order")
    expect(asked).to_have_text("caption 0")  # the least sure first

    order.get_by_role("link", name="Versions disagree").click()
    expect(asked).to_have_text("caption 5")
    expect(order.locator("[aria-current]")).to_have_text("Versions disagree")
    press(page, "f")
    expect(page.get_by_role("heading", name="Versions disagree on none of them")).to_be_visible()

    order.get_by_role("link", name="Random").click()
    seen = set()
    for _ in range(60):
        shown = asked.inner_text()
        seen.add(shown)
        if len(seen) == 8:
            break
        press(page, "n")
        expect(asked).not_to_have_text(shown)
        expect(order.locator("[aria-current]")).to_have_text("Random")
    assert seen == {f"caption {place}" for place in range(9) if place != 5}

    order.get_by_role("link", name="Least sure first").click()
    for place in (0, 1, 2, 3, 4):
        expect(asked).to_have_text(f"caption {place}")
        press(page, "f")
    expect(page.locator(".done")).to_have_text(
        re.compile(r"6 labelled today, 3 left in Factual: \d+ an? (minute|hour), about \d+.minutes? left")
    )


def test_how_far_two_people_agree_is_told_in_words(
    page: Page, ada: Viewer, captions: list[Caption], settings: Any
) -> None:
    settings.LABELLED_TWICE = 1.0
    bob = Viewer(member("bob", "Labellers"))
    for place, caption in enumerate(captions):
        services.correct_caption(ada, caption.pk, caption.text)
        services.correct_caption(bob, caption.pk, caption.text if place else "two dogs")
    sign_in(page)
    page.goto(f"/admin/captioner/style/{captions[0].style_id}/change/")
    page.get_by_role("link", name="Progress and agreement").click()
    agreement = page.locator("section", has=page.get_by_role("heading", name="Agreement"))
    expect(agreement).to_contain_text("Two people labelled 9 captions, and agree on 8 of them (89 %)")
    expect(agreement.get_by_role("row", name="One found it fine, one changed it")).to_contain_text("1")
    expect(page.get_by_role("row", name="bob")).to_contain_text("just now")
    expect(page.get_by_role("row", name="bob").locator("time")).to_have_attribute("title", re.compile(r"20\d\d"))


def vote_blindly(page: Page, captions: list[Caption], styles: dict[str, Style], words: str, winner: str) -> None:
    """A vote about what version 2 has written, started in the admin and ended by the keyboard: who has the winner's
    words is better."""
    opponent = styles["factual"].version_in_service
    assert opponent
    for caption in captions:
        draft = written_otherwise(caption, words)
        same = {"status": "succeeded", "finished_at": draft.finished_at, "deadline_at": draft.deadline_at}
        Draft.objects.create(request=draft.request, image=caption.image, version=opponent, text=caption.text, **same)
    candidate = styles["factual"].versions.get(number=2)
    sign_in(page)
    page.goto(f"/admin/captioner/mapperversion/{candidate.pk}/change/")
    page.get_by_role("button", name="Start a blind vote against v1").click()
    expect(page.get_by_text("A blind vote of v2 against v1 is under way: 0 votes so far.")).to_be_visible()
    page.goto("/label/")
    page.get_by_role("link", name="Vote between captions").click()
    while Poll.objects.get().ended_at is None:
        expect(page.get_by_role("heading", name="Which caption is better?")).to_be_visible()
        left = page.get_by_role("button", name="Left is better")
        votes = page.locator(".done").inner_text()
        press(page, "ArrowLeft" if winner in left.inner_text() else "ArrowRight")
        expect(page.locator(".done")).not_to_have_text(votes)


def test_what_a_blind_vote_found_is_told_where_a_version_is_promoted_and_asks_for_a_reason(
    page: Page, ada: Viewer, captions: list[Caption], styles: dict[str, Style]
) -> None:
    opponent = styles["factual"].version_in_service
    vote_blindly(page, captions, styles, words="a worse one", winner="caption ")
    says = "v2 is worse than v1: preferred in 0 % of 8 votes, 95 % interval 0 to 48 %."
    expect(page.get_by_role("heading", name=says)).to_be_visible()
    candidate = styles["factual"].versions.get(number=2)
    page.goto(f"/admin/captioner/mapperversion/{candidate.pk}/promote/")
    expect(page.locator("p.verdict", has_text=says)).to_be_visible()
    page.get_by_role("button", name="Put in service").click()
    expect(page.locator(".errorlist")).to_contain_text("reason")
    assert styles["factual"].version_in_service == opponent


def test_a_policy_promotes_what_a_blind_vote_prefers(
    page: Page, ada: Viewer, captions: list[Caption], styles: dict[str, Style]
) -> None:
    Policy.objects.create(style=styles["factual"], if_better=Policy.Action.VOTE)
    vote_blindly(page, captions, styles, words="a better one", winner="a better one")
    says = "v2 is better than v1: preferred in 100 % of 8 votes, 95 % interval 52 to 100 %."
    expect(page.get_by_role("heading", name=says)).to_be_visible()
    page.goto(f"/admin/captioner/style/{styles['factual'].pk}/change/")
    expect(page.locator("p.figures").first).to_contain_text("v2")
    expect(page.get_by_role("row", name="v2").filter(has_text=says.removesuffix(".")).first).to_be_visible()


def test_who_labels_sees_the_page_for_it_and_nothing_of_workers(page: Page, styles: dict[str, Style]) -> None:
    bob = member("ada", "Labellers")
    bob.is_staff = True
    bob.set_password("lovelace")
    bob.save()
    Worker.objects.create(name="w1@host", queue="captions", memory_mb=4321, seen_at=timezone.now())
    sign_in(page)
    page.get_by_role("link", name="Admin").click()
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
    for text in ("w1@host", "4,321", "Memory"):
        expect(page.get_by_text(text)).to_have_count(0)
    expect(page.get_by_role("link", name="Workers")).to_have_count(0)
    page.goto("/label/")
    expect(page.get_by_role("heading", name="Nothing is left to label in Factual")).to_be_visible()
