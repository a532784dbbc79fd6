"""The whole change of base models in a real Chromium: prepare, watch, look, cut over, and back."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from captioner import services, uploads
from captioner.jobs.job import Status
from captioner.models import BaseModels, Caption, MapperVersion, Style, Viewer
from captioner.services import drafts
from captioner.services.gate import MINUS
from clipcap.evaluation.comparison import LEAST_JUDGED
from clipcap.options import DecodingOptions
from tests.base_models import pair as small
from tests.engine_thread import EngineThread
from tests.people import window_of
from tests.servers import wait_until
from tests.stack import Stack
from training import examples as training_examples
from training import services as training_services
from training import worker as training_worker
from training.models import Example, TrainingRun
from training.options import RunOptions
from training.worker import TrainingEngine

# What random models write is worse than the shipped models' captions wherever there are enough photos to tell by.
TOO_FEW = "2 held-out photos are too few to judge v2 by; 20 are needed: add about 180 captioned photos"
VERDICTS = {
    "Factual": rf"v2 is worse than v1: CIDEr {MINUS}0\.\d+, 95 % interval {MINUS}\d\.\d+ to {MINUS}0\.\d+, on "
    "20 photos",
    "Humorous": TOO_FEW,
    "Romantic": TOO_FEW,
}
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def plain(live_server: Any, pairs: list[small.Base], media: Path, tmp_path: Path, monkeypatch: Any) -> Style:
    """A style in service on today's base models, with photos to learn from and to be judged by."""
    for module in (training_examples, drafts):
        monkeypatch.setattr(module, "DecodingOptions", partial(DecodingOptions, max_length=5))
    monkeypatch.setattr(training_worker, "SAMPLES", 1)
    monkeypatch.setattr("training.services.base_models.RunOptions", partial(RunOptions, epochs=1))
    style = Style.objects.create(slug="plain", name="Plain", is_default=True)
    pairs[0].starts()
    services.promote(version=pairs[0].version(style, tmp_path))
    for file in sorted(small.PHOTOS.glob("*.jpg"))[:30]:
        image = uploads.store(file.read_bytes())
        training_services.add_example(style=style, image=image, text="a dog", source=Example.Source.IMPORTED)
    return style


@pytest.fixture
def workers(plain: Style, pairs: list[small.Base]) -> Iterator[None]:
    """Caption workers of both pairs, and a training worker of the second."""
    trainer = TrainingEngine(pairs[1].engine)
    threads = [EngineThread(engine) for engine in (pairs[0].engine, trainer)]
    trainer.stopping = threads[1].stopping.is_set
    pairs[1].starts()
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.stop()


@pytest.fixture
def page(browser: Browser, live_server: Any) -> Iterator[Page]:
    """A window in which an administrator has signed in; errors in its console fail the test."""
    boss = User.objects.create_superuser("boss", password="boss")
    with window_of(boss, browser, live_server.url, viewport={"width": 1280, "height": 900}) as page:
        page.goto("/admin/captioner/basemodels/")
        yield page


@pytest.mark.usefixtures("workers")
def test_styles_are_prepared_for_other_base_models_that_are_in_service_after_the_cut_over(
    page: Page, plain: Style, pairs: list[small.Base], photo: bytes
) -> None:
    today, tomorrow = pairs
    page.get_by_role("link", name="Add base models").click()
    page.get_by_label("Encoder").fill(tomorrow.sources["encoder_source"])
    page.get_by_label("Language model").fill(tomorrow.sources["language_model_source"])
    page.get_by_role("button", name="Prepare").click()
    page.evaluate("window.stayed = true")
    row = page.get_by_role("row", name=re.compile("^Plain"))
    expect(row).to_contain_text("v1")
    expect(row.get_by_role("link", name="v2")).to_be_visible()
    assert page.evaluate("window.stayed"), "it came to that without reloading"
    expect(page.locator("#base-models")).to_contain_text("30 of 30")
    before = small.ask(photo, plain)
    wait_until(lambda: small.written(before), "a caption with today's models")
    assert before.version == plain.versions.get(number=1)

    page.get_by_role("link", name="Cut over…").click()
    page.get_by_label("Reason").fill("to see what they are like")
    page.get_by_role("button", name="Cut over").click()
    expect(page.locator(".messagelist")).to_contain_text("These base models are in service")
    expect(page.get_by_role("row", name="to see what they are like")).to_contain_text("boss")
    after = small.ask(photo, plain)
    assert tomorrow.engine.work()
    assert small.written(after) == plain.versions.get(number=2)

    page.goto(f"/admin/captioner/basemodels/{today.starts().pk}/change/")
    page.get_by_role("link", name="Cut over…").click()
    page.get_by_role("button", name="Cut over").click()
    expect(page.locator(".messagelist")).to_contain_text("These base models are in service")
    again = small.ask(photo, plain)
    wait_until(lambda: small.written(again), "a caption on the way back")
    assert again.version == plain.versions.get(number=1)


@pytest.fixture
def installation(live_server: Any, settings: Any, tmp_path: Path) -> Path:
    """The home of an installation with the shipped styles in service, each with photos to learn from; the factual one
    has enough held out to be judged by, the others do not. A run of one epoch stands for how each was made, so that
    retraining takes as many."""
    home = tmp_path / "home"
    (home / "broker").mkdir(parents=True)
    settings.MEDIA_ROOT = home / "media"
    call_command("install_styles", stdout=io.StringIO())
    entries = json.loads((small.PHOTOS / "captions.json").read_text())[:30]
    images = [uploads.store((small.PHOTOS / entry["file"]).read_bytes()) for entry in entries]
    for version in MapperVersion.objects.select_related("style"):
        TrainingRun.objects.create(
            style=version.style,
            version=version,
            options=RunOptions(epochs=1).to_json(),
            status=Status.SUCCEEDED,
            finished_at=timezone.now(),
            deadline_at=timezone.now(),
        )
        first = 0 if version.style.slug == "factual" else LEAST_JUDGED - 2
        for image, entry in zip(images[first:], entries[first:], strict=True):
            for text in entry["captions"]:
                training_services.add_example(
                    style=version.style, image=image, text=text, source=Example.Source.IMPORTED
                )
    Example.objects.update(held_out=False)
    Example.objects.filter(image__in=images[:LEAST_JUDGED]).update(held_out=True)
    return home


@pytest.fixture
def open_stack(installation: Path) -> Iterator[Callable[..., Stack]]:
    """Opens what real worker processes are forked from, which have loaded the models that the variables name."""
    database = f"sqlite:///{connection.settings_dict['NAME']}"
    with ExitStack() as resources:

        def opened(**variables: str) -> Stack:
            stack = Stack(installation, database, "filesystem://localhost", variables=variables)
            stack.open()
            resources.callback(stack.close)
            return stack

        yield opened


def ask_for_all(photo: bytes) -> list[Caption]:
    """A caption in each of the three styles, as people ask for them."""
    request = services.request_captions(viewer=Viewer(), images=[services.Upload(photo)], styles=["all"])
    return list(request.captions.all())


def numbers(captions: list[Caption]) -> set[int]:
    """The numbers of the versions that have written these captions, once all are written."""

    def all_written() -> bool:
        return all(small.written(caption) for caption in captions)

    wait_until(all_written, "captions are written")
    return {version.number for caption in captions if (version := small.written(caption))}


def test_the_shipped_models_give_way_to_others_and_come_back_while_captions_go_on(
    page: Page, open_stack: Callable[..., Stack], photo: bytes, tiny_clip_dir: Path, tiny_lm_dir: Path
) -> None:
    others = {"CLIPCAP_ENCODER": f"local-dir:{tiny_clip_dir}", "CLIPCAP_LANGUAGE_MODEL": f"local-dir:{tiny_lm_dir}"}
    today, tomorrow = open_stack(), open_stack(**others)
    today.fork("captions", "w1@today")
    assert numbers(ask_for_all(photo)) == {1}
    shipped = BaseModels.in_service()
    assert shipped is not None
    page.goto("/")
    expect(page.get_by_text("Captions are generated by ClipCap base.")).to_be_visible()

    page.goto("/admin/captioner/basemodels/")
    expect(page.get_by_role("row", name=str(shipped))).to_contain_text("in service")
    page.get_by_role("link", name="Add base models").click()
    page.get_by_label("Encoder").fill(others["CLIPCAP_ENCODER"])
    page.get_by_label("Language model").fill(others["CLIPCAP_LANGUAGE_MODEL"])
    page.get_by_role("button", name="Prepare").click()
    base = BaseModels.objects.exclude(pk=shipped.pk).get()
    expect(page.locator("#base-models")).to_contain_text(f"./run worker captions --base {base.pk}")
    for name in VERDICTS:
        row = page.get_by_role("row", name=re.compile(f"^{name}"))
        expect(row).to_contain_text("waits for a worker that loads these models")

    tomorrow.fork("captions", "w2@tomorrow")
    tomorrow.fork("training", "t2@tomorrow")
    expect(page.locator("#base-models")).to_contain_text("1 for captions")
    assert numbers(ask_for_all(photo)) == {1}, "captions go on with today's"
    listed = page.locator("section", has_text="Styles in service").locator("tbody tr")
    expect(listed).to_have_count(len(VERDICTS))
    for row, (name, verdict) in zip(listed.all(), VERDICTS.items(), strict=True):
        expect(row.get_by_role("rowheader")).to_have_text(name)
        old, new, status = row.get_by_role("cell").all()
        expect(old).to_have_text("v1")
        expect(new).to_have_text("v2")
        expect(status).to_have_text(re.compile(rf"^{verdict} Run \d+$"))
        expect(status).to_contain_text(services.verdict_of(MapperVersion.objects.get(style__name=name, number=2)))
    expect(page.locator("#base-models")).to_contain_text("30 of 30")
    assert numbers(ask_for_all(photo)) == {1}, "nothing has changed yet"

    page.get_by_role("link", name="Cut over…").click()
    page.get_by_label("Reason").fill("to see what they are like")
    page.get_by_role("button", name="Cut over").click()
    expect(page.locator(".messagelist")).to_contain_text("These base models are in service")
    expect(page.get_by_role("row", name="to see what they are like")).to_contain_text("boss")
    assert numbers(ask_for_all(photo)) == {2}
    page.goto("/admin/")
    told = page.get_by_role("row", name=re.compile("^w1@today"))
    expect(told).to_contain_text(f"number {shipped.pk}, not in service: it writes no captions")
    page.goto("/")
    expect(page.get_by_role("heading").first).to_be_visible()
    expect(page.get_by_text("Captions are generated by ClipCap base.")).to_have_count(0)

    page.goto(f"/admin/captioner/basemodels/{shipped.pk}/change/")
    page.get_by_role("link", name="Cut over…").click()
    page.get_by_role("button", name="Cut over").click()
    expect(page.locator(".messagelist")).to_contain_text("These base models are in service")
    assert numbers(ask_for_all(photo)) == {1}
    assert not Caption.objects.exclude(status=Status.SUCCEEDED).exists()
    assert not Caption.objects.exclude(failures=[]).exists()
