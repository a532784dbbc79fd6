"""How often an address may try to sign in. Attempts by account and address are counted by django-axes."""

from __future__ import annotations

from hashlib import sha256
from ipaddress import ip_address
from typing import Any

from django.conf import settings
from rest_framework.throttling import BaseThrottle, SimpleRateThrottle

from captioner.errors import Refused


def address_of(request: Any) -> str:
    """The address a request comes from: as a trusted proxy gives it, else of the nearest hop; ""
    where that is none, which a column of addresses would not take."""
    try:
        return str(ip_address(str(BaseThrottle().get_ident(request))))
    except ValueError:
        return ""


class ByAddress(SimpleRateThrottle):
    """Counts tries by their address, at the rate that the settings name after its `scope`."""

    def get_rate(self) -> str:
        return str(settings.ADDRESS_RATES[self.scope])

    def get_cache_key(self, request: Any, view: Any) -> str:
        return f"throttle:{self.scope}:{address_of(request)}"


class SignIns(ByAddress):
    """Sign-ins and new passwords, right or wrong: each costs a hash."""

    scope = "sign_in"


def count_sign_in(request: Any) -> None:
    """Count a try to show a password.

    Raises:
        Refused: there were too many from this address.
    """
    throttle = SignIns()
    if not throttle.allow_request(request, None):
        wait = max(1, round(throttle.wait() or 1))
        raise Refused("throttled", f"too many sign-ins from your address; try again in {wait} s", status=429, wait=wait)


class PasswordMails(ByAddress):
    """Mails with a link to a new password that an address asks for, by account; whether there is one or not."""

    scope = "password_mail"

    def __init__(self, account: str) -> None:
        super().__init__()
        self.account = sha256(account.strip().casefold().encode()).hexdigest()

    def get_cache_key(self, request: Any, view: Any) -> str:
        return f"{super().get_cache_key(request, view)}:{self.account}"


def count_password_mail(request: Any, account: str) -> None:
    """Count that a mail to an account was asked for.

    Raises:
        Refused: there were too many, or too many sign-ins, from this address.
    """
    count_sign_in(request)
    throttle = PasswordMails(account)
    if not throttle.allow_request(request, None):
        wait = max(1, round(throttle.wait() or 1))
        minutes = wait // 60 + 1
        detail = f"too many mails to this account were requested from your address; try again in {minutes} minutes"
        raise Refused("throttled", detail, status=429, wait=wait)


class BadTokens(ByAddress):
    """Tokens that are nobody's. A good one is never refused for others' bad ones."""

    scope = "bad_token"
