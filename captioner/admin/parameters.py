"""Values from the query string, which may hold anything."""

from __future__ import annotations

import uuid

from django.http import Http404


def as_uuid(text: str) -> uuid.UUID:
    """The id in an address.

    Raises:
        Http404: it is none.
    """
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise Http404("there is nothing here") from error


def as_int(text: str) -> int:
    """The number in an address.

    Raises:
        Http404: it is none.
    """
    if not text.isdecimal() or len(text) > 18:
        raise Http404("there is nothing here")
    return int(text)
