"""Captions as files."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.views.decorators.http import require_GET

from captioner import services
from captioner.csv_lines import csv_line
from captioner.models import Caption, Viewer
from captioner.web.pages import OPTIONS, filters_of, page, posted, throttle
from clipcap import strict_json


@require_GET
@page
def download(request: HttpRequest, viewer: Viewer, format: str) -> StreamingHttpResponse:
    """The captions that match a search, as a file."""
    services.note_export(viewer, f"captions as {format}", request.GET.urlencode())
    return attachment(format, services.search_captions(viewer, **filters_of(request)))


def attachment(format: str, content: QuerySet[Caption] | Iterator[bytes]) -> StreamingHttpResponse:
    """Captions as `json` or `csv`, or the bytes of a `zip`, as a file that the browser keeps."""
    if isinstance(content, QuerySet):
        lines, kind = {"json": (_json_lines, "application/json"), "csv": (_csv_lines, "text/csv")}[format]
        rows = map(_row, content.iterator(chunk_size=500))
        response = StreamingHttpResponse(lines(rows), content_type=f"{kind}; charset=utf-8")
    else:
        response = StreamingHttpResponse(content, content_type="application/zip")
    response["Content-Disposition"] = f'attachment; filename="captions.{format}"'
    return response


def caption_file(
    request: HttpRequest, viewer: Viewer, file: UploadedFile[bytes], styles: list[str], into: uuid.UUID
) -> str:
    """Queue captions of one file; returns the SHA-256 by which its image is found."""
    throttle(request)
    data = posted(file)
    photo = services.Upload(data, file.name or "")
    services.request_captions(viewer=viewer, images=[photo], styles=styles, options=OPTIONS, into=into)
    return hashlib.sha256(data).hexdigest()


COLUMNS = (
    "id", "request", "index", "image", "file", "style", "status", "text", "confidence", "log_probability", "unsure",
    "withheld", "correction", "corrected_by", "corrected_at", "version", "error", "created_at", "finished_at",
)  # fmt: skip


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
    """Comma-separated values below their names, which are there without any values too."""
    yield csv_line(COLUMNS)
    for row in rows:
        yield csv_line(row[column] for column in COLUMNS)
