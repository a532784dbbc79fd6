"""Actions on a caption from a page."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from captioner import services
from captioner.models import Caption, Viewer
from captioner.web.pages import filters_of, page
from captioner.web.views import live


@require_POST
@page
def correct(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Save a person's correction of a caption."""
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
def cancel_all(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """Cancel one's own unfinished captions that match the gallery's filters; asks first."""
    captions = services.search_captions(viewer, **filters_of(request) | {"mine": True})
    if request.method == "GET" or "confirmed" not in request.POST:
        context = {"count": services.cancelable(viewer, captions).count(), "query": request.GET.urlencode()}
        return render(request, "captioner/cancel_all.html", context)
    count = services.cancel_captions(viewer, captions)
    messages.success(request, f"{count:,} caption{'s were' if count != 1 else ' was'} canceled.")
    return redirect("gallery")


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


def _changed(request: HttpRequest, viewer: Viewer, caption: Caption) -> HttpResponse:
    if not request.headers.get("HX-Request"):
        return redirect(f"{reverse('request', args=[caption.request_id])}#caption-{caption.pk}")
    context = {"caption": caption, "fragment": True} | live(viewer, [caption])
    return render(request, "captioner/caption.html", context)
