"""How many bytes the body of a request may have."""

from django.conf import settings
from django.urls import Resolver404, resolve

API = "/api/"


def most_bytes(path: str, content_type: str) -> int:
    """The limit at a path: of a call of the API by what it brings, of a page by whether it takes files."""
    if path.startswith(API):
        files = content_type.startswith("multipart/form-data")
        return int(settings.MAX_REQUEST_BYTES if files else settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
    try:
        return int(settings.LONG_BODIES.get(resolve(path).view_name, settings.MAX_FORM_BYTES))
    except Resolver404:
        return int(settings.MAX_FORM_BYTES)
