"""How often callers may write and search."""

from typing import Any

from django.conf import settings
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle


class WritesThrottle(SimpleRateThrottle):
    """Counts new requests by user or, without one, by address; of anonymous callers all other writes too."""

    what = "writes"

    def __init__(self) -> None:
        """The rate depends on who calls."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Whether the request is within the rate, or need not be counted."""
        if request.method in SAFE_METHODS or (request.user.is_authenticated and view.action != "create"):
            return True
        return self.count(request)

    def count(self, request: Any) -> bool:
        """Count what is asked for now; whether it is still within the rate."""
        self.scope = "user" if request.user.is_authenticated else "anonymous"
        self.rate = settings.REST_FRAMEWORK["DEFAULT_THROTTLE_RATES"][self.scope]
        self.num_requests, self.duration = self.parse_rate(self.rate)
        return bool(super().allow_request(request, None))

    def get_cache_key(self, request: Any, view: Any) -> str:
        """By user, or by address without one."""
        who = request.user.pk if request.user.is_authenticated else self.get_ident(request)
        return f"throttle:{self.what}:{self.scope}:{who}"


class SearchesThrottle(WritesThrottle):
    """Counts, at the same rates but by themselves, the searches that a worker has to look up."""

    what = "searches"
