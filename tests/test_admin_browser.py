"""The admin in a real Chromium, with the real server and a real training worker's engine behind it."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import Caption, MapperVersion, Style, Viewer
from tests.engine_thread import EngineThread
from tests.people import window_of
from training.models import Import, TrainingRun
from training.worker import TrainingEngine

COCO = Path(__file__).parent.parent / "examples" / "coco_cc"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


@pytest.fixture
def page(browser: Browser, live_server: Any, styles: dict[str, Style]) -> Iterator[Page]:
    """A window in which an administrator has signed in; errors in its console fail the test."""
    User.objects.create_superuser("boss", password="boss")
    with window_of(None, browser, live_server.url, viewport={"width": 1280, "height": 900}) as page:
        page.goto("/admin/")
        page.get_by_label("Username").fill("boss")
        page.get_by_label("Password").fill("boss")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
        yield page


@pytest.fixture
def training_worker(engine: CaptionEngine, live_server: Any) -> Iterator[None]:
    """A thread that does what a training worker's engine does."""
    trainer = TrainingEngine(engine)
    thread = EngineThread(trainer)
    trainer.stopping = thread.stopping.is_set
    thread.start()
    yield
    thread.stop()


def examples(folder: Path) -> Path:
    """A zip of photos with their captions; one row names a photo that is not there."""
    rows = json.loads((COCO / "captions.json").read_text(encoding="utf-8"))[:30]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("image", "caption"))
    for row in rows:
        writer.writerows((row["file"], text) for text in row["captions"][:2])
    writer.writerow(("gone.jpg", "a photo that is not there"))
    path = folder / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("captions.csv", table.getvalue())
        for row in rows:
            archive.write(COCO / row["file"], row["file"])
    return path


def caption(style: str, photo: bytes, engine: CaptionEngine) -> Caption:
    request = services.request_captions(viewer=Viewer(), images=[services.Upload(photo)], styles=[style])
    assert engine.work()
    return request.captions.get()


def shot(page: Page, name: str) -> None:
    """A screenshot on a desktop and a phone, light and dark, where somebody asks for them."""
    if folder := os.environ.get("CLIPCAP_SCREENSHOTS"):
        for width, scheme in ((1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.screenshot(path=f"{folder}/{name}-{width}-{scheme}.png", full_page=True)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.embedded_models
@pytest.mark.usefixtures("training_worker")
def test_a_style_is_fed_retrained_promoted_and_rolled_back_without_a_terminal(
    page: Page, tmp_path: Path, photo: bytes, engine: CaptionEngine
) -> None:
    before = caption("humorous", photo, engine)
    page.get_by_role("link", name="Humorous").click()
    page.get_by_role("link", name="Import examples").click()
    page.get_by_label("File").set_input_files(examples(tmp_path))
    page.get_by_role("button", name="Check the file first").click()
    expect(page.locator("#preview")).to_contain_text("60 of 61 captions can be used")
    expect(page.locator("#preview")).to_contain_text("photo: image, caption: caption")
    expect(page.get_by_role("row", name="gone.jpg")).to_contain_text("no such file")
    shot(page, "import-checked")
    assert not Import.objects.exists()
    page.get_by_role("button", name="Import").click()
    expect(page.locator("#import .state")).to_have_text("Succeeded")  # it came to that without reloading
    expect(page.locator("#import")).to_contain_text("60 new examples")
    expect(page.get_by_role("row", name="gone.jpg")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="all as CSV").click()
    assert "gone.jpg" in download.value.path().read_text(encoding="utf-8")

    page.get_by_role("link", name="Retrain").click()
    page.get_by_label("Start from").select_option("scratch")
    page.get_by_label("Prefix length").fill("4")
    page.get_by_label("Layers").fill("99")
    page.get_by_label("Epochs").fill("2")
    page.get_by_role("button", name="Start the run").click()
    expect(page.locator(".field-layers .errorlist")).to_contain_text("from 1 to 16")
    page.get_by_label("Layers").fill("1")
    page.get_by_role("button", name="Start the run").click()
    expect(page.locator("#run")).to_be_visible()
    page.evaluate("window.stayed = true")
    expect(page.locator("#run .state").first).to_have_text("Succeeded")
    expect(page.get_by_role("heading", name="Side by side")).to_be_visible()
    expect(page.locator("svg circle.validation")).to_have_count(2)
    expect(page.locator("article.sample").first).to_be_visible()
    assert page.evaluate("window.stayed")
    broken = "images => images.filter(image => image.complete && !image.naturalWidth).length"
    assert page.locator("article.sample img").evaluate_all(broken) == 0
    assert page.locator("#run").evaluate("run => run.scrollWidth <= run.clientWidth + 1")

    run = TrainingRun.objects.get()
    assert run.version is not None
    page.get_by_role("link", name="Promote humorous v2").click()
    page.get_by_label("Reason").fill("to see what it is like")
    page.get_by_role("button", name="Put in service").click()
    expect(page.get_by_role("row", name="to see what it is like")).to_contain_text("boss")
    after = caption("humorous", photo, engine)
    assert after.version == run.version
    page.get_by_role("link", name="Roll back").click()
    page.get_by_role("button", name="Put in service").click()
    expect(page.locator(".messagelist")).to_contain_text("v1 is in service")
    again = caption("humorous", photo, engine)
    assert (again.version, again.text) == (before.version, before.text)


@pytest.mark.usefixtures("training_worker")
def test_a_style_comes_from_nothing_into_service_by_one_button_after_the_other(
    page: Page, photo: bytes, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcap.training.options.AUTOMATIC_EPOCHS", 1)
    caption("factual", photo, engine)
    page.get_by_role("link", name="Styles", exact=True).first.click()
    page.get_by_role("link", name="Add style").click()
    page.get_by_label("Name:", exact=True).fill("Pirate")
    page.get_by_label("Description").fill("As a pirate would say it.")
    expect(page.get_by_label("Start from")).to_have_value(str(Style.objects.get(slug="factual").pk))
    page.get_by_label("More photos").set_input_files([COCO / "000000349860.jpg", *sorted(COCO.glob("*.jpg"))[:4]])
    page.get_by_role("button", name="Upload photos").click()
    expect(page.get_by_label("Name:", exact=True)).to_have_value("Pirate")
    for number in (1, 2, 3, 4):
        page.get_by_label(f"Caption of photo {number}", exact=True).fill(f"arr, here be thing {number}")
    shot(page, "new-style")
    page.get_by_role("button", name="Create the style").click()
    step = page.get_by_role("region", name="Next step")
    expect(step).to_contain_text("4 examples are ready to learn from")
    shot(page, "style-to-train")
    page.get_by_role("link", name="Retrain with options").click()
    expect(page.get_by_text("3 photos will be trained on, and 1 held out to judge by; there is no")).to_be_visible()
    page.go_back()
    step.get_by_role("button", name="Train").click()
    expect(page.locator("#run .state").first).to_have_text("Succeeded")
    page.get_by_role("link", name="Pirate", exact=True).click()
    step.get_by_role("link", name="Look at v1").click()
    expect(page.locator("article.sample").first).to_be_visible()
    first = "v1 is the first version, so there is nothing to compare it with; 1 photo tells nothing of its quality."
    expect(page.get_by_text(first)).to_be_visible()
    shot(page, "run")
    page.get_by_role("link", name="Promote pirate v1").click()
    expect(page.get_by_text(first)).to_be_visible()
    shot(page, "promote")
    page.get_by_role("button", name="Put in service").click()
    expect(page.get_by_label("In service")).to_contain_text("v1")
    expect(step).to_contain_text("labels and corrections make it better")
    shot(page, "style-in-service")
    assert caption("pirate", photo, engine).text
    step.get_by_role("link", name="Label captions").click()
    expect(page.get_by_role("button", name="Fine as it is")).to_be_visible()


@pytest.mark.embedded_models
def test_versions_are_compared_on_a_chosen_and_an_uploaded_photo_and_captions_regenerated(
    page: Page, photo: bytes, engine: CaptionEngine, styles: dict[str, Style]
) -> None:
    row = caption("factual", photo, engine)
    other = services.register_version(
        style=styles["factual"],
        path=Path(styles["romantic"].version_in_service.file.path),  # type: ignore[union-attr]
        origin=MapperVersion.Origin.IMPORTED,
    )
    page.goto("/admin/captioner/mapperversion/?style__id__exact=" + str(styles["factual"].pk))
    page.get_by_role("checkbox", name="Select all").check()
    page.locator("select[name=action]").select_option("compare_chosen")
    page.get_by_role("button", name="Go").click()
    page.get_by_role("checkbox").first.check()
    page.get_by_label("Upload photos").set_input_files(COCO / "000000349860.jpg")
    page.get_by_role("button", name="Generate captions").click()
    expect(page.locator("#drafts")).to_contain_text("of 4 written")
    page.evaluate("window.stayed = true")
    while engine.work():
        pass
    expect(page.locator("#drafts .figures")).to_contain_text("4 of 4 written")
    expect(page.get_by_role("heading", name="How far the prefixes differ")).to_be_visible()
    expect(page.get_by_role("cell", name=row.text)).to_be_visible()
    page.locator("details").first.click()
    expect(page.locator("ol.prefix li").first).to_be_visible()
    assert page.evaluate("window.stayed")
    shot(page, "compare")

    services.promote(version=other, reason="to see")
    page.goto(f"/admin/captioner/style/{styles['factual'].pk}/change/")
    page.get_by_role("link", name="Regenerate captions").click()
    page.get_by_role("button", name="Regenerate captions").click()
    expect(page.locator("#drafts .figures")).to_contain_text("0 of 1 written")
    while engine.work():
        pass
    expect(page.locator("#drafts .figures")).to_contain_text("1 of 1 written")
    now = Caption.objects.get(pk=row.pk)
    assert (now.version, now.text != row.text) == (other, True)


@pytest.mark.usefixtures("training_worker")
def test_thirty_corrections_in_the_browser_are_learned_from_evaluated_and_promoted(
    page: Page, engine: CaptionEngine
) -> None:
    truth = {
        row["file"]: row["captions"][0] for row in json.loads((COCO / "captions.json").read_text(encoding="utf-8"))
    }
    photos = [services.Upload((COCO / name).read_bytes(), name) for name in list(truth)[:30]]
    request = services.request_captions(
        viewer=Viewer(), images=photos, styles=["factual"], options={"method": "greedy", "max_length": 20}
    )
    while engine.work():
        pass
    for row in request.captions.all():
        page.goto(f"/admin/captioner/caption/{row.pk}/change/")
        page.locator("textarea[name=text]").fill(truth[row.name])
        page.locator("form.correction button").click()
        expect(page.locator(".messagelist")).to_contain_text("correction was saved")
    style = Style.objects.get(slug="factual")
    page.goto(f"/admin/captioner/style/{style.pk}/change/")
    expect(page.locator(".overview")).to_contain_text("30 not in the dataset yet")
    page.get_by_role("button", name="Add all to the dataset").click()
    expect(page.locator(".messagelist")).to_contain_text("30 corrections were added")
    page.get_by_role("link", name="Retrain").click()
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Start the run").click()
    expect(page.locator("#run .state").first).to_have_text("Succeeded")
    run = TrainingRun.objects.get()
    assert (run.examples, "candidate" in run.metrics, "active" in run.metrics) == (30, True, True)
    page.get_by_role("link", name="Promote factual v2").click()
    page.get_by_label("Reason").fill("learned from thirty corrections")
    page.get_by_role("button", name="Put in service").click()
    expect(page.locator(".messagelist")).to_contain_text("v2 is in service")
    assert style.version_in_service == run.version


def test_the_dashboard_follows_what_happens_without_reloading(page: Page, photo: bytes, engine: CaptionEngine) -> None:
    queue = page.get_by_label("Queue of captions")
    page.evaluate("window.stayed = true")
    expect(queue).to_contain_text("0 queued")
    request = services.request_captions(viewer=Viewer(), images=[services.Upload(photo)], styles=["all"])
    expect(queue).to_contain_text("3 queued")
    engine.work()
    expect(queue).to_contain_text("0 queued")
    request.captions.update(status="failed", error_code="x", error_detail="it was lost", created_at=timezone.now())
    expect(page.get_by_text("it was lost")).to_have_count(3)
    assert page.evaluate("window.stayed")
    page.get_by_role("button", name="Try again").first.click()
    expect(page.locator(".messagelist")).to_contain_text("queued again")
    expect(page.get_by_text("it was lost")).to_have_count(2)
    queue.get_by_role("link", name="Pause…").click()
    page.get_by_label("Reason").fill("new graphics card")
    page.get_by_role("button", name="Pause").click()
    expect(queue).to_contain_text("new graphics card")
    assert engine.work() == 0
    queue.get_by_role("button", name="Resume").click()
    expect(queue).not_to_contain_text("new graphics card")
    assert engine.work() == 1
