"""The web server as a process: slow clients, bodies of any size, threads that hang. All through real sockets."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.servers import PATIENCE, free_port, small_disk, wait_until

ROOT = Path(__file__).parent.parent
THREADS = 2
FORM = {"X_CSRFToken": "a" * 32, "Cookie": f"csrftoken={'a' * 32}", "Content_Type": "application/x-www-form-urlencoded"}


class Site:
    """gunicorn as its configuration has it, with few threads and a folder for temporary files."""

    def __init__(self, home: Path, temporary: Path) -> None:
        self.home, self.temporary, self.port = home, temporary, free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CLIPCAP_", "DJANGO_"))}
        self.environment = inherited | {
            "PYTHONPATH": str(ROOT),
            "CLIPCAP_HOME": str(home),
            "CLIPCAP_SECRET_KEY": "k" * 50,
            "CLIPCAP_ALLOWED_HOSTS": "127.0.0.1",
            "CLIPCAP_HTTPS": "0",
            "CLIPCAP_ANONYMOUS": "1",
            "CLIPCAP_WEB_THREADS": str(THREADS),
            "CLIPCAP_STATEMENT_SECONDS": "60",
            "TMPDIR": str(temporary),
        }

    def manage(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-P", "manage.py", *arguments], cwd=ROOT, env=self.environment, check=True)

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "gunicorn", "clipcap_site.wsgi", "--bind", f"127.0.0.1:{self.port}"]
        command += ["--worker-tmp-dir", str(self.home), "--log-level", "warning"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment)
        wait_until(lambda: self.status("GET", "/api/health/live") == 200, "it answers")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            chunked = not isinstance(body, bytes | None)
            connection.request(
                method, path, body, {n.replace("_", "-"): v for n, v in headers.items()}, encode_chunked=chunked
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def status(self, method: str, path: str) -> int:
        try:
            return self.call(method, path)[0]
        except OSError:
            return 0

    def hangs(self, path: str) -> bool:
        """Whether there is no answer within a second."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)) as connection:
            connection.request("GET", path)
            try:
                connection.getresponse()
            except TimeoutError:
                return True
        return False

    def begin(self, text: str) -> socket.socket:
        """Send the beginning of a request."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        client.sendall(text.encode())
        return client

    def bytes_in_files(self) -> int:
        """What its temporary files, which have no names, hold."""
        total = 0
        for process in _family(self.process.pid):
            for file in Path(f"/proc/{process}/fd").iterdir():
                try:
                    if str(file.readlink()).startswith(str(self.temporary)):
                        total += file.stat().st_size
                except FileNotFoundError:
                    continue
        return total


def _family(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(member for child in children for member in _family(int(child)))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("temporary"))
    shutil.copy(tables, site.home / "db.sqlite3")
    site.manage("collectstatic", "--noinput", "-v0")
    site.start()
    yield site
    assert site.stop() == 0


def test_slow_clients_hold_up_nobody(site: Site) -> None:
    with ExitStack() as slow:
        for number in range(200):
            host = "Host: 127.0.0.1\r\n"
            unfinished = (
                f"GET / HTTP/1.1\r\n{host}X-Slow",
                f"POST /sign-in/ HTTP/1.1\r\n{host}Content-Length: 100\r\n\r\nuser",
                f"POST /api/captions/ HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n100\r\nabc",
            )
            slow.enter_context(site.begin(unfinished[number % 3]))
        assert site.call("GET", "/gallery/")[0] == 200
        assert site.call("GET", "/api/styles/")[0] == 200


def test_it_tells_that_it_lives_while_all_its_threads_hang(site: Site) -> None:
    answered: list[int] = []
    asking = [
        threading.Thread(target=lambda: answered.append(site.call("POST", "/upload/", b"", **FORM)[0]))
        for _ in range(2 * THREADS)
    ]
    with closing(sqlite3.connect(site.home / "db.sqlite3", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")  # whoever writes waits
        for thread in asking:
            thread.start()
        wait_until(lambda: site.hangs("/api/styles/"), "all threads hang")
        assert site.call("GET", "/api/health/live") == (200, '{"status":"alive"}')
        assert "no caption worker" in site.call("GET", "/api/health/ready")[1]
        assert answered == []
        database.execute("ROLLBACK")
    for thread in asking:
        thread.join(PATIENCE)
    assert answered == [422] * 2 * THREADS


@pytest.mark.parametrize("path", ["/sign-in/", "/admin/login/", "/", "/gallery/", "/tokens/", "/no/such/page/"])
@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in chunks"])
def test_a_page_takes_no_more_than_a_form(site: Site, path: str, told: bool) -> None:
    size, part = 5_000_000, b"x" * 100_000
    length = f"Content-Length: {size}" if told else "Transfer-Encoding: chunked"
    client = site.begin(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n{length}\r\n\r\n"
    )
    with client:
        for sent in range(0, size, len(part)):
            client.sendall(part if told else b"%x\r\n%b\r\n" % (len(part), part))
            if sent > size // 2:
                assert site.bytes_in_files() < 2_000_000
        if not told:
            client.sendall(b"0\r\n\r\n")
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 413
        assert "1,000,000 bytes" in answer.read().decode()
        client.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        again = http.client.HTTPResponse(client)
        again.begin()
        assert again.status == 200, "the connection goes on where the body ended"


def test_a_body_in_chunks_is_read_like_any_other(site: Site) -> None:
    status, text = site.call(
        "POST", "/api/captions/", iter([b'{"image_', b'base64": "AA=="}']), Content_Type="application/json"
    )
    assert (status, "no_styles" in text or "not_an_image" in text) in ((415, True), (503, True), (422, True)), text


def test_the_api_counts_bodies_in_chunks(site: Site) -> None:
    site_limit = 27_000_000
    parts = (b"x" * 1_000_000 for _ in range(1 + site_limit // 1_000_000))
    status, text = site.call("POST", "/api/captions/", parts, Content_Type="application/json")
    assert (status, "request_too_large" in text) == (413, True)


def test_a_full_disk_under_a_body_is_reported(tmp_path: Path, site: Site) -> None:
    with small_disk(tmp_path / "disk"):
        other = Site(site.home, tmp_path / "disk")
        other.start()
        try:
            body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + bytes(3_000_000)
            for path in ("/upload/", "/api/captions/"):
                status, text = other.call("POST", path, body, Content_Type="multipart/form-data; boundary=x")
                assert status == 507, text
                assert "disk is full" in text
                assert str(tmp_path) not in text
        finally:
            other.stop()


def test_told_to_stop_it_answers_what_has_begun(site: Site) -> None:
    other = Site(site.home, site.temporary)
    other.start()
    with closing(sqlite3.connect(site.home / "db.sqlite3", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in FORM.items())
        client = other.begin(f"POST /upload/ HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: 2\r\n\r\na=")
        assert other.status("GET", "/api/health/live") == 200, "what was sent before is read"
        other.process.send_signal(signal.SIGTERM)
        database.execute("ROLLBACK")
    with client:
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 422
    assert other.process.wait(PATIENCE) == 0
