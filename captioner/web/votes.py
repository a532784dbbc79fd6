"""The page for blind votes: one photo and two captions, again and again."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from captioner import services
from captioner.errors import Refused
from captioner.http.pictures import picture_of
from captioner.models import Viewer
from captioner.web.pages import as_uuid, page


@require_GET
@login_required
@page
def first(request: HttpRequest, viewer: Viewer) -> HttpResponse:
    """The poll that has been open longest."""
    if not viewer.votes:
        raise Refused(
            "forbidden", "only people who may label everybody's captions can vote; ask an administrator", status=403
        )
    polls = services.open_polls(viewer)
    return redirect("vote-poll", polls[0].pk) if polls else render(request, "captioner/vote.html")


@never_cache
@require_GET
@login_required
@page
def poll(request: HttpRequest, viewer: Viewer, pk: uuid.UUID) -> HttpResponse:
    """The next photo to vote on; of a poll that has ended, what it found out."""
    shown = services.get_poll(viewer, pk)
    context = {
        "poll": shown,
        "polls": services.open_polls(viewer),
        "ballot": services.next_ballot(viewer, shown, at=as_uuid(request.GET.get("at", ""))),
        "votes": services.standing(shown).votes,
        "last": None if shown.ended_at else services.last_vote(viewer, shown),
        "result": services.poll_sentence(shown) if shown.ended_at else "",
    }
    return render(request, "captioner/vote.html", context)


@require_POST
@login_required
@page
def cast(request: HttpRequest, viewer: Viewer, pk: uuid.UUID, image: uuid.UUID) -> HttpResponse:
    """Say which caption is better, and go on."""
    try:
        services.cast_vote(viewer, pk, image, request.POST.get("answer", ""))
    except Refused as error:
        if error.status != 409:
            raise
        messages.error(request, f"{error.detail[0].upper()}{error.detail[1:]}.")
    return redirect("vote-poll", pk)


@require_POST
@login_required
@page
def undo(request: HttpRequest, viewer: Viewer, pk: uuid.UUID, image: uuid.UUID) -> HttpResponse:
    """Take back the last vote, and show its photo again."""
    services.undo_vote(viewer, pk, image)
    return redirect(f"{reverse('vote-poll', args=[pk])}?at={image}")


@require_GET
@login_required
@page
def photo(request: HttpRequest, viewer: Viewer, pk: uuid.UUID, image: uuid.UUID) -> HttpResponseBase:
    """The photo that is voted on."""
    return picture_of(request, services.poll_photo(viewer, pk, image))
