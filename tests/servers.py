"""Private servers on free ports, from what is installed: Redis and PostgreSQL. Without it, a test skips and says so."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import environ
import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg import sql

PATIENCE = 300.0  # seconds, which nothing takes: other things run on this machine too


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for a condition; fail the test if it does not come about."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """A file which one process of a test run makes, and the others find."""
    path = Path(os.environ["CLIPCAP_TESTS_HOME"]) / name
    with path.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(unfinished := path.with_name(f"{name}.new"))
            unfinished.rename(path)
    return path


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def installed(program: str, package: str) -> str:
    """The path of a program; without it, the test is skipped and says so."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")  # where Debian keeps servers
    if found is None:
        pytest.skip(f"there is no {program}; apt-get install {package}")
    return found


class Redis:
    """A Redis that keeps nothing on disk: stopped, it forgets everything. It listens to this machine, and to the
    networks of other addresses that it has there."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = ("127.0.0.1", *addresses)
        self.program = installed("redis-server", "redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, empty, on the port it had before."""
        options = ["--port", str(self.port), "--bind", *self.addresses, "--protected-mode", "no"]
        options += ["--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([self.program, *options], stdout=subprocess.DEVNULL)
        wait_until(lambda: _listens(self.port), "Redis listens")

    def stop(self) -> None:
        """End it at once, with all that it held."""
        self.process.kill()
        self.process.wait()


class PostgreSQL:
    """A PostgreSQL cluster of its own, run by an ordinary user: it refuses to be run by root. It listens to this
    machine, and to the networks of other addresses that it has there."""

    def __init__(self, administrator: str = "clipcap", addresses: Sequence[str] = ()) -> None:
        self.administrator, self.addresses = administrator, ("127.0.0.1", *addresses)
        self.programs = _postgresql_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="clipcap-postgresql-"))
        self.port = free_port()
        self.user: dict[str, Any] = {}
        if os.getuid() == 0:
            shutil.chown(self.folder, "nobody")
            self.user = {"user": "nobody", "extra_groups": []}

    def __enter__(self) -> Self:
        self._run("initdb", f"--username={self.administrator}", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with (self.folder / "data/postgresql.conf").open("a") as settings:
            settings.write(
                f"port = {self.port}\nlisten_addresses = '{','.join(self.addresses)}'\n"
                "unix_socket_directories = ''\nfsync = off\n"
            )
        with (self.folder / "data/pg_hba.conf").open("a") as allowed:
            allowed.write("host all all samenet trust\n")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        self._run("pg_ctl", "--wait", f"--log={self.folder / 'log'}", "start")

    def stop(self) -> None:
        """End it at once, as a crash would; what was committed is there after the next start."""
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def create_database(self, name: str, like: str = "template1") -> str:
        """Make an empty database, or a copy of one that nobody is connected to.

        Returns:
            Its address.
        """
        server = f"postgres://{self.administrator}@127.0.0.1:{self.port}"
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(create.format(sql.Identifier(name), sql.Identifier(like)))
        return f"{server}/{name}"

    def create_site(self, name: str) -> str:
        """Make a database with the service's tables, which are migrated once in a test run.

        Returns:
            Its address.
        """

        def dump(path: Path) -> None:
            with default_database(migrated := self.create_database("tables")):
                call_command("migrate", verbosity=0)
            self._talk("pg_dump", migrated, f"--file={path}")

        url, tables = self.create_database(name), once("tables.sql", dump)
        self._talk("psql", url, "--quiet", "--output=/dev/null", f"--file={tables}")
        return url

    def _talk(self, program: str, url: str, *arguments: str) -> None:
        command: list[str | Path] = [self.programs / program, f"--dbname={url}", *arguments]
        subprocess.run(command, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, f"--pgdata={self.folder / 'data'}", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            timeout=PATIENCE,
            **self.user,
        )
        assert done.returncode == 0, done.stderr.decode()


def _postgresql_programs() -> Path:
    """The folder of initdb and pg_ctl; Debian keeps it off the PATH."""
    found = shutil.which("pg_ctl")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders = [Path(found).resolve().parent] if found else debian
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("there is no PostgreSQL; apt-get install postgresql")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 KB where only root may mount one; elsewhere, no file may grow beyond that."""
    folder.mkdir()
    if os.getuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    else:
        with small_files():
            yield


@contextmanager
def small_files() -> Iterator[None]:
    """No file can grow beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def default_database(url: str, engine: str = "", **options: Any) -> Iterator[None]:
    """The tests' own process uses this database, with the options that the service uses, or with these."""
    from django.contrib.contenttypes.models import ContentType  # once the apps are loaded

    config = environ.Env.db_url_config(url)
    if "sqlite" in config["ENGINE"]:
        config["OPTIONS"] = settings.SQLITE
    if engine:
        config |= {"ENGINE": engine, "OPTIONS": options}
    old = connections.settings["default"], connections["default"]
    connections.settings["default"] = config
    connections.configure_settings(connections.settings)
    del connections["default"]
    ContentType.objects.clear_cache()  # each database has numbers of its own for them
    try:
        yield
    finally:
        connections["default"].close()
        connections.settings["default"], connections["default"] = old
        ContentType.objects.clear_cache()
