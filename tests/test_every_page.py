"""Every page of the site and the admin, light and dark, on a desktop and a phone: what a person of any ability meets.

`./run screenshots FOLDER` runs this and keeps a picture of each page there.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from playwright.sync_api import Browser, Page

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import EVERYBODY, Style, Viewer
from tests.addresses import ADDRESSES, something_everywhere, url_of
from tests.axe import violations
from tests.people import window_of

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "coco_cc").glob("*.jpg"))
LOOKS = (("light", 1440, 900), ("dark", 1440, 900), ("light", 390, 844), ("dark", 390, 844))
CHECKED = (("light", 1440), ("dark", 390))  # with axe-core, which takes a second
HEAVIEST = 300_000  # bytes of a page as servers send it, compressed, besides photos
LOADED = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .filter((loaded) => loaded.initiatorType !== "img").map((loaded) => loaded.name)"""
# Colours fade over. An animation that is cancelled meanwhile has ended too, though its promise is rejected.
FADED = "Promise.allSettled(document.getAnimations().map((one) => one.finished)).then(() => null)"
# Addresses that answer with a file, a fragment of a page, or by leading elsewhere.
NO_PAGES = (
    "v1:",
    "admin:jsi18n",
    "admin:login",
    "admin:dashboard",
    "single-sign-on",
    "password-new",
    "download-",
    "image-file",
    "image-thumbnail",
)
ENDINGS = (
    "_live",
    "_file",
    "_thumbnail",
    "_download",
    "_refused",
    "_qrcode",
    "_config",
    "-file",
    "-thumbnail",
    "vote-photo",
)

pytestmark = pytest.mark.django_db(transaction=True)


def pages() -> Iterator[str]:
    """The names of the addresses that a superuser can open as a page."""
    for name, may in ADDRESSES.items():
        if "superuser" in may.get("GET", ()) and not name.startswith(NO_PAGES) and not name.endswith(ENDINGS):
            yield name
    yield "v1:docs"


@pytest.fixture
def things(styles: dict[str, Style], engine: CaptionEngine, photo: bytes) -> dict[str, Any]:
    """A site in use, with something to be seen at each address."""
    boss = User.objects.create_superuser("boss", email="boss@example.com", password="boss")
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:6]]
    services.request_captions(viewer=Viewer(visitor=EVERYBODY), images=photos, styles=["all"])
    while engine.work():
        pass
    found = something_everywhere(boss, User.objects.create_user("another"), styles["factual"], photo)
    while engine.work():
        pass
    return found


@pytest.fixture
def window(browser: Browser, live_server: Any, things: dict[str, Any], settings: Any) -> Iterator[Page]:
    """A browser in which the superuser is signed in."""
    cache.clear()
    settings.PASSWORD_RESET = True
    with window_of(
        User.objects.get(username="boss"), browser, live_server.url, listens=False, reduced_motion="reduce"
    ) as page:
        yield page


def test_every_page_is_for_everybody_and_fits(
    window: Page, things: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    folder = pytestconfig.getoption("--screenshots")
    wrong: list[str] = []
    sizes: dict[str, int] = {}
    for name in pages():
        window.emulate_media(color_scheme="light")
        window.set_viewport_size({"width": 1440, "height": 900})
        answer = window.goto(url_of(name, things))
        assert answer is not None
        if answer.status != 200:
            wrong.append(f"{name}: answered {answer.status}")
            continue
        loaded = set(window.evaluate(LOADED))
        for url in loaded - sizes.keys():
            sizes[url] = len(gzip.compress(window.request.get(url).body()))
        weight = sum(sizes[url] for url in loaded)
        if weight > HEAVIEST:
            wrong.append(f"{name}: {weight:,} bytes")
        for scheme, width, height in LOOKS:
            window.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            window.set_viewport_size({"width": width, "height": height})
            window.evaluate(FADED)
            wide = window.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                wrong.append(f"{name}: {wide} wide, on a screen of {width}")
            if (scheme, width) in CHECKED:
                wrong += [f"{name} ({scheme}, {width}): {found}" for found in violations(window)]
            if folder:
                place = Path(folder) / f"{name.replace(':', '-')}-{scheme}-{width}.png"
                window.screenshot(path=place, full_page=True)
    assert not wrong, "\n".join(wrong)
