"""What connects two machines that train together: who may speak, and what is read of what is said."""

import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest

from clipcap.training.channel import Channel, WrongKey

KEY = "a key that both machines know, and nobody else"


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        yield one, other


def test_an_answer_of_one_machine_is_of_no_use_to_who_asks_another() -> None:
    """Who has no key gets none from machines that have: each proves who it is, not only what it knows."""
    refused: list[Exception] = []

    def greeted(end: socket.socket, first: bool) -> None:
        try:
            Channel(end, KEY.encode(), first=first)
        except (WrongKey, OSError) as error:
            refused.append(error)

    # Between two that join stands somebody who passes on what each says to the other.
    with connected() as (one, to_one), connected() as (other, to_other):
        threads = [Thread(target=greeted, args=(end, False)) for end in (one, other)]
        for thread in threads:
            thread.start()
        for source, target in ((to_one, to_other), (to_other, to_one)) * 2:
            target.sendall(source.recv(64))
        for thread in threads:
            thread.join()
    assert [type(error) for error in refused] == [WrongKey, WrongKey]


def test_what_somebody_else_puts_in_between_is_not_unpickled() -> None:
    class Dangerous:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("it was unpickled",)

    with connected() as ends, ThreadPoolExecutor(2) as pool:
        roles = zip(ends, (True, False), strict=True)
        made = [pool.submit(Channel, end, KEY.encode(), first=first) for end, first in roles]
        here, there = (each.result() for each in made)
    here.send("hello")
    assert there.receive() == "hello"
    here.connection.send_bytes(bytes(32) + pickle.dumps(Dangerous()))
    with pytest.raises(ConnectionAbortedError, match="was not sent by the other side"):
        there.receive()
    here.close()
    there.close()
