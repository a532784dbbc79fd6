"""`./run bench fairness`: how long a caption takes while somebody else has thousands queued, against an idle service.

The processes of `./run bench service`. An anonymous client asks for one caption after the other, each of a new photo:
at first of an idle service, then while a user has 10,000 captions queued. At the end these are canceled in one call,
and as many again by one action of the admin. Ratio and times are measured in one run.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import urllib3

from benchmarks.service import MANAGE, environment_of, photos_of, service

PER_REQUEST = 50  # photos, each in three styles
WAIT = 60
TOKEN = """
from django.contrib.auth import get_user_model
from accounts.services import make_token
print(make_token(get_user_model().objects.create_user("many"), name="benchmark")[1])
"""

PAUSE = """
from captioner import services
services.pause_queue(name="captions", reason="what is queued now is to be canceled, and not written before")
"""

ADMIN = """
import time
from django.contrib.auth import get_user_model
from django.test import Client
from captioner.models import Caption
client = Client(SERVER_NAME="127.0.0.1")
client.force_login(get_user_model().objects.create_superuser("root"))
one = Caption.objects.filter(status="queued")[0].pk
sent = {"action": "cancel_chosen", "select_across": "1", "_selected_action": str(one)}
before = Caption.objects.filter(status="canceled").count()
started = time.monotonic()
assert client.post("/admin/captioner/caption/?status__exact=queued", sent).status_code == 302
seconds = time.monotonic() - started
print(Caption.objects.filter(status="canceled").count() - before, seconds)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and print the table.

    Returns:
        0, or 1 if a goal was missed.
    """
    options = _parser().parse_args(arguments)
    photos = list(photos_of(PER_REQUEST + 2 * options.single + 1))
    own, warm, *single = photos[:PER_REQUEST], photos[PER_REQUEST], *photos[PER_REQUEST + 1 :]
    with (
        tempfile.TemporaryDirectory(prefix="clipcap-bench-") as home,
        service(Path(home), options.workers, CLIPCAP_MAX_QUEUED=str(2 * options.queued)) as address,
    ):
        one = urllib3.PoolManager()
        many = urllib3.PoolManager(headers={"Authorization": f"Token {_token(Path(home))}"})
        _one(one, address, warm)
        idle = [_one(one, address, photo) for photo in single[: options.single]]
        queued = _fill(many, address, own, options.queued)
        loaded = [_one(one, address, photo) for photo in single[options.single :]]
        canceled, seconds = _cancel(many, address)
        _shell(Path(home), PAUSE)
        _fill(many, address, own, options.queued)
        by_action, of_action = _in_admin(Path(home))
    before, after = statistics.median(idle), statistics.median(loaded)
    print(f"one caption, idle: p50 {before:.2f} s; with {queued:,} of another queued: {after:.2f} s")
    print(f"ratio: {after / before:.2f} (at most 2)")
    print(f"{canceled:,} captions canceled in one call: {seconds:.2f} s (at most 2)")
    print(f"{by_action:,} captions canceled by one action of the admin: {of_action:.2f} s (at most 2)")
    return 0 if after <= 2 * before and max(seconds, of_action) <= 2 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run bench fairness", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queued", type=int, default=10_000, metavar="N", help="captions of the other client (10000)")
    parser.add_argument("--single", type=int, default=15, metavar="N", help="captions measured, before and after (15)")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    return parser


def _token(home: Path) -> str:
    """An API token of a new user."""
    return _shell(home, TOKEN)[-1]


def _in_admin(home: Path) -> tuple[int, float]:
    """How many captions one action of the admin's list cancels, and the seconds that it takes."""
    *_, canceled, seconds = _shell(home, ADMIN)
    return int(canceled), float(seconds)


def _shell(home: Path, code: str) -> list[str]:
    """The words that some code prints in a process of the service."""
    command = [*MANAGE, "shell", "--verbosity", "0", "--command", code]
    done = subprocess.run(command, env=environment_of(home), check=True, capture_output=True, text=True)
    return done.stdout.split()


def _one(pool: urllib3.PoolManager, address: str, photo: bytes) -> float:
    """The seconds from asking to having one caption."""
    started = time.monotonic()
    answer = pool.request(
        "POST",
        f"{address}/api/captions/",
        fields={"image": ("photo.jpg", photo, "image/jpeg"), "style": "factual"},
        headers={"Prefer": f"wait={WAIT}"},
    )
    seconds = time.monotonic() - started
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.data[:300]!r}")
    return seconds


def _fill(pool: urllib3.PoolManager, address: str, photos: list[bytes], captions: int) -> int:
    """Queue so many captions; returns how many there are."""
    files = [("image", ("photo.jpg", photo, "image/jpeg")) for photo in photos]
    made = _ask(pool, address, fields=[*files, ("style", "all")])
    images = [("image_id", image) for image in dict.fromkeys(caption["image"] for caption in made["captions"])]
    queued = len(made["captions"])
    while queued < captions:
        queued += len(_ask(pool, address, fields=[*images, ("style", "all")])["captions"])
    return queued


def _ask(pool: urllib3.PoolManager, address: str, **form: Any) -> Any:
    answer = pool.request("POST", f"{address}/api/captions/", **form)
    if answer.status != 202:
        raise RuntimeError(f"{answer.status}: {answer.data[:300]!r}")
    return answer.json()


def _cancel(pool: urllib3.PoolManager, address: str) -> tuple[int, float]:
    """How many captions are canceled by one call, and the seconds that it takes."""
    started = time.monotonic()
    answer = pool.request("POST", f"{address}/api/captions/cancel/")
    return answer.json()["canceled"], time.monotonic() - started
