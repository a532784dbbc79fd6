"""A connection between two machines over which objects go, once each has proved that it knows the key.

The proof is bound to who is who and to random numbers of both, so that no answer serves twice or for the other side,
and all that is sent carries a code that only who knows the key can compute. So nothing is unpickled that somebody else
sent, though whoever knows the key is trusted with both machines. Nothing is encrypted, and what torch's processes send
one another is not even authenticated: the network has to be a private one, or a VPN.
"""

import hmac
import os
import pickle
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SILENCE = 30.0  # seconds after which an end that sends nothing, not even a beat, is lost
BEAT = 5.0  # seconds between two beats
_GREETING = 10.0  # seconds that the two have for proving that they know the key
_CHUNK = 2**20  # bytes
_NONCE = _CODE = 32  # bytes: random numbers, and HMAC-SHA-256


class WrongKey(Exception):
    """The other end doesn't know the key."""


class Channel:
    """One end. Threads may send at the same time; one receives.

    Args:
        connected: the socket.
        key: that both know.
        first: whether this is the end that was connected to.

    local_address, address: the IP address under which the other end knows this one, and the other's own.

    Raises:
        WrongKey: the other end doesn't know it.
        OSError: it is gone, or speaks another language.
    """

    def __init__(self, connected: socket.socket, key: bytes, *, first: bool) -> None:
        self._socket = connected
        self.local_address: str = connected.getsockname()[0]
        self.address: str = connected.getpeername()[0]
        late = threading.Timer(_GREETING, self.close)
        late.daemon = True
        late.start()
        try:
            self._mine, self._theirs = self._authenticated(key, first)
        except BaseException:
            self.close()
            raise
        finally:
            late.cancel()
        waits = struct.pack("ll", int(SILENCE), 0)
        connected.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, waits)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection: Connection[Any, Any] = Connection(os.dup(connected.fileno()))
        self._sending = threading.Lock()
        self._sent = self._received = 0

    def _authenticated(self, key: bytes, first: bool) -> tuple[bytes, bytes]:
        """The keys of what this end sends and of what the other does."""
        self._socket.settimeout(_GREETING)
        nonce = secrets.token_bytes(_NONCE)
        self._socket.sendall(nonce)
        other = self._exactly(_NONCE)
        both = nonce + other if first else other + nonce
        roles = (b"first", b"second") if first else (b"second", b"first")
        mine, theirs = (hmac.digest(key, role + both, "sha256") for role in roles)
        if first:  # whoever comes proves it before it is told anything
            self._check(theirs)
            self._socket.sendall(mine)
        else:
            self._socket.sendall(mine)
            self._check(theirs)
        return tuple(hmac.digest(key, proof, "sha256") for proof in (mine, theirs))  # type: ignore[return-value]

    def _check(self, expected: bytes) -> None:
        if not hmac.compare_digest(self._exactly(_CODE), expected):
            with suppress(OSError):
                self._socket.sendall(bytes(_CODE))  # so that the other end knows why it is left
            raise WrongKey

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            if not (part := self._socket.recv(count - len(found))):
                raise ConnectionResetError("the other side hung up")
            found += part
        return found

    def send(self, message: Any) -> None:
        """Send an object.

        Raises:
            OSError: the other end is lost.
        """
        with self._sending:
            self._send(pickle.dumps(message))

    def send_file(self, path: Path, announcement: Any, goes_on: Callable[[], None]) -> None:
        """Send an object and then a file, which the other end has to `receive_file`.

        Args:
            goes_on: called from time to time; what it raises ends the sending, and then nothing else can be sent.

        Raises:
            OSError: the other end is lost, or the file cannot be read.
        """
        with self._sending, path.open("rb") as stream:
            self._send(pickle.dumps(announcement))
            self._send(pickle.dumps(path.stat().st_size))
            while chunk := stream.read(_CHUNK):
                self._send(chunk)
                goes_on()

    def receive(self) -> Any:
        """The next object.

        Raises:
            EOFError, OSError: the other end is lost.
        """
        return pickle.loads(self._receive())

    def receive_file(self, path: Path) -> None:
        """Write the file that comes next to `path`.

        Raises:
            EOFError, OSError: the other end is lost, or the disk is full.
        """
        left: int = self.receive()
        with path.open("wb") as stream:
            while left:
                left -= stream.write(self._receive())

    def _send(self, content: bytes) -> None:
        self.connection.send_bytes(_code(self._mine, self._sent, content) + content)
        self._sent += 1

    def _receive(self) -> bytes:
        """What comes next. With its place in the row it is authenticated: nobody repeats or leaves out a part of it."""
        received = self.connection.recv_bytes(2 * _CHUNK)
        content = received[_CODE:]
        if not hmac.compare_digest(received[:_CODE], _code(self._theirs, self._received, content)):
            raise ConnectionAbortedError("what came was not sent by the other side")
        self._received += 1
        return content

    def close(self) -> None:
        """End it; whoever waits for it at either end is woken."""
        with suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _code(key: bytes, place: int, content: bytes) -> bytes:
    return hmac.digest(key, place.to_bytes(8, "big") + content, "sha256")
