"""Webhooks: the message to a client that its request is finished, signed according to Standard Webhooks 1.0.

An address a client names is a way to make this server talk to its own network. So only http and https to public
addresses (networks.py) are allowed, unless a setting says otherwise; the name is resolved once, every address it has is
checked, and the connection goes to the very address that was. Redirects are not followed: they count as a failed
delivery.
"""

import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import random
import re
import secrets
import socket
import ssl
import threading
import time
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder

from captioner.errors import Refused
from captioner.webhooks.networks import is_public
from clipcap import strict_json

HOUR = 3600
# Before each further try, three days in all: a receiver may be away over a weekend.
PAUSES = tuple(
    timedelta(seconds=s)
    for s in (5, 30, 120, 600, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR)
)
JITTER = 0.2  # of a pause, at most, is added to it, so that what failed together is not tried again together
PATIENCE = (1 + JITTER) * sum(PAUSES, timedelta()) + timedelta(days=1)
TIMEOUT = 10.0  # seconds for a whole delivery, from the look-up of the name on; well within a lease
_PORTS = {"http": 80, "https": 443}


class DeliveryError(Exception):
    """A delivery that did not arrive; the message is kept with the attempt, for the client to read.

    `answered` tells whether there was any answer: a host that answers is alive, whatever it says.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


def jittered(pause: timedelta) -> timedelta:
    """A little more than the pause, by chance."""
    return pause * random.uniform(1, 1 + JITTER)


def host_of(url: str) -> str:
    """The host an address names, as one name for all ways to write it; empty where it cannot be understood."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def check_url(url: str) -> None:
    """Refuse what can be seen to be wrong before anything is resolved.

    Raises:
        Refused: not an http(s) address, with a user or password, or plainly a private one.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(f"it is not a valid URL ({error})") from error
    if parts.scheme not in _PORTS or not host or len(url) > 2000:
        raise _refused("it must be an http or https URL of at most 2,000 characters")
    if not re.fullmatch("[!-~]+", url):
        raise _refused("it must not contain spaces or non-ASCII characters; percent-encode them")
    if parts.username is not None or parts.password is not None:
        raise _refused("it must not contain a user name or password")
    if port == 0:
        raise _refused("its port must be from 1 to 65535")
    name = host.rstrip(".")
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        name = "127.0.0.1"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # an IPv4 address written as 0x7f.1, say
        except OSError:
            return  # a name, which is looked at when it is resolved
    if not _allowed(address):
        raise _refused("it points to a private network")


def check_secret(secret: str) -> str:
    """The secret as given, or a new one.

    Raises:
        Refused: it is not `whsec_` and 24 to 64 bytes in base64.
    """
    if not secret:
        return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise Refused(
            "invalid_webhook_secret", "webhook_secret must be whsec_ and 24 to 64 bytes in base64", status=422
        )
    return secret


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """A signature of the `webhook-signature` header: HMAC-SHA256 over id, timestamp and body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, b".".join((message_id.encode(), str(timestamp).encode(), body)), hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def deliver(url: str, secret: str, message_id: str, payload: dict[str, Any], previous_secret: str = "") -> int:
    """Post a payload, once.

    Args:
        previous_secret: signs it too, where the receiver is changing from that to the other.

    Returns:
        The status of the answer, 2xx.

    Raises:
        DeliveryError: it could not be sent, or the answer is another.
    """
    parts = urlsplit(url)
    body = strict_json.dumps(payload, cls=DjangoJSONEncoder, separators=(",", ":"), ensure_ascii=False).encode()
    timestamp = int(time.time())
    live = [key for key in (secret, previous_secret) if key]
    headers = {
        "host": parts.netloc,
        "content-type": "application/json",
        "user-agent": "clipcap-webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(key, message_id, timestamp, body) for key in live),
        "connection": "close",
    }
    try:
        status = _post(parts, body, headers)
    except TimeoutError as error:
        raise DeliveryError(f"no response within {TIMEOUT:.0f} seconds") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeliveryError(f"{type(error).__name__}: {error}"[:300]) from error
    if not 200 <= status < 300:
        hint = "; redirects are not followed" if 300 <= status < 400 else ""
        raise DeliveryError(f"the response was {status}{hint}", answered=True)
    return status


def _post(parts: SplitResult, body: bytes, headers: dict[str, str]) -> int:
    """The status of the answer; the rest of it does not matter, might never end and is not read.

    A socket's timeout starts again with every byte. Here it is what is left of the whole time, so that nobody is kept
    busy by an answer that drips.
    """
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    ends = time.monotonic() + TIMEOUT

    def left() -> float:
        return max(0.001, ends - time.monotonic())

    address = _resolve(host, port, left())
    connection = http.client.HTTPConnection(host, port)
    connection.sock = socket.create_connection((address, port), timeout=left())
    try:
        connection.sock.settimeout(left())
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        connection.sock.settimeout(left())
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, headers)
        answer = b""
        while b"\n" not in answer and len(answer) < 1000:
            connection.sock.settimeout(left())
            piece = connection.sock.recv(1000)
            if not piece:
                break
            answer += piece
    finally:
        connection.close()
    status = re.match(rb"HTTP/1\.[01] (\d{3})\b", answer)
    if status is None:
        raise http.client.BadStatusLine("the response was not HTTP")
    return int(status[1])


def _resolve(host: str, port: int, seconds: float) -> str:
    """One address of `host`, all of which are allowed.

    The system's resolver has no timeout of ours, so it works in a thread of its own, which ends by itself some time.
    """
    found: list[Any] = []
    failure: list[Exception] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            failure.append(error)

    thread = threading.Thread(target=look_up, name=f"look up {host}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DeliveryError(f"{host} could not be resolved within {TIMEOUT:.0f} seconds")
    if failure:
        raise DeliveryError(f"{host} cannot be resolved ({failure[0]})") from failure[0]
    addresses = [str(entry[4][0]).split("%")[0] for entry in found]
    if not addresses or not all(_allowed(ipaddress.ip_address(address)) for address in addresses):
        raise DeliveryError(f"{host} points to a private network, which is not allowed")
    return addresses[0]


def _allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return bool(settings.WEBHOOKS_TO_PRIVATE_NETWORKS) or is_public(address)


def _refused(why: str) -> Refused:
    return Refused("invalid_webhook_url", f"webhook_url cannot be used: {why}", status=422)
