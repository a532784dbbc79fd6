"""Uploading photos in a real Chromium, with the real server and a real worker engine behind it."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from playwright.sync_api import BrowserContext, JSHandle, Page, expect

from captioner.models import Caption, Image
from tests.browser.visits import OFFLINE, PHOTOS, upload
from tests.pictures import FILES

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


def bad_file(folder: Path) -> Path:
    path = folder / "notes.jpg"
    path.write_text("This is not a picture.")
    return path


def transfer_of(page: Page, photo: Path, name: str) -> JSHandle:
    """What a browser hands over when a file is dropped or pasted."""
    make = """([data, name]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
        return transfer;
    }"""
    return page.evaluate_handle(make, [base64.b64encode(photo.read_bytes()).decode(), name])


@pytest.mark.embedded_models
@pytest.mark.usefixtures("worker")
def test_a_pasted_picture_is_captioned(page: Page) -> None:
    page.goto("/")
    paste = """(transfer) => document.body.dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }))"""
    page.evaluate(paste, transfer_of(page, PHOTOS[0], "image.jpg"))
    caption = page.get_by_label("image.jpg").locator(".caption.is-succeeded .text")
    expect(caption).to_have_text(re.compile(r"\w+ \w+"))
    expect(page.get_by_label("image.jpg").locator("img")).to_have_js_property("complete", True)


@pytest.mark.usefixtures("worker")
def test_a_dropped_photo_is_captioned_in_three_styles_without_reloading(page: Page) -> None:
    page.goto("/")
    page.evaluate("window.stayed = true")
    page.get_by_label("All", exact=True).check()
    expect(page.get_by_label("Romantic")).to_be_checked()
    transfer = transfer_of(page, PHOTOS[0], "dropped.jpg")
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


@pytest.mark.embedded_models
@pytest.mark.usefixtures("worker")
def test_a_phones_photo_in_heic_is_captioned_and_shown(page: Page) -> None:
    upload(page, FILES / "phone.heic")
    expect(page.locator(".caption.is-succeeded .text")).to_have_text(re.compile(r"\w+ \w+"))
    thumbnail = page.locator(".photo img")
    expect(thumbnail).to_have_js_property("complete", True)
    assert thumbnail.evaluate("image => image.naturalWidth") > 0


@pytest.mark.usefixtures("worker")
def test_whoever_sends_a_picture_is_not_told_that_another_has_sent_it(
    open_context: Callable[..., BrowserContext],
) -> None:
    for name in ("mine.jpg", "holiday.jpg"):
        page = open_context().new_page()
        page.goto("/")
        photo = {"name": name, "mimeType": "image/jpeg", "buffer": PHOTOS[0].read_bytes()}
        page.locator("#photos").set_input_files(photo)  # type: ignore[arg-type]
        expect(page.get_by_label(name).locator(".caption.is-succeeded")).to_have_count(1)
        page.goto("/gallery/")
        expect(page.locator(".tile")).to_have_count(1)
        page.locator(".tile a").first.click()
        expect(page.get_by_role("heading", name=name)).to_be_visible()
        expect(page.locator(".caption")).to_have_count(1)
        expect(page.get_by_text("Earlier captions")).to_have_count(0)
        expect(page.get_by_text("mine.jpg" if name != "mine.jpg" else "holiday.jpg")).to_have_count(0)


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


def test_a_visitor_whose_first_answer_was_lost_goes_on_on_the_same_page(page: Page) -> None:
    upload(page, PHOTOS[0])
    expect(page.locator(".photo")).to_have_count(1)
    page.context.clear_cookies(name="sessionid")  # it came with that answer
    page.locator("#photos").set_input_files(PHOTOS[1])
    expect(page.locator(".photo")).to_have_count(2)
    assert len({(caption.request_id, caption.visitor) for caption in Caption.objects.all()}) == 1


def test_uploads_are_canceled_one_by_one_and_all_together(page: Page) -> None:
    held = [True]  # the first is under way for as long as the test wants; to unroute would send on what is held
    page.route("**/upload/", lambda route: None if held else route.continue_())
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
    held.clear()
    page.locator("#photos").set_input_files(PHOTOS[5])
    expect(page.locator(".photo")).to_have_count(1)
    assert Image.objects.count() == 1


def test_while_many_photos_are_uploaded_those_that_are_done_stand_on_top_in_a_compact_list(page: Page) -> None:
    page.goto("/")
    alone = page.locator("#drop").bounding_box()
    left = iter(range(5))
    page.route("**/upload/", lambda route: route.continue_() if next(left, None) is not None else None)
    page.locator("#photos").set_input_files(PHOTOS[:8])
    expect(page.locator("#queue")).to_contain_text(re.compile(r"5 of 8 photos uploaded, [\d.]+ [kM]B per second"))
    expect(page.locator(".photo")).to_have_count(5)
    small = page.locator("#drop").bounding_box()
    assert alone
    assert small
    assert small["height"] < alone["height"] / 2
    expect(page.get_by_text("Choose photos")).to_be_visible()  # more can be added

    third = Caption.objects.order_by("index")[2]
    Caption.objects.filter(pk=third.pk).update(status="succeeded", text="a door", finished_at=timezone.now())
    expect(page.locator(f"#caption-{third.pk}")).to_have_class(re.compile("is-succeeded"))
    boxes = [photo.bounding_box() for photo in page.locator(".photo").all()]
    tops = [box["y"] for box in boxes if box]
    assert tops.index(min(tops)) == 2
    assert max(box["height"] for box in boxes if box) < 200


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


def test_a_lost_connection_is_reported_and_what_was_missed_arrives(
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


def test_what_is_refused_is_said_where_it_happens(page: Page, tolerated: list[str]) -> None:
    tolerated += ["409", "htmx:responseError", "Response Status Error Code"]
    upload(page, PHOTOS[0])
    expect(page.locator(".caption").get_by_role("button", name="Cancel")).to_be_visible()
    page.route("**/progress/", lambda route: route.abort())  # so that the page does not notice
    tolerated += ["ERR_FAILED", *OFFLINE]
    Caption.objects.update(status="canceled", finished_at=timezone.now())
    page.locator(".caption").get_by_role("button", name="Cancel").click()
    expect(page.locator("#toast")).to_contain_text("cannot be canceled")


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
    page.locator(".caption").first.get_by_text("More", exact=True).click()
    page.locator(".caption").first.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("The caption was deleted.")).to_be_visible()
    assert Caption.objects.count() == 3
