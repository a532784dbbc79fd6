"""Webhooks: the message to a client that its request is finished, signed as Standard Webhooks 1.0 says.

An address a client names is a way to make this server talk to its own network. So only http and https to public
addresses are allowed, unless a setting says otherwise; the name is resolved once, every address it has is checked,
and the connection goes to the very address that was. Redirects are not followed: they count as a failed delivery.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import urllib3
from django.conf import settings

from captioner.errors import Refused

PAUSES = tuple(timedelta(seconds=s) for s in (5, 30, 120, 600, 3600, 6 * 3600))  # before each further try
PATIENCE = sum(PAUSES, timedelta(hours=1))
TIMEOUT = urllib3.Timeout(connect=5, read=10)
_PORTS = {"http": 80, "https": 443}


class DeliveryError(Exception):
    """A delivery that did not arrive; the message is kept in its log, for the client to read."""


def check_url(url: str) -> None:
    """Refuse what can be seen to be wrong before anything is resolved.

    Raises:
        Refused: not an http(s) address, with a user or password, or plainly a private one.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(f"it cannot be understood ({error})") from error
    if parts.scheme not in _PORTS or not host or len(url) > 2000:
        raise _refused("it must be an http or https address of at most 2,000 characters")
    if parts.username is not None or parts.password is not None:
        raise _refused("it must not contain a user name or password")
    if port == 0:
        raise _refused("its port must be between 1 and 65535")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
            address = ipaddress.ip_address("127.0.0.1")
        else:
            return
    if not _allowed(address):
        raise _refused("it leads into a private network")


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
    """The `webhook-signature` header: HMAC-SHA256 over id, timestamp and body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, b".".join((message_id.encode(), str(timestamp).encode(), body)), hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def deliver(url: str, secret: str, message_id: str, payload: dict[str, Any]) -> int:
    """Post a payload, once.

    Returns:
        The status of the answer, 2xx.

    Raises:
        DeliveryError: it could not be sent, or the answer is another.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    address = _resolve(host, port)
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    timestamp = int(time.time())
    headers = {
        "host": parts.netloc,
        "content-type": "application/json",
        "user-agent": "clipcap-webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, message_id, timestamp, body),
    }
    options: dict[str, Any] = {"timeout": TIMEOUT, "retries": False, "maxsize": 1}
    pool = (
        urllib3.HTTPSConnectionPool(address, port, server_hostname=host, assert_hostname=host, **options)
        if parts.scheme == "https"
        else urllib3.HTTPConnectionPool(address, port, **options)
    )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with pool:
            answer = pool.urlopen("POST", path, body=body, headers=headers, redirect=False, preload_content=False)
            answer.close()  # what it says does not matter and might never end
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise DeliveryError(f"{type(error).__name__}: {error}"[:300]) from error
    if not 200 <= answer.status < 300:
        hint = "; redirects are not followed" if 300 <= answer.status < 400 else ""
        raise DeliveryError(f"the answer was {answer.status}{hint}")
    return answer.status


def _resolve(host: str, port: int) -> str:
    """One address of `host`, all of which are allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DeliveryError(f"{host} cannot be resolved ({error})") from error
    addresses = [str(entry[4][0]).split("%")[0] for entry in found]
    if not addresses or not all(_allowed(ipaddress.ip_address(address)) for address in addresses):
        raise DeliveryError(f"{host} leads into a private network, which is not allowed")
    return addresses[0]


def _allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if settings.WEBHOOKS_TO_PRIVATE_NETWORKS:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None:
            return _allowed(inner)
        # NAT64: the last four bytes are an IPv4 address
        if address in ipaddress.ip_network("64:ff9b::/96"):
            return _allowed(ipaddress.ip_address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


def _refused(why: str) -> Refused:
    return Refused("invalid_webhook_url", f"webhook_url cannot be used: {why}", status=422)
