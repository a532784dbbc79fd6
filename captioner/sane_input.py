"""Pages and admin: values that no database can store are answered with 400 instead of a server error.

Below /api/ every value is checked by its field. Lists of the admin hand names and values to the database as they come:
a NUL in a text, a number of forty digits, a lookup that takes two values and was given none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import ModelAdmin
from django.contrib.admin.views.main import ERROR_FLAG, IGNORED_PARAMS, PAGE_VAR
from django.core.exceptions import BadRequest, ValidationError
from django.db import DataError
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.views.defaults import bad_request

from captioner.bodies import API

log = logging.getLogger(__name__)

LOOKUPS = ("", "__exact", "__id__exact", "__isnull", "__gte", "__lt")  # what links of Django's filters ask for
DATES = ("__year", "__month", "__day", "__gte", "__lt")


class SaneInput:
    """Middleware: 400 for an address with a NUL, for a list asked by what it has no filter of or to act on what cannot
    be a row, and where a value turns out to be out of every range."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request, or refuse a NUL in it."""
        # Looked for before the view: a download that is streamed asks the database when its status is sent already.
        if _of_a_page(request) and ("%00" in request.META["QUERY_STRING"] or "\0" in request.path_info):
            return bad_request(request, BadRequest())
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, *_: Any) -> HttpResponse | None:
        """The answer to a list of the admin whose own links and buttons do not lead there; None to everything else.

        By itself Django takes any lookup of any column, and reads a big table to the end for it.
        """
        admin = getattr(view, "model_admin", None)
        if admin is None or view.__name__ != "changelist_view":
            return None
        try:
            for chosen in request.POST.getlist(ACTION_CHECKBOX_NAME):
                admin.opts.pk.to_python(chosen)
        except ValidationError as error:
            return bad_request(request, error)
        return None if request.GET.keys() <= _filters(admin, request) else bad_request(request, BadRequest())

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The answer where the database or the calendar refuses a value; None to every other exception."""
        if not _of_a_page(request) or not isinstance(error, DataError | OverflowError):
            return None
        log.warning("a value in the address is not valid", extra={"path": request.path_info}, exc_info=error)
        return bad_request(request, error)


def _of_a_page(request: HttpRequest) -> bool:
    return not request.path_info.startswith(API)


def _filters(admin: ModelAdmin[Any], request: HttpRequest) -> set[str]:
    """All names that the address of a list may hold."""
    names = {*IGNORED_PARAMS, PAGE_VAR, ERROR_FLAG}
    for shown in admin.get_list_filter(request):
        column: Any = shown[0] if isinstance(shown, list | tuple) else shown
        names |= {f"{getattr(column, 'parameter_name', column)}{lookup}" for lookup in LOOKUPS}
    return names | {f"{admin.date_hierarchy}{part}" for part in DATES}
