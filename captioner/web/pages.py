"""What all pages share: the viewer, error handling, filters."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import wraps
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render, resolve_url
from django.utils import timezone
from django.utils.html import format_html

from captioner import services
from captioner.errors import Refused
from captioner.http.throttles import WritesThrottle
from captioner.http.viewer import viewer_of
from captioner.models import Caption, Image, Style, Viewer
from captioner.templatetags.captions import number

OPTIONS = {"captions": 3}  # the beam keeps more than that anyway, so alternatives cost nothing
PHOTOS = 24  # in a page of the gallery
COUNTED = 1000  # photos of the gallery that are counted
OLDEST_FIRST = "oldest"  # a value of the gallery's `sort`
P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def page(view: Callable[Concatenate[HttpRequest, Viewer, P], HttpResponseBase]) -> View[P]:
    """Give a view its viewer, ask strangers to sign in where the site wants that, and say what is refused and why."""

    @wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if not settings.ANONYMOUS and not request.user.is_authenticated:
            return _sign_in(request)
        try:
            return view(request, viewer_of(request, create=request.method == "POST"), *args, **kwargs)
        except Refused as error:
            return refusal(request, error)

    return wrapped


def _sign_in(request: HttpRequest) -> HttpResponse:
    if request.headers.get("HX-Request") or wants_json(request):
        url = resolve_url(settings.LOGIN_URL)
        return JsonResponse(
            {"detail": "you have been signed out; sign in again"}, status=401, headers={"HX-Redirect": url}
        )
    return redirect_to_login(request.get_full_path() if request.method == "GET" else resolve_url("home"))


def refusal(request: HttpRequest, error: Refused) -> HttpResponse:
    """What is refused and why, as a page or for the page's script."""
    if request.headers.get("HX-Request") or wants_json(request):
        response: HttpResponse = JsonResponse({"detail": error.detail}, status=error.status)
    else:
        response = render(request, "captioner/refused.html", {"error": error}, status=error.status)
    if "wait" in error.extra:
        response["Retry-After"] = error.extra["wait"]
    return response


def wants_json(request: HttpRequest) -> bool:
    """Whether a page's script asks, and not a browser."""
    return request.headers.get("Accept") == "application/json"


def posted(file: UploadedFile[bytes]) -> bytes:
    """What a file holds; one over the limit is refused by its length, and for that need not be read to its end."""
    file.seek(0)
    data: bytes = file.read(settings.MAX_UPLOAD_BYTES + 1)
    return data


def throttle(request: HttpRequest) -> None:
    """Count a photo by the API's own rate.

    Raises:
        Refused: there were too many.
    """
    throttle = WritesThrottle()
    if not throttle.allow_request(request, SimpleNamespace(action="create")):
        wait = max(1, round(throttle.wait() or 1))
        raise Refused("throttled", f"too many photos in a short time; try again in {wait} s", status=429, wait=wait)


def of_style(caption: Caption) -> tuple[bool, str]:
    """The order of styles: the default one first."""
    return not caption.style.is_default, caption.style.slug


def in_service() -> list[Style]:
    """The styles to choose from; pages say so where there are none."""
    try:
        return services.choose_styles(["all"])
    except Refused:
        return []


def filters_of(request: HttpRequest) -> dict[str, Any]:
    """The gallery's filters, as `services.search_captions` takes them."""
    given = request.GET
    return {
        "text": given.get("q", ""),
        "style": given.get("style", ""),
        "status": given.get("status", ""),
        "unsure": given.get("unsure") == "true",
        "mine": "mine" in given,
        "album": as_uuid(given.get("album", "")),
        "name": given.get("name", "").strip()[: services.LONGEST_SEARCH],
        "since": _day(given.get("since", "")),
        "before": _day(given.get("until", ""), after=1),
    }


def _day(text: str, *, after: int = 0) -> datetime | None:
    """When a day begins here, or the one so many days after it; None if the text is not a day."""
    try:
        day = datetime.combine(date.fromisoformat(text) + timedelta(days=after), time())
        return timezone.make_aware(day).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def few(captions: QuerySet[Caption]) -> Prefetch[str, QuerySet[Caption], str]:
    """The newest few of the captions of each image, as `image.found`."""
    return Prefetch("captions", captions[:3], to_attr="found")


def page_of(
    images: QuerySet[Image], captions: QuerySet[Caption], cursor: str, *, oldest_first: bool = False
) -> tuple[list[Image], str]:
    """A page of the images with the newest few of these captions, the newest first, and where the next one begins."""
    found = list(after(images, cursor, oldest_first=oldest_first).prefetch_related(few(captions))[: PHOTOS + 1])
    last = found[PHOTOS - 1] if len(found) > PHOTOS else None
    return found[:PHOTOS], f"{last.created_at.isoformat()}~{last.pk}" if last else ""


def after(images: QuerySet[Image], cursor: str, *, oldest_first: bool = False) -> QuerySet[Image]:
    """The images that follow the one a cursor names, the newest first or the oldest; all, if it is none."""
    images = images.order_by("created_at", "pk") if oldest_first else images.order_by("-created_at", "-pk")
    moment, _, pk = cursor.partition("~")
    try:
        at, key = datetime.fromisoformat(moment), uuid.UUID(pk)
    except ValueError:
        return images
    if not at.tzinfo:
        return images
    beyond = "gt" if oldest_first else "lt"
    return images.filter(Q(**{f"created_at__{beyond}": at}) | Q(**{"created_at": at, f"pk__{beyond}": key}))


def neighbours(
    viewer: Viewer, image: Image, filters: dict[str, Any], *, oldest_first: bool
) -> tuple[uuid.UUID | None, uuid.UUID | None]:
    """The photos before and after one in the gallery, as it is filtered and sorted."""
    listed = services.visible_images(viewer, services.search_captions(viewer, **filters))
    cursor = f"{image.created_at.isoformat()}~{image.pk}"
    preceding, following = (
        after(listed, cursor, oldest_first=order).values_list("pk", flat=True).first()
        for order in (not oldest_first, oldest_first)
    )
    return preceding, following


def how_many(images: QuerySet[Image]) -> str:
    """How many photos there are, counted as far as is quick."""
    count = images.order_by()[: COUNTED + 1].count()
    return format_html("more than {} photos", number(COUNTED)) if count > COUNTED else so_many(count)


def so_many(count: int) -> str:
    """A number of photos."""
    return format_html("{} photo{}", number(count), "" if count == 1 else "s")


def as_uuid(text: str) -> uuid.UUID | None:
    """An id in an address or a form; None if it is not one."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
