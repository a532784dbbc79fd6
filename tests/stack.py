"""An installation with real worker processes: on SQLite with a folder as broker, and on PostgreSQL with Redis."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from django.db import connection, transaction

from tests.servers import PostgreSQL, Redis

ROOT = Path(__file__).parent.parent
LEASE = 3  # seconds; no test waits for half a minute


@dataclass
class Stack:
    """An installation: its servers, and the workers that serve it."""

    home: Path
    database_url: str
    broker_url: str
    redis: Redis | None = None
    postgresql: PostgreSQL | None = None
    workers: dict[str, int] = field(default_factory=dict)  # names and process ids of caption workers not killed
    started: int = 0
    within: tuple[str, ...] = ()  # a command that runs another, say on another host
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "CLIPCAP_HOME": str(self.home),
            "CLIPCAP_DATABASE_URL": self.database_url,
            "CLIPCAP_BROKER_URL": self.broker_url,
            "CLIPCAP_LEASE_SECONDS": str(LEASE),
            "CLIPCAP_BATCH_SIZE": "4",
            "CLIPCAP_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **self.variables,
        }

    @property
    def broker_options(self) -> dict[str, Any]:
        if self.redis:
            return {"socket_connect_timeout": 1}
        folder = str(self.home / "broker")
        control = str(self.home / "broker-control")
        return {"data_folder_in": folder, "data_folder_out": folder, "control_folder": control}

    def open(self) -> None:
        """Start the process that workers are forked from, with one log for all."""
        self.home.mkdir(exist_ok=True)
        self.fork_server = subprocess.Popen(
            [*self.within, sys.executable, "-P", ROOT / "tests/fork_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.home / "workers.log").open("ab"),
            env=self.environment,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        os.killpg(self.fork_server.pid, signal.SIGKILL)
        self.fork_server.wait()

    def hire(self, count: int) -> None:
        """See to it that so many caption workers are at work, or on their way to it."""
        while len(self.workers) < count:
            self.started += 1
            name = f"w{self.started}@test"
            self.workers[name] = self.fork("captions", name)

    def fork(self, queue: str, name: str) -> int:
        """Start a worker; returns the process's id."""
        assert self.fork_server.stdin
        assert self.fork_server.stdout
        print(queue, name, file=self.fork_server.stdin, flush=True)
        return int(self.fork_server.stdout.readline())

    def kill(self, name: str) -> None:
        os.kill(self.workers.pop(name), signal.SIGKILL)

    def lose_broker(self) -> None:
        """The broker is gone, and what it held."""
        if self.redis:
            self.redis.stop()
        else:
            shutil.rmtree(self.home / "broker")

    def bring_broker_back(self) -> None:
        if self.redis:
            self.redis.start()
        else:
            (self.home / "broker").mkdir()

    def wake_ups_unread(self) -> int:
        if self.redis:
            with Celery(broker=self.broker_url, set_as_current=False).connection_for_read() as broker:
                length: int = broker.default_channel.client.llen("captions")
                return length
        return len(list((self.home / "broker").glob("*.msg")))

    @contextmanager
    def database_away(self) -> Iterator[None]:
        """PostgreSQL is stopped as by a crash; an SQLite file is locked by another process, say a backup."""
        if self.postgresql:
            self.postgresql.stop()
            try:
                yield
            finally:
                self.postgresql.start()
                connection.close()
        else:
            with transaction.atomic():  # which is a lock, on SQLite
                yield


def on_sqlite_and_a_folder(resources: ExitStack, home: Path, tables: Path) -> Stack:
    (home / "broker").mkdir()
    shutil.copy(tables, home / "db.sqlite3")
    return Stack(home, f"sqlite:///{home / 'db.sqlite3'}", "filesystem://localhost")


def on_postgresql_and_redis(resources: ExitStack, home: Path, tables: Path) -> Stack:
    redis, postgresql = resources.enter_context(Redis()), resources.enter_context(PostgreSQL())
    return Stack(home, postgresql.create_site("clipcap"), redis.url, redis, postgresql)


STACKS = (on_sqlite_and_a_folder, on_postgresql_and_redis)
