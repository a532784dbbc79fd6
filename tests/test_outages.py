"""Cache, broker, database, storage or disk away, full or frozen: what is optional costs nothing, the rest is told."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.core.cache import cache, caches
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection, connections
from django.test import Client

from captioner.api import health
from captioner.jobs import wakeup
from captioner.models import Caption, Style
from clipcap_site.cache import FailOpen
from tests.servers import PATIENCE, PostgreSQL, Redis, default_database, free_port, small_disk, wait_until

URL = "/api/captions/"


def dead() -> Iterator[str]:
    yield f"redis://127.0.0.1:{free_port()}"


def full() -> Iterator[str]:
    with Redis() as redis:
        subprocess.run(["redis-cli", "-p", str(redis.port), "config", "set", "maxmemory", "1"], check=True)
        yield redis.url


def frozen() -> Generator[str]:
    """The kernel accepts connections and what is sent; nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=[dead, full, frozen], ids=lambda make: make.__name__)
def sick_cache(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    for url in request.param():
        shared = {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": url,
            "OPTIONS": {"socket_connect_timeout": 0.5, "socket_timeout": 0.5},
        }
        settings.CACHES = {**settings.CACHES, "shared": shared}
        yield


def test_a_sick_cache_costs_nothing_but_throttling(
    sick_cache: None, client: Client, styles: dict[str, Style], photo: bytes, settings: Any
) -> None:
    settings.REST_FRAMEWORK = settings.REST_FRAMEWORK | {
        "DEFAULT_THROTTLE_RATES": {"anonymous": "1/minute", "user": "1/minute"}
    }
    for _ in range(2):
        answer = client.post("/api/captions/", {"image": SimpleUploadedFile("a.jpg", photo)})
        assert answer.status_code == 202, answer.content
    Caption.objects.update(created_at="2026-01-01T00:00:00Z")  # rescued by whoever sees it
    assert client.get(answer.json()["url"]).status_code == 200
    assert cache.get_or_set("mark", 3) == 3
    with pytest.raises(ValueError, match="not found"):
        cache.incr("count")
    assert health._cache.__name__ in {f"_{name}" for name in health.CHECKS}
    with pytest.raises(Exception, match=r"."):  # each its own
        health._cache()


def test_a_cache_that_has_failed_is_not_asked_again_for_a_while(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        location = f"redis://127.0.0.1:{server.getsockname()[1]}"
        settings.CACHES = {
            **settings.CACHES,
            "shared": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": location,
                "OPTIONS": {"socket_timeout": 0.1, "retry": None},
            },
        }
        assert cache.get("a", "unknown") == "unknown"
        asked = FailOpen.away_until
        assert [cache.get("a"), cache.add("a", 1), cache.delete("a")] == [None, True, False]
        assert asked > 0
        assert FailOpen.away_until == asked, "each failure would have moved it"


def test_a_cache_that_works_is_used(settings: Any) -> None:
    cache.set("a", 1)
    assert (caches["shared"].get("a"), cache.incr("a"), cache.add("a", 5), cache.get("a")) == (1, 2, False, 2)
    with pytest.raises(ValueError, match="not found"):
        cache.incr("b")
    assert FailOpen.away_until == 0


def test_a_frozen_broker_holds_up_no_request(
    client: Client,
    styles: dict[str, Style],
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = f"redis://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(wakeup, "app", Celery(broker=broker, set_as_current=False))
        with django_capture_on_commit_callbacks(execute=True):
            answer = client.post("/api/captions/", {"image": SimpleUploadedFile("a.jpg", photo)})
        assert answer.status_code == 202
        sent, _ = server.accept()
        sent.settimeout(PATIENCE)
        assert sent.recv(1), "a wake-up message is still being sent"
        sent.close()


@pytest.mark.parametrize("name", list(health.CHECKS))
@pytest.mark.django_db(transaction=True)
def test_ready_answers_whatever_hangs(client: Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    released, begun = threading.Event(), []

    def hang() -> str:
        begun.append(name)
        released.wait(PATIENCE)
        return "ok"

    monkeypatch.setitem(health.CHECKS, name, hang)
    monkeypatch.setattr(health, "READY_WITHIN", 0.3)
    try:
        for _ in range(2):
            answer = client.get("/api/health/ready")
            assert answer.status_code == 503
            assert answer.json()["checks"][name] == "no answer"
        assert begun == [name], "what hangs is not begun again"
    finally:
        released.set()
    wait_until(lambda: health._running[name].done(), "it ends")


# The database


@contextmanager
def stopped(postgresql: PostgreSQL) -> Iterator[None]:
    """All processes of a PostgreSQL stand still, as in a paused container."""
    first = int((postgresql.folder / "data/postmaster.pid").read_text().split()[0])
    os.kill(first, signal.SIGSTOP)
    others = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=True).stdout.split()
    for process in map(int, others):
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in (first, *map(int, others)):
            os.kill(process, signal.SIGCONT)


@contextmanager
def gone(postgresql: PostgreSQL) -> Iterator[None]:
    postgresql.stop()
    try:
        yield
    finally:
        postgresql.start()


@contextmanager
def locked(postgresql: PostgreSQL) -> Iterator[None]:
    """A migration, say, that takes its time."""
    other = connections.create_connection("default")
    with other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE django_session, captioner_style, captioner_image, captioner_caption")
    try:
        yield
    finally:
        other.close()


@pytest.fixture(scope="module")
def site(django_db_blocker: Any) -> Iterator[PostgreSQL]:
    with PostgreSQL() as postgresql, django_db_blocker.unblock():
        url = postgresql.create_site("clipcap")
        with default_database(
            url, "clipcap_site.postgresql", patience=1, connect_timeout=2, options="-c statement_timeout=500"
        ):
            yield postgresql


@pytest.mark.parametrize("away", [stopped, gone, locked], ids=lambda away: away.__name__)
def test_without_its_database_it_says_when_to_come_again(
    site: PostgreSQL, away: Callable[[PostgreSQL], Any], media: Path, photo: bytes
) -> None:
    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = "a" * 32
    connection.ensure_connection()
    with away(site):
        answers = {
            path: client.get(path, headers=headers)
            for path, headers in (
                ("/", {}),
                ("/gallery/", {"Accept": "application/json"}),
                ("/admin/", {}),
                ("/api/captions/", {}),
            )
        }
        answers["upload"] = client.post("/upload/", {"photos": SimpleUploadedFile("a.jpg", photo)})
        answers["create"] = client.post("/api/captions/", {"image": SimpleUploadedFile("a.jpg", photo)})
    for path, answer in answers.items():
        assert (answer.status_code, answer["Retry-After"]) == (503, "5"), path
        assert b"does not respond" in answer.content
        assert b"Traceback" not in answer.content
    assert answers["/api/captions/"].json()["code"] == "database_unavailable"
    assert "Nothing in the queue is lost" in answers["/"].content.decode()
    connection.close()
    assert client.get("/api/captions/").status_code == 200, "it is back"


@pytest.mark.parametrize("away", [stopped, gone], ids=lambda away: away.__name__)
def test_ready_says_within_its_time_that_the_database_and_the_cache_hang(
    site: PostgreSQL, away: Callable[[PostgreSQL], Any], settings: Any
) -> None:
    client = Client(raise_request_exception=False)
    frozen_cache = frozen()
    shared = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": next(frozen_cache)}
    settings.CACHES = {**settings.CACHES, "shared": shared}
    with away(site):
        answer = client.get("/api/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["database"] != "ok"
    assert answer.json()["checks"]["cache"] == "no answer", "it was given up and not waited for"
    assert health.READY_WITHIN < 2
    frozen_cache.close()
    wait_until(lambda: all(check.done() for check in health._running.values()), "the checks end")


def test_a_connection_that_was_given_up_is_not_used_again(site: PostgreSQL) -> None:
    connection.ensure_connection()
    with stopped(site), pytest.raises(OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.connection.closed
    connection.close()


# The disk


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files that went with the disk
def test_a_full_folder_for_uploads_is_reported_without_its_name(
    styles: dict[str, Style], admin_client: Client, client: Client, settings: Any, tmp_path: Path, photo: bytes
) -> None:
    big = b"\xff\xd8" + bytes(3_000_000)  # goes into a temporary file
    client.raise_request_exception = admin_client.raise_request_exception = False
    path = f"/admin/captioner/style/{styles['factual'].pk}/import/"
    with small_disk(tmp_path / "disk"):
        settings.FILE_UPLOAD_TEMP_DIR = str(tmp_path / "disk")
        told = []
        for browser, address, field in (
            (client, URL, "image"),
            (client, "/upload/", "photos"),
            (admin_client, path, "file"),
        ):
            answer = browser.post(address, {field: SimpleUploadedFile("a", big)})
            told.append((answer.status_code, answer.content.decode()))
            del answer
        gc.collect()  # the exceptions hold the files
    assert [status for status, _ in told] == [507] * 3
    assert json.loads(told[0][1])["code"] == "storage_full"
    for _, text in told:
        assert "disk is full" in text
        assert str(tmp_path) not in text


def test_a_full_storage_is_reported_by_the_admin_too(
    styles: dict[str, Style], admin_client: Client, settings: Any, tmp_path: Path
) -> None:
    admin_client.raise_request_exception = False
    with small_disk(tmp_path / "disk"):
        settings.MEDIA_ROOT = tmp_path / "disk"
        path = f"/admin/captioner/style/{styles['factual'].pk}/import/"
        answer = admin_client.post(path, {"file": SimpleUploadedFile("a.zip", b"PK" + bytes(100_000))})
    assert "No space left on device" in answer.content.decode()
    assert str(tmp_path) not in answer.content.decode()
