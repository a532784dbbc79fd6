"""The viewer: the signed-in user, or the visitor that the browser's session identifies."""

import secrets
from datetime import timedelta

from django.core.signing import BadSignature, TimestampSigner
from django.http import HttpRequest
from rest_framework.throttling import BaseThrottle

from captioner.models import Viewer

FIELD = "visitor"  # of a form, and of the session
OPEN = timedelta(days=1)  # how long a page with the form may be open


def viewer_of(request: HttpRequest, *, create: bool = False) -> Viewer:
    """The viewer behind a request.

    Args:
        create: give an anonymous browser a name in its session, if it has none: for whoever asks for captions.
    """
    if not request.user.is_authenticated and create and FIELD not in request.session:
        request.session[FIELD] = _offered_name(request) or secrets.token_urlsafe(24)
    address = BaseThrottle().get_ident(request)  # as throttles know it
    return Viewer(request.user, request.session.get(FIELD, ""), address or "")


def offer_name(request: HttpRequest) -> str:
    """A name for an anonymous browser that has none, signed, for the field `FIELD` of a form; else empty.

    Where the answer to the form is lost, its session is too. Sent again, the form is from the same visitor all the same
    and may add to the request that it has begun.
    """
    if request.user.is_authenticated or FIELD in request.session:
        return ""
    return _signer().sign(secrets.token_urlsafe(24))


def _offered_name(request: HttpRequest) -> str:
    try:
        return _signer().unsign(request.POST.get(FIELD, ""), max_age=OPEN)
    except BadSignature:  # too old, not from here, or there is none
        return ""


def _signer() -> TimestampSigner:
    return TimestampSigner(salt="captioner.http.viewer")
