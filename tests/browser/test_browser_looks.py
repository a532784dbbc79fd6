"""Pages in the reader's language and time zone, and what is opened by a click."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from captioner.models import Caption, Image
from captioner.templatetags.captions import number

pytestmark = pytest.mark.django_db(transaction=True)


def test_numbers_and_dates_are_put_as_the_reader_does(
    open_context: Callable[..., BrowserContext], example: Caption, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.objects.update(created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    monkeypatch.setattr("captioner.web.views.how_many", lambda images: number(12345))
    page = open_context(locale="de-DE", timezone_id="America/New_York").new_page()
    page.goto("/gallery/")
    expect(page.locator("#found-status")).to_have_text("12.345")
    page.goto(f"/images/{example.image_id}/")
    added = page.locator("figcaption time")
    expect(added).to_contain_text("ago")
    expect(added).to_have_attribute("title", "1. Januar 2026 um 22:04:05")


def test_a_licence_is_shown_when_asked_for(page: Page, example: Caption) -> None:
    page.goto("/gallery/")
    licence = page.get_by_text("CC BY 2.0")
    expect(licence).to_be_hidden()
    page.locator(".credit summary", has_text="Credit and licence").click()
    expect(licence).to_be_visible()


@pytest.mark.parametrize("size", [(2000, 300), (300, 2000)], ids=["panorama", "tall"])
def test_a_long_picture_is_whole_in_its_tile(page: Page, example: Caption, size: tuple[int, int]) -> None:
    Image.objects.update(width=size[0], height=size[1])
    page.goto("/gallery/")
    fit = page.locator(".tile img").evaluate("image => getComputedStyle(image).objectFit")
    assert fit == "contain"


def test_recent_captions_are_shown_with_their_photos(page: Page, example: Caption) -> None:
    page.goto("/")
    recent = page.get_by_role("region", name="Recent captions")
    expect(recent).to_contain_text(example.text)
    assert recent.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 0")
