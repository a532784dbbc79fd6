"""A run's page: drawings on honest scales, the captions of its epochs, and what stays when it refreshes itself."""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from captioner import services, uploads
from captioner.admin.plots import score_bars
from captioner.admin.scores import colours_of
from captioner.jobs.job import Status
from captioner.models import MapperVersion, Style
from captioner.reports import VersionReport
from tests.people import window_of
from training.admin.loss import loss_curves
from training.models import EpochReport, TrainingRun
from training.options import RunOptions

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "coco_cc").glob("*.jpg"))[:12]
SHIPPED = settings.MODELS / "styles" / "romantic.safetensors"
WIDTH, HEIGHT = 1280, 900
# What is wider or higher than the box that shows it, or begins beside the window.
CUT_OFF = """() => [...document.querySelectorAll("#run, #run .module, #run .module *:not(svg *)")].filter((part) => {
    const { scrollWidth, clientWidth, scrollHeight, clientHeight } = part;
    const hidden = getComputedStyle(part).overflow !== "visible";
    const right = part.getBoundingClientRect().right;
    return right > innerWidth + 1 || (hidden && (scrollWidth > clientWidth + 1 || scrollHeight > clientHeight + 1));
}).map((part) => `${part.localName}.${part.className}: ${part.textContent.slice(0, 60)}`)"""


@pytest.fixture
def style(styles: dict[str, Style]) -> Style:
    return styles["humorous"]


@pytest.fixture
def page(browser: Browser, live_server: Any) -> Iterator[Page]:
    """A window of an administrator; errors in its console fail the test."""
    boss = User.objects.create_superuser("boss", password="boss")
    with window_of(boss, browser, live_server.url, viewport={"width": WIDTH, "height": HEIGHT}) as page:
        yield page


@pytest.fixture
def run(style: Style) -> TrainingRun:
    """A run in the middle of its training. The second of three epochs is the best so far."""
    now = timezone.now()
    lease = {"lease_token": uuid.uuid4(), "lease_expires_at": now + timedelta(hours=1)}
    run = TrainingRun.objects.create(
        style=style, options=RunOptions().to_json(), status=Status.RUNNING, deadline_at=now + timedelta(days=1), **lease
    )
    run.curve = [[step, 5 - step / 10, 1e-3] for step in range(1, 31)]
    run.save()
    for epoch, loss in ((1, 4.6), (2, 4.1), (3, 4.3)):
        add_epoch(run, epoch, loss)
    return run


def add_epoch(run: TrainingRun, epoch: int, loss: float) -> None:
    photos = [uploads.store(path.read_bytes()).pk for path in PHOTOS]
    samples = [{"image": str(pk), "text": f"caption {epoch}", "reference": "two dogs"} for pk in photos]
    EpochReport.objects.create(
        run=run, epoch=epoch, step=10 * epoch, training_loss=4.5, validation_loss=loss, samples=samples
    )


def make_version(style: Style, cider: float) -> MapperVersion:
    scores = {"scores": {"CIDEr": cider}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}
    report = VersionReport.read({"candidate": scores})
    return services.register_version(style=style, path=SHIPPED, origin=MapperVersion.Origin.TRAINED, report=report)


def colour(drawn: str, name: str) -> str:
    found = re.search(rf'class="key (series-\d)"></span>{name}<', drawn)
    assert found
    return found[1]


def test_scores_are_drawn_on_one_scale_that_begins_at_zero() -> None:
    drawn = score_bars({"CIDEr": {"v1": 1.0}, "SPICE": {"v1": 0.25}}, "Scores", {"v1": 0})
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    for tick in ("0", "0.5", "1"):
        assert f">{tick}</text>" in drawn


def test_the_learning_rate_is_drawn_apart_from_the_losses() -> None:
    losses, rates = loss_curves([[1, 4.0, 0.001], [2, 3.0, 0.0005]], []).split("<svg")[1:]
    assert 'class="rate"' not in losses
    assert ">0.001</text>" in rates


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("person", "reason", "says"),
    [("ada", "", "examples, ada, "), (None, "every week", "examples, every week, "), (None, "", "examples, <time")],
)
def test_the_page_says_who_or_what_started_the_run_if_that_is_known(
    person: str | None, reason: str, says: str, run: TrainingRun, admin_client: Client
) -> None:
    run.person = User.objects.create_user(person) if person else None
    run.reason = reason
    run.save()
    page = admin_client.get(reverse("admin:training_trainingrun_change", args=[run.pk])).content.decode()
    assert says in page


@pytest.mark.django_db
def test_a_version_has_the_same_colour_in_every_drawing(style: Style, run: TrainingRun, admin_client: Client) -> None:
    first, second = make_version(style, 0.3), make_version(style, 0.5)
    run.version = second
    scores = {"scores": {"CIDEr": 0.5}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}
    run.metrics = {"images": 20, "candidate": scores, "active": scores, "active_version": str(first), "metric": "CIDEr"}
    run.save()
    pages = (
        reverse("admin:captioner_mapperversion_change", args=[second.pk]),
        reverse("admin:captioner_mapperversion_compare") + f"?version={first.pk}&version={second.pk}",
        reverse("admin:training_trainingrun_change", args=[run.pk]),
    )
    assert len({colour(admin_client.get(url).content.decode(), str(second)) for url in pages}) == 1


@pytest.mark.django_db
def test_versions_that_would_share_a_colour_are_told_apart(style: Style) -> None:
    versions = [MapperVersion(style=style, number=number) for number in (1, 7, 2)]
    assert list(colours_of(versions).values()) == [1, 2, 3]


@pytest.mark.django_db(transaction=True)
def test_a_slider_steps_through_the_captions_of_the_epochs_by_keyboard(run: TrainingRun, page: Page) -> None:
    page.goto(reverse("admin:training_trainingrun_change", args=[run.pk]))
    photo = page.locator("article.sample").first
    assert [text.split()[-1] for text in photo.locator("li").all_inner_texts()] == ["3", "kept", "1"]
    expect(photo.locator("[aria-current]")).to_contain_text("caption 3")
    slider = page.get_by_label("Epoch", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(photo.locator("[aria-current]")).to_contain_text("caption 2")
    expect(photo.locator("[aria-current]")).to_contain_text("kept")
    expect(page.locator("#step output")).to_have_text("epoch 2, kept")
    page.keyboard.press("Home")
    expect(photo.locator("[aria-current]")).to_contain_text("caption 1")

    add_epoch(run, 4, 4.4)  # the page refreshes itself, and the reader stays where they were
    expect(photo.locator("li")).to_have_count(4)
    expect(photo.locator("[aria-current]")).to_contain_text("caption 1")
    expect(slider).to_be_focused()
    page.keyboard.press("End")
    expect(photo.locator("[aria-current]")).to_contain_text("caption 4")
    add_epoch(run, 5, 4.5)
    expect(photo.locator("[aria-current]")).to_contain_text("caption 5")  # whoever looks at the newest goes on so


@pytest.mark.django_db(transaction=True)
def test_what_is_read_stays_in_place_while_the_page_refreshes(run: TrainingRun, page: Page) -> None:
    page.goto(reverse("admin:training_trainingrun_change", args=[run.pk]))
    place = "document.querySelector('#samples').getBoundingClientRect().top"
    page.evaluate("document.querySelector('#samples').scrollIntoView({behavior: 'instant'})")
    before = page.evaluate(place)
    run.failures = [
        {"at": timezone.now().isoformat(), "worker": "w", "code": "died", "detail": "it ended"}
    ]  # above the samples
    run.save()
    add_epoch(run, 4, 4.4)
    expect(page.get_by_role("heading", name="Failed attempts")).to_be_attached()
    expect(page.locator("article.sample").first.locator("li")).to_have_count(4)
    page.wait_for_function(f"Math.abs({place} - {before}) < 2")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("width", [1440, 390])
def test_every_caption_of_every_epoch_is_seen_whole(run: TrainingRun, page: Page, width: int) -> None:
    for epoch in range(4, 13):
        add_epoch(run, epoch, 4.5)
    words = "a long caption of a photo, such as some styles write of almost everything that they are shown"
    run.comparison = [
        {
            "image": report["image"],
            "candidate": f"{words}, now",
            "active": f"{words}, before",
            "references": [words] * 5,
            "scores": [1.0, 0.2],
        }
        for report in run.reports.all()[0].samples
    ]
    run.status, run.lease_token, run.lease_expires_at = Status.SUCCEEDED, None, None
    run.finished_at = timezone.now()
    run.save()
    page.set_viewport_size({"width": width, "height": HEIGHT})
    page.goto(reverse("admin:training_trainingrun_change", args=[run.pk]))
    photo = page.locator("article.sample").first
    expect(photo.locator("li")).to_have_count(12)
    expect(photo.get_by_text("reference: two dogs")).to_be_visible()
    assert page.evaluate(CUT_OFF) == []


@pytest.mark.django_db(transaction=True)
def test_what_is_drawn_can_be_read_on_a_phone(run: TrainingRun, page: Page) -> None:
    run.curve = [[step, 5 - step / 10, 4e-4] for step in range(1, 31)]
    run.save()
    page.set_viewport_size({"width": 390, "height": HEIGHT})
    page.goto(reverse("admin:training_trainingrun_change", args=[run.pk]))
    labels = page.locator("svg.plot text")
    assert labels.count() > 8
    drawing = page.locator("svg.plot").first.bounding_box()
    assert drawing
    boxes = [box for label in labels.all() if (box := label.bounding_box())]
    assert min(box["height"] for box in boxes) > 9
    assert min(box["x"] for box in boxes) >= drawing["x"]
    assert max(box["x"] + box["width"] for box in boxes) <= drawing["x"] + drawing["width"] + 1
    for left, right in itertools.pairwise(sorted(boxes, key=lambda box: (round(box["y"]), box["x"]))):
        apart = left["x"] + left["width"] <= right["x"] or abs(left["y"] - right["y"]) > left["height"] / 2
        assert apart, "two labels lie on one another"
