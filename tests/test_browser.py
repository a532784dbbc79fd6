"""The pages in a real Chromium, with the real server and a real worker engine behind them."""

import base64
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.utils import timezone
from PIL import Image as Pillow
from playwright.sync_api import Browser, BrowserContext, Page, expect

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import EVERYBODY, Caption, Correction, Embedding, Image, Style, Viewer, Worker
from tests.engine_thread import EngineThread

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "coco_cc").glob("*.jpg"))
PATIENCE = 60_000  # ms; the machine may be busy
OFFLINE = ("ERR_INTERNET_DISCONNECTED", "htmx:sendError", "htmx:afterRequest")

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def tolerated() -> list[str]:
    """What a test expects to stand in the browser's console; anything else there fails it."""
    return []


@pytest.fixture
def open_context(
    browser: Browser, live_server: Any, styles: dict[str, Style], tolerated: list[str]
) -> Iterator[Callable[..., BrowserContext]]:
    """Opens a browser window of its own, with the options given; complains of errors in its console."""
    cache.clear()
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def listen(page: Page) -> None:
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))

    def opened(**options: Any) -> BrowserContext:
        context = browser.new_context(base_url=live_server.url, **options)
        context.set_default_timeout(PATIENCE)
        context.on("page", listen)
        contexts.append(context)
        return context

    yield opened
    for context in contexts:
        context.close()
    assert [text for text in complaints if not any(known in text for known in tolerated)] == []


@pytest.fixture
def context(open_context: Callable[..., BrowserContext]) -> BrowserContext:
    return open_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def start_worker(engine: CaptionEngine, live_server: Any) -> Iterator[Callable[[], None]]:
    """Starts a thread that does what a worker's engine does."""
    yield from thread_of(engine)


@pytest.fixture
def start_reader(reading_engine: CaptionEngine, live_server: Any) -> Iterator[Callable[[], None]]:
    """The same with an engine that can look up what people search for."""
    yield from thread_of(reading_engine)


def thread_of(engine: CaptionEngine) -> Iterator[Callable[[], None]]:
    thread = EngineThread(engine)
    yield thread.start
    thread.stop()


@pytest.fixture
def worker(start_worker: Callable[[], None]) -> None:
    start_worker()


@pytest.fixture
def ada(db: None) -> Viewer:
    return Viewer(get_user_model().objects.create_user("ada", password="lovelace"))


@pytest.fixture
def example(styles: dict[str, Style], engine: CaptionEngine) -> Caption:
    """A photo captioned in every style, that all may see."""
    photo = services.Upload(PHOTOS[0].read_bytes(), "example.jpg")
    request = services.request_captions(viewer=Viewer(visitor=EVERYBODY), images=[photo], styles=["all"])
    engine.work()
    Image.objects.update(credit="Photo: somebody, CC BY 2.0", credit_url="https://example.org/")
    caption = request.captions.first()
    assert caption is not None
    return caption


def sign_in(page: Page) -> None:
    page.goto("/sign-in/")
    page.get_by_label("User name").fill("ada")
    page.get_by_label("Password").fill("lovelace")
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def upload(page: Page, *photos: Path) -> None:
    page.goto("/")
    page.locator("#photos").set_input_files(photos)


def bad_file(folder: Path) -> Path:
    path = folder / "notes.jpg"
    path.write_text("This is not a picture.")
    return path


@pytest.mark.usefixtures("worker")
def test_a_dropped_photo_is_captioned_in_three_styles_without_reloading(page: Page) -> None:
    page.goto("/")
    page.evaluate("window.stayed = true")
    page.get_by_label("All", exact=True).check()
    expect(page.get_by_label("Romantic")).to_be_checked()
    make = """(data) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
        return transfer;
    }"""
    transfer = page.evaluate_handle(make, base64.b64encode(PHOTOS[0].read_bytes()).decode())
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    cards = page.get_by_label("dropped.jpg").locator(".caption.is-succeeded")
    expect(cards).to_have_count(3)
    assert [title.lower() for title in cards.locator("h2").all_inner_texts()] == ["factual", "humorous", "romantic"]
    for caption in Caption.objects.all():
        expect(page.locator(f"#caption-{caption.pk} .text")).to_have_text(caption.text)
    expect(page.locator("#left")).to_be_hidden()
    expect(page.locator("#announcer")).to_contain_text(":")
    assert page.evaluate("window.stayed")
    page.reload()
    expect(page.locator(".caption.is-succeeded")).to_have_count(3)


@pytest.mark.usefixtures("worker")
def test_many_photos_at_once_arrive_in_one_request(page: Page) -> None:
    upload(page, *PHOTOS[:6])
    expect(page.locator(".photo")).to_have_count(6)
    expect(page.locator(".caption.is-succeeded")).to_have_count(6)
    expect(page.locator("#uploads li")).to_have_count(0)
    assert page.url.endswith(f"/requests/{Caption.objects.values('request').distinct().get()['request']}/")


@pytest.mark.usefixtures("worker")
def test_files_that_are_no_photos_fail_alone_each_with_its_cause(
    page: Page, tmp_path: Path, tolerated: list[str]
) -> None:
    tolerated += ["415", "422"]
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    upload(page, PHOTOS[0], bad_file(tmp_path), PHOTOS[1], empty, PHOTOS[2])
    expect(page.locator(".caption.is-succeeded")).to_have_count(3)
    failed = page.locator("#uploads li.failed")
    expect(failed).to_have_count(2)
    expect(failed.first).to_contain_text("notes.jpg")
    expect(failed.first).to_contain_text("This is not a picture")
    expect(failed.last).to_contain_text("empty.png")
    expect(page.locator("#queue")).to_contain_text("3 of 5 photos uploaded, 2 failed")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)  # they never work
    expect(page.get_by_role("button", name="Retry failed")).to_be_hidden()
    failed.first.get_by_role("button", name="Dismiss").click()
    expect(failed).to_have_count(1)


def test_uploads_are_canceled_one_by_one_and_all_together(page: Page) -> None:
    page.route("**/upload/", lambda route: None)  # the first is under way for as long as the test wants
    upload(page, *PHOTOS[:5])
    queue, rows = page.locator("#queue"), page.locator("#uploads li")
    expect(queue).to_contain_text("0 of 5 photos uploaded")
    rows.nth(4).get_by_role("button", name="Cancel").click()
    rows.nth(0).get_by_role("button", name="Cancel").click()
    expect(queue).to_contain_text("0 of 3 photos uploaded")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("uploading")
    queue.get_by_role("button", name="Cancel all").click()
    expect(rows).to_have_count(0)
    expect(queue).to_be_hidden()
    page.unroute("**/upload/")
    page.locator("#photos").set_input_files(PHOTOS[5])
    expect(page.locator(".photo")).to_have_count(1)
    assert Image.objects.count() == 1


def test_failed_uploads_are_tried_again_together(page: Page, tolerated: list[str]) -> None:
    tolerated += ["503"]
    page.route("**/upload/", lambda route: route.fulfill(status=503, body="{}"))
    upload(page, *PHOTOS[:2])
    expect(page.locator("#queue")).to_contain_text("0 of 2 photos uploaded, 2 failed")
    expect(page.get_by_role("button", name="Try again")).to_have_count(2)
    page.unroute("**/upload/")
    page.get_by_role("button", name="Retry failed").click()
    expect(page.locator(".photo")).to_have_count(2)
    expect(page.locator("#uploads li")).to_have_count(0)


def test_leaving_the_page_asks_first_while_photos_are_uploaded(page: Page) -> None:
    asked: list[str] = []

    def stay(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.route("**/upload/", lambda route: None)
    upload(page, PHOTOS[0])
    expect(page.locator("#uploads li")).to_contain_text("uploading")
    page.on("dialog", stay)
    page.get_by_role("link", name="Gallery").click(no_wait_after=True)
    expect(page.locator("#uploads li")).to_have_count(1)
    page.locator("#uploads").get_by_role("button", name="Cancel").click()
    assert asked == ["beforeunload"]
    page.get_by_role("link", name="Gallery").click()
    expect(page.get_by_role("heading", name="Gallery")).to_be_visible()
    assert asked == ["beforeunload"]


@pytest.mark.usefixtures("worker", "ada")
def test_a_caption_is_corrected_where_it_stands(page: Page) -> None:
    sign_in(page)
    upload(page, PHOTOS[0])
    card = page.locator(".caption.is-succeeded")
    expect(card).to_be_visible()
    machine = Caption.objects.get().text
    card.get_by_text("Correct it").click()
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
    page.get_by_role("button", name="Copy text").click()
    expect(page.locator("#toast")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == '"A & B" <i>'
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


def test_a_lost_connection_is_told_of_and_what_was_missed_arrives(
    context: BrowserContext, page: Page, start_worker: Callable[[], None], tolerated: list[str]
) -> None:
    tolerated += OFFLINE
    upload(page, PHOTOS[0])
    expect(page.locator(".caption.is-queued")).to_be_visible()
    context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("Connection lost, trying again")
    start_worker()
    context.set_offline(False)
    expect(page.locator(".caption.is-succeeded")).to_be_visible()
    expect(page.locator("#connection")).to_be_hidden()


@pytest.mark.usefixtures("worker")
def test_an_upload_goes_on_when_the_connection_is_back(
    context: BrowserContext, page: Page, tolerated: list[str]
) -> None:
    tolerated += OFFLINE
    page.goto("/")
    context.set_offline(True)
    page.locator("#photos").set_input_files(PHOTOS[:2])
    expect(page.locator("#uploads li").first).to_contain_text("Connection lost, trying again")
    context.set_offline(False)
    expect(page.locator(".caption.is-succeeded")).to_have_count(2)
    expect(page.locator("#uploads li")).to_have_count(0)
    assert Caption.objects.count() == 2


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
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".caption")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Its captions were deleted.")).to_be_visible()
    assert not Caption.objects.exists()


def test_what_is_refused_is_said_where_it_happens(page: Page, tolerated: list[str]) -> None:
    tolerated += ["409", "htmx:responseError", "Response Status Error Code"]
    upload(page, PHOTOS[0])
    expect(page.locator(".caption").get_by_role("button", name="Cancel")).to_be_visible()
    page.route("**/progress/", lambda route: route.abort())  # so that the page does not notice
    tolerated += ["ERR_FAILED", *OFFLINE]
    Caption.objects.update(status="canceled", finished_at=timezone.now())
    page.locator(".caption").get_by_role("button", name="Cancel").click()
    expect(page.locator("#toast")).to_contain_text("cannot be canceled")


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
    Worker.objects.create(
        name="w",
        queue="captions",
        models_loaded="x",
        encoder=encoder.identity,
        text_encoder=encoder.text_identity or "",
        seen_at=timezone.now() + timedelta(days=1),
    )
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
    page.keyboard.press("ArrowLeft")  # there is none
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(rf"/images/{before}/\?sort=oldest"))
    page.get_by_text("Correct it").click()
    page.get_by_role("textbox").press("ArrowLeft")
    expect(page.get_by_role("textbox")).to_be_visible()
    page.locator("h1").click()
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(rf"/images/{last}/"))


@pytest.mark.usefixtures("worker")
def test_without_javascript_photos_are_captioned_too(
    open_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    page = open_context(java_script_enabled=False).new_page()
    page.goto("/")
    page.get_by_label("Humorous").check()
    page.locator("#photos").set_input_files([PHOTOS[0], bad_file(tmp_path), PHOTOS[1]])
    page.get_by_role("button", name="Caption them").click()
    expect(page.get_by_text("notes.jpg: this is not a picture")).to_be_visible()
    expect(page.locator(".caption.is-succeeded")).to_have_count(4)
    page.locator(".caption").first.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("The caption was deleted.")).to_be_visible()
    assert Caption.objects.count() == 3


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
    page.keyboard.press("n")
    expect(asked).to_have_text("caption 1")
    page.keyboard.press("f")
    expect(asked).to_have_text("caption 2")
    expect(progress).to_have_text("1 labelled today, 2 left in Factual")
    page.keyboard.press("e")
    expect(page.get_by_label("What the caption should say")).to_be_focused()
    page.keyboard.type(", sfn")  # in a text, these are letters
    page.keyboard.press("Escape")
    expect(page.get_by_label("What the caption should say")).to_be_hidden()
    page.keyboard.press("e")
    page.keyboard.press("Enter")
    expect(asked).to_have_text("caption 0")
    assert [c.best_text for c in three] == ["caption 0", "caption 1", "caption 2, sfn"]
    page.keyboard.press("s")
    expect(page.get_by_role("heading", name="Nothing is left to label in Factual")).to_be_visible()
    expect(progress).to_have_text("2 labelled today, 0 left in Factual")
    for text, then in (("caption 0", "Changed to"), ("caption 2", "Fine as it was"), ("caption 1", "labelled today")):
        page.keyboard.press("u")
        expect(asked).to_have_text(text)
        expect(page.locator("main")).to_contain_text(then)
    expect(page.get_by_role("button", name="Undo")).to_have_count(0)
    assert not Correction.objects.exists()


def test_whoever_wants_no_single_letters_as_keys_turns_them_off(page: Page, three: list[Caption]) -> None:
    sign_in(page)
    page.goto("/label/")
    page.get_by_label("Use keys").uncheck()
    page.keyboard.press("f")
    page.reload()
    expect(page.get_by_label("Use keys")).not_to_be_checked()
    page.keyboard.press("f")
    expect(page.locator(".done")).to_have_text("0 labelled today, 3 left in Factual")
    page.get_by_label("Use keys").check()
    page.keyboard.press("f")
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
