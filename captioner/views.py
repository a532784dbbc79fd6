"""The pages. They show what `captioner.services` says and do nothing that it does not.

Everything works without JavaScript: forms are posted and answered with a redirect. With it, htmx posts the same forms
and swaps in the fragment that answers, and static/app.js uploads files one by one.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from itertools import chain
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Prefetch, Q, QuerySet, prefetch_related_objects
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render, resolve_url
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from captioner import services, uploads
from captioner.access import SearchesThrottle, WritesThrottle
from captioner.csv_lines import csv_line
from captioner.errors import Refused
from captioner.filters import cursor_of, place_after
from captioner.jobs import Status
from captioner.models import Caption, Image, Style, Viewer
from captioner.visitors import viewer_of
from clipcap import strict_json

OPTIONS = {"captions": 3}  # the beam keeps more than that anyway, so alternatives cost nothing
PHOTOS = 24  # in a page of the gallery
CAPTIONS_OF_A_PHOTO = 60  # the newest, on its page

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


@require_GET
@page
def home(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Drop photos, pick styles; the photos added last."""
    context = {
        "styles": _in_service(),
        "max_bytes": settings.MAX_UPLOAD_BYTES,
        "max_megabytes": settings.MAX_UPLOAD_BYTES / 1e6,
        "request_id": uuid.uuid4(),
        "recent": services.visible_images(viewer).prefetch_related(_few(services.visible_captions(viewer)))[:6],
    }
    return render(request, "captioner/home.html", context)


@require_POST
@page
def upload(request: HttpRequest, viewer: Viewer) -> HttpResponseBase:
    """Queue captions of each photo. A bad one is told of and loses none of the others."""
    files = request.FILES.getlist("photos")
    into = _uuid(request.POST.get("request", "")) or uuid.uuid4()
    styles = request.POST.getlist("styles")
    if _wants_json(request):
        return _upload_one(request, viewer, files, styles, into)
    if not files:
        raise Refused("no_image", "choose at least one photo", status=422)
    uploads.check_pixels(_data(file) for file in files)
    refused = 0
    for file in files:
        try:
            _caption_file(request, viewer, file, styles, into)
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
        if key := _uuid(pk):
            shown[key] = status
    captions = services.get_captions(viewer, list(shown))
    services.look_after(captions)
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
    services.look_after(captions)
    return render(
        request,
        "captioner/request.html",
        {"photos": _by_image(captions), "request_id": pk} | _live(viewer, captions),
    )


@require_GET
@page
def image_page(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """One photo with all its styles, side by side; `?request=` names one that it was reached from."""
    image = services.get_image(viewer, pk)
    captions = list(services.visible_captions(viewer).filter(image=image)[:CAPTIONS_OF_A_PHOTO])
    if origin := _uuid(request.GET.get("request", "")):
        there = {caption.pk for caption in captions}
        linked = services.get_request(viewer, origin).captions.all()
        captions += [caption for caption in linked if caption.image_id == pk and caption.pk not in there]
    services.look_after(captions)
    newest: dict[int, Caption] = {}
    for caption in sorted(captions, key=lambda c: c.created_at, reverse=True):
        newest.setdefault(caption.style_id, caption)
    shown = {caption.pk for caption in newest.values()}
    context = {
        "image": image,
        "newest": sorted(newest.values(), key=_of_style),
        "earlier": [caption for caption in captions if caption.pk not in shown],
        "missing": [style for style in _in_service() if style.pk not in newest],
        "name": next((caption.name for caption in captions if caption.name), ""),
    }
    return render(request, "captioner/image.html", context | _live(viewer, captions))


@require_POST
@page
def caption_image(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Caption a stored photo in further styles."""
    image = services.get_image(viewer, pk)
    _throttle(request)
    made = services.request_captions(
        viewer=viewer, images=[image], styles=request.POST.getlist("styles"), options=OPTIONS
    )
    return redirect(f"{reverse('image', args=[pk])}?request={made.pk}")


@require_GET
@page
def serve_image(request: HttpRequest, viewer: Viewer, pk: uuid.UUID, kind: str) -> FileResponse:
    """The picture kept of an upload, or its thumbnail."""
    file = getattr(services.get_image(viewer, pk), kind)
    try:
        content = file.storage.open(file.name, "rb")
    except OSError as error:
        raise Http404("the file is not in the storage") from error
    response = FileResponse(content, content_type="image/jpeg")
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "private, max-age=86400"
    return response


@require_GET
@page
def gallery(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """The photos whose captions pass the filters, the newest first; of a search, those that match best first."""
    filters = _filters(request)
    text, cursor = services.tidy_search(filters["text"]), request.GET.get("after", "")
    search = _search(request, viewer, text, filters) if text else None
    images, after = _found(viewer, search, filters, cursor) if search else _newest(viewer, filters, cursor)
    for image in images:
        image.found.sort(key=_of_style)  # type: ignore[attr-defined]  # the prefetched few
    query = request.GET.copy()
    query.pop("after", None)
    context = {
        "images": images,
        "search": search,
        "filters": filters,
        "filtered": any(filters.values()),
        "styles": Style.objects.all(),
        "statuses": Status.choices,
        "query": query.urlencode(),
        "after": after,
        "longest": services.LONGEST_SEARCH,
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
    prefetch_related_objects(context["images"], _few(services.visible_captions(viewer)))
    template = "captioner/likest.html" if request.headers.get("HX-Request") else "captioner/similar.html"
    return render(request, template, context)


@require_GET
@page
def download(request: HttpRequest, viewer: Viewer, format: str) -> StreamingHttpResponse:
    """The captions that match a search, as a file."""
    services.note_export(viewer, f"captions as {format}", request.GET.urlencode())
    rows = map(_row, services.search_captions(viewer, **_filters(request)).iterator(chunk_size=500))
    lines, kind = {"json": (_json_lines, "application/json"), "csv": (_csv_lines, "text/csv")}[format]
    response = StreamingHttpResponse(lines(rows), content_type=f"{kind}; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="captions.{format}"'
    return response


@require_POST
@page
def correct(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Keep what a person writes in place of a caption."""
    services.correct_caption(viewer, pk, request.POST.get("text", ""))
    return _changed(request, viewer, services.get_caption(viewer, pk))


@require_POST
@page
def retry(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Queue a failed or canceled caption again."""
    return _changed(request, viewer, services.retry_caption(viewer, pk))


@require_POST
@page
def cancel(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Cancel a caption that is not finished."""
    return _changed(request, viewer, services.cancel_caption(viewer, pk))


@require_http_methods(["GET", "POST"])
@page
def delete(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Delete a caption; asks first, where the browser's script has not."""
    caption = services.get_caption(viewer, pk, to="delete")
    if request.method == "GET" or "confirmed" not in request.POST:
        return render(request, "captioner/delete.html", {"caption": caption})
    services.delete_caption(viewer, pk)
    if request.headers.get("HX-Request"):
        return HttpResponse()
    messages.success(request, "The caption was deleted.")
    return redirect("gallery")


def _sign_in(request: HttpRequest) -> HttpResponse:
    if request.headers.get("HX-Request") or _wants_json(request):
        url = resolve_url(settings.LOGIN_URL)
        return JsonResponse({"detail": "you are signed out; sign in again"}, status=401, headers={"HX-Redirect": url})
    return redirect_to_login(request.get_full_path() if request.method == "GET" else resolve_url("home"))


def refusal(request: HttpRequest, error: Refused) -> HttpResponse:
    """What is refused and why, as a page or for the page's script."""
    if request.headers.get("HX-Request") or _wants_json(request):
        response: HttpResponse = JsonResponse({"detail": error.detail}, status=error.status)
    else:
        response = render(request, "captioner/refused.html", {"error": error}, status=error.status)
    if "wait" in error.extra:
        response["Retry-After"] = error.extra["wait"]
    return response


def _wants_json(request: HttpRequest) -> bool:
    return request.headers.get("Accept") == "application/json"


def _upload_one(
    request: HttpRequest, viewer: Viewer, files: list[UploadedFile[bytes]], styles: list[str], into: uuid.UUID
) -> JsonResponse:
    """The answer to the page's script: the photo with its captions, as a fragment to put into the page."""
    if len(files) != 1:
        raise Refused("no_image", "send one photo at a time", status=422)
    digest = _caption_file(request, viewer, files[0], styles, into)
    captions = [c for c in services.get_request(viewer, into).captions.all() if c.image.sha256 == digest]
    context = {"photos": _by_image(captions), "request_id": into, "fragment": True} | _live(viewer, captions)
    return JsonResponse(
        {
            "url": reverse("request", args=[into]),
            "id": f"photo-{captions[0].image_id}",
            "html": render_to_string("captioner/photos.html", context, request),
        },
        status=201,
    )


def _caption_file(
    request: HttpRequest, viewer: Viewer, file: UploadedFile[bytes], styles: list[str], into: uuid.UUID
) -> str:
    """Queue captions of one file; returns the SHA-256 by which its image is found."""
    _throttle(request)
    data = _data(file)
    photo = services.Upload(data, file.name or "")
    services.request_captions(viewer=viewer, images=[photo], styles=styles, options=OPTIONS, into=into)
    return hashlib.sha256(data).hexdigest()


def _data(file: UploadedFile[bytes]) -> bytes:
    """What a file holds; one over the limit is refused by its length, and for that need not be read to its end."""
    file.seek(0)
    data: bytes = file.read(settings.MAX_UPLOAD_BYTES + 1)
    return data


def _throttle(request: HttpRequest) -> None:
    """Count a photo by the API's own rate.

    Raises:
        Refused: there were too many.
    """
    throttle = WritesThrottle()
    if not throttle.allow_request(request, SimpleNamespace(action="create")):
        wait = max(1, round(throttle.wait() or 1))
        raise Refused("throttled", f"too many photos in a short time; go on in {wait} s", status=429, wait=wait)


def _changed(request: HttpRequest, viewer: Viewer, caption: Caption) -> HttpResponse:
    if not request.headers.get("HX-Request"):
        return redirect(f"{reverse('request', args=[caption.request_id])}#caption-{caption.pk}")
    context = {"caption": caption, "fragment": True} | _live(viewer, [caption])
    return render(request, "captioner/caption.html", context)


def _live(viewer: Viewer, captions: Iterable[Caption]) -> dict[str, Any]:
    """What a fragment with captions needs: which may be changed or deleted, and how many are still to come."""
    captions = list(captions)
    return {
        "changeable": services.changeable(viewer, captions),
        "deletable": services.deletable(viewer, captions),
        "left": sum(not caption.finished for caption in captions),
    }


def _by_image(captions: Iterable[Caption]) -> list[tuple[Image, list[Caption]]]:
    """The images in the order they came in, each with its captions in that of the styles asked for."""
    photos: dict[uuid.UUID, tuple[Image, list[Caption]]] = {}
    for caption in sorted(captions, key=lambda c: (c.index or 0, c.place or 0, c.created_at, *_of_style(c))):
        photos.setdefault(caption.image_id, (caption.image, []))[1].append(caption)
    return list(photos.values())


def _of_style(caption: Caption) -> tuple[bool, str]:
    """The order of styles: the default one first."""
    return not caption.style.is_default, caption.style.slug


def _in_service() -> list[Style]:
    """The styles to choose from; pages say so where there are none."""
    try:
        return services.choose_styles(["all"])
    except Refused:
        return []


def _filters(request: HttpRequest) -> dict[str, Any]:
    given = request.GET
    return {
        "text": given.get("q", ""),
        "style": given.get("style", ""),
        "status": given.get("status", ""),
        "unsure": given.get("unsure") == "true",
        "mine": "mine" in given,
    }


def _few(captions: QuerySet[Caption]) -> Prefetch[str, QuerySet[Caption], str]:
    """The newest few of the captions of each image, as `image.found`."""
    return Prefetch("captions", captions[:3], to_attr="found")


def _search(request: HttpRequest, viewer: Viewer, text: str, filters: dict[str, Any]) -> services.Search:
    narrowed = {name: value for name, value in filters.items() if name != "text"}
    return services.search_images(viewer, text, may_ask=lambda: SearchesThrottle().count(request), **narrowed)


def _found(viewer: Viewer, search: services.Search, filters: dict[str, Any], cursor: str) -> tuple[list[Image], str]:
    """A page of what a search found, with the captions that tell why, and where the next one begins."""
    start = place_after(search.hits, cursor) or 0
    images = services.found_images(search.hits[start : start + PHOTOS])
    worded = [image for image in images if "words" in image.matched]  # type: ignore[attr-defined]
    others = [image for image in images if image not in worded]
    prefetch_related_objects(worded, _few(services.search_captions(viewer, **filters)))
    prefetch_related_objects(others, _few(services.search_captions(viewer, **filters | {"text": ""})))
    end = start + PHOTOS
    return images, cursor_of(search.hits, end) if end < len(search.hits) else ""


def _newest(viewer: Viewer, filters: dict[str, Any], cursor: str) -> tuple[list[Image], str]:
    """A page of the photos whose captions pass the filters, and where the next one begins."""
    captions = services.search_captions(viewer, **filters)
    found = _after(services.visible_images(viewer, captions), cursor)
    images = list(found.prefetch_related(_few(captions))[: PHOTOS + 1])
    last = images[PHOTOS - 1] if len(images) > PHOTOS else None
    return images[:PHOTOS], f"{last.created_at.isoformat()}~{last.pk}" if last else ""


def _after(images: QuerySet[Image], cursor: str) -> QuerySet[Image]:
    """The images that follow the one a cursor names; all, if it is none."""
    moment, _, pk = cursor.partition("~")
    try:
        at, key = datetime.fromisoformat(moment), uuid.UUID(pk)
    except ValueError:
        return images
    return images.filter(Q(created_at__lt=at) | Q(created_at=at, pk__lt=key)) if at.tzinfo else images


def _row(caption: Caption) -> dict[str, Any]:
    newest, withheld = caption.correction, caption.withheld
    return {
        "id": str(caption.pk),
        "request": str(caption.request_id),
        "index": caption.index,
        "image": str(caption.image_id),
        "file": caption.name,
        "style": caption.style.slug,
        "status": caption.status,
        "text": caption.text,
        "confidence": caption.shown_confidence,
        "log_probability": caption.log_probability,
        "unsure": caption.unsure,
        "withheld": withheld["detail"] if withheld else "",
        "correction": newest.text if newest else "",
        "corrected_by": newest.author.get_username() if newest and newest.author else "",
        "corrected_at": newest.created_at.isoformat() if newest else "",
        "version": str(caption.version) if caption.version else "",
        "error": caption.error_detail,
        "created_at": caption.created_at.isoformat(),
        "finished_at": caption.finished_at.isoformat() if caption.finished_at else "",
    }


def _json_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """One JSON array, a row a line."""
    yield "["
    for place, row in enumerate(rows):
        yield ("\n" if place == 0 else ",\n") + strict_json.dumps(row, ensure_ascii=False)
    yield "\n]\n"


def _csv_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Comma-separated values below their names."""
    first = next(rows, None)
    if first is None:
        return
    yield csv_line(first)
    for row in chain([first], rows):
        yield csv_line(row.values())


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
