"""A photo's picture, and what becomes of it."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from captioner import services
from captioner.http.pictures import Kind, picture
from captioner.models import Viewer
from captioner.web.pages import page


@require_GET
@page
def show(request: HttpRequest, viewer: Viewer, pk: uuid.UUID, kind: Kind) -> HttpResponseBase:
    """The picture kept of an upload, or its thumbnail."""
    return picture(request, viewer, pk, kind)


@require_http_methods(["GET", "POST"])
@page
def delete(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Delete a photo, after saying what goes with it; for somebody else's, after asking why."""
    if request.method == "POST" and "confirmed" in request.POST:
        services.delete_image(viewer, pk, request.POST.get("reason", ""))
        messages.success(request, "The photo was deleted.")
        return redirect("gallery")
    found = services.deletion(viewer, pk)
    return render(request, "captioner/delete_photo.html", {"found": found, "longest": services.LONGEST_REASON})
