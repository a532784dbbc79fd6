"""Everyday jobs of an administrator in a real Chromium: what a person sees of styles, imports, verdicts and lists."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import BrowserContext, Locator, Page, expect

from captioner import services
from captioner.models import AuditEntry, Caption, Image, MapperVersion, Style, Viewer
from captioner.reports import VersionReport
from tests.axe import violations
from tests.browser.visits import PHOTOS, sign_in
from tests.dataset_files import packed, picture
from tests.importing import processed
from training.models import Example, Import, TrainingRun
from training.options import RunOptions

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


@pytest.fixture
def ada(db: None) -> Viewer:
    """An administrator."""
    return Viewer(User.objects.create_superuser("ada", password="lovelace"))


@pytest.fixture
def admin(page: Page, styles: dict[str, Style], ada: Viewer) -> Page:
    """Her window."""
    sign_in(page)
    page.get_by_role("link", name="Admin").click()
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
    return page


def file(name: str, content: bytes) -> Any:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def test_a_style_is_made_from_a_file_renamed_withdrawn_archived_and_deleted(admin: Page, tolerated: list[str]) -> None:
    tolerated.append("404")
    rows = "".join(f"{number}.jpg,arr a thing {number}\n" for number in range(6))
    photos = {f"{number}.jpg": picture(number) for number in range(6)}
    admin.goto("/admin/captioner/style/add/")
    admin.get_by_label("Name:", exact=True).fill("Pirate")
    content = packed({"a.csv": b"image,caption\n" + rows.encode(), **photos})
    admin.get_by_label("File:").set_input_files(file("a.zip", content))
    admin.get_by_role("button", name="Create the style").click()
    step = admin.get_by_role("region", name="Next step")
    step.get_by_role("link", name="Watch the import").click()
    processed(Import.objects.get())
    expect(admin.locator("#import")).to_contain_text("6 new examples")
    admin.get_by_role("link", name="Pirate", exact=True).first.click()
    expect(step).to_contain_text("6 examples are ready to learn from")
    expect(step.get_by_role("button", name="Train")).to_be_visible()

    name = admin.get_by_label("Name:", exact=True)
    expect(name).to_be_hidden()  # settings are folded
    admin.get_by_text("Settings", exact=True).click()
    name.fill("Buccaneer")
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(admin.get_by_role("link", name="Buccaneer", exact=True).first).to_be_visible()

    style = Style.objects.get(name="Buccaneer")
    page = f"/admin/captioner/style/{style.pk}/change/"
    for button, says, state in (
        ("Withdraw", "was withdrawn", "withdrawn"),
        ("Archive", "was archived", "archived"),
        ("Bring back", "is available", ""),
    ):
        admin.goto(page)
        admin.get_by_text("Settings", exact=True).click()
        admin.get_by_role("button", name=button).click()
        expect(admin.locator(".messagelist")).to_contain_text(says)
        expect(admin.locator(".overview .state.canceled")).to_have_text([state] if state else [])
    delete(admin, style)
    expect(admin.locator(".messagelist")).to_contain_text("it is needed by 6 examples, 1 import; archive it")
    empty = Style.objects.create(slug="empty", name="Empty")
    delete(admin, empty)
    expect(admin.locator(".messagelist")).to_contain_text("Empty was deleted.")
    expect(admin.get_by_role("link", name="Buccaneer", exact=True)).to_be_visible()
    expect(admin.get_by_role("link", name="Empty", exact=True)).to_have_count(0)
    answer = admin.goto(f"/admin/captioner/style/{empty.pk}/change/")
    assert answer
    assert answer.status == 404
    expect(admin.get_by_role("heading", name="Not found")).to_be_visible()


def delete(admin: Page, style: Style) -> None:
    admin.goto(f"/admin/captioner/style/{style.pk}/change/")
    admin.get_by_text("Settings", exact=True).click()
    admin.get_by_role("link", name="Delete…").click()
    admin.get_by_role("button", name="Delete it").click()


def test_a_withdrawn_style_leaves_the_upload_page_and_its_captions_stay(
    admin: Page, styles: dict[str, Style], ada: Viewer
) -> None:
    photo = services.Upload(PHOTOS[0].read_bytes(), "a.jpg")
    request = services.request_captions(viewer=ada, images=[photo], styles=["romantic"])
    request.captions.update(status="succeeded", finished_at=timezone.now(), text="a moonlit wall")
    admin.goto("/")
    expect(admin.get_by_label("Romantic")).to_have_count(1)
    admin.goto(f"/admin/captioner/style/{styles['romantic'].pk}/change/")
    admin.get_by_text("Settings", exact=True).click()
    admin.get_by_role("button", name="Withdraw").click()
    admin.goto("/")
    expect(admin.get_by_label("Factual")).to_have_count(1)
    expect(admin.get_by_label("Romantic")).to_have_count(0)
    admin.goto(f"/images/{request.captions.get().image_id}/")
    expect(admin.locator(".caption .text")).to_have_text("a moonlit wall")


def test_a_sample_is_downloaded_checked_and_imported_and_columns_are_chosen_by_hand(
    admin: Page, styles: dict[str, Style]
) -> None:
    style = styles["humorous"]
    admin.goto(f"/admin/captioner/style/{style.pk}/import/")
    expect(admin.locator("a[download]")).to_have_count(8)
    with admin.expect_download() as download:
        admin.get_by_role("link", name="A .txt next to each photo").click()
    preview, given = admin.locator("#preview"), admin.get_by_label("File:", exact=True)
    given.set_input_files(file("sidecars.zip", download.value.path().read_bytes()))
    admin.get_by_role("button", name="Check the file first").click()
    expect(preview).to_contain_text("3 of 3 captions can be used")

    rows = "".join(f"{number}.jpg;a joke about thing {number}\n" for number in range(14))
    photos = {f"{number}.jpg": picture(number) for number in range(14)}
    given.set_input_files(file("jokes.zip", packed({"jokes.csv": b"Pic;Joke\n" + rows.encode(), **photos})))
    admin.get_by_role("button", name="Check the file first").click()
    expect(preview).to_contain_text("The names of these columns are not known")
    preview.get_by_label("File name").select_option("Pic")
    preview.get_by_label("Caption").select_option("Joke")
    admin.get_by_role("button", name="Check the file first").click()
    expect(preview).to_contain_text("14 of 14 captions can be used")
    first = preview.locator("section", has=admin.get_by_role("heading", name="The first examples")).locator("tbody tr")
    expect(first).to_have_count(10)
    expect(first.nth(9)).to_contain_text("a joke about thing 9")
    widths = first.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 10
    assert all(widths)
    assert not Import.objects.exists()
    admin.get_by_role("button", name="Import").click()
    processed(Import.objects.get())
    expect(admin.locator("#import")).to_contain_text("14 new examples")
    for link in ("Dataset", "Retrain"):
        expect(admin.get_by_role("link", name=link).first).to_be_visible()
    assert style.examples.count() == 14


def judged(style: Style, mean: float, low: float, high: float, verdict: str) -> TrainingRun:
    """A run that ended with a version, and what the gate found."""
    scores = {"scores": {"CIDEr": 1.0, "SPICE": 0.25}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}
    found = VersionReport.read(
        {
            "active_version": str(style.version_in_service),
            "metric": "CIDEr",
            "margin": 0.0,
            "difference": {"mean": mean, "low": low, "high": high},
            "verdict": verdict,
            "images": 312,
            "candidate": scores,
            "active": scores,
        }
    )
    source = style.version_in_service
    assert source
    version = services.register_version(
        style=style, path=Path(source.file.path), origin=MapperVersion.Origin.TRAINED, report=found
    )
    now = timezone.now()
    return TrainingRun.objects.create(
        style=style,
        version=version,
        metrics=found.to_json(),
        verdict=verdict,
        status="succeeded",
        options=RunOptions().to_json(),
        finished_at=now,
        deadline_at=now,
    )


def bar(page: Page, title: str) -> Locator:
    """A bar of the drawing of scores."""
    return page.locator("svg.plot rect", has_text=title)


def test_the_verdict_stands_on_top_of_run_version_and_promotion_and_scores_are_drawn_on_one_scale(
    admin: Page, styles: dict[str, Style]
) -> None:
    run = judged(styles["humorous"], 0.04, 0.01, 0.07, "better")
    assert run.version
    says = "v2 is better than v1: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos."
    colours = set()
    for address in (
        f"/admin/training/trainingrun/{run.pk}/change/",
        f"/admin/captioner/mapperversion/{run.version.pk}/change/",
        f"/admin/captioner/mapperversion/{run.version.pk}/promote/",
    ):
        admin.goto(address)
        verdict = admin.locator("p.verdict").first
        expect(verdict).to_have_text(says)
        expect(verdict).to_be_in_viewport(ratio=1)
        cider, spice = (bar(admin, f"{metric} of humorous v2") for metric in ("CIDEr", "SPICE"))
        colours.add(cider.evaluate("bar => getComputedStyle(bar).fill"))
        wide, narrow = cider.bounding_box(), spice.bounding_box()
        assert wide
        assert narrow
        assert wide["width"] == pytest.approx(4 * narrow["width"], rel=0.05)
        assert wide["x"] == pytest.approx(narrow["x"], abs=1)
    assert len(colours) == 1
    admin.goto(f"/admin/captioner/style/{styles['humorous'].pk}/retrain/")
    expect(admin.locator("#content")).to_contain_text(
        "0 photos will be trained on, and 0 held out to judge by; at least 2 and 1 are needed to train at all"
    )


def test_before_a_run_is_started_it_says_what_can_be_concluded_and_what_is_missing(
    admin: Page, styles: dict[str, Style]
) -> None:
    photos = [Image.objects.create(sha256=f"{n:064}", file="a", width=1, height=1, size=1) for n in range(40)]
    Example.objects.bulk_create(
        Example(style=styles["humorous"], image=photo, text=f"text {n}", source="imported", held_out=n % 8 == 0)
        for n, photo in enumerate(photos)
    )
    admin.goto(f"/admin/captioner/style/{styles['humorous'].pk}/retrain/")
    expect(admin.get_by_role("main")).to_contain_text(
        "35 photos will be trained on. 5 held-out photos are too few to judge a version by; 20 are needed: add about "
        "150 captioned photos."
    )


def test_statuses_are_words_in_colour_and_an_example_is_picked_by_its_thumbnail(
    admin: Page, styles: dict[str, Style], ada: Viewer
) -> None:
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:3]]
    request = services.request_captions(viewer=ada, images=photos)
    now = timezone.now()
    done, failed, _ = request.captions.order_by("index")
    Caption.objects.filter(pk=done.pk).update(status="succeeded", finished_at=now, text="a wall")
    Caption.objects.filter(pk=failed.pk).update(status="failed", finished_at=now, error_code="x", error_detail="lost")
    admin.goto("/admin/captioner/caption/")
    states = admin.locator("td .state")
    expect(states).to_have_count(3)
    assert sorted(states.all_inner_texts()) == ["Failed", "Queued", "Succeeded"]
    assert len(set(states.evaluate_all("all => all.map(one => getComputedStyle(one).color)"))) == 3

    admin.goto("/admin/training/example/add/")
    admin.get_by_label("Style").select_option(label="Humorous")
    pictures = admin.locator("#id_image img")
    expect(pictures).to_have_count(3)
    assert all(pictures.evaluate_all("all => all.map(one => one.naturalWidth)"))
    pictures.nth(1).click()
    admin.get_by_label("Text").fill("a wall with a joke")
    admin.get_by_role("button", name="Save", exact=True).click()
    row = admin.get_by_role("row", name="a wall with a joke")
    expect(row.get_by_role("img", name="View the photo")).to_be_visible()
    assert Example.objects.get().image == list(Image.objects.all())[1]


def test_an_empty_list_leads_to_the_next_step_and_links_lead_into_the_site_and_back(
    admin: Page, ada: Viewer, photo: bytes
) -> None:
    admin.goto("/admin/captioner/draftrequest/")
    nothing = admin.locator("p.nothing")
    expect(nothing).to_have_text("No comparisons yet: choose two versions and have them caption the same photos.")
    for scheme in ("light", "dark"):
        admin.emulate_media(color_scheme=scheme)
        assert violations(admin) == []
    nothing.get_by_role("link").click()
    expect(admin.get_by_role("link", name="factual v1")).to_be_visible()

    image = services.request_captions(viewer=ada, images=[services.Upload(photo)]).captions.get().image
    admin.goto(f"/admin/captioner/image/{image.pk}/change/")
    admin.get_by_role("link", name="View on the site").click()
    expect(admin).to_have_url(re.compile(f"/images/{image.pk}/"))
    admin.get_by_role("main").get_by_role("link", name="Admin").click()
    expect(admin).to_have_url(re.compile(f"/admin/captioner/image/{image.pk}/change/"))
    crumbs = admin.locator(".breadcrumbs")
    crumbs.get_by_role("link", name="Images").click()
    expect(admin.get_by_role("link", name="View the photo")).to_be_visible()
    admin.locator(".breadcrumbs").get_by_role("link", name="Home").click()
    expect(admin.get_by_role("heading", name="Dashboard")).to_be_visible()
    admin.get_by_role("link", name="View site").click()
    expect(admin.get_by_role("link", name="Gallery")).to_be_visible()


def test_a_photo_is_taken_down_with_a_reason_that_is_kept(
    admin: Page, open_context: Callable[..., BrowserContext], photo: bytes, tolerated: list[str]
) -> None:
    tolerated.append("404")
    visitor = open_context().new_page()
    visitor.goto("/")
    visitor.locator("#photos").set_input_files(PHOTOS[0])
    expect(visitor.locator(".photo")).to_have_count(1)
    image = Image.objects.get()
    admin.goto(f"/images/{image.pk}/")
    admin.get_by_role("link", name="Delete photo").click()
    delete = admin.get_by_role("button", name="Delete photo")
    delete.click()
    assert admin.get_by_label("Reason").evaluate("field => field.validity.valueMissing")  # and nothing was sent
    expect(admin.get_by_role("heading", name="Delete this photo?")).to_be_visible()
    admin.get_by_label("Reason").fill("the person in it asked us to")
    delete.click()
    expect(admin.get_by_role("alert")).to_contain_text("deleted")
    assert not Image.objects.exists()
    visitor.goto(f"/images/{image.pk}/")
    expect(visitor.get_by_role("heading", name="Not found")).to_be_visible()
    admin.goto("/admin/captioner/auditentry/")
    entry = admin.get_by_role("row", name=f"photo {image.pk}")
    expect(entry).to_contain_text("ada")
    expect(entry).to_contain_text("the person in it asked us to")
    assert AuditEntry.objects.filter(action="deleted").count() == 1
