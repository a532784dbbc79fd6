"""gunicorn's processes with waitress inside: a thread is given a request only when all of it has arrived.

So a slow client costs a socket and perhaps a file, never one of the threads, of which there are few. What a body may
have is decided when its headers are read (bodies.py), and counted while it comes; what is beyond is thrown away, for
whoever still sends does not read yet. Too slow is a connection that has to be closed for the sake of others.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import time
from typing import Any

from gunicorn.workers import base
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

# Whether a process lives and is ready is answered by threads of their own: the others may all be waiting for something.
OWN_THREADS = ("/api/health/live", "/api/health/ready")
PATIENCE = 30.0  # seconds for a request's headers, or without a byte of the answer taken
SLOWEST = 1000  # bytes a second of a body; what comes slower may take as long as the patience
MOST_THROWN_AWAY = 1 << 30  # bytes
KEEP_ALIVE = 75  # seconds that an idle connection stays open
CONNECTIONS = 4096  # of one process, where it may have files enough


class ThrownAway:
    """In place of a body that is too large."""

    def __init__(self, size: int) -> None:
        self.size = size

    def append(self, data: bytes) -> None:
        self.size += len(data)

    def __len__(self) -> int:
        return self.size

    def getfile(self) -> io.BytesIO:
        return io.BytesIO()

    def close(self) -> None:
        """There is nothing to close."""


class Parser(HTTPRequestParser):
    """Of a request whose body is too large, the body is not kept; the site refuses it by its length."""

    body_error: OSError | None = None  # the body could not be written down
    most: int | None = None

    def received(self, data: bytes) -> int:
        try:
            consumed: int = super().received(data)
        except OSError as error:  # the disk is full
            self.body_error = error
            self._throw_away()
            self._cut_off()
            return len(data)
        if self.body_rcv is None or self.completed:
            return consumed
        if self.most is None:
            self.most = _most_bytes(self.path, self.headers.get("CONTENT_TYPE", ""))
        size = max(self.content_length, self.body_bytes_received)
        if size > self.most and not isinstance(self.body_rcv.buf, ThrownAway):
            self._throw_away()
        if self.body_bytes_received > self.most + MOST_THROWN_AWAY:
            self._cut_off()
        return consumed

    def _throw_away(self) -> None:
        kept, self.body_rcv.buf = self.body_rcv.buf, ThrownAway(len(self.body_rcv.buf))
        kept.close()

    def _cut_off(self) -> None:
        """Answer now, and close the connection: what follows would be taken for another request."""
        self.headers["CONNECTION"] = "close"
        self.headers.setdefault("CONTENT_LENGTH", str(len(self.body_rcv.buf)))
        self.completed = True


class Task(WSGITask):
    def get_environment(self) -> dict[str, Any]:
        environment: dict[str, Any] = super().get_environment()
        environment["clipcap.body_error"] = self.request.body_error
        return environment


class Channel(HTTPChannel):
    parser_class = Parser
    task_class = Task
    began_at = 0.0  # when the request that is being received began; 0 between requests

    def received(self, data: bytes) -> bool:
        more: bool = super().received(data)
        if self.request is None:
            self.began_at = 0.0
        elif not self.began_at:
            self.began_at = time.time()
        return more

    def too_slow(self, now: float) -> bool:
        """Whether this client keeps a connection for longer than others should wait for one."""
        request = self.request
        if request is not None and self.began_at:
            patience: float = PATIENCE + request.body_bytes_received / SLOWEST
            if now - self.began_at > patience:
                return True
        return bool(self.total_outbufs_len) and now - self.last_activity > PATIENCE


class Slowproof(BaseWSGIServer):
    channel_class = Channel

    def __init__(self, *args: Any, own_threads: dict[str, ThreadedTaskDispatcher], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_threads = own_threads

    def add_task(self, channel: Channel) -> None:
        path = getattr(channel.requests[0], "path", "")
        threads: Any = self.own_threads.get(path) or self.task_dispatcher
        threads.add_task(channel)

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in self.active_channels.values():
            channel.will_close = channel.will_close or channel.too_slow(now)


class TcpServer(Slowproof, TcpWSGIServer):
    """On an address."""


class UnixServer(Slowproof, UnixWSGIServer):
    """On a socket that is a file."""


class Worker(base.Worker):
    """A process that gunicorn starts, watches and stops."""

    def run(self) -> None:
        """Serve until told to stop; then answer what has begun."""
        sockets: dict[int, Any] = {}
        threads = [_threads(self.cfg.threads), *(_threads(1) for _ in OWN_THREADS)]
        adjustments = Adjustments(
            threads=self.cfg.threads,
            connection_limit=_most_connections(),
            max_request_body_size=1 << 62,  # the limits are those of bodies.py
            channel_timeout=KEEP_ALIVE,
            cleanup_interval=5,
            clear_untrusted_proxy_headers=False,  # CLIPCAP_BEHIND_PROXY says whether they are believed
            log_socket_errors=False,
            ident="",
        )
        servers = [
            (UnixServer if listener.family == socket.AF_UNIX else TcpServer)(
                self.wsgi,
                sockets,
                _sock=listener,
                dispatcher=threads[0],
                adj=adjustments,
                sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
                bind_socket=False,
                own_threads=dict(zip(OWN_THREADS, threads[1:], strict=True)),
            )
            for listener in (each.sock for each in self.sockets)
        ]
        while self.alive and self.ppid == os.getppid():
            self.notify()
            wasyncore.poll2(1.0, sockets)
        for server in servers:
            server.accepting = False
        ends = time.monotonic() + self.cfg.graceful_timeout
        while time.monotonic() < ends and any(_busy(server) for server in servers):
            self.notify()
            wasyncore.poll2(0.1, sockets)


def _threads(count: int) -> ThreadedTaskDispatcher:
    threads = ThreadedTaskDispatcher()
    threads.set_thread_count(count)
    return threads


def _busy(server: Slowproof) -> bool:
    return any(channel.requests or channel.total_outbufs_len for channel in server.active_channels.values())


def _most_connections() -> int:
    """How many connections this process may have: of each two may lie in files, and the site needs some too."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS
    files = max(files, wanted if most == resource.RLIM_INFINITY else min(most, wanted))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return min(CONNECTIONS, files // 4)


def _most_bytes(path: str, content_type: str) -> int:
    from captioner.bodies import most_bytes  # Django's settings are read with the site, after this module

    return most_bytes(path, content_type)
