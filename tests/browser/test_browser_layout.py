"""What stands where in a real Chromium: many captions on a phone, and all that labelling takes in one window."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import BrowserContext, Locator, Page, expect

from captioner import services
from captioner.models import Caption, CaptionRequest, Image, Style, Viewer
from tests.axe import violations
from tests.browser.visits import PHOTOS, reach, sign_in

pytestmark = pytest.mark.django_db(transaction=True)

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
TEXT = "In the warm lamplight they gather around the table, and the room glows."


@pytest.fixture
def ada(db: None) -> Viewer:
    return Viewer(User.objects.create_superuser("ada", password="lovelace"))


@pytest.fixture
def many(styles: dict[str, Style], ada: Viewer) -> CaptionRequest:
    """Six photos in three styles, captioned."""
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:6]]
    request = services.request_captions(viewer=ada, images=photos, styles=["all"])
    request.captions.update(
        status="succeeded",
        finished_at=timezone.now(),
        text=TEXT,
        confidence=0.8,
        alternatives=[{"text": "They eat.", "confidence": 0.6, "log_probability": -0.7}],
    )
    return request


@pytest.fixture
def phone(open_context: Callable[..., BrowserContext], many: CaptionRequest) -> Page:
    """The page of the request on a phone."""
    page = open_context(viewport=PHONE).new_page()
    sign_in(page)
    page.goto(f"/requests/{many.pk}/")
    expect(page.locator(".caption")).to_have_count(18)
    return page


def box(part: Locator) -> Any:
    found = part.bounding_box()
    assert found
    return found


def bottom(part: Locator) -> float:
    found = box(part)
    return float(found["y"] + found["height"])


def test_on_a_phone_a_caption_is_its_text_and_one_line(phone: Page) -> None:
    for caption in phone.locator(".caption").all():
        assert box(caption)["height"] <= 110
        shown = [part for part in caption.locator("button, summary").all() if part.is_visible()]
        assert [part.inner_text() for part in shown] == ["Copy", "Edit", "More"]
        assert len({round(box(part)["y"]) for part in shown}) == 1
        assert all(min(box(part)["height"], box(part)["width"]) >= 24 for part in shown)
    assert max(box(photo)["height"] for photo in phone.locator(".photo").all()) <= 400


def test_what_is_folded_opens_below_the_caption_and_moves_no_button(phone: Page) -> None:
    caption = phone.locator(".caption").first
    more = caption.get_by_text("More", exact=True)
    before = box(more)
    for part in ("Copy as alt text", "They eat.", "Requested"):
        expect(caption.get_by_text(part)).to_be_hidden()
    more.click()
    for part in ("Copy as alt text", "They eat.", "Requested"):
        expect(caption.get_by_text(part)).to_be_visible()
        assert box(caption.get_by_text(part))["y"] >= bottom(caption.locator(".text"))
    assert box(more) == before
    assert phone.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert box(caption.locator("dl"))["width"] > 300
    more.click()
    expect(caption.get_by_text("They eat.")).to_be_hidden()


def test_on_a_phone_a_keyboard_reaches_what_is_folded(phone: Page) -> None:
    last = phone.locator(".caption").last
    last.scroll_into_view_if_needed()
    last.focus()
    reach(phone, last.get_by_text("More", exact=True))
    phone.keyboard.press("Enter")
    phone.keyboard.press("Tab")
    expect(last.get_by_role("button", name="Copy as alt text")).to_be_focused()
    phone.keyboard.press("Tab")
    expect(last.get_by_role("button", name="Delete")).to_be_focused()
    phone.once("dialog", lambda dialog: dialog.accept())
    phone.keyboard.press("Enter")
    expect(phone.locator(".caption")).to_have_count(17)


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_what_is_unfolded_is_for_everybody(
    open_context: Callable[..., BrowserContext], many: CaptionRequest, tolerated: list[str], size: Any
) -> None:
    tolerated.append("Content Security Policy")  # of what axe does
    page = open_context(viewport=size, reduced_motion="reduce").new_page()
    sign_in(page)
    page.goto(f"/requests/{many.pk}/")
    page.locator(".caption").nth(0).get_by_text("More", exact=True).click()
    page.locator(".caption").nth(1).get_by_text("Edit", exact=True).click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []


def test_on_a_desktop_a_caption_is_one_line_between_its_style_and_its_buttons(
    open_context: Callable[..., BrowserContext], many: CaptionRequest
) -> None:
    page = open_context(viewport=DESKTOP).new_page()
    sign_in(page)
    page.goto(f"/requests/{many.pk}/")
    for caption in page.locator(".caption").all():
        assert box(caption)["height"] <= 70
        style, text, copy = caption.locator("h2"), caption.locator(".text"), caption.get_by_text("Copy", exact=True)
        assert box(style)["x"] + box(style)["width"] <= box(text)["x"]
        assert box(text)["x"] + box(text)["width"] <= box(copy)["x"]
    more = page.locator(".caption").first.get_by_text("More", exact=True)
    before = box(more)
    more.click()
    expect(page.locator(".caption").first.get_by_text("They eat.")).to_be_visible()
    assert box(more) == before


def test_labelling_takes_one_window_with_the_photo_large(
    open_context: Callable[..., BrowserContext], many: CaptionRequest, ada: Viewer
) -> None:
    for caption in Caption.objects.filter(style__slug="humorous"):
        services.correct_caption(ada, caption.pk, caption.text)
    Image.objects.update(credit="Photo: somebody, CC BY 2.0")
    page = open_context(viewport=DESKTOP).new_page()
    sign_in(page)
    page.goto("/label/")
    expect(page.locator(".done")).to_contain_text(re.compile(r"6 labelled today, 6 left in Factual: .*minute.* left"))
    photo = page.locator(".labelling img").first
    parts = [
        photo,
        *(page.get_by_role("heading", name="Label captions"), page.locator(".done"), page.locator(".label .text")),
        *(page.get_by_role("button", name=name) for name in ("Fine as it is", "Skip", "Undo")),
        *(page.get_by_role("link", name="Next"), page.locator(".credit summary"), page.get_by_label("Use keys")),
        page.get_by_text("Next” leaves it for later"),
    ]
    for part in parts:
        expect(part).to_be_in_viewport(ratio=1)
    assert page.evaluate("scrollY") == 0
    assert box(photo)["width"] > 900
    assert box(photo)["height"] > 700
    for part in parts[1:8]:
        assert box(part)["x"] > box(photo)["x"] + box(photo)["width"]
    page.keyboard.press("e")
    expect(page.get_by_label("What the caption should say")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Save")).to_be_in_viewport(ratio=1)


def test_on_a_phone_labelling_is_one_column_with_its_first_button_in_the_window(
    open_context: Callable[..., BrowserContext], many: CaptionRequest
) -> None:
    page = open_context(viewport=PHONE).new_page()
    sign_in(page)
    page.goto("/label/")
    fine = page.get_by_role("button", name="Fine as it is")
    expect(fine).to_be_in_viewport(ratio=1)
    column = (".task", ".labelling img", ".label .text", ".label .primary", ".notes")
    tops = [box(page.locator(part).first)["y"] for part in column]
    assert tops == sorted(tops)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
