"""`./run demo` with its real processes, from the first start to the last, and the supervisor under it."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from clipcap_site import supervisor as supervising
from clipcap_site.supervisor import Child, Supervisor, readable
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
PHOTOS = 4  # of its gallery, in place of 76
ALL = 3 * PHOTOS  # captions, in three styles


class Demo:
    """The command of a project, as a user starts it, on a folder."""

    def __init__(self, home: Path, project: Path = ROOT) -> None:
        self.home, self.project = home, project
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []

    def command(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CLIPCAP_", "DJANGO_"))}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "clipcap_site.demo", *arguments],
            env={**inherited, "PYTHONPATH": str(self.project), "CLIPCAP_HOME": str(self.home), **environment},
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self) -> None:
        self.said = []
        said = self.said  # this start's
        self.process = self.command("--port", "0", CLIPCAP_THROTTLE_ANONYMOUS="1000/minute")
        output = self.process.stdout
        assert output is not None

        def listen() -> None:
            for line in output:
                said.append(line)

        threading.Thread(target=listen, daemon=True).start()
        self.expect(r"Open (http://127\.0\.0\.1:\d+)/")

    def expect(self, pattern: str, seconds: float = 400.0) -> str:
        """Wait until it has said something, and return the pattern's first group."""
        found: list[re.Match[str]] = []

        def heard() -> bool:
            assert self.process is not None
            found.extend(match for line in list(self.said) if (match := re.search(pattern, line)))
            assert found or self.process.poll() is None, self.said
            return bool(found)

        wait_until(heard, f"{pattern!r} in {self.said}", seconds)
        return found[-1].group(1) if found[-1].groups() else ""

    @property
    def url(self) -> str:
        return self.expect(r"Open (http://127\.0\.0\.1:\d+)/")

    def processes(self) -> set[int]:
        """Everything that it has started and that runs."""
        assert self.process is not None
        found, unseen = set(), [self.process.pid]
        while unseen:
            try:
                text = Path(f"/proc/{unseen[-1]}/task/{unseen[-1]}/children").read_text()
            except FileNotFoundError:
                text = ""
            found.add(unseen.pop())
            unseen += [int(pid) for pid in text.split()]
        return found - {self.process.pid}

    def worker(self) -> int:
        (pid,) = (pid for pid in self.processes() if b"captions" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return pid

    def captions(self) -> dict[str, str]:
        """The status of every caption of the gallery, by id."""
        found: dict[str, str] = {}
        url = f"{self.url}/api/captions/"
        while url:
            page = requests.get(url, timeout=60).json()
            found |= {caption["id"]: caption["status"] for caption in page["results"]}
            url = page["next"]
        return found

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()}


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are followed through /proc")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with fewer photos in its gallery."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("accounts", "captioner", "clipcap", "clipcap_site", "static", "templates", "training"):
        shutil.copytree(ROOT / part, folder / part)
    for part in ("gunicorn.conf.py", "manage.py", "models"):
        (folder / part).symlink_to(ROOT / part)
    gallery, photos = ROOT / "examples/coco_cc", folder / "examples/coco_cc"
    photos.mkdir(parents=True)
    chosen = json.loads((gallery / "captions.json").read_text())[:PHOTOS]
    (photos / "captions.json").write_text(json.dumps(chosen))
    for photo in chosen:
        shutil.copy(gallery / photo["file"], photos)
    return folder


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo") / "its home", project)
    demo.start()
    demo.expect(f"Gallery: {ALL} of {ALL} captions")
    yield demo
    if demo.process and demo.process.poll() is None:
        demo.stop()


@pytest.fixture
def demo(first_start: Demo) -> Demo:
    """A demo that runs and has captioned its gallery."""
    assert first_start.process is not None
    if first_start.process.poll() is not None:
        first_start.start()
    return first_start


def test_the_first_start_fills_the_gallery_with_credit_to_the_photographers(demo: Demo) -> None:
    statuses = demo.captions()
    assert len(statuses) == ALL
    assert set(statuses.values()) == {"succeeded"}
    image = requests.get(f"{demo.url}/api/images/", timeout=60).json()["results"][0]
    assert "License (http://creativecommons.org/licenses/" in image["credit"]
    assert image["credit_url"].startswith("http://farm")
    assert requests.get(f"{demo.url}/", timeout=60).status_code == 200


def test_slow_clients_do_not_silence_it(demo: Demo) -> None:
    address = urlsplit(demo.url)
    with ExitStack() as slow:
        for _ in range(200):
            client = slow.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
            client.sendall(f"GET / HTTP/1.1\r\nHost: {address.netloc}\r\nX-Slow".encode())
        assert requests.get(f"{demo.url}/gallery/", timeout=60).status_code == 200


def test_its_static_files_are_collected(demo: Demo) -> None:
    page = requests.get(f"{demo.url}/admin/login/", timeout=60).text
    (style, *_) = re.findall(r'href="(/static/[^"]+\.css)"', page)
    answer = requests.get(f"{demo.url}{style}", timeout=60)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, 'text/css; charset="utf-8"')
    assert "max-age=315360000" in answer.headers["Cache-Control"]


def test_the_printed_password_lets_the_administrator_in_and_is_nowhere_on_the_disk(demo: Demo) -> None:
    process = demo.command("--new-password")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    password = said.removeprefix("Administrator: admin / ").strip()
    assert sign_in(demo, password)
    assert not sign_in(demo, "another")
    written = [path for path in demo.home.rglob("*") if path.is_file()]
    assert not [path for path in written if password.encode() in path.read_bytes()]


def test_all_that_it_has_written_is_its_users_alone(demo: Demo) -> None:
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [demo.home, *demo.home.rglob("*")]}
    assert {"db.sqlite3", "secret-key", "logs", "media", "static", "broker"} <= {path.name for path in found}
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}


def sign_in(demo: Demo, password: str) -> bool:
    session = requests.Session()
    page = f"{demo.url}/admin/login/?next=/admin/"
    token = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', session.get(page, timeout=60).text)[0]
    form = {"username": "admin", "password": password, "csrfmiddlewaretoken": token}
    return session.post(page, data=form, timeout=60, allow_redirects=False).status_code == 302


def test_the_documented_client_works(demo: Demo, tmp_path: Path) -> None:
    text = (ROOT / "docs/client.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    client = tmp_path / "client.py"
    client.write_text(code.replace("http://127.0.0.1:8000", demo.url))
    photo = ROOT / "examples/coco_cc/000000349860.jpg"
    done = subprocess.run([sys.executable, client, photo], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(index, name) for index, name, *_ in lines] == [("0", photo.name)] * 3
    captions = {style: text for _, _, style, text in lines}
    assert set(captions) == {"factual", "humorous", "romantic"}
    assert "skate" in captions["factual"]


def test_a_second_one_in_the_same_folder_is_refused_with_the_address_of_the_first(demo: Demo) -> None:
    process = demo.command("--port", "0")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.startswith(f"run demo: a demo is already running in {demo.home}, at {demo.url}/; ")
    assert said.count("\n") == 1


def test_a_killed_worker_is_started_again_and_works(demo: Demo) -> None:
    demo.expect("The caption worker is ready")
    demo.said[:] = [line for line in demo.said if line.startswith("Open ")]
    os.kill(demo.worker(), signal.SIGKILL)
    demo.expect("caption worker was killed by SIGKILL; restarting in 1 s")
    photo = (ROOT / "examples/coco_cc/000000349860.jpg").read_bytes()
    asked = requests.post(f"{demo.url}/api/captions/", files={"image": photo}, timeout=60).json()
    demo.expect("The caption worker is ready")
    wait_until(lambda: requests.get(asked["url"], timeout=60).json()["status"] == "succeeded", "a caption")


def test_it_stops_without_a_process_left_and_the_next_start_finds_everything(demo: Demo) -> None:
    before, processes = demo.captions(), demo.processes()
    assert len(processes) == 4  # gunicorn's two and the workers
    assert demo.stop(signal.SIGTERM) == 0
    assert demo.said[-1] == "Stopped.\n"
    assert not alive(processes)

    demo.start()

    assert demo.captions() == before
    assert not any("(not shown again)" in line for line in demo.said)
    demo.expect("The caption worker is ready")
    processes = demo.processes()
    assert demo.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not alive(processes), "the end of what a killed supervisor has started")


@pytest.mark.parametrize("number", ["-1", "65536", "http"])
def test_what_is_no_port_is_refused(tmp_path: Path, number: str) -> None:
    refused(Demo(tmp_path / "home"), "is not a port; give a number from 0 to 65535", PORT=number)


def test_a_port_that_is_taken_is_named_with_another(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused(Demo(tmp_path / "home"), f"port {port} is taken; choose another, such as", PORT=str(port))


def test_a_folder_that_cannot_be_written_to_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(Demo(tmp_path / "file" / "home"), "CLIPCAP_HOME=/another/folder ./run demo")
    assert str(tmp_path / "file") in said


def test_models_that_are_missing_are_named(tmp_path: Path) -> None:
    said = refused(
        Demo(tmp_path / "home"), "restore the project's folder models/base", CLIPCAP_MODELS="/nowhere", PORT="0"
    )
    assert "no encoder in /nowhere/encoder" in said


def test_a_database_that_is_damaged_is_reported_in_a_sentence(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "home")
    demo.home.mkdir()
    (demo.home / "db.sqlite3").write_bytes(b"this was a database once" * 1000)
    refused(demo, "the database cannot be used", PORT="0")


def refused(demo: Demo, sentence: str, **environment: str) -> str:
    process = demo.command(**environment)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    *_, last = said.splitlines()
    assert last.startswith("run demo: ")
    assert sentence in last
    assert "Traceback" not in said
    return said


def test_a_child_that_dies_at_once_is_started_after_growing_pauses_and_its_reason_is_shown(tmp_path: Path) -> None:
    said: list[str] = []
    fails = Child("worker", [sys.executable, "-c", "raise SystemExit('no models')"], tmp_path / "worker.log")
    with Supervisor([fails], cwd=tmp_path, say=said.append) as supervisor:
        look_until(supervisor, lambda: fails.quick_deaths == 3)
    assert said == [
        "worker ended with exit code 1; restarting in 1 s.",
        "worker ended with exit code 1; restarting in 2 s.",
        "worker ended with exit code 1; restarting in 4 s.",
        f"worker stopped 3 times soon after starting; its last output: no models (its log: {tmp_path / 'worker.log'})",
    ]


def test_a_child_that_does_not_stop_is_killed_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "GRACE", 0.5)
    program = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "os.fork(); os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)"  # in one piece: two processes write
    )
    said: list[str] = []
    stubborn = Child("web", [sys.executable, "-c", program], tmp_path / "web.log")
    with Supervisor([stubborn], cwd=tmp_path, say=said.append) as supervisor:
        look_until(supervisor, lambda: (tmp_path / "web.log").exists() and len(pids(tmp_path / "web.log")) == 2)
    assert said == ["web did not stop in time and was killed."]
    wait_until(lambda: not alive(pids(tmp_path / "web.log")), "their end")


def test_warnings_are_repeated_once_and_the_rest_stays_in_the_log(tmp_path: Path) -> None:
    said: list[str] = []
    line = '{"time": "now", "level": "%s", "logger": "x", "message": "%s", "caption": 7}\n'
    program = f"import time; print({line % ('warning', 'failed') * 2 + line % ('info', 'done')!r}, flush=True); "
    program += "time.sleep(600)"
    child = Child("worker", [sys.executable, "-c", program], tmp_path / "worker.log")
    with Supervisor([child], cwd=tmp_path, say=said.append) as supervisor:
        look_until(supervisor, lambda: child.last_words.startswith("done"))
    assert said == ["worker: failed (caption 7)"]


def test_a_traceback_is_shown_by_its_last_line() -> None:
    line = '{"level": "error", "message": "again", "traceback": "Traceback:\\n  x\\nOperationalError: no such table"}'
    assert readable(line) == ("again (OperationalError: no such table)", True)
    assert readable("[CRITICAL] plain text") == ("[CRITICAL] plain text", False)


def pids(log: Path) -> set[int]:
    return {int(line) for line in log.read_text().splitlines()}


def look_until(supervisor: Supervisor, condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        supervisor.look()
        time.sleep(0.02)
