"""Filters and pagination of lists."""

from collections.abc import Sequence, Set
from datetime import UTC, datetime
from typing import Any, get_args

from django.core.exceptions import ValidationError as BadValue
from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

from captioner.jobs.job import Status
from captioner.models import Caption
from captioner.services import Hit, MeaningStatus, SearchResult

ORDERINGS = ("created_at", "-created_at")


def _within_time(value: datetime) -> None:
    try:
        value.astimezone(UTC)
    except OverflowError as error:
        raise BadValue("the year must be from 1 to 9999", code="invalid") from error


@extend_schema_field({"type": "boolean"})
class YesOrNo(filters.ChoiceFilter):
    """Filters by a condition or its contrary. Django's own takes whatever is neither for no filter at all."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=[("true", "yes"), ("false", "no")], **options)


class CaptionFilter(filters.FilterSet):
    # A caption has one status, so no row comes twice; PostgreSQL locks no rows of a query that says DISTINCT.
    status = filters.MultipleChoiceFilter(choices=Status.choices, distinct=False, help_text="may be repeated")
    style = filters.CharFilter("style__slug", max_length=50, help_text="a style's slug")
    image = filters.UUIDFilter("image_id")
    request = filters.UUIDFilter("request_id")
    unsure = YesOrNo(method="of_confidence", help_text="whether its confidence is below the site's threshold")
    created_after = filters.IsoDateTimeFilter("created_at", "gte", validators=[_within_time])
    created_before = filters.IsoDateTimeFilter("created_at", "lt", validators=[_within_time])

    class Meta:
        model = Caption
        fields = ()

    def of_confidence(self, captions: QuerySet[Caption], name: str, value: str) -> QuerySet[Caption]:
        """Those that are unsure, or those that are not."""
        return captions.filter(Caption.doubtful() if value == "true" else ~Caption.doubtful())


def refuse_unknown(request: Request, known: Set[str]) -> None:
    """Refuse a query with other parameters than these: a misspelt filter would otherwise stand for all rows.

    Raises:
        ValidationError: it has one.
    """
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        raise ValidationError({unknown[0]: f"unknown parameter; the parameters are {', '.join(sorted(known))}"})


class Pages(CursorPagination):
    """Pages by cursor, which stay right while rows are added; the newest first unless `ordering` says otherwise. Rows
    of one moment have the order of their model.

    Whatever of the query is not understood is refused: a misspelt filter would otherwise show everything.
    """

    page_size = 25
    max_page_size = 100
    page_size_query_param = "page_size"
    ordering = "-created_at"

    def paginate_queryset(self, queryset: QuerySet[Any], request: Request, view: Any = None) -> list[Any] | None:
        self.refuse_unknown(request, view)
        try:
            rows: list[Any] | None = super().paginate_queryset(queryset, request, view)
        except (BadValue, OverflowError) as error:  # a position that is not a time
            raise _bad_cursor() from error
        return rows

    def refuse_unknown(self, request: Request, view: Any) -> None:
        """Raises ValidationError where the query has a parameter that there is not."""
        own = {self.cursor_query_param, self.page_size_query_param, "ordering"}
        refuse_unknown(request, own | view.query_parameters)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == self.page_size_query_param:
                parameter["schema"] |= {"minimum": 1, "maximum": self.max_page_size, "default": self.page_size}
        ordering = {"type": "string", "enum": list(ORDERINGS), "default": self.ordering}
        return [*parameters, {"name": "ordering", "in": "query", "required": False, "schema": ordering}]

    def decode_cursor(self, request: Request) -> Any:
        try:
            return super().decode_cursor(request)
        except NotFound as error:
            raise _bad_cursor() from error

    def get_page_size(self, request: Request) -> int:
        given = request.query_params.get(self.page_size_query_param, str(self.page_size))
        if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= self.max_page_size):
            raise ValidationError({"page_size": f"it must be a whole number from 1 to {self.max_page_size}"})
        return int(given)

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: Any) -> tuple[str, ...]:
        chosen = request.query_params.get("ordering", self.ordering)
        if chosen not in ORDERINGS:
            raise ValidationError({"ordering": f"it must be one of {', '.join(ORDERINGS)}"})
        return (chosen, *queryset.model._meta.ordering[1:])


class FoundPages(Pages):
    """Pages of a list, or of what a search found, which has an order of its own. Beside the rows of a search stands
    whether these were looked for by what photos show."""

    def get_paginated_response(self, data: Any) -> Response:
        return Response({**super().get_paginated_response(data).data, "meaning": None})

    def hits(self, search: SearchResult, request: Request, view: Any) -> Sequence[Hit]:
        """Those of the page that a request asks for. Its cursor names the photo that the page before ended with, and
        its place, should it be gone."""
        self.refuse_unknown(request, view)
        if "ordering" in request.query_params:
            raise ValidationError({"ordering": "search results are ordered by how well photos match; leave this out"})
        size = self.get_page_size(request)
        start = search.place_after(request.query_params.get(self.cursor_query_param, ""))
        if start is None:
            raise _bad_cursor()
        self.start, self.end = start, start + size
        return search.hits[self.start : self.end]

    def found(self, search: SearchResult, data: Any, request: Request) -> dict[str, Any]:
        """What is answered with those hits, as `data`."""
        address = request.build_absolute_uri()
        size, following, previous = self.end - self.start, None, None
        if self.end < len(search.hits):
            cursor = search.cursor_of(self.end)
            following = replace_query_param(address, self.cursor_query_param, cursor)
        if self.start > size:
            cursor = search.cursor_of(self.start - size)
            previous = replace_query_param(address, self.cursor_query_param, cursor)
        elif self.start:
            previous = remove_query_param(address, self.cursor_query_param)
        meaning = {"status": search.meaning, "detail": search.detail}
        return {"next": following, "previous": previous, "results": data, "meaning": meaning}

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        paginated: dict[str, Any] = super().get_paginated_response_schema(schema)
        paginated["properties"]["meaning"] = {
            "type": ["object", "null"],
            "description": "For a search: whether photos were compared with the text by meaning. `pending`: not yet, "
            "the same search finds more in a moment; `unavailable`: not now. `detail` says why.",
            "properties": {
                "status": {"type": "string", "enum": list(get_args(MeaningStatus))},
                "detail": {"type": "string"},
            },
            "required": ["status", "detail"],
        }
        paginated["required"] = [*paginated["required"], "meaning"]
        return paginated


def _bad_cursor() -> ValidationError:
    return ValidationError({"cursor": "this cursor is not valid; start again without it"})
