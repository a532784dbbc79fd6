"""Pages: upload, progress, a request, a photo, the gallery."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.files.uploadedfile import UploadedFile
from django.db.models import prefetch_related_objects
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from captioner import services, uploads
from captioner.errors import Refused
from captioner.http.throttles import SearchesThrottle
from captioner.http.viewer import offer_name
from captioner.jobs.job import Status
from captioner.models import Caption, Image, Style, Viewer
from captioner.web.exports import caption_file
from captioner.web.pages import (
    OLDEST_FIRST,
    OPTIONS,
    PHOTOS,
    as_uuid,
    few,
    filters_of,
    how_many,
    in_service,
    neighbours,
    of_style,
    page,
    page_of,
    posted,
    so_many,
    throttle,
    wants_json,
)

CAPTIONS_OF_A_PHOTO = 60  # the newest, on its page


@require_GET
@page
def home(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Drop photos, pick styles; the photos added last."""
    context = {
        "styles": in_service(),
        "max_bytes": settings.MAX_UPLOAD_BYTES,
        "max_megabytes": settings.MAX_UPLOAD_BYTES / 1e6,
        "request_id": uuid.uuid4(),
        "visitor": offer_name(request),
        "recent": services.visible_images(viewer).prefetch_related(few(services.visible_captions(viewer)))[:6],
    }
    return render(request, "captioner/home.html", context)


@require_POST
@page
def upload(request: HttpRequest, viewer: Viewer) -> HttpResponseBase:
    """Queue captions of each photo. A bad one is named and loses none of the others."""
    files = request.FILES.getlist("photos")
    into = as_uuid(request.POST.get("request", "")) or uuid.uuid4()
    styles = request.POST.getlist("styles")
    if wants_json(request):
        return _upload_one(request, viewer, files, styles, into)
    if not files:
        raise Refused("no_image", "choose at least one photo", status=422)
    uploads.check_pixels(posted(file) for file in files)
    refused = 0
    for file in files:
        try:
            caption_file(request, viewer, file, styles, into)
        except Refused as error:
            refused += 1
            messages.error(request, f"{services.tidy_name(file.name or '')}: {error.detail}")
    return redirect("home") if refused == len(files) else redirect("request", pk=into)


@require_POST
@page
def progress(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Those of the captions a page waits for that have changed since it got them."""
    shown: dict[uuid.UUID, str] = {}
    for entry in request.POST.getlist("waiting"):
        pk, _, status = entry.partition(":")
        if key := as_uuid(pk):
            shown[key] = status
    captions = services.get_captions(viewer, list(shown))
    services.rescue_stale(captions)
    left = sum(not caption.finished for caption in captions)
    context = {
        "changed": [caption for caption in captions if caption.status != shown[caption.pk]],
        "gone": shown.keys() - {caption.pk for caption in captions},
        "left": left,
        "changeable": services.changeable(viewer, captions),
        "deletable": services.deletable(viewer, captions),
    }
    return render(request, "captioner/progress.html", context)


@require_GET
@page
def request_page(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """All photos of a request in all its styles, side by side."""
    captions = list(services.get_request(viewer, pk).captions.all())
    services.rescue_stale(captions)
    return render(
        request,
        "captioner/request.html",
        {"photos": by_image(captions), "request_id": pk} | live(viewer, captions),
    )


@require_GET
@page
def image_page(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """One photo with all its styles, side by side; `?request=` names one that it was reached from."""
    image = services.get_image(viewer, pk)
    captions = list(services.visible_captions(viewer).filter(image=image)[:CAPTIONS_OF_A_PHOTO])
    if origin := as_uuid(request.GET.get("request", "")):
        there = {caption.pk for caption in captions}
        linked = services.get_request(viewer, origin).captions.all()
        captions += [caption for caption in linked if caption.image_id == pk and caption.pk not in there]
    services.rescue_stale(captions)
    newest: dict[int, Caption] = {}
    for caption in sorted(captions, key=lambda c: c.created_at, reverse=True):
        newest.setdefault(caption.style_id, caption)
    shown = {caption.pk for caption in newest.values()}
    listed = request.GET.copy()
    listed.pop("request", None)
    before, behind = _neighbours(request, viewer, image)
    context = {
        "image": image,
        "newest": sorted(newest.values(), key=of_style),
        "earlier": [caption for caption in captions if caption.pk not in shown],
        "missing": [style for style in in_service() if style.pk not in newest],
        "name": next((caption.name for caption in captions if caption.name), ""),
        "query": listed.urlencode(),
        "before": before,
        "behind": behind,
        "may_delete": viewer.takes_down or pk in services.own_images(viewer, [pk]),
    }
    return render(request, "captioner/image.html", context | live(viewer, captions))


@require_POST
@page
def caption_image(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Caption a stored photo in further styles."""
    image = services.get_image(viewer, pk)
    throttle(request)
    made = services.request_captions(
        viewer=viewer, images=[image], styles=request.POST.getlist("styles"), options=OPTIONS
    )
    return redirect(f"{reverse('image', args=[pk])}?request={made.pk}")


@require_GET
@page
def gallery(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """The photos whose captions pass the filters, the newest first; of a search, those that match best first."""
    filters = filters_of(request)
    album = services.get_album(viewer, filters["album"]) if filters["album"] else None
    text, cursor = services.tidy_search(filters["text"]), request.GET.get("after", "")
    search = _search(request, viewer, text, filters) if text else None
    sort = request.GET.get("sort", "")
    if search:
        images, after = _found(viewer, search, filters, cursor)
        total = so_many(len(search.hits))
    else:
        captions = services.search_captions(viewer, **filters)
        listed = services.visible_images(viewer, captions)
        images, after = page_of(listed, captions, cursor, oldest_first=sort == OLDEST_FIRST)
        total = how_many(listed)
    for image in images:
        image.found.sort(key=of_style)  # type: ignore[attr-defined]  # the prefetched few
    query = request.GET.copy()
    query.pop("after", None)
    context = {
        "images": images,
        "search": search,
        "total": total,
        "sort": sort,
        "offered": in_service(),
        "filters": filters,
        "filtered": any(filters.values()),
        "narrowed": any(value for name, value in filters.items() if name != "album"),
        "styles": Style.objects.all(),
        "album": album,
        "albums": services.own_albums(viewer).order_by("name"),
        "longest_album": services.LONGEST_ALBUM,
        "statuses": Status.choices,
        "query": query.urlencode(),
        "after": after,
        "longest": services.LONGEST_SEARCH,
        "cancelable": services.cancelable(viewer, services.search_captions(viewer, **filters | {"mine": True})).count(),
    }
    return render(request, "captioner/gallery.html", context)


@require_GET
@page
def similar(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """The photos that show what is most like a photo; for that photo's page, the first few."""
    context: dict[str, Any] = {"image": services.get_image(viewer, pk), "images": [], "cause": ""}
    try:
        context["images"] = services.similar_images(viewer, pk)
    except Refused as error:
        context |= {"cause": error.detail, "again": error.code == "not_looked_at"}
    prefetch_related_objects(context["images"], few(services.visible_captions(viewer)))
    template = "captioner/similar_strip.html" if request.headers.get("HX-Request") else "captioner/similar.html"
    return render(request, template, context)


def _upload_one(
    request: HttpRequest, viewer: Viewer, files: list[UploadedFile[bytes]], styles: list[str], into: uuid.UUID
) -> JsonResponse:
    """The answer to the page's script: the photo with its captions, as a fragment to put into the page."""
    if len(files) != 1:
        raise Refused("no_image", "send one photo at a time", status=422)
    digest = caption_file(request, viewer, files[0], styles, into)
    captions = [c for c in services.get_request(viewer, into).captions.all() if c.image.sha256 == digest]
    context = {"photos": by_image(captions), "request_id": into, "fragment": True} | live(viewer, captions)
    return JsonResponse(
        {
            "url": reverse("request", args=[into]),
            "id": f"photo-{captions[0].image_id}",
            "html": render_to_string("captioner/photos.html", context, request),
        },
        status=201,
    )


def live(viewer: Viewer, captions: Iterable[Caption]) -> dict[str, Any]:
    """What a fragment with captions needs: which may be changed or deleted, and how many are still to come."""
    captions = list(captions)
    return {
        "changeable": services.changeable(viewer, captions),
        "deletable": services.deletable(viewer, captions),
        "left": sum(not caption.finished for caption in captions),
    }


def by_image(captions: Iterable[Caption]) -> list[tuple[Image, list[Caption]]]:
    """The images in the order they came in, each with its captions in that of the styles asked for."""
    photos: dict[uuid.UUID, tuple[Image, list[Caption]]] = {}
    for caption in sorted(captions, key=lambda c: (c.index or 0, c.place or 0, c.created_at, *of_style(c))):
        photos.setdefault(caption.image_id, (caption.image, []))[1].append(caption)
    return list(photos.values())


def _search(request: HttpRequest, viewer: Viewer, text: str, filters: dict[str, Any]) -> services.SearchResult:
    narrowed = {name: value for name, value in filters.items() if name != "text"}
    return services.search_images(viewer, text, may_ask=lambda: SearchesThrottle().count(request), **narrowed)


def _neighbours(request: HttpRequest, viewer: Viewer, image: Image) -> tuple[uuid.UUID | None, uuid.UUID | None]:
    """The photos before and after one in the list that it was opened from, which the page's query describes."""
    filters = filters_of(request)
    text = services.tidy_search(filters["text"])
    if not text:
        return neighbours(viewer, image, filters, oldest_first=request.GET.get("sort") == OLDEST_FIRST)
    pks = [hit.image for hit in _search(request, viewer, text, filters).hits]
    if image.pk not in pks:
        return None, None
    place = pks.index(image.pk)
    return (pks[place - 1] if place else None), next(iter(pks[place + 1 : place + 2]), None)


def _found(
    viewer: Viewer, search: services.SearchResult, filters: dict[str, Any], cursor: str
) -> tuple[list[Image], str]:
    """A page of what a search found, with the captions that tell why, and where the next one begins."""
    start = search.place_after(cursor) or 0
    images = services.found_images(search.hits[start : start + PHOTOS])
    worded = [image for image in images if "words" in image.matched]  # type: ignore[attr-defined]
    others = [image for image in images if image not in worded]
    prefetch_related_objects(worded, few(services.search_captions(viewer, **filters)))
    prefetch_related_objects(others, few(services.search_captions(viewer, **filters | {"text": ""})))
    end = start + PHOTOS
    return images, search.cursor_of(end) if end < len(search.hits) else ""
