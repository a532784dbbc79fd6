"""A machine that trains along with a process of another machine, which `clipcap.training.machines` is part of."""

import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from clipcap.training.channel import BEAT, SILENCE, Channel, WrongKey
from clipcap.training.machines import Ended, Job, Launch, Raised, Stop, as_bytes, parsed, versions
from clipcap.training.processes import Processes

_AGAIN = 2.0  # seconds between two tries to reach the other machine
_CONNECTS = 10.0  # seconds that a try may take


def join(address: str, key: str, processes: int, threads: int, say: Callable[[str], None]) -> None:
    """Train along with the process at an address, whenever it trains, until this process is ended. If it cannot be
    reached, or is lost, it is tried again and again.

    Args:
        address: HOST:PORT.
        processes: of this machine; with GPUs, one each at most.
        threads: of each of them.
        say: told what is going on.

    Raises:
        ValueError: it doesn't take this machine; the message says why.
    """
    host, port = parsed(address)
    hello = {
        "name": socket.gethostname(),
        "identity": uuid.uuid4().hex,
        "has_gpus": torch.cuda.is_available(),
        "versions": versions(),
    }
    waiting = False
    while True:
        try:
            channel = _connected(host, port, as_bytes(key), hello)
        except OSError as error:
            if not waiting:
                say(f"{address} cannot be reached ({_cause(error)}); trying until it can be")
            waiting = True
        else:
            waiting = False
            say(f"connected with {address}; waiting for a training run")
            try:
                _train_along(channel, host, processes, threads, say)
            except (OSError, EOFError) as error:  # a disk that is full, too
                say(f"the connection with {address} has ended ({_cause(error)})")
            finally:
                channel.close()
        time.sleep(_AGAIN)


def _cause(error: Exception) -> str:
    """What went wrong, and with which file if it was one, in a few words."""
    if isinstance(error, BlockingIOError):  # what a socket says after its time-out
        return f"nothing was heard for {SILENCE:.0f} s"
    if isinstance(error, EOFError):
        return "the other side closed it"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _connected(host: str, port: int, key: bytes, hello: dict[str, Any]) -> Channel:
    """A connection with the process that trains, which has taken this machine.

    Raises:
        ValueError: it doesn't, or there is no such host.
        OSError: it cannot be reached.
    """
    try:
        channel = Channel(socket.create_connection((host, port), _CONNECTS), key, first=False)
    except WrongKey as error:
        raise ValueError(
            f"the process at {host}:{port} has another key; it must be the same on all machines"
        ) from error
    except UnicodeError as error:
        raise ValueError(f"{host!r} is not the name of a host") from error
    try:
        channel.send(hello)
        refusal = channel.receive()
    except EOFError as error:
        channel.close()
        raise ConnectionResetError(f"{host}:{port} hung up") from error
    if refusal:
        channel.close()
        raise ValueError(refusal)
    return channel


def _train_along(channel: Channel, host: str, processes: int, threads: int, say: Callable[[str], None]) -> None:
    """Do what the process that trains says, until it is lost.

    Raises:
        OSError, EOFError: it is.
    """
    with _beats(channel), tempfile.TemporaryDirectory(prefix="clipcap-") as private:
        job = Path(private) / "job.pt"
        while True:
            message = channel.receive()
            if isinstance(message, Job):
                say("receiving what is to be trained")
                channel.receive_file(job)
            elif isinstance(message, Launch):
                say(f"training on {message.nodes} machines")
                with Processes(
                    job, processes, message, master=host, local_address=channel.local_address, threads=threads
                ) as started:
                    try:
                        _until_stopped(channel, message, started)
                    except (SystemExit, KeyboardInterrupt):
                        channel.close()  # at once: that the processes end is then no failure of theirs
                        raise
                say("the processes here have ended; waiting for the next training run")


def _until_stopped(channel: Channel, launch: Launch, processes: Processes) -> None:
    def answer(message: Any) -> bool:
        if isinstance(message, Exception):
            channel.send(Raised(launch.attempt, message))
        return True

    heard = time.monotonic()
    while processes.ended is None:
        for ready in processes.ready([channel.connection]):
            if ready is not channel.connection:
                processes.answer(ready, answer)
                continue
            if channel.receive() == Stop(launch.attempt):
                return
            heard = time.monotonic()
        if time.monotonic() - heard > SILENCE:
            raise TimeoutError(f"nothing was heard for {SILENCE:.0f} s")
    channel.send(Ended(launch.attempt, processes.ended))


@contextmanager
def _beats(channel: Channel) -> Iterator[None]:
    """Send beats, which the other end answers with its own, until the block ends."""
    over = threading.Event()

    def beat() -> None:
        with suppress(OSError):
            while not over.wait(BEAT):
                channel.send(None)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
