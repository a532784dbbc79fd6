"""Captions as a worker leaves them."""

from typing import Any

from django.utils import timezone

from captioner.jobs.job import Status
from captioner.models import Caption, CaptionRequest, Image, Style


def finished(image: Image, style: Style, text: str = "a dog", **fields: Any) -> Caption:
    """A caption of a request of its own, whose owner or visitor is that of the caption."""
    now = timezone.now()
    whose = {name: fields[name] for name in ("owner", "visitor") if name in fields}
    times = {"status": Status.SUCCEEDED, "finished_at": now, "deadline_at": now}
    request = CaptionRequest.objects.create(**whose)
    return Caption.objects.create(request=request, image=image, style=style, text=text, **{**times, **fields})
