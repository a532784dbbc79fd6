"""Every page of the site and the admin, light and dark, on a desktop and a phone: what a person of any ability meets.

`./run screenshots FOLDER PAGE...` runs this and keeps pictures of each page there, or of those named.
"""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.urls import reverse
from PIL import Image as Pillow
from PIL import ImageStat
from playwright.sync_api import Browser, Page

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import EVERYBODY, Image, Style, Viewer
from tests.addresses import ADDRESSES, something_everywhere, url_of
from tests.axe import OF_COLOURS, violations
from tests.people import member, window_of

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "coco_cc").glob("*.jpg"))
LOOKS = (("light", 1440, 900), ("dark", 1440, 900), ("light", 390, 844), ("dark", 390, 844))
HEAVIEST = 300_000  # bytes of a page as servers send it, compressed, besides photos
LOADED = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .filter((loaded) => loaded.initiatorType !== "img").map((loaded) => loaded.name)"""
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
    "_rejected",
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
def folder(pytestconfig: pytest.Config) -> str | None:
    """Where pictures are kept, if they are."""
    found: str | None = pytestconfig.getoption("--screenshots")
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


class Visit:
    """A walk through pages, which collects what is wrong with them."""

    def __init__(self, window: Page, folder: str | None) -> None:
        self.window, self.folder = window, folder
        self.wrong: list[str] = []
        self.sizes: dict[str, int] = {}

    def look(self, name: str, url: str, status: int = 200, heading: str = "") -> None:
        """Open a page that answers with a status and has a heading, and inspect it."""
        self.window.emulate_media(color_scheme="light")
        self.window.set_viewport_size({"width": 1440, "height": 900})
        answer = self.window.goto(url)
        assert answer is not None
        if answer.status != status:
            self.wrong.append(f"{name}: answered {answer.status}")
            return
        if heading and heading not in self.window.locator("h1").all_inner_texts():
            self.wrong.append(f"{name}: says {self.window.locator('h1').all_inner_texts()}")
        self.inspect(name)

    def inspect(self, name: str) -> None:
        """Look at the page that is open: in both modes on both screens, without loading it again."""
        window = self.window
        loaded = set(window.evaluate(LOADED))
        for url in loaded - self.sizes.keys():
            self.sizes[url] = len(gzip.compress(window.request.get(url).body()))
        weight = sum(self.sizes[url] for url in loaded)
        if weight > HEAVIEST:
            self.wrong.append(f"{name}: {weight:,} bytes")
        for scheme, width, height in LOOKS:
            window.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            window.set_viewport_size({"width": width, "height": height})
            wide = window.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                self.wrong.append(f"{name}: {wide} wide, on a screen of {width}")
            rules = OF_COLOURS if scheme == "dark" else None  # the modes differ in nothing else
            self.wrong += [f"{name} ({scheme}, {width}): {found}" for found in violations(window, rules)]
            if self.folder:
                place = Path(self.folder) / f"{name.replace(':', '-')}-{scheme}-{width}.png"
                window.screenshot(path=place, full_page=True)


@pytest.fixture
def named(pytestconfig: pytest.Config) -> Callable[[str], bool]:
    """Whether a page is to be looked at: all are, if none is named."""
    chosen = pytestconfig.getoption("--page")
    return lambda name: not chosen or name in chosen


@pytest.mark.parametrize("part", ["site", "admin"])
def test_every_page_is_for_everybody_and_fits(
    part: str, window: Page, things: dict[str, Any], folder: str | None, named: Callable[[str], bool]
) -> None:
    visit = Visit(window, folder)
    for name in filter(named, pages()):
        if (part == "admin") == name.startswith("admin:"):
            visit.look(name, url_of(name, things))
    assert not visit.wrong, "\n".join(visit.wrong)


def test_so_is_what_strangers_see_and_what_is_refused_missing_or_broken(
    browser: Browser,
    live_server: Any,
    things: dict[str, Any],
    folder: str | None,
    named: Callable[[str], bool],
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("as if a line of ours were wrong")

    cache.clear()
    settings.PASSWORD_RESET = True
    monkeypatch.setattr("captioner.web.views.how_many", broken)
    options: dict[str, Any] = {"listens": False, "reduced_motion": "reduce"}
    wrong: list[str] = []
    with window_of(None, browser, live_server.url, **options) as window:
        visit = Visit(window, folder)
        for name, url, status, heading in (
            ("stranger-home", reverse("home"), 200, ""),
            ("stranger-sign-in", reverse("login"), 200, "Sign in"),
            ("stranger-password-forgotten", reverse("password-forgotten"), 200, ""),
            ("stranger-photo", reverse("image", args=[shown_to_all().pk]), 200, ""),
            ("stranger-docs", reverse("v1:docs"), 200, ""),
            ("stranger-admin", reverse("admin:login"), 200, "Log in"),
            ("error-400", "/?q=%00", 400, "That request could not be read"),
            ("error-404", "/nowhere/", 404, "Not found"),
            ("error-404-photo", reverse("image", args=[uuid.uuid4()]), 404, "Not found"),
            ("error-500", reverse("gallery"), 500, "Something went wrong"),
        ):
            if named(name):
                visit.look(name, url, status, heading)
        if named("error-403-form"):
            window.goto(reverse("login"))
            window.get_by_label("User name").fill("ada")
            window.get_by_label("Password").fill("lovelace")
            window.context.clear_cookies()
            window.get_by_role("main").get_by_role("button", name="Sign in").click()
            window.get_by_role("heading", name="expired").wait_for()
            visit.inspect("error-403-form")
        wrong += visit.wrong
    with window_of(member("sam", is_staff=True), browser, live_server.url, **options) as window:
        visit = Visit(window, folder)
        for name, url, status, heading in (
            ("error-403", reverse("admin:auth_user_changelist"), 403, "Not allowed"),
            ("error-404-admin", "/admin/nowhere/", 404, "Not found"),
        ):
            if named(name):
                visit.look(name, url, status, heading)
        wrong += visit.wrong
    assert not wrong, "\n".join(wrong)


def shown_to_all() -> Image:
    """A photo that strangers see."""
    found = Image.objects.filter(captions__request__visitor=EVERYBODY).first()
    assert found
    return found


@pytest.fixture
def asked_for_pictures(pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pytest had been called with what `./run screenshots FOLDER home gallery` passes on (see
    tests/test_run_script.py)."""
    arguments = ["--screenshots", str(tmp_path / "pictures"), "--page", "home", "--page", "gallery"]
    given = pytestconfig._parser.parse_known_args(arguments)
    for name in ("screenshots", "page"):
        monkeypatch.setattr(pytestconfig.option, name, getattr(given, name))


@pytest.mark.usefixtures("asked_for_pictures")
def test_the_command_keeps_pictures_of_each_width_and_mode(
    window: Page, things: dict[str, Any], folder: str, named: Callable[[str], bool]
) -> None:
    test_every_page_is_for_everybody_and_fits("site", window, things, folder, named)
    taken = {path.name: path for path in Path(folder).iterdir()}
    assert set(taken) == {f"{name}-{scheme}-{width}.png" for name in ("home", "gallery") for scheme, width, _ in LOOKS}
    for name in ("home", "gallery"):
        for _, width, height in LOOKS[::2]:
            light, dark = (Pillow.open(taken[f"{name}-{scheme}-{width}.png"]) for scheme in ("light", "dark"))
            assert light.width == dark.width == width
            assert light.height >= height
            assert brightness(dark) < 100 < brightness(light)


def brightness(picture: Pillow.Image) -> float:
    """From 0 to 255."""
    return ImageStat.Stat(picture.convert("L")).mean[0]
