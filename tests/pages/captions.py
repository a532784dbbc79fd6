"""Captions as a worker would leave them, and reading an answer."""

import io
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from PIL import Image as Pillow

from captioner import services
from captioner.models import (
    Caption,
    Viewer,
)

HTMX = {"HX-Request": "true"}
JSON = {"Accept": "application/json"}


def jpeg(name: str = "photo.jpg", colour: str = "red") -> SimpleUploadedFile:
    out = io.BytesIO()
    Pillow.new("RGB", (64, 48), colour).save(out, "JPEG")
    return SimpleUploadedFile(name, out.getvalue(), "image/jpeg")


def asked(viewer: Viewer, *styles: str, colour: str = "red") -> list[Caption]:
    """Queued captions of a small picture, in the order of their styles' slugs."""
    photo = services.Upload(jpeg(colour=colour).read(), f"{colour}.jpg")
    request = services.request_captions(viewer=viewer, images=[photo], styles=styles)
    return sorted(services.get_request(viewer, request.pk).captions.all(), key=lambda c: c.style.slug)


def finish(caption: Caption, text: str = "a red wall", **changes: Any) -> None:
    """Let a caption be what a worker would have made of it."""
    Caption.objects.filter(pk=caption.pk).update(
        status="succeeded", finished_at=timezone.now(), text=text, **{"confidence": 0.82, **changes}
    )


def fail(caption: Caption) -> None:
    Caption.objects.filter(pk=caption.pk).update(
        status="failed", finished_at=timezone.now(), error_code="x", error_detail="the lamp was out"
    )


def body(response: Any) -> str:
    return b"".join(response.streaming_content).decode() if response.streaming else response.content.decode()
