"""Turns errors that are raised while someone signs in, deep within Django, into a page."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from captioner.errors import Refused
from captioner.web.pages import refusal


class Refusals:
    """Middleware: answers `Refused` wherever a page, the admin's too, has not done so itself."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The page that says why."""
        return refusal(request, error) if isinstance(error, Refused) else None
