"""The OpenAPI document: what is the same for every operation."""

from typing import Any

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension

from captioner.api.problems import MEDIA_TYPE

_TEXT = {"type": "string"}
PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "What went wrong (RFC 9457). `code` is stable; `detail` is meant for people.",
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {**_TEXT, "description": "the HTTP status as text"},
        "status": {"type": "integer"},
        "code": {**_TEXT, "examples": ["not_found"]},
        "detail": {**_TEXT, "description": "cause and remedy"},
        "field": {**_TEXT, "description": "the invalid field"},
        "index": {
            "type": "integer",
            "description": "index of the image; files, ids and base64 are counted in this order",
        },
        "name": {**_TEXT, "description": "name of that image's file"},
        "errors": {
            "type": "array",
            "description": "all invalid fields",
            "items": {
                "type": "object",
                "properties": {"field": _TEXT, "code": _TEXT, "detail": _TEXT},
                "required": ["field", "code", "detail"],
            },
        },
    },
    "required": ["type", "title", "status", "code", "detail"],
}
WHY = {
    "400": "The request is not valid.",
    "401": "Anonymous use is not allowed here, or the token is not valid.",
    "403": "Not allowed; with a token: outside its scopes; with a session: without its CSRF token.",
    "404": "Not found, or you don't have access.",
    "406": "None of the accepted media types is available.",
    "409": "Not possible in the current state.",
    "411": "The body is chunked and has no Content-Length.",
    "413": "Too many bytes or pixels.",
    "415": "Unsupported media type or picture format.",
    "422": "Validation failed; `errors` or `field` say where.",
    "429": "Too many requests; Retry-After says when to try again.",
    "503": "The service is temporarily unavailable.",
    "507": "The storage is full.",
}


def add_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Document the problems that any operation of its kind can answer (a postprocessing hook of drf-spectacular)."""
    result["components"].setdefault("schemas", {})["Problem"] = PROBLEM
    for path, operations in result["paths"].items():
        for operation in operations.values():
            statuses = {"400", "406"}
            if "/health/" not in path and "/metrics" not in path:
                statuses |= {"401", "403", "429"}
                if settings.ANONYMOUS:
                    operation["security"].append({})
                if "{" in path:
                    statuses |= {"404"}
                if "requestBody" in operation:
                    statuses |= {"411", "413", "415", "422"}
                if any(parameter["in"] == "query" for parameter in operation.get("parameters", ())):
                    statuses |= {"422"}
            statuses |= {status for status in operation["responses"] if status in WHY}
            for status in sorted(statuses):
                operation["responses"][status] = {
                    "description": WHY[status],
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
                if status == "429":
                    operation["responses"][status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return result


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "accounts.authentication.ApiToken"
    name = "token"
    priority = 1  # before drf-spectacular's own, which takes the word Token for a bearer's

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "`Token` and a token created at /tokens/: `Authorization: Token 0123…`. Its scopes "
            "are `read` (GET), `caption`, `label` (corrections) and `train` (training runs).",
        }


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "captioner.api.permissions.BrowserSession"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": "session cookie of a browser; write requests also need the CSRF token in X-CSRFToken",
        }
