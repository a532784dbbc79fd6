"""A connection between two machines over which objects go, once each has proved that it knows the key.

Objects are pickled, so whoever knows the key is trusted with both machines. Nothing is encrypted, nor is what torch's
processes send one another: the network has to be a private one, or a VPN.
"""

import os
import socket
import struct
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

SILENCE = 30.0  # seconds after which an end that sends nothing, not even a beat, is lost
BEAT = 5.0  # seconds between two beats
_CHUNK = 2**20  # bytes


class Channel:
    """One end. Threads may send at the same time; one receives.

    local_address: the IP address under which the other end knows this one.
    """

    def __init__(self, connected: socket.socket) -> None:
        waits = struct.pack("ll", int(SILENCE), 0)
        connected.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, waits)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self.local_address: str = connected.getsockname()[0]
        self.connection: Connection[Any, Any] = Connection(os.dup(connected.fileno()))
        self._sending = threading.Lock()

    def authenticate(self, key: bytes, *, first: bool) -> None:
        """Prove to the other end that this one knows the key, and let it prove the same.

        Args:
            first: whether this end asks first; the other must not.

        Raises:
            multiprocessing.AuthenticationError: it doesn't know the key.
            OSError, EOFError: it is gone, or speaks another language.
        """
        steps = (deliver_challenge, answer_challenge)
        for step in steps if first else reversed(steps):
            step(self.connection, key)

    def send(self, message: Any) -> None:
        """Send an object.

        Raises:
            OSError: the other end is lost.
        """
        with self._sending:
            self.connection.send(message)

    def send_file(self, path: Path) -> None:
        """Send a file, which the other end must be about to `receive_file`.

        Raises:
            OSError: the other end is lost, or the file cannot be read.
        """
        with self._sending, path.open("rb") as stream:
            self.connection.send(path.stat().st_size)
            while chunk := stream.read(_CHUNK):
                self.connection.send_bytes(chunk)

    def receive(self) -> Any:
        """The next object.

        Raises:
            EOFError, OSError: the other end is lost.
        """
        return self.connection.recv()

    def receive_file(self, path: Path) -> None:
        """Write the file that comes next to `path`.

        Raises:
            EOFError, OSError: the other end is lost, or the disk is full.
        """
        left: int = self.receive()
        with path.open("wb") as stream:
            while left:
                left -= stream.write(self.connection.recv_bytes())

    def close(self) -> None:
        """End it; whoever waits for it at either end is woken."""
        with suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
