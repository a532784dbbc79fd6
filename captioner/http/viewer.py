"""The viewer: the signed-in user, or the visitor that the browser's session identifies."""

import secrets

from django.http import HttpRequest
from rest_framework.throttling import BaseThrottle

from captioner.models import Viewer


def viewer_of(request: HttpRequest, *, create: bool = False) -> Viewer:
    """The viewer behind a request.

    Args:
        create: give an anonymous browser a name in its session, if it has none: for whoever asks for captions.
    """
    if not request.user.is_authenticated and create and "visitor" not in request.session:
        request.session["visitor"] = secrets.token_urlsafe(24)
    address = BaseThrottle().get_ident(request)  # as throttles know it
    return Viewer(request.user, request.session.get("visitor", ""), address or "")
