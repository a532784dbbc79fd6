"""Actions on the photos selected in the gallery."""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.contrib import messages
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from captioner import services
from captioner.errors import Refused
from captioner.models import Caption, Image, Viewer
from captioner.web.exports import attachment
from captioner.web.pages import OPTIONS, as_uuid, page, throttle
from captioner.web.zips import zip_parts

MOST_SELECTED = 500
SHOWN = 12  # thumbnails of what is about to be deleted


@require_POST
@page
def delete(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Delete the selected photos, after asking; what cannot be deleted is named and keeps none of the others."""
    images = selected(request, viewer)
    pks = [image.pk for image in images]
    if "confirmed" not in request.POST:
        own = set(pks) if viewer.takes_down else services.own_images(viewer, pks)
        context = {
            "images": [image for image in images if image.pk in own],
            "others": len(set(pks) - own),
            "shown": SHOWN,
            "takes_down": viewer.takes_down,
            "longest": services.LONGEST_REASON,
        }
        return render(request, "captioner/delete_photos.html", context)
    refused = [error.detail for error in services.delete_photos(viewer, pks, request.POST.get("reason", ""))]
    if count := len(pks) - len(refused):
        messages.success(request, f"{_photos(count)} deleted.")
    for cause in dict.fromkeys(refused):
        messages.error(request, f"{_photos(refused.count(cause))} not deleted: {cause}.")
    return redirect("gallery")


@require_POST
@page
def caption(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Request new captions of the selected photos, in the style chosen."""
    images = selected(request, viewer)
    most = settings.MAX_IMAGES_PER_REQUEST
    made = []
    for start in range(0, len(images), most):
        throttle(request)
        part = images[start : start + most]
        styles = request.POST.getlist("styles")
        made.append(services.request_captions(viewer=viewer, images=part, styles=styles, options=OPTIONS))
    if len(made) == 1:
        return redirect("request", pk=made[0].pk)
    messages.success(request, f"New captions of {len(images):,} photos were queued.")
    return redirect("gallery")


@require_POST
@page
def download(request: HttpRequest, viewer: Viewer, format: str) -> HttpResponseBase:
    """The selected photos' captions as JSON or CSV; or the photos with their captions beside them, as a ZIP."""
    images = selected(request, viewer)
    captions = services.visible_captions(viewer).filter(image__in=[image.pk for image in images])
    services.note_export(viewer, f"{len(images)} photos as {format}")
    return attachment(format, zip_parts(images, captions) if format == "zip" else captions)


def selected(request: HttpRequest, viewer: Viewer) -> Sequence[Image]:
    """The photos that a form names, of those that the viewer may open, the newest first.

    Raises:
        Refused: there are none, or too many.
    """
    pks = {pk for text in request.POST.getlist("photo") if (pk := as_uuid(text))}
    if len(pks) > MOST_SELECTED:
        raise Refused("too_many_photos", f"select at most {MOST_SELECTED} photos at a time", status=422)
    reachable = Caption.objects.filter(viewer.reachable(), image=OuterRef("pk"))
    images = list(Image.objects.filter(Exists(reachable), pk__in=pks))
    if not images:
        raise Refused("nothing_selected", "select at least one photo first", status=422)
    return images


def _photos(count: int) -> str:
    return f"{count:,} photo was" if count == 1 else f"{count:,} photos were"
