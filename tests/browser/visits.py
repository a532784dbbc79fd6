"""What people do on pages."""

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "coco_cc").glob("*.jpg"))
MOST = 150  # presses of Tab; no page has more to stop at on the way
OFFLINE = ("ERR_INTERNET_DISCONNECTED", "htmx:sendError", "htmx:afterRequest")


def sign_in(page: Page) -> None:
    page.goto("/sign-in/")
    page.get_by_label("User name").fill("ada")
    page.get_by_label("Password").fill("lovelace")
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def upload(page: Page, *photos: Path) -> None:
    page.goto("/")
    page.locator("#photos").set_input_files(photos)


def press(page: Page, key: str) -> None:
    """Press a key when the page listens: before its scripts are there, it is not heard."""
    page.wait_for_load_state()
    page.keyboard.press(key)


def reach(page: Page, aim: Locator) -> None:
    """Press Tab until it has the focus."""
    for _ in range(MOST):
        if aim.evaluate("one => one === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the focus does not get to {aim}")
