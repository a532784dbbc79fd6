"""What all views of the API have in common."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.viewsets import GenericViewSet

from captioner import services
from captioner.api.filters import Pages
from captioner.api.permissions import Scope, check_scope
from captioner.api.serializers import digest
from captioner.errors import Refused
from captioner.http.viewer import viewer_of
from captioner.models import Viewer

LONGEST_WAIT = 60
RETRY_AFTER = {"Retry-After": "1"}  # seconds; captions take about that long
PROBLEM = OpenApiResponse()  # filled in by schema.add_problems
KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    OpenApiParameter.HEADER,
    description="A value of your choice, different for each request; kept for 24 hours. A retry with the same key "
    "and body gets "
    "the first response and queues nothing; with another body it is refused.",
)
PREFER_WAIT = {"type": "string", "examples": ["wait=30"]}
PREFER = OpenApiParameter(
    "Prefer",
    PREFER_WAIT,
    OpenApiParameter.HEADER,
    description=f"`wait=N`: respond when everything is finished, or after N seconds, {LONGEST_WAIT} at most. If too "
    "many clients are waiting already, the response comes at once and without Preference-Applied.",
)
SEARCH = OpenApiParameter("search", str, description="words that its text, or a person's correction, must contain")


def header(name: str, type_: Any, description: str, *statuses: int) -> OpenApiParameter:
    """A header of the answers with these statuses, for the API's document."""
    return OpenApiParameter(name, type_, OpenApiParameter.HEADER, description=description, response=list(statuses))


RETRY_AFTER_HEADER = header("Retry-After", int, "seconds to wait before the next request; absent when finished", 200)


class ApiJSONParser(JSONParser):
    def parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse(*args, **kwargs)
        except RecursionError as error:
            raise ParseError("the JSON is nested too deeply") from error


class JpegRenderer(BaseRenderer):
    """Declares that a view returns pictures."""

    media_type = "image/jpeg"
    format = "jpg"


class ApiViewSet(GenericViewSet[Any]):
    parser_classes: tuple[type, ...] = (ApiJSONParser,)
    pagination_class: type[Pages] | None = Pages
    filter_backends: tuple[type, ...] = ()
    lookup_value_converter = "uuid"
    query_parameters: frozenset[str] = frozenset()  # what lists take beside those of `Pages`
    scope = Scope.CAPTION  # that a token takes to write; to read, that is `read`

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        check_scope(request, self.scope)

    @property
    def viewer(self) -> Viewer:
        return viewer_of(self.request)

    def page(self, rows: QuerySet[Any]) -> Response:
        found = self.paginate_queryset(rows)
        return self.get_paginated_response(self.get_serializer(found, many=True).data)


def idempotency_key(request: Request) -> str | None:
    """The header's value, if it is sent.

    Raises:
        Refused: it is empty, too long or not printable.
    """
    key: str | None = request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= 255 and all("!" <= character <= "~" for character in key)):
        raise Refused(
            "invalid_idempotency_key",
            "Idempotency-Key must have 1 to 255 printable ASCII characters and no spaces",
            field="Idempotency-Key",
        )
    return key


def once(request: Request, viewer: Viewer, data: dict[str, Any]) -> services.IdempotencyKey | None:
    """The request's Idempotency-Key, with whose it is and what was asked; None without one."""
    key = idempotency_key(request)
    if key is None:
        return None
    return services.IdempotencyKey(viewer.sender or f"ip:{BaseThrottle().get_ident(request)}", key, digest(data))


def patience(request: Request) -> int | None:
    """The seconds of `Prefer: wait=N`; None without it. What cannot be understood is ignored, as RFC 7240 asks."""
    for preference in request.headers.get("Prefer", "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait" and seconds.isascii() and seconds.isdigit():
            return min(int(seconds[:9]), LONGEST_WAIT)
    return None
