"""Every error below /api/ in one shape: a problem document (RFC 9457) with a stable `code`.

The API's own errors come through `handle`; what Django answers by itself, before a view or without one, is turned
into the same shape by the middleware. Where the machine and not the request is at fault, `server_error` says so, here
and on the pages.
"""

from __future__ import annotations

import http
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig, TooManyFilesSent
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.template.loader import render_to_string
from django.views import defaults
from rest_framework import exceptions

from captioner.bodies import API, most_bytes
from captioner.errors import Refused, is_full

Answer = TypeVar("Answer", bound=HttpResponse)

MEDIA_TYPE = "application/problem+json"
RETRY = 5  # seconds after which it is worth asking again where something is away or has too much to do
_WITH_BODIES = ("POST", "PUT", "PATCH", "DELETE")

# What Django says by itself, by status; anything else gets the status's own words.
_SENTENCES = {
    400: ("malformed", "the request is not valid; check its address, headers and body"),
    403: ("forbidden", "you do not have permission to do this"),
    404: ("not_found", "there is nothing at {path}; see /api/docs/"),
    405: ("method_not_allowed", "{method} is not allowed at {path}; see /api/docs/"),
    500: ("internal_error", "unexpected error; the server's log has the details. Try again later"),
}


def problem(status: int, code: str, detail: str, **extra: Any) -> JsonResponse:
    """A problem document."""
    body = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "code": code}
    return _measured(JsonResponse({**body, "detail": detail, **extra}, status=status, content_type=MEDIA_TYPE))


def handle(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """The answer to an exception in an API view; None where it is unexpected, which Django then logs."""
    if isinstance(error, Refused):
        return _problem_of(error)
    if isinstance(error, exceptions.ValidationError):
        errors = list(_flat(error.get_full_details()))
        detail = "; ".join(f"{e['field']}: {e['detail']}" if e["field"] else e["detail"] for e in errors)
        return problem(422, "invalid", detail, errors=errors)
    if isinstance(error, Http404 | exceptions.NotFound):
        return problem(404, "not_found", _SENTENCES[404][1].format(path=context["request"].path))
    if isinstance(error, PermissionDenied):
        return problem(403, *_SENTENCES[403])
    if isinstance(error, RequestDataTooBig):
        return _problem_of(_too_big(settings.DATA_UPLOAD_MAX_MEMORY_SIZE))
    if isinstance(error, TooManyFilesSent):
        most = settings.DATA_UPLOAD_MAX_NUMBER_FILES
        return problem(422, "too_many_images", f"a request can have at most {most} files; send several requests")
    if isinstance(error, BadRequest | MultiPartParserError | UnreadablePostError):
        return problem(400, *_SENTENCES[400])
    if not isinstance(error, exceptions.APIException):
        return None
    answer = problem(error.status_code, _code(error), _detail(error))
    if header := getattr(error, "auth_header", None):
        answer["WWW-Authenticate"] = header
    if wait := getattr(error, "wait", None):
        answer["Retry-After"] = str(int(wait) + 1)
    return answer


def outage(error: BaseException | None) -> Refused | None:
    """The answer where the machine and not the request is to blame for an exception; None where it is unexpected."""
    if error is None:
        return None
    full = isinstance(error, OSError) and is_full(error)
    if full or (isinstance(error, OperationalError) and "disk is full" in str(error)):
        return Refused("storage_full", "the server's disk is full; nothing was changed; try again later", status=507)
    if isinstance(error, OperationalError | InterfaceError):
        detail = "the database does not respond; nothing was changed; try again in a few seconds"
        return Refused("database_unavailable", detail, status=503, wait=RETRY)
    if isinstance(error, BotoCoreError | ClientError):
        detail = "the file storage does not respond; try again in a few seconds"
        return Refused("storage_unavailable", detail, status=503, wait=RETRY)
    return outage(error.__cause__)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`: the answer to an exception that nothing has caught, which Django logs."""
    refused = outage(sys.exception())
    return respond(request, refused) if refused else defaults.server_error(request)


def respond(request: HttpRequest, refused: Refused) -> HttpResponse:
    """The answer, in the shape that the caller reads, to a request of which nothing more is to be read or asked."""
    if request.path_info.startswith(API):
        return _problem_of(refused)
    answer: HttpResponse
    if request.headers.get("HX-Request") or request.headers.get("Accept") == "application/json":
        answer = JsonResponse({"detail": refused.detail}, status=refused.status)
    else:  # without the request: who is signed in would be asked of the database
        answer = HttpResponse(render_to_string("unavailable.html", {"error": refused}), status=refused.status)
    return _with_wait(_measured(answer), refused)


def _problem_of(refused: Refused) -> HttpResponse:
    return _with_wait(problem(refused.status, refused.code, refused.detail, **refused.extra), refused)


def _measured(answer: Answer) -> Answer:
    """With its length, without which a connection ends: the middleware that sets it is further in."""
    answer["Content-Length"] = str(len(answer.content))
    return answer


def _with_wait(answer: HttpResponse, refused: Refused) -> HttpResponse:
    if "wait" in refused.extra:
        answer["Retry-After"] = str(refused.extra["wait"])
    return answer


class Problems:
    """Middleware, the outermost: bodies that are too large are refused, and errors below /api/ leave in one shape."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if refusal := _refusal(request):
            return respond(request, refusal)
        if not request.path_info.startswith(API):
            return self.get_response(request)
        answer = self.get_response(request)
        if answer.status_code < 400 or answer.get("Content-Type") == MEDIA_TYPE:
            return answer
        status = answer.status_code
        code, sentence = _SENTENCES.get(status, ("error", http.HTTPStatus(status).phrase))
        shaped = problem(status, code, sentence.format(path=request.path, method=request.method))
        if "Allow" in answer:
            shaped["Allow"] = answer["Allow"]
        return shaped


def _refusal(request: HttpRequest) -> Refused | None:
    """What is refused before anything of the body is read."""
    if refused := outage(request.META.get("clipcap.body_error")):
        return refused
    api = request.path_info.startswith(API)
    if api and request.method in _WITH_BODIES and not request.path_info.endswith("/"):
        return Refused("not_found", f"there is nothing at {request.path}; try {request.path}/", status=404)
    # Our own server takes bodies in chunks and tells their length; of others' Django would read nothing.
    if "HTTP_TRANSFER_ENCODING" in request.META and not request.META.get("CONTENT_LENGTH"):
        detail = "chunked bodies are not supported; send a Content-Length header"
        return Refused("length_required", detail, status=411)
    try:
        size = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return Refused("malformed", "the Content-Length must be a whole number")
    most = most_bytes(request.path_info, request.META.get("CONTENT_TYPE", ""))
    return _too_big(most) if size > most else None


def _too_big(most: int) -> Refused:
    detail = f"a request to this address can have at most {most:,} bytes; send several smaller ones"
    return Refused("request_too_large", detail, status=413)


def _code(error: exceptions.APIException) -> str:
    code = error.get_codes()
    return code if isinstance(code, str) else str(error.default_code)


def _detail(error: exceptions.APIException) -> str:
    match error:
        case exceptions.NotAuthenticated():
            return "sign in, or send a token: `Authorization: Token …`; create one at /tokens/"
        case exceptions.AuthenticationFailed():
            return "the token is not valid; create a new one at /tokens/, or leave the header out"
        case exceptions.Throttled():
            return "too many requests; wait for the time in Retry-After, or sign in for a higher limit"
    return str(error.detail)


def _flat(details: Any, field: str = "") -> Iterator[dict[str, str]]:
    """The leaves of a tree of validation errors, each with the path of its field."""
    if (
        isinstance(details, dict)
        and set(details) == {"message", "code"}
        and not isinstance(details["code"], dict | list)
    ):
        yield {"field": field, "code": str(details["code"]), "detail": str(details["message"])}
    elif isinstance(details, dict):
        for name, inner in details.items():
            part = "" if name == "non_field_errors" else str(name)
            yield from _flat(inner, f"{field}.{part}".strip("."))
    else:
        for inner in details:
            yield from _flat(inner, field)
