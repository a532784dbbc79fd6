"""Pictures as responses."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from django.http import FileResponse, HttpResponseBase
from django.utils.cache import get_conditional_response

from captioner import services
from captioner.errors import Refused
from captioner.models import Image, Viewer

Kind = Literal["file", "thumbnail"]
HEADERS = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}


def picture(request: Any, viewer: Viewer, pk: uuid.UUID, kind: Kind) -> HttpResponseBase:
    """A photo's file or thumbnail, for those who may see it.

    Raises:
        Refused: there is none, or not for this viewer, or its file is missing from the storage.
    """
    return picture_of(request, services.get_picture(viewer, pk), kind)


def picture_of(request: Any, image: Image, kind: Kind = "file") -> HttpResponseBase:
    """The same of an image that the viewer may see for a reason of its own.

    Args:
        request: Django's, or REST framework's.
    """
    headers = {"ETag": f'"{image.pk}-{kind}"', **HEADERS}  # what is stored of an image never changes
    response = get_conditional_response(request, etag=headers["ETag"]) or FileResponse(
        _opened(image, kind), content_type="image/jpeg", filename=f"{image.pk}.jpg"
    )
    for name, value in headers.items():
        response[name] = value
    return response


def _opened(image: Image, kind: Kind) -> Any:
    file = getattr(image, kind)
    try:
        return file.storage.open(file.name, "rb")
    except FileNotFoundError as error:
        raise Refused("file_missing", "the picture's file is missing; upload it again", status=404) from error
