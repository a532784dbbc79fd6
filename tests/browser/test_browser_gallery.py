"""Searching, selecting and leafing through photos in a real Chromium."""

import csv
import json
import re
import zipfile
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import EVERYBODY, Caption, Embedding, Image, Style, Viewer
from tests.browser.visits import PHOTOS, press, sign_in
from tests.engine_thread import heard_from

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


def test_the_gallery_is_searched_while_typing_and_goes_on_while_scrolling(
    page: Page, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.web.pages.PHOTOS", 2)
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:5]]
    services.request_captions(viewer=Viewer(visitor=EVERYBODY), images=photos)
    for number, caption in enumerate(Caption.objects.all()):
        text = "a dog & a ball" if number == 3 else "a house"
        Caption.objects.filter(pk=caption.pk).update(status="succeeded", finished_at=timezone.now(), text=text)
    page.goto("/gallery/")
    expect(page.locator(".tile").first).to_be_visible()
    page.keyboard.press("End")
    page.locator(".tile").nth(3).scroll_into_view_if_needed()
    expect(page.locator(".tile")).to_have_count(5)
    page.get_by_label("Search photos").press_sequentially("dog &")
    expect(page.locator(".tile")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"q=dog\+%26|q=dog%20%26"))
    page.get_by_label("Style").select_option("romantic")
    expect(page.get_by_text("No matches")).to_be_visible()
    page.get_by_role("link", name="Clear filters").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    assert len(json.loads(download.value.path().read_text())) == 5


def test_photos_are_found_by_what_they_show_and_the_page_says_so(
    page: Page, styles: dict[str, Style], reading_engine: CaptionEngine, start_reader: Callable[[], None]
) -> None:
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:6]]
    services.request_captions(viewer=Viewer(visitor=EVERYBODY), images=photos)
    texts = ["a wall", "a house", "a cart in the rain", "a tree", "a door", "a wagon"]
    for caption, text in zip(Caption.objects.order_by("pk"), texts, strict=True):
        Caption.objects.filter(pk=caption.pk).update(status="succeeded", finished_at=timezone.now(), text=text)
    encoder = reading_engine.captioner.encoder
    reading_engine.embeddings(list(Image.objects.all()))
    vector = encoder.encode_text(["a cart", "the cart"]).mean(0)  # as if the last photo showed exactly that
    Embedding.objects.filter(image__captions__text="a wagon").update(vector=vector.numpy().tobytes())
    heard_from(reading_engine)
    page.goto("/gallery/")
    page.get_by_label("Search photos").fill("cart")
    expect(page.get_by_text("Searching photos")).to_be_visible()
    found = page.locator(".tile")
    expect(found).to_have_count(1)
    expect(found.first).to_contain_text("words in its caption")
    start_reader()
    expect(page.get_by_text("Searching photos")).to_have_count(0)
    wagon = page.locator(".tile", has_text="a wagon")
    expect(wagon).to_contain_text("meaning")
    expect(wagon.get_by_role("img")).to_have_js_property("complete", True)
    assert wagon.get_by_role("img").evaluate("image => image.naturalWidth") > 0
    expect(page.locator(".tile", has_text="a cart in the rain")).to_contain_text("words in its caption")
    wagon.get_by_role("link").first.click()
    similar = page.get_by_role("region", name="Similar photos")
    expect(similar.get_by_role("listitem")).to_have_count(5)
    similar.get_by_role("link", name="See all").click()
    expect(page.locator(".tile")).to_have_count(5)


@pytest.fixture
def five_photos(styles: dict[str, Style], ada: Viewer) -> list[Image]:
    """Ada's, captioned, the newest first."""
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:5]]
    services.request_captions(viewer=ada, images=photos)
    Caption.objects.update(status="succeeded", finished_at=timezone.now(), text="a house")
    return list(Image.objects.all())


def test_photos_are_selected_by_mouse_and_keyboard_and_downloaded(page: Page, five_photos: list[Image]) -> None:
    sign_in(page)
    page.goto("/gallery/")
    bar, boxes = page.locator("#chosen"), page.locator("[name=photo]")
    expect(page.locator("#found-status")).to_have_text("5 photos")
    expect(bar).to_be_hidden()
    boxes.nth(0).check()
    expect(bar).to_contain_text("1 photo selected")
    boxes.nth(3).click(modifiers=["Shift"])
    expect(bar).to_contain_text("4 photos selected")
    boxes.nth(1).click()
    boxes.nth(2).click(modifiers=["Shift"])
    expect(bar).to_contain_text("2 photos selected")
    boxes.nth(0).focus()
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()
    page.keyboard.press("Space")
    for _ in range(4):
        page.keyboard.press("Tab")
    expect(boxes.nth(2)).to_be_focused()
    page.keyboard.press("Shift+Space")
    expect(bar).to_contain_text("3 photos selected")
    page.keyboard.press("Control+a")
    expect(bar).to_contain_text("5 photos selected")
    with page.expect_download() as download:
        bar.get_by_role("button", name="ZIP").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == 10
    bar.get_by_role("button", name="Clear").click()
    expect(bar).to_be_hidden()


def test_selected_photos_are_regenerated_in_a_style_and_downloaded_as_json_and_csv(
    page: Page, five_photos: list[Image]
) -> None:
    sign_in(page)
    page.goto("/gallery/")
    bar, boxes = page.locator("#chosen"), page.locator("[name=photo]")
    boxes.nth(0).check()
    boxes.nth(2).check()
    with page.expect_download() as download:
        bar.get_by_role("button", name="JSON").click()
    chosen = {str(five_photos[place].pk) for place in (0, 2)}
    assert {row["image"] for row in json.loads(download.value.path().read_text())} == chosen
    with page.expect_download() as download:
        bar.get_by_role("button", name="CSV").click()
    with download.value.path().open(newline="") as table:
        assert {row["image"] for row in csv.DictReader(table)} == chosen
    bar.get_by_label("Regenerate in").select_option("Romantic")
    bar.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".photo")).to_have_count(2)
    asked = page.locator(".caption.is-queued")
    expect(asked).to_have_count(2)
    expect(asked.get_by_role("heading", name="Romantic")).to_have_count(2)


def test_photos_are_found_by_file_name_and_date(page: Page, five_photos: list[Image]) -> None:
    Caption.objects.filter(image=five_photos[0]).update(created_at=timezone.now() - timedelta(days=30))
    sign_in(page)
    page.goto("/gallery/")
    expect(page.locator(".tile")).to_have_count(5)
    page.get_by_text("File name and date").click()
    page.get_by_label("From").fill(f"{timezone.localtime() - timedelta(days=7):%Y-%m-%d}")
    expect(page.locator(".tile")).to_have_count(4)
    page.get_by_label("From").fill("")
    expect(page.locator(".tile")).to_have_count(5)
    page.get_by_label("To", exact=True).fill(f"{timezone.localtime() - timedelta(days=7):%Y-%m-%d}")
    expect(page.locator(".tile")).to_have_count(1)
    page.get_by_label("To", exact=True).fill("")
    expect(page.locator(".tile")).to_have_count(5)
    page.get_by_label("File name").fill(PHOTOS[2].stem)
    page.keyboard.press("Tab")
    expect(page.locator(".tile")).to_have_count(1)
    expect(page.get_by_role("status").filter(has_text="1 photo found")).to_be_visible()
    page.reload()
    expect(page.get_by_label("File name")).to_have_value(PHOTOS[2].stem)


def test_selected_photos_are_deleted_and_the_list_that_is_filtered_forgets_them(
    page: Page, five_photos: list[Image]
) -> None:
    sign_in(page)
    page.goto("/gallery/")
    page.locator("[name=photo]").nth(0).check()
    page.get_by_label("Search photos").fill("nothing")
    expect(page.get_by_text("No matches")).to_be_visible()
    expect(page.locator("#chosen")).to_be_hidden()
    page.get_by_role("link", name="Clear filters").click()
    page.locator("[name=photo]").nth(1).check()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("1 photo was deleted.")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(4)
    assert not Image.objects.filter(pk=five_photos[1].pk).exists()


def test_arrow_keys_lead_from_photo_to_photo(page: Page, five_photos: list[Image]) -> None:
    sign_in(page)
    page.goto("/gallery/?sort=oldest")
    page.locator(".tile a").first.click()
    last, before = five_photos[-1].pk, five_photos[-2].pk
    expect(page).to_have_url(re.compile(rf"/images/{last}/\?sort=oldest"))
    press(page, "ArrowLeft")  # there is none
    press(page, "ArrowRight")
    expect(page).to_have_url(re.compile(rf"/images/{before}/\?sort=oldest"))
    page.get_by_text("Edit", exact=True).click()
    page.get_by_role("textbox").press("ArrowLeft")
    expect(page.get_by_role("textbox")).to_be_visible()
    page.locator("h1").click()
    press(page, "ArrowLeft")
    expect(page).to_have_url(re.compile(rf"/images/{last}/"))
