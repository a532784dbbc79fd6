"""Captions in a real Chromium: corrected, labelled, copied and deleted, by mouse and keyboard, on desktop and phone."""

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from PIL import Image as Pillow
from playwright.sync_api import BrowserContext, Page, expect

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import Caption, Correction, Image, Style, Viewer
from tests.browser.visits import PHOTOS, press, sign_in, upload

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


@pytest.mark.usefixtures("worker", "ada")
def test_a_caption_is_corrected_where_it_stands(page: Page) -> None:
    sign_in(page)
    upload(page, PHOTOS[0])
    card = page.locator(".caption.is-succeeded")
    expect(card).to_be_visible()
    machine = Caption.objects.get().text
    card.get_by_text("Edit", exact=True).click()
    card.get_by_role("textbox").fill("A family & friends at a table")
    card.get_by_role("button", name="Save correction").click()
    expect(card.locator(".text")).to_have_text("A family & friends at a table")
    expect(card.locator(".by")).to_contain_text("Corrected by ada")
    expect(card.locator(".machine")).to_contain_text(machine)
    assert Correction.objects.get(author__username="ada")
    page.reload()
    expect(page.locator(".caption .text")).to_have_text("A family & friends at a table")


@pytest.mark.usefixtures("worker")
def test_texts_are_copied_as_they_are_and_as_alt_attributes(context: BrowserContext, page: Page) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    upload(page, PHOTOS[0])
    expect(page.locator(".caption.is-succeeded")).to_be_visible()
    caption = Caption.objects.get()
    caption.corrections.create(text='"A & B" <i>')
    page.reload()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#toast")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == '"A & B" <i>'
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Copy as alt text").click()
    expect(page.locator("#toast")).to_contain_text("alt=")
    assert page.evaluate("navigator.clipboard.readText()") == 'alt="&quot;A &amp; B&quot; &lt;i>"'


@pytest.mark.usefixtures("worker", "ada")
def test_the_curl_line_of_a_new_token_works_when_pasted(page: Page) -> None:
    if not shutil.which("curl"):
        pytest.skip("there is no curl; on Debian and Ubuntu: apt install curl")
    page.goto("/tokens/")
    expect(page).to_have_url(re.compile(r"/sign-in/\?next=/tokens/"))
    sign_in(page)
    page.goto("/tokens/")
    page.get_by_label("What is it for?").fill("a script")
    page.get_by_role("button", name="Create token").click()
    line = page.locator("#curl").inner_text()
    printed = subprocess.run(["bash", "-c", line], capture_output=True, timeout=90, check=True)
    captions = json.loads(printed.stdout)["captions"]
    assert [caption["status"] for caption in captions] == ["succeeded"] * 3
    assert all(caption["text"] for caption in captions)
    page.reload()
    assert Caption.objects.filter(owner__username="ada").count() == 3


@pytest.mark.usefixtures("worker")
def test_a_failed_caption_is_tried_again_and_a_deleted_one_leaves_the_page(page: Page) -> None:
    upload(page, PHOTOS[0])
    expect(page.locator(".caption.is-succeeded")).to_be_visible()
    Caption.objects.update(status="failed", error_code="worker_lost", error_detail="the worker was lost", text="")
    page.reload()
    expect(page.locator(".cause")).to_have_text("The worker was lost")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".caption.is-succeeded")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".caption")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Its captions were deleted.")).to_be_visible()
    assert not Caption.objects.exists()


def test_everything_can_be_reached_by_keyboard(page: Page) -> None:
    page.on("filechooser", lambda chooser: None)  # so that no dialog opens in the browser itself
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Factual")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("Humorous")).to_be_checked()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.locator("#photos")).to_be_focused()
    with page.expect_file_chooser():
        page.keyboard.press("Enter")


@pytest.fixture
def three(ada: Viewer, styles: dict[str, Style], engine: CaptionEngine) -> list[Caption]:
    """Three photos of ada's, captioned, the least sure first."""
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:3]]
    request = services.request_captions(viewer=ada, images=photos)
    engine.work()
    for place, caption in enumerate(request.captions.all()):
        Caption.objects.filter(pk=caption.pk).update(confidence=place / 10, text=f"caption {place}")
    return list(request.captions.order_by("confidence"))


def test_captions_are_labelled_by_keyboard(page: Page, three: list[Caption]) -> None:
    sign_in(page)
    page.get_by_role("link", name="Label", exact=True).click()
    progress, asked = page.locator(".done"), page.locator(".label .text")
    expect(page.locator("body")).to_contain_text("F fine as it is, E edit, S skip, N next, U undo")
    expect(progress).to_have_text("0 labelled today, 3 left in Factual")
    expect(asked).to_have_text("caption 0")
    press(page, "n")
    expect(asked).to_have_text("caption 1")
    press(page, "f")
    expect(asked).to_have_text("caption 2")
    expect(progress).to_have_text("1 labelled today, 2 left in Factual")
    press(page, "e")
    expect(page.get_by_label("What the caption should say")).to_be_focused()
    page.keyboard.type(", sfn")  # in a text, these are letters
    page.keyboard.press("Escape")
    expect(page.get_by_label("What the caption should say")).to_be_hidden()
    press(page, "e")
    page.keyboard.press("Enter")
    expect(asked).to_have_text("caption 0")
    assert [c.best_text for c in three] == ["caption 0", "caption 1", "caption 2, sfn"]
    press(page, "s")
    expect(page.get_by_role("heading", name="Nothing is left to label in Factual")).to_be_visible()
    expect(progress).to_have_text("2 labelled today, 0 left in Factual")
    for text, then in (("caption 0", "Changed to"), ("caption 2", "Fine as it was"), ("caption 1", "labelled today")):
        press(page, "u")
        expect(asked).to_have_text(text)
        expect(page.locator("main")).to_contain_text(then)
    expect(page.get_by_role("button", name="Undo")).to_have_count(0)
    assert not Correction.objects.exists()


def test_whoever_wants_no_single_letters_as_keys_turns_them_off(page: Page, three: list[Caption]) -> None:
    sign_in(page)
    page.goto("/label/")
    page.get_by_label("Use keys").uncheck()
    press(page, "f")
    page.reload()
    expect(page.get_by_label("Use keys")).not_to_be_checked()
    press(page, "f")
    expect(page.locator(".done")).to_have_text("0 labelled today, 3 left in Factual")
    page.get_by_label("Use keys").check()
    press(page, "f")
    expect(page.locator(".label .text")).to_have_text("caption 1")


def test_captions_are_labelled_without_javascript(
    open_context: Callable[..., BrowserContext], three: list[Caption]
) -> None:
    page = open_context(java_script_enabled=False).new_page()
    sign_in(page)
    page.goto("/label/")
    expect(page.locator("kbd").first).to_be_hidden()
    page.get_by_role("link", name="Next").click()
    page.get_by_role("button", name="Fine as it is").click()
    page.locator("summary").click()
    page.get_by_label("What the caption should say").fill("a real caption")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Skip").click()
    expect(page.get_by_text("Nothing is left to label")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".label .text")).to_have_text("caption 0")
    assert [c.best_text for c in three] == ["caption 0", "caption 1", "a real caption"]


@pytest.mark.parametrize("height", [664, 844])
def test_photo_caption_and_buttons_fit_one_screen_of_a_phone(
    open_context: Callable[..., BrowserContext], three: list[Caption], height: int
) -> None:
    page = open_context(viewport={"width": 390, "height": height}, has_touch=True, is_mobile=True).new_page()
    sign_in(page)
    page.goto("/label/")
    page.locator(".label").scroll_into_view_if_needed()
    for part in (page.locator(".labelling img"), page.get_by_role("button", name="Fine as it is")):
        expect(part).to_be_in_viewport(ratio=1)


# Of every element that has text of its own: the contrast to the nearest background, if that is too little.
LOW_CONTRAST = """() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const [r, g, b] = parse(colour).map((v) => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const ground = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if ((parse(colour)[3] ?? 1) === 1) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    return [...document.body.querySelectorAll("*")]
        .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
        .map((e) => {
            const [low, high] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((a, b) => a - b);
            return [Math.round((high + .05) / (low + .05) * 100) / 100, e.outerHTML.slice(0, 120)];
        })
        .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.embedded_models
@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_have_enough_contrast(
    open_context: Callable[..., BrowserContext], example: Caption, scheme: Any, tolerated: list[str]
) -> None:
    tolerated.append("404")
    context = open_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True, is_mobile=True)
    page = context.new_page()
    sign_in(page)
    photo, request = f"/images/{example.image_id}/", f"/requests/{example.request_id}/"
    Image.objects.update(sender=f"user:{get_user_model().objects.get().pk}")
    deletion = f"{photo}delete/"
    for url in ("/", "/gallery/", "/gallery/?q=nothing", photo, deletion, request, "/label/", "/tokens/", "/nowhere/"):
        page.goto(url)
        for summary in page.locator("summary").all():
            summary.click()
        if url == "/tokens/":
            page.get_by_label("What is it for?").fill("a script")
            page.get_by_role("button", name="Create token").click()
        for box in page.locator("[name=photo]").all():
            box.check()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, url
        assert page.evaluate(LOW_CONTRAST) == [], url
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    page.goto("/")
    expect(page.get_by_text("Take a photo")).to_be_visible()


def test_the_bar_of_a_confidence_is_filled_to_its_whole_height(page: Page, example: Caption) -> None:
    Caption.objects.update(confidence=0.8)
    page.goto(f"/images/{example.image_id}/")
    with Pillow.open(io.BytesIO(page.locator("meter").first.screenshot())) as bar:
        column = {bar.convert("RGB").getpixel((bar.width // 2, y)) for y in range(1, bar.height - 1)}
        assert column == {(42, 106, 93)}


def test_every_picture_and_field_has_a_name(page: Page, example: Caption) -> None:
    unnamed = """() => [...document.querySelectorAll("img:not([alt]), a, button, summary, input, select, textarea")]
        .filter((e) => e.checkVisibility())
        .filter((e) => e.matches("img") || !(e.ariaLabel || e.innerText?.trim() || e.labels?.length
            || e.querySelector("img[alt]:not([alt=''])")))
        .map((e) => e.outerHTML)"""
    for url in ("/", "/gallery/", f"/images/{example.image_id}/", f"/requests/{example.request_id}/", "/sign-in/"):
        page.goto(url)
        assert page.evaluate(unnamed) == [], url
        assert page.locator("h1").count() == 1
