"""Sign in through another site, by OpenID Connect. Offered where a provider is set.

Whose account it is, the provider's `sub` says and nothing else: neither a name nor an email address takes over an
account that is here already. An administrator can connect one to an identity in the admin.
"""

from __future__ import annotations

from typing import Any

import jwt
import requests
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.db import IntegrityError, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.views import OIDCAuthenticationCallbackView, OIDCAuthenticationRequestView

from accounts.models import Identity
from captioner import audit
from captioner.errors import Refused

NEEDED = ("iss", "sub", "aud", "exp", "iat")


class SingleSignOn(OIDCAuthenticationBackend):
    """Asks the provider for who has come back from it with a code."""

    def authenticate(self, request: HttpRequest | None, **credentials: Any) -> User | None:
        """The user; None where no code was brought.

        Raises:
            Refused: the identity has no account and can have none.
            SuspiciousOperation, jwt.PyJWTError, requests.RequestException: the provider's answer proves nothing.
        """
        if not credentials.get("nonce"):  # a password is being tried
            return None
        user: User | None = super().authenticate(request, **credentials)
        return user

    def _verify_jws(self, payload: str, key: Any) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            payload,
            key,
            algorithms=[settings.OIDC_RP_SIGN_ALGO],
            audience=settings.OIDC_RP_CLIENT_ID,
            issuer=settings.OIDC_ISSUER,
            leeway=60,  # seconds by which the clocks may differ
            options={"require": list(NEEDED)},
        )
        return claims

    def get_or_create_user(self, access_token: str, id_token: str, payload: dict[str, Any]) -> User:
        claims = self.get_userinfo(access_token, id_token, payload)
        if claims.get("sub") != payload["sub"]:
            raise SuspiciousOperation("the claims are about somebody else")
        return account_of(payload["sub"], claims)


def account_of(subject: str, claims: dict[str, Any]) -> User:
    """The account of an identity; a new one, without any rights, where it has none yet.

    Args:
        subject: `sub`, the provider's unchanging name for the identity.
        claims: what the provider says of it.

    Raises:
        Refused: it cannot have an account here, or the account is closed.
    """
    known = Identity.objects.select_related("user").filter(issuer=settings.OIDC_ISSUER, subject=subject).first()
    user = known.user if known else _new_account(subject, claims)
    if not user.is_active:
        raise Refused(
            "account_closed", f"the account {user.get_username()} is closed; ask an administrator", status=403
        )
    return user


def _new_account(subject: str, claims: dict[str, Any]) -> User:
    email = str(claims.get("email") or "")
    if not email or claims.get("email_verified") is not True:
        detail = "the site that you sign in with has not verified your email address; verify it there and try again"
        raise Refused("unverified_mail", detail, status=403)
    if User.objects.filter(username__iexact=email).exists():
        detail = f"there is an account named {email} that signs in with a password; ask an administrator to connect it"
        raise Refused("account_exists", detail, status=403)
    user = User(username=email, email=email)
    user.set_unusable_password()
    try:
        user.full_clean()
        with transaction.atomic():
            user.save()
            Identity.objects.create(user=user, issuer=settings.OIDC_ISSUER, subject=subject)
            audit.record(audit.Action.PERMISSIONS, f"user {user}", "made by single sign-on, without rights", user)
    except (ValidationError, IntegrityError) as error:
        detail = "no account can have the name of your email address; ask an administrator to make one for you"
        raise Refused("invalid_name", detail, status=403) from error
    return user


def _offered() -> None:
    if not settings.OIDC_ISSUER:
        raise Http404("no provider is set")


def leave(request: HttpRequest) -> HttpResponse:
    """Go to the provider; it sends people back to `come_back`."""
    _offered()
    answer: HttpResponse = OIDCAuthenticationRequestView.as_view()(request)
    return answer


class Return(OIDCAuthenticationCallbackView):
    """Back from the provider: signs in, or says why not."""

    def dispatch(self, request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponseBase:
        """Sign in.

        Raises:
            Refused: what the provider answers proves nothing, or the identity can have no account.
        """
        _offered()
        try:
            answer: HttpResponseBase = super().dispatch(request, *arguments, **named)
        except (SuspiciousOperation, jwt.PyJWTError, requests.RequestException, LookupError, ValueError) as error:
            raise _failed() from error
        return answer

    def login_failure(self) -> HttpResponse:
        raise _failed()


def _failed() -> Refused:
    detail = "signing in through the other site failed; try again, and ask an administrator if it fails again"
    return Refused("sign_in_failed", detail, status=403)
