"""Who may call the API, and how callers authenticate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db.models import TextChoices
from django.http import HttpRequest, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from captioner.errors import Refused

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


class KnownMethods:
    """Middleware: other methods, such as TRACE, are refused before any view can take them for a GET."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request) if request.method in METHODS else HttpResponseNotAllowed(METHODS)


class BrowserSession(SessionAuthentication):
    """Django's session. Whoever it knows, signed in or as a visitor, writes only with a CSRF token."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        known: tuple[Any, None] | None = super().authenticate(request)
        if known is None and request.session.get("visitor"):
            self.enforce_csrf(request)
        return known

    def enforce_csrf(self, request: Request) -> None:
        try:
            super().enforce_csrf(request)
        except PermissionDenied as error:
            raise Refused(
                "csrf_failed",
                "the session's CSRF token is missing or wrong; send it as X-CSRFToken, or use an API token instead",
                status=403,
            ) from error


class Scope(TextChoices):
    """What an API token is good for. Beside that, its user has to be allowed it."""

    READ = "read", "view captions, photos and training runs"
    CAPTION = "caption", "request, cancel, retry and delete captions; delete photos; manage albums"
    LABEL = "label", "correct captions"
    TRAIN = (
        "train",
        "start, cancel and resume training runs; create, withdraw and delete styles; change base models",
    )


def check_scope(request: Request, scope: str) -> None:
    """Whether what a request shows is good for what it asks: a token that has the scope, or a session.

    Raises:
        Refused: the token has other scopes.
    """
    scopes = getattr(request.auth, "scopes", None)
    wanted = Scope.READ if request.method in SAFE_METHODS else scope
    if scopes is not None and wanted not in scopes:
        raise Refused(
            "out_of_scope",
            f"this takes a token with the scope `{wanted}`, and yours has {', '.join(scopes) or 'none'}; create "
            "another at /tokens/",
            status=403,
        )


class MayUse(BasePermission):
    """Signed-in users; everybody where anonymous use is allowed."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return bool(settings.ANONYMOUS or request.user.is_authenticated)
