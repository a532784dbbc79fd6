"""Big pictures: how many are decoded at a time, how many a request may bring, and what memory they leave behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from PIL import Image as Pillow

from captioner import admission, services
from captioner.admission import admitted
from captioner.errors import Refused
from captioner.jobs import database
from captioner.jobs.database import turn_to_write
from captioner.models import CaptionRequest, Image, MapperVersion, Promotion, Style, Viewer
from clipcap.image import pixels_to_decode
from tests.servers import PATIENCE, wait_until

ROOT = Path(__file__).parent.parent


def picture(side: int, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (side, side), "teal").save(out, format, **options)
    return out.getvalue()


def upload(data: bytes) -> SimpleUploadedFile:
    return SimpleUploadedFile("a.png", data)


def test_what_is_in_flight_stays_within_the_budget_and_the_order_is_kept(settings: Any) -> None:
    settings.DECODING_PIXELS = 10
    begun: list[int] = []
    go_on = [threading.Event() for _ in range(3)]

    def decode(number: int, pixels: int) -> None:
        with admitted(pixels):
            begun.append(number)
            go_on[number].wait(PATIENCE)

    # The second does not fit beside the first; the third would, but came later.
    threads = [threading.Thread(target=decode, args=(number, pixels)) for number, pixels in enumerate((6, 50, 1))]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda: len(begun) + len(admission._waiting) == number + 1, "it asks")  # noqa: B023
    for number in range(3):
        assert begun == list(range(number + 1))
        go_on[number].set()
        threads[number].join(PATIENCE)
        wait_until(lambda: len(begun) == min(number + 2, 3), "the next one begins")  # noqa: B023
    assert (admission._in_flight, list(admission._waiting)) == (0, [])


def test_who_waits_for_too_long_is_told_when_to_come_again(
    settings: Any, monkeypatch: pytest.MonkeyPatch, client: Client, styles: dict[str, Style]
) -> None:
    monkeypatch.setattr(admission, "PATIENCE", 0.05)
    with admitted(settings.DECODING_PIXELS):
        answer = client.post("/api/captions/", {"image": upload(picture(64))})
        page = client.post("/upload/", {"photos": upload(picture(64))}, headers={"Accept": "application/json"})
    for told in (answer, page):
        assert (told.status_code, told["Retry-After"]) == (503, "5")
    assert answer.json()["code"] == "busy"
    assert not Image.objects.exists()
    assert client.post("/api/captions/", {"image": upload(picture(64))}).status_code == 202


def test_no_more_than_half_of_the_threads_wait(settings: Any) -> None:
    settings.WEB_THREADS, settings.DECODING_PIXELS = 2, 10
    release = threading.Event()

    def decode() -> None:
        with admitted(10):
            release.wait(PATIENCE)

    threads = [threading.Thread(target=decode) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: admission._in_flight and admission._waiting, "one works and one waits")
    with pytest.raises(Refused, match="try again in a few seconds"), admitted(1):
        pass
    release.set()
    for thread in threads:
        thread.join(PATIENCE)


def test_a_picture_that_fails_leaves_its_place(client: Client, styles: dict[str, Style]) -> None:
    assert client.post("/api/captions/", {"image": upload(picture(64)[:80])}).status_code == 422
    assert client.post("/api/captions/", {"image": upload(b"no picture")}).status_code == 415
    assert admission._in_flight == 0


def test_the_pixels_of_a_request_are_counted_before_any_is_decoded(
    settings: Any, client: Client, styles: dict[str, Style]
) -> None:
    settings.MAX_REQUEST_PIXELS = 2 * 64 * 64 - 1
    two = [upload(picture(64)), upload(picture(64, compress_level=0))]
    answer = client.post("/api/captions/", {"image": two})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_pixels")
    assert "8,192 pixels" in answer.json()["detail"]
    for file in two:
        file.seek(0)
    assert client.post("/upload/", {"photos": two}).status_code == 413
    assert not Image.objects.exists()
    assert not CaptionRequest.objects.exists()
    two[0].seek(0)
    assert client.post("/upload/", {"photos": two[:1]}).status_code == 302


def test_what_decoding_takes_is_read_from_the_header() -> None:
    assert pixels_to_decode(picture(2000), min_side=500) == 2000 * 2000
    assert pixels_to_decode(picture(2000, "JPEG"), min_side=500) == 500 * 500
    assert pixels_to_decode(picture(2000, "JPEG", progressive=True), min_side=500) == 2000 * 2000
    assert pixels_to_decode(Pillow.new("L", (3, 5)), min_side=500) == 15
    assert pixels_to_decode(b"no picture", min_side=500) is None


MEASURE = """
import json, os, sys, django
django.setup()
from captioner.admission import admitted
from clipcap.image import open_image
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
data = sys.stdin.buffer.read()
before = resident()
for _ in range(3):
    with admitted(4000 * 4000):
        open_image(data, min_side=1024).close()
print(json.dumps([before, resident()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked to give memory back")
def test_memory_goes_back_to_the_system() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "clipcap_site.settings"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE], input=picture(4000), capture_output=True, env=environment, check=True
    )
    before, after = json.loads(done.stdout)
    assert after - before < 30_000_000, "a decoded picture of 16 megapixels takes 64 MB"


@pytest.mark.django_db(transaction=True)
def test_the_answer_is_made_when_others_may_write_again(media: Path) -> None:
    style = Style.objects.create(slug="plain", name="Plain")
    version = MapperVersion.objects.create(style=style, number=1, sha256="0" * 64, origin=MapperVersion.Origin.SHIPPED)
    Promotion.objects.create(style=style, version=version)
    seen: list[bool] = []

    def render(_: CaptionRequest) -> dict[str, Any]:
        seen.append(connection.in_atomic_block or bool(database._waiting))
        return {}

    services.request_captions(viewer=Viewer(), images=[services.Upload(picture(64))], render=render)
    assert seen == [False]


@pytest.mark.django_db(transaction=True)
def test_threads_take_turns_to_write() -> None:
    order: list[int] = []

    def write() -> None:
        with turn_to_write():
            order.append(1)
        connection.close()

    with turn_to_write():
        other = threading.Thread(target=write)
        other.start()
        assert order == []
        order.append(0)
    other.join(PATIENCE)
    assert order == [0, 1]


@pytest.mark.django_db(transaction=True)
def test_threads_write_in_the_order_in_which_they_came() -> None:
    order: list[int] = []

    def write(number: int) -> None:
        with turn_to_write():
            order.append(number)
        connection.close()

    with turn_to_write():
        others = [threading.Thread(target=write, args=(number,)) for number in range(20)]
        for waiting, other in enumerate(others, start=2):
            other.start()
            wait_until(lambda: len(database._waiting) == waiting, "it waits")  # noqa: B023 (called in this turn)
    for other in others:
        other.join(PATIENCE)
    assert order == list(range(20))
