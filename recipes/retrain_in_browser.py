"""Feed a style, retrain it, promote and roll it back in the admin of a running demo, as a person does it in a browser.

    python -m recipes.retrain_in_browser --data DATA --style humorous --home NEW_FOLDER [--option "Start from=scratch"]

Nothing but the browser talks to the site: the training photos with their captions of the style are uploaded as one zip,
a run is started with the form's defaults or the options given, its result is put in service, and the front page
captions a photo before, after, and after the rollback. Screenshots and the new mapper end in NEW_FOLDER; how good that
is on the photos nobody trained on is what `recipes.evaluate --mapper` reports. Needs Chromium and requirements-dev.txt.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from recipes.photos import STYLES, load_photos

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples" / "coco_cc" / "000000349860.jpg"
HOURS = 3_600_000.0  # ms


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--home", type=Path, required=True, help="a new folder for the demo")
    parser.add_argument("--style", action="append", choices=STYLES, required=True, help="may be repeated")
    parser.add_argument("--option", action="append", default=[], metavar="LABEL=VALUE", help="of the retraining form")
    arguments = parser.parse_args()
    arguments.home.mkdir(parents=True)
    options = dict(option.split("=", 1) for option in arguments.option)
    with demo(arguments.home) as (address, password), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(base_url=address, viewport={"width": 1280, "height": 900})
        expect.set_options(timeout=2 * HOURS)
        page.set_default_timeout(HOURS / 30)
        page.goto("/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Log in").click()
        for style in arguments.style:
            retrain(page, style, _zip(arguments.data, style, arguments.home), options, arguments.home)
        browser.close()


@contextmanager
def demo(home: Path) -> Iterator[tuple[str, str]]:
    """A demo of its own, while the block runs: its address, and the administrator's password."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPCAP_")}
    process = subprocess.Popen(
        [ROOT / "run", "demo", "--port", "0"],
        env=environment | {"CLIPCAP_HOME": str(home / "demo")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    said = ""
    try:
        while not (found := re.search(r"Open (\S+)/\nAdministrator: admin / (\S+)", said)):
            line = process.stdout.readline()
            if not line:
                sys.exit(f"the demo did not start: {said}")
            said += line
        yield found[1], found[2]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def retrain(page: Page, style: str, photos: Path, options: dict[str, str], home: Path) -> None:
    """From the upload to the rollback, printing what the pages say."""

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {style}: {text}", flush=True)

    say(f"before: {caption(page, style)}")
    page.goto("/admin/")
    page.get_by_role("link", name=style.capitalize(), exact=True).first.click()
    own_page = page.url
    page.get_by_role("link", name="Import examples").click()
    page.get_by_label("File").set_input_files(photos)
    page.get_by_role("button", name="Import").click()
    expect(page.locator("#import .state")).to_have_text(re.compile("Succeeded|Failed"))
    say(" ".join(page.locator("#import").inner_text().split()))

    page.goto(own_page)
    page.get_by_role("link", name="Retrain", exact=True).click()
    for label, value in options.items():
        field = page.get_by_label(label)
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    page.get_by_role("button", name="Start the run").click()
    expect(page.locator("#run .state").first).to_have_text(re.compile("Succeeded|Failed"))
    say(" ".join(page.locator("#run > p").first.inner_text().split()))
    for row in page.locator("#run table").first.locator("tr").all():
        say(row.inner_text().replace("\t", "  "))
    page.screenshot(path=home / f"{style}-run.png", full_page=True)

    page.get_by_role("link", name="Promote").click()
    page.get_by_label("Reason").fill("retrained in the browser")
    page.get_by_role("button", name="Put in service").click()
    say(page.locator(".messagelist").inner_text())
    say(f"after: {caption(page, style)}")
    page.goto(own_page)
    page.screenshot(path=home / f"{style}-style.png", full_page=True)
    page.get_by_role("link", name="v2", exact=True).first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    download.value.save_as(home / f"{style}.safetensors")
    page.goto(own_page)
    page.get_by_role("link", name="Roll back").click()
    page.get_by_role("button", name="Put in service").click()
    say(page.locator(".messagelist").inner_text())
    say(f"rolled back: {caption(page, style)}")


def caption(page: Page, style: str) -> str:
    """What the front page has the style say of a photo."""
    page.goto("/")
    for chosen in page.locator("input[name=styles]:checked").all():
        chosen.uncheck(force=True)
    page.locator(f"input[name=styles][value={style}]").check(force=True)
    page.locator("#photos").set_input_files(PHOTO)
    return page.locator("#results article.is-succeeded .text").first.inner_text()


def _zip(data: Path, style: str, home: Path) -> Path:
    """The training photos with their captions of a style, as people pack them."""
    path = home / f"{style}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        lines = []
        for photo in load_photos(data):
            if photo.split == "train" and style in photo.captions:
                archive.write(photo.path, photo.path.name)
                lines += [{"image": photo.path.name, "caption": text} for text in photo.captions[style]]
        archive.writestr("captions.jsonl", "\n".join(json.dumps(line) for line in lines))
    return path


if __name__ == "__main__":
    main()
