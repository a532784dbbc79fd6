"""docs/production.md, run as it stands: every file and command of it, with the real programs.

The test's own are only folders, ports, the users' names and the certificate. `sudo` stays who it is, and systemd, which
runs no test's machine, reads the units and the environment with its own tools; what the units start is started here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection
from django.test import override_settings

from captioner import storage, uploads
from captioner.api.base import LONGEST_WAIT
from captioner.models import Image
from tests.machine import (
    GUIDE,
    HOST,
    PASSWORD,
    ROOT,
    SNIPPETS,
    VISITING,
    Machine,
    Proxy,
    ask,
    budget,
    parsed_by_shell,
    parsed_by_systemd,
)
from tests.servers import PATIENCE, PostgreSQL, Redis, default_database, installed, wait_until
from tests.test_faults import ENDINGS

UNITS = [Path(title).name for title in SNIPPETS if title.startswith("/etc/systemd/system/")]
THREADS = 2  # of a web process


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One that is set up, with the site running."""
    installed("systemd-sysusers", "systemd")
    with Redis() as redis, PostgreSQL(administrator="postgres") as postgresql:
        machine = Machine(tmp_path_factory.mktemp("machine"), postgresql, redis)
        machine.do("User and folders")
        machine.write(
            "/etc/clipcap.env",
            machine.here(SNIPPETS["/etc/clipcap.env"]),
            *(
                "CLIPCAP_ANONYMOUS=1",
                "CLIPCAP_THROTTLE_ANONYMOUS=8/minute",
                f"CLIPCAP_WEB_THREADS={THREADS}",
            ),
        )
        machine.do("Database", f"{PASSWORD}\n{PASSWORD}\n")
        said = machine.do("Set-up")
        assert "System check identified no issues" in said
        with machine.service("clipcap-web.service"):
            wait_until(lambda: ask(machine.port, "/api/health/live") == 200, "it answers")
            yield machine


def test_every_snippet_of_the_guide_is_run_here() -> None:
    assert len(SNIPPETS) == GUIDE.count("\n```") / 2, "each has a title"
    assert not re.search(r"^    \S*(sudo|\./run|systemctl)", GUIDE, re.MULTILINE)
    here = Path(__file__).read_text() + (ROOT / "tests/machine.py").read_text()
    assert [title for title in SNIPPETS if f'"{title}"' not in here and Path(title).name not in UNITS] == []


def test_the_services_have_a_user(machine: Machine) -> None:
    assert re.search(
        rf"^clipcap:.*:{machine.root}/var/lib/clipcap:", (machine.root / "etc/passwd").read_text(), re.MULTILINE
    )
    assert (machine.root / "etc/clipcap.env").stat().st_mode & 0o777 == 0o640
    assert (machine.root / "var/lib/clipcap").stat().st_mode & 0o777 == 0o700


def test_the_database_belongs_to_the_services_and_takes_any_language(machine: Machine) -> None:
    owner = "SELECT r.rolname, pg_encoding_to_char(encoding) FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba"
    assert machine.ask(f"{owner} WHERE datname = 'clipcap'") == [("clipcap", "UTF8")]
    assert machine.ask("SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = 'clipcap'") == [(False, False)]


def test_behind_pgbouncer_the_role_has_what_connections_ask_for_otherwise(machine: Machine) -> None:
    machine.do("Behind PgBouncer")
    ((given,),) = machine.ask("SELECT rolconfig FROM pg_roles WHERE rolname = 'clipcap'")
    assert given == ["idle_in_transaction_session_timeout=60s"]


def test_systemd_and_the_shell_read_the_environment_alike(machine: Machine, tmp_path: Path) -> None:
    file = machine.root / "etc/clipcap.env"
    assert parsed_by_shell(file) == machine.environment
    assert quote(PASSWORD, safe="") in machine.environment["CLIPCAP_DATABASE_URL"]
    other = tmp_path / "other.env"
    other.write_text("A='a \"b\" \\ # ; &c'\nB=a-b_c./:@,d\n# C=1\nD=1  # one\n")
    systemd, shell = parsed_by_systemd(other, tmp_path), parsed_by_shell(other)
    assert systemd.pop("D") == "1  # one", "which is why a comment has a line of its own"
    assert (systemd, shell.pop("D")) == (shell, "1")


def test_no_example_of_an_environment_has_a_comment_behind_a_value() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert not re.search(r"^ *CLIPCAP_\w+=\S*[ \t]+#", page.read_text(), re.MULTILINE), page


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    systemctl = installed("systemctl", "systemd")
    for unit in UNITS:
        machine.write(f"/etc/systemd/system/{unit}")
    verify = [installed("systemd-analyze", "systemd"), "verify", "--man=no"]
    done = subprocess.run(
        [*verify, *(machine.root / "etc/systemd/system" / unit for unit in UNITS)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")

    (machine.root / "systemctl").unlink(missing_ok=True)
    for title in ("Start", "Restart", "Stop"):
        machine.do(title)
    said = [shlex.split(line) for line in (machine.root / "systemctl").read_text().splitlines()]
    enabled = next(line[2:] for line in said if line[:2] == ["enable", "--now"])
    subprocess.run([systemctl, "--root", machine.root, "enable", *enabled], capture_output=True, check=True)
    wanted = {path.name for path in (machine.root / "etc/systemd/system").glob("*.wants/*")}
    assert {"clipcap-web.service", "clipcap-captions@2.service", "clipcap-daily.timer"} <= wanted
    for command, *units in said:
        if command in ("restart", "stop"):
            for unit in units:
                name = unit if "." in unit else f"{unit}.service"
                assert any(Path(each).match(name) for each in wanted), unit


def test_what_is_done_every_day_can_be_done(machine: Machine) -> None:
    unit = machine.here(SNIPPETS["/etc/systemd/system/clipcap-daily.service"])
    for command in re.findall("^ExecStart=(.+)$", unit, re.MULTILINE):
        subprocess.run(
            shlex.split(command), env={"PATH": os.environ["PATH"], **machine.environment}, check=True, timeout=PATIENCE
        )
    machine.do("Index of photos")


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(
    request: pytest.FixtureRequest, machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    proxy = Proxy(request.param, tmp_path_factory.mktemp(request.param), machine)
    process = proxy.start()
    try:
        wait_until(lambda: proxy.call(f"https://{HOST}/api/health/live")[0] == 200, f"{proxy.kind} passes on")
        yield proxy
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_picture_goes_through_the_proxy_and_its_addresses_are_those_of_visitors(proxy: Proxy) -> None:
    proxy.machine.forget_throttles()
    photo = ROOT / "examples/coco_cc/000000000790.jpg"
    status, headers, body = proxy.call("--form", f"image=@{photo}", f"https://{HOST}/api/captions/")
    assert status == 202, body
    assert headers["location"].startswith(f"https://{HOST}/api/requests/")
    addresses = re.findall(r'"(https?://[^"]+)"', body)
    assert addresses
    assert all(address.startswith(f"https://{HOST}/api/") for address in addresses)
    assert len(json.loads(body)["captions"]) == 1
    status, _, body = proxy.call(headers["location"])
    assert status == 200, body


def test_visitors_without_tls_are_sent_to_where_it_is(proxy: Proxy) -> None:
    status, headers, _ = proxy.call(f"http://{HOST}/gallery/?q=dog")
    assert status in (301, 302, 307, 308)
    assert re.fullmatch(rf"https://{HOST}(:{proxy.secure})?/gallery/\?q=dog", headers["location"])
    status, headers, _ = proxy.call("--header", "X-Forwarded-Proto: http", f"https://{HOST}/gallery/")
    assert status == 200, "what a visitor says of it counts for nothing"
    assert "max-age" in headers["strict-transport-security"]


def test_the_site_says_how_large_a_body_may_be_and_not_the_proxy(proxy: Proxy, tmp_path: Path) -> None:
    proxy.machine.forget_throttles()
    large = tmp_path / "large"
    for path, size, words in (
        ("/sign-in/", 3_000_000, "1,000,000 bytes"),
        ("/api/captions/", 25_000_000, "the limit is 20,000,000"),
    ):
        large.write_bytes(bytes(size))
        status, _, body = proxy.call("--form", f"image=@{large};type=image/jpeg", f"https://{HOST}{path}")
        assert status in (413, 422), body
        assert words in body, body


def test_a_body_is_passed_on_as_it_comes(proxy: Proxy) -> None:
    """Collected first, a body of any length would fill the proxy's disk, and the site could not count it."""

    def site_is_called() -> bool:
        connections = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return any(at.endswith(f":{proxy.machine.port:04X}") and state == "01" for _, at, _, state, *_ in connections)

    trusted = ssl.create_default_context(cafile=proxy.certificate)
    with (
        socket.create_connection(("127.0.0.1", proxy.secure)) as plain,
        trusted.wrap_socket(plain, server_hostname=HOST) as client,
    ):
        client.sendall(f"POST /sign-in/ HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\n\r\nusername".encode())
        wait_until(site_is_called, "the site is connected before the body has ended")


def test_nobody_chooses_the_address_by_which_he_is_throttled(proxy: Proxy) -> None:
    proxy.machine.forget_throttles()
    statuses = [
        proxy.call(
            *("--header", f"X-Forwarded-For: 198.51.100.{number}", "--json", "{}"), f"https://{HOST}/api/captions/"
        )[0]
        for number in range(9)
    ]
    assert statuses == [422] * 8 + [429]


def test_numbers_of_the_site_stay_inside(proxy: Proxy) -> None:
    for path in ("/api/health/ready", "/api/metrics"):
        assert proxy.call(f"https://{HOST}{path}")[0] == 404
        assert ask(proxy.machine.port, path) in (200, 503)


def test_nginx_waits_as_long_as_an_answer_may_take() -> None:
    found = re.search(r"proxy_read_timeout (\d+)s", SNIPPETS["/etc/nginx/sites-available/clipcap"])
    assert found
    assert int(found[1]) > LONGEST_WAIT


def test_a_web_process_takes_the_connections_it_was_given(machine: Machine) -> None:
    web, processes = "clipcap-web.service", 2
    blocked = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{web}' AND wait_event_type = 'Lock'"
    with psycopg.connect(f"postgres://postgres@127.0.0.1:{machine.postgresql.port}/clipcap") as connection:
        connection.execute("LOCK TABLE captioner_style IN ACCESS EXCLUSIVE MODE")
        asking = [threading.Thread(target=ask, args=(machine.port, "/api/styles/")) for _ in range(16 * processes)]
        for thread in asking:
            thread.start()
        wait_until(lambda: machine.ask(blocked) == [(processes * THREADS,)], "all threads of all processes wait")
        ready = [threading.Thread(target=ask, args=(machine.port, "/api/health/ready")) for _ in range(4)]
        for thread in ready:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in ready):
            most = max(most, machine.connections(web))
            time.sleep(0.02)
    for thread in asking:
        thread.join(PATIENCE)
    assert processes * THREADS <= most <= processes * (THREADS + budget("web"))


def test_workers_take_the_connections_they_were_given_and_write_what_was_asked(machine: Machine) -> None:
    machine.forget_throttles()
    captions, training = "clipcap-captions@.service", "clipcap-training.service"
    with machine.service(captions), machine.service(training):
        photo = ROOT / "examples/coco_cc/000000000790.jpg"
        subprocess.run(
            [*VISITING, "--form", f"image=@{photo}", f"http://127.0.0.1:{machine.port}/api/captions/"],
            check=True,
            capture_output=True,
        )
        # Two threads may hold none: one renews leases of deliveries, if any; Celery's own closes it after each message.
        wait_until(lambda: machine.connections(captions) >= budget("caption worker") - 2, "its threads have begun")
        wait_until(lambda: machine.connections(training) == budget("training worker"), "its threads have begun")
        left = "SELECT count(*) FROM captioner_caption WHERE status <> 'succeeded'"
        wait_until(lambda: machine.ask(left) == [(0,)], "all captions are written")
        assert ask(machine.port, "/api/health/ready") == 200
        assert machine.connections(captions) <= budget("caption worker")
        assert machine.connections(training) <= budget("training worker")


def test_a_backup_made_while_people_come_and_go_brings_back_every_row_with_its_file(
    machine: Machine, django_db_blocker: Any
) -> None:
    media = machine.root / "var/lib/clipcap/media"
    url = machine.environment["CLIPCAP_DATABASE_URL"].replace("localhost", "127.0.0.1")
    with django_db_blocker.unblock(), default_database(url), override_settings(MEDIA_ROOT=media):

        def picture(name: str) -> Image:
            return uploads.store((ROOT / "examples/coco_cc" / name).read_bytes())

        deleted, _ = picture("000000012280.jpg"), picture("000000020247.jpg")
        machine.do("Backup", lines=slice(0, 1))
        late = picture("000000030213.jpg")
        machine.do("Backup", lines=slice(1, 2))
        everything = set(Image.objects.values_list("pk", flat=True))
        Image.objects.filter(pk=deleted.pk).delete()
        for file in (deleted.file, deleted.thumbnail):
            default_storage.delete(str(file.name))
        default_storage.save("images/killed.jpg", ContentFile(b"of an upload that was killed"))
        machine.do("Backup", lines=slice(2, 3))

        # A night, and the disaster. Other uploads were killed too, in the tests before.
        for path in (*media.rglob("*"), *(machine.root / "var/backups/clipcap/media").rglob("*")):
            os.utime(path, (time.time() - 25 * 3600,) * 2)
        stray = storage.check(storage.LEAST_AGE).orphans
        connection.close()
        shutil.rmtree(media)
        machine.ask("DROP DATABASE clipcap WITH (FORCE)", "postgres")
        machine.ask("DROP ROLE clipcap", "postgres")

        said = machine.do("Restore", f"{PASSWORD}\n{PASSWORD}\n")

        assert {deleted.pk, late.pk} < set(Image.objects.values_list("pk", flat=True)) == everything
        assert all(image.file.read() and image.thumbnail.read() for image in Image.objects.all())
        assert "images/killed.jpg" in stray
        assert f", 0 of them are missing\n{len(stray)} files have no row\n" in said
        assert f"{len(stray)} files have no row, swept\n" in said
        assert storage.check(storage.LEAST_AGE).orphans == [], "they are deleted"
    wait_until(lambda: ask(machine.port, "/gallery/") == 200, "the site is back")


def test_sqlite_is_saved_while_it_is_written_to(machine: Machine) -> None:
    installed("sqlite3", "sqlite3")
    with closing(sqlite3.connect(machine.root / "var/lib/clipcap/db.sqlite3", isolation_level=None)) as database:
        database.executescript("PRAGMA journal_mode=WAL; CREATE TABLE rows (n); INSERT INTO rows VALUES (1);")
        database.executescript("BEGIN IMMEDIATE; INSERT INTO rows VALUES (2);")
        machine.do("Backup of SQLite")
    with closing(sqlite3.connect(machine.root / "var/backups/clipcap/db.sqlite3")) as copy:
        assert copy.execute("SELECT n FROM rows").fetchall() == [(1,)]


def test_stopped_as_the_guide_says_the_site_is_idle_and_goes_on_later_where_it_was(machine: Machine) -> None:
    machine.forget_throttles()
    captions, training = "clipcap-captions@.service", "clipcap-training.service"
    by_status = "SELECT status, count(*) FROM captioner_caption GROUP BY status"
    with machine.service(captions), machine.service(training):
        wait_until(lambda: ask(machine.port, "/api/health/ready") == 200, "the workers are there")
        before = dict(machine.ask(by_status))
        for photo in sorted((ROOT / "examples/coco_cc").glob("*.jpg"))[:8]:
            machine.forget_throttles()
            form = ["--form", f"image=@{photo}", "--form", "style=all"]
            sent = [*VISITING, "--fail", *form, f"http://127.0.0.1:{machine.port}/api/captions/"]
            subprocess.run(sent, check=True, capture_output=True)
        wait_until(lambda: "running" in dict(machine.ask(by_status)), "a worker has begun with some")
        machine.carry_out("Stop")
        assert not machine.running
        assert ask(machine.port, "/gallery/") == 0
        left = dict(machine.ask(by_status))
        assert set(left) <= {"queued", "succeeded"}
        assert sum(left.values()) == sum(before.values()) + 24
        connected = "SELECT application_name FROM pg_stat_activity WHERE datname = 'clipcap'"
        assert [name for (name,) in machine.ask(connected) if name.startswith("clipcap")] == []
    with machine.service(captions):
        at_work = "SELECT count(*) FROM captioner_worker WHERE queue = 'captions'"
        wait_until(lambda: machine.ask(at_work) == [(1,)], "the worker is there again")
        wait_until(lambda: set(dict(machine.ask(by_status))) == {"succeeded"}, "all captions are written")


@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
def test_whatever_dies_behind_nginx_what_clients_repeat_until_it_is_answered_is_done_once(proxy: Proxy) -> None:
    """Clients do as docs/client.md says: they repeat a call with its Idempotency-Key."""
    machine, captions = proxy.machine, "clipcap-captions@.service"
    photos = sorted((ROOT / "examples/coco_cc").glob("*.jpg"))
    requests: dict[str, str] = {}  # ids by key
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def answer(status: int, *arguments: str, address: str) -> Any:
        """What is answered with this status in the end; a client comes from an address of its own."""
        while True:
            got, _, body = proxy.call(*arguments, "--interface", address, "--max-time", "60")
            statuses[got] += 1
            if got == status:
                return json.loads(body)
            assert got in (0, 429, 502, 503, 504), body
            time.sleep(1)  # as a client does

    def send(client: int) -> None:
        """Request captions and wait for them, again and again."""
        for number in range(1, 255):
            address, key = f"127.1.{client}.{number}", f"{client}-{number}"
            photo = photos[(7 * client + number) % len(photos)]
            call = ("--form", f"image=@{photo}", "--form", "style=all", "--header", f"Idempotency-Key: {key}")
            made = answer(202, *call, f"https://{HOST}/api/captions/", address=address)
            requests[key] = made["id"]
            again = answer(202, *call, f"https://{HOST}/api/captions/", address=address)
            assert again["id"] == made["id"], "as if the first answer had been lost"
            while {caption["status"] for caption in made["captions"]} & {"queued", "running"}:
                time.sleep(0.3)  # as a client does
                made = answer(200, made["url"], address=address)
            if over.is_set():
                return

    def endings() -> int:
        return int(machine.ask("SELECT count(*) FROM endings")[0][0])

    def captions_go_on() -> None:
        some = endings() + 3
        wait_until(lambda: endings() >= some or any(one.done() for one in sending), "captions are written")
        assert not [one.result() for one in sending if one.done()], "clients go on until all is over"

    def web_crashes() -> None:
        machine.crash("clipcap-web.service")

    def worker_crashes() -> None:
        machine.crash(captions)

    def database_is_away() -> None:
        machine.postgresql.stop()
        time.sleep(2)  # the fault itself
        machine.postgresql.start()

    def broker_and_cache_are_away() -> None:
        machine.redis.stop()
        time.sleep(2)
        machine.redis.start()

    sending: list[Future[None]] = []
    machine.ask(ENDINGS["postgresql"] + "GRANT INSERT ON endings TO clipcap")
    with machine.service(captions), ThreadPoolExecutor() as clients:
        sending += [clients.submit(send, client) for client in range(3)]
        try:
            # The first makes web processes go without throttles for a while, and the second ends them.
            for fault in (broker_and_cache_are_away, web_crashes, database_is_away, worker_crashes):
                captions_go_on()
                fault()
                captions_go_on()
        finally:
            over.set()
        for each in sending:
            each.result(PATIENCE)
        of_these = "FROM captioner_caption JOIN endings ON caption = id WHERE request_id IN ({})".format(
            ", ".join(f"'{made}'" for made in requests.values())
        )
        unfinished = "SELECT count(*) FROM captioner_caption WHERE status IN ('queued', 'running')"
        wait_until(lambda: machine.ask(unfinished) == [(0,)], "all captions are written")
        print(f"{len(requests)} calls, answered with {dict(statuses)}")
        assert machine.ask(f"SELECT count(*), count(DISTINCT id) {of_these} AND status = 'succeeded'") == [
            (3 * len(requests), 3 * len(requests))
        ]
    machine.ask("DROP TRIGGER note_ending ON captioner_caption; DROP FUNCTION note_ending; DROP TABLE endings")
