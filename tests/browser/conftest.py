"""A window of a real Chromium, and a worker's engine behind the site."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from playwright.sync_api import Browser, BrowserContext, Page

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import EVERYBODY, Caption, Image, Style, Viewer
from tests.browser.visits import PHOTOS
from tests.engine_thread import EngineThread
from tests.people import PATIENCE


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
