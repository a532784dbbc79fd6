"""Other machines that train along: they come to the process that trains, wait, and get a job when it has one.

The other end is `clipcap.training.join`.
"""

import logging
import platform
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import clipcap
from clipcap.training.channel import Channel

log = logging.getLogger(__name__)

_GREETED_AT_ONCE = 16  # connections that have not proved yet that they know the key


@dataclass(frozen=True)
class Job:
    """What is to be trained comes next, as a file."""


@dataclass(frozen=True)
class Launch:
    """Start your processes.

    job: the file that was sent last, for those that hold it already.
    attempt: what `Stop` and answers name it by.
    nodes, rank: how many machines there are, and which this one is.
    port: where the processes find one another, on the machine of the process that trains.
    backend: of torch's process group.
    """

    job: str
    attempt: str
    nodes: int
    rank: int
    port: int
    backend: str


@dataclass(frozen=True)
class Stop:
    """End the processes of an attempt."""

    attempt: str


@dataclass(frozen=True)
class Ended:
    """The processes of an attempt have ended: as they should, or not."""

    attempt: str
    well: bool


@dataclass(frozen=True)
class Raised:
    """An error of one of the processes, which ends the training."""

    attempt: str
    error: Exception


@dataclass(frozen=True)
class Lost:
    """The machine has gone, or fell silent."""


def versions() -> dict[str, str]:
    """What has to be the same on all machines, since a job is pickled."""
    return {
        "clipcap": clipcap.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{package: version(package) for package in ("torch", "transformers", "open_clip_torch")},
    }


class Machine:
    """A machine that waits for a job, or has one.

    inbox: where what it says comes out: `Ended`, `Raised` or `Lost`.
    """

    def __init__(self, channel: Channel, name: str, has_gpus: bool) -> None:
        self.channel, self.name, self.has_gpus = channel, name, has_gpus
        self.inbox: Connection[Any, Any]
        self.inbox, self._heard = Pipe(duplex=False)
        self._holds: str | None = None

    def launch(self, launch: Launch, job: Path) -> None:
        """Let it start its processes, with the job if it doesn't hold it yet. If it is lost, its inbox will say so."""
        try:
            if self._holds != launch.job:
                self.channel.send(Job())
                self.channel.send_file(job)
                self._holds = launch.job
            self.channel.send(launch)
        except OSError:
            self.drop()  # in the midst of a file, nothing else could be sent

    def stop(self, attempt: str) -> None:
        """Let it end its processes."""
        with suppress(OSError):
            self.channel.send(Stop(attempt))

    def drop(self) -> None:
        """End the connection. It may come again."""
        self.channel.close()

    def listen(self) -> None:
        """Pass on to the inbox what it says, and answer its beats, until it is lost."""
        with suppress(OSError, EOFError):
            while True:
                message = self.channel.receive()
                if message is None:
                    self.channel.send(None)
                else:
                    self._heard.send(message)

    def give_up(self) -> None:
        """Let the inbox say that it is lost."""
        self._heard.send(Lost())
        self.drop()


class Machines:
    """Listens for machines that want to train along, as long as the process lives.

    Args:
        address: HOST:PORT of this machine to listen at; 0.0.0.0 is all its addresses.
        key: what they have to know.

    Raises:
        ValueError: it is no address to listen at, or the key is empty; the message says what to do.
    """

    def __init__(self, address: str, key: str) -> None:
        if not key:
            raise ValueError(
                "a key is needed for machines that train along: the same long random string on all of them"
            )
        self._key = key.encode()
        self._here: list[Machine] = []
        self._lock = threading.Lock()
        self._greeting = threading.BoundedSemaphore(_GREETED_AT_ONCE)
        host, port = parsed(address)
        try:
            self._server = socket.create_server((host, port), family=_family(host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen at {address} ({error.strerror or error}); name an address of this machine and a free "
                "port"
            ) from error
        threading.Thread(target=self._accept, name="machines", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.getsockname()[1])

    def waiting(self) -> list[Machine]:
        """The machines that are there, in the order in which they came."""
        with self._lock:
            return list(self._here)

    def close(self) -> None:
        """Listen no more, and let go of all that are there."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # which wakes whoever accepts
        self._server.close()
        for machine in self.waiting():
            machine.drop()

    def _accept(self) -> None:
        while True:
            try:
                connected, (host, *_) = self._server.accept()
            except OSError:  # closed
                return
            if not self._greeting.acquire(blocking=False):
                connected.close()
                continue
            threading.Thread(target=self._greet, args=(connected, host), name=f"machine {host}", daemon=True).start()

    def _greet(self, connected: socket.socket, host: str) -> None:
        try:
            channel = Channel(connected)
            machine = self._authenticated(channel)
        except AuthenticationError:
            log.warning("a machine at %s does not know the key", host)
            return
        except (OSError, EOFError) as error:
            log.warning("a machine at %s left before it had said who it is (%s)", host, error or "it hung up")
            return
        finally:
            self._greeting.release()
        if machine:
            with self._lock:
                self._here.append(machine)
            machine.listen()
            with self._lock:  # before its loss is known: nobody starts anything with it afterwards
                self._here.remove(machine)
            machine.give_up()
        channel.close()

    def _authenticated(self, channel: Channel) -> Machine | None:
        """The machine at the other end, unless it is told why it cannot train along.

        What is said before both know that they have the same release is made of strings, numbers and dicts alone.
        """
        channel.authenticate(self._key, first=True)
        hello = channel.receive()
        for name, mine in versions().items():
            if (its := hello["versions"].get(name, "none")) != mine:
                channel.send(f"this machine has {name} {its} and the training worker {mine}; install the same on both")
                return None
        channel.send("")
        return Machine(channel, hello["name"], hello["has_gpus"])


def parsed(address: str) -> tuple[str, int]:
    """HOST:PORT, or [HOST]:PORT with an IPv6 address.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not an address; write HOST:PORT, such as 10.0.0.5:29400")
    return host, int(port)


def _family(host: str, port: int) -> int:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
