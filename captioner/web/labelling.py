"""The page for labelling: one photo and its caption in one style, again and again."""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from captioner import services
from captioner.errors import Refused
from captioner.models import Viewer
from captioner.web.pages import as_uuid, page


@never_cache
@require_GET
@login_required
@page
def label(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """The next caption to label: in a style, least sure first, or those that versions disagree on, or at random."""
    order, slug = _order(request), request.GET.get("style", "")
    styles = list(services.styles_to_label())
    if not styles:
        raise Refused("no_styles", "there is no style yet, so there are no captions to label", status=404)
    style = services.find_style(slug) if slug else styles[0]
    at, after = (as_uuid(request.GET.get(name, "")) for name in ("at", "after"))
    context = {
        "styles": styles,
        "style": style,
        "orders": services.LabelOrder.choices,
        "order": order,
        "caption": services.caption_to_label(viewer, style, order, at=at, after=after),
        "progress": services.label_progress(viewer, style),
        "last": services.last_label(viewer),
        "polls": services.open_polls(viewer),
    }
    return render(request, "captioner/label.html", context)


@require_POST
@login_required
@page
def save(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Save what the caption should be: its own text, if it is fine as it is."""
    services.correct_caption(viewer, pk, request.POST.get("text", ""))
    return _next(request, after=pk)


@require_POST
@login_required
@page
def skip(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Do not ask this person about the caption again."""
    services.skip_caption(viewer, pk)
    return _next(request, after=pk)


@require_POST
@login_required
@page
def undo(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """Take back the last label, and show its caption again."""
    caption = services.undo_label(viewer, pk)
    messages.success(request, "Your last label was undone.")
    return _next(request, at=pk, style=caption.style.slug)


def _order(request: HttpRequest) -> services.LabelOrder:
    given = request.GET.get("order", "")
    return services.LabelOrder(given) if given in services.LabelOrder else services.LabelOrder.DOUBT


def _next(request: HttpRequest, **where: str | uuid.UUID) -> HttpResponse:
    chosen = {"style": request.GET.get("style", ""), "order": _order(request)}
    return redirect(f"{reverse('label')}?{urlencode(chosen | where)}")
