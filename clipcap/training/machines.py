"""Other machines that train along: they come to the process that trains, wait, and get a job when it has one.

The other end is `clipcap.training.join`.
"""

import logging
import platform
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import clipcap
from clipcap.training.channel import Channel, WrongKey

log = logging.getLogger(__name__)

_GREETED_AT_ONCE = 16  # connections that have not proved yet that they know the key


@dataclass(frozen=True)
class Job:
    """What is to be trained comes next, as a file."""


@dataclass(frozen=True)
class Launch:
    """Start your processes.

    attempt: what `Stop` and answers name it by.
    nodes, rank: how many machines there are, and which this one is.
    port: where the processes find one another, on the machine of the process that trains.
    backend: of torch's process group.
    """

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
    """An error with which one of the processes could not go on."""

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

    identity: of the process there, which it keeps when it comes again.
    inbox: where what it says comes out: `Ended`, `Raised` or `Lost`.
    """

    def __init__(self, channel: Channel, name: str, identity: str, has_gpus: bool) -> None:
        self.channel, self.identity, self.has_gpus = channel, identity, has_gpus
        self.name = f"{name} ({channel.address})"
        self.inbox: Connection[Any, Any]
        self.inbox, self._heard = Pipe(duplex=False)
        self._holds: str | None = None

    def take(self, name: str, job: Path, goes_on: Callable[[], None]) -> None:
        """Let it have a job, if it doesn't hold it yet. If it is lost, its inbox will say so.

        Args:
            name: of the job.
            goes_on: called from time to time; what it raises ends this, and the connection.
        """
        if self._holds == name:
            return
        try:
            self.channel.send_file(job, Job(), goes_on)
            self._holds = name
        except OSError:
            self.drop()
        except BaseException:
            self.drop()
            raise

    def launch(self, launch: Launch) -> None:
        """Let it start its processes. If it is lost, its inbox will say so."""
        with suppress(OSError):
            self.channel.send(launch)

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
        self._key = as_bytes(key)
        self._closed = False
        self._here: list[Machine] = []
        self._lock = threading.Lock()
        self._greeting = threading.BoundedSemaphore(_GREETED_AT_ONCE)
        host, port = parsed(address)
        try:
            self._server = socket.create_server((host, port), family=_family(host, port))
        except (OSError, UnicodeError) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ValueError(
                f"cannot listen at {address} ({cause}); name an address of this machine and a free port"
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
        with self._lock:
            self._closed = True
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # which wakes whoever accepts
        self._server.close()
        for machine in self.waiting():
            machine.drop()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connected, (host, *_) = self._server.accept()
                if not self._greeting.acquire(blocking=False):
                    connected.close()
                    continue
                threading.Thread(target=self._greet, args=(connected, host), daemon=True).start()
            except (OSError, RuntimeError) as error:  # closed, or too many files or threads, for a while
                if not self._closed:
                    log.warning("no machine can join at the moment (%s)", error)
                    time.sleep(1.0)

    def _greet(self, connected: socket.socket, host: str) -> None:
        try:
            channel = Channel(connected, self._key, first=True)
        except WrongKey:
            log.warning("a machine at %s does not know the key", host)
            return
        except OSError as error:
            log.warning("a machine at %s left before it had said who it is (%s)", host, error)
            return
        finally:
            self._greeting.release()
        with suppress(OSError, EOFError):
            if machine := self._welcomed(channel):
                self._keep(machine)
        channel.close()

    def _welcomed(self, channel: Channel) -> Machine | None:
        """The machine at the other end, unless it is told why it cannot train along.

        What is said before both know that they have the same release is made of strings, numbers and dicts alone.
        """
        hello = channel.receive()
        for name, mine in versions().items():
            if (its := hello.get("versions", {}).get(name, "none")) != mine:
                channel.send(f"this machine has {name} {its} and the training worker {mine}; install the same on both")
                return None
        channel.send("")
        return Machine(channel, hello["name"], hello["identity"], hello["has_gpus"])

    def _keep(self, machine: Machine) -> None:
        with self._lock:
            if self._closed:
                return
            self._here.append(machine)
        machine.listen()
        with self._lock:  # before its loss is known: nobody starts anything with it afterwards
            self._here.remove(machine)
        machine.give_up()


def as_bytes(key: str) -> bytes:
    """A key from the environment, whatever bytes it was."""
    return key.encode(errors="surrogateescape")


def parsed(address: str) -> tuple[str, int]:
    """HOST:PORT, or [HOST]:PORT with an IPv6 address.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if "%" in host:
        raise ValueError(f"{address!r} is of one link only, where torch's processes cannot meet; name another address")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not an address; write HOST:PORT, such as 10.0.0.5:29400")
    return host, int(port)


def _family(host: str, port: int) -> int:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
