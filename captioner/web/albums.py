"""Albums, made of the photos selected in the gallery."""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from captioner import services
from captioner.models import Album, Viewer
from captioner.web.pages import as_uuid, page
from captioner.web.selection import SHOWN, selected


@require_POST
@page
def add(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Put the selected photos into one of the viewer's albums or a new one, after asking which."""
    images = selected(request, viewer)
    pks = [image.pk for image in images]
    if chosen := as_uuid(request.POST.get("album", "")):
        album = services.add_to_album(viewer, chosen, pks)
    elif "name" in request.POST:
        album = services.create_album(viewer, request.POST["name"], pks)
    else:
        context = {
            "images": images,
            "shown": SHOWN,
            "albums": services.own_albums(viewer).order_by("name"),
            "longest": services.LONGEST_ALBUM,
        }
        return render(request, "captioner/add_to_album.html", context)
    messages.success(request, f"{_photos(len(pks))} now in “{album}”.")
    return _shown(album)


@require_POST
@page
def remove(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Take the selected photos out of an album."""
    pks = [image.pk for image in selected(request, viewer)]
    album = services.remove_from_album(viewer, as_uuid(request.POST.get("album", "")) or uuid.uuid4(), pks)
    messages.success(request, f"{_photos(len(pks))} no longer in “{album}”.")
    return _shown(album)


@require_POST
@page
def rename(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Give an album another name."""
    return _shown(services.rename_album(viewer, pk, request.POST.get("name", "")))


@require_http_methods(["GET", "POST"])
@page
def delete(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Delete an album, after saying that its photos stay."""
    album = services.get_album(viewer, pk)
    if request.method == "GET" or "confirmed" not in request.POST:
        return render(request, "captioner/delete_album.html", {"album": album})
    services.delete_album(viewer, pk)
    messages.success(request, f"The album “{album}” was deleted. Its photos are still here.")
    return redirect("gallery")


def _shown(album: Album) -> HttpResponse:
    return redirect(f"{reverse('gallery')}?{urlencode({'album': album.pk})}")


def _photos(count: int) -> str:
    return f"{count:,} photo is" if count == 1 else f"{count:,} photos are"
