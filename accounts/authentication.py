"""Authentication of programs: a token in the Authorization header."""

from __future__ import annotations

from typing import Any

from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from rest_framework.exceptions import AuthenticationFailed, Throttled
from rest_framework.request import Request

from accounts.models import Token
from accounts.services import note_use
from accounts.throttles import BadTokens


class ApiToken(TokenAuthentication):
    """`Authorization: Token …`. Which scope an address takes is `captioner.api.permissions`'s to say."""

    def authenticate(self, request: Request) -> tuple[Any, Token] | None:
        """The owner of the token.

        Raises:
            AuthenticationFailed: nobody's, or it has expired.
            Throttled: there were too many like that.
        """
        try:
            known: tuple[Any, Token] | None = super().authenticate(request)
        except AuthenticationFailed as error:
            throttle = BadTokens()
            if throttle.allow_request(request, None):
                raise
            raise Throttled(throttle.wait()) from error
        return known

    def authenticate_credentials(self, token: bytes) -> tuple[Any, Token]:
        try:
            digest = hash_token(token.decode())
        except UnicodeDecodeError as error:
            raise AuthenticationFailed from error
        found = Token.objects.select_related("user").filter(digest=digest).first()
        if found is None or found.expired or not found.user.is_active:
            raise AuthenticationFailed
        note_use(found)
        return found.user, found
