"""Requests to the API, and what every answer that is a problem holds."""

import io
from typing import Any

from django.test import Client
from PIL import Image as Pillow

URL = "/api/captions/"


def upload(photo: bytes, name: str = "photo.jpg") -> io.BytesIO:
    file = io.BytesIO(photo)
    file.name = name
    return file


def another(photo: bytes) -> bytes:
    """A different photo: the same one turned upside down."""
    out = io.BytesIO()
    Pillow.open(io.BytesIO(photo)).rotate(180).save(out, "JPEG")
    return out.getvalue()


def solid(colour: str) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (64, 48), colour).save(out, "PNG")
    return out.getvalue()


def ask(client: Client, photo: bytes, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, {"image": upload(photo), **fields})
    assert answer.status_code == 202, answer.content
    body: dict[str, Any] = answer.json()
    return body


def all_pages(client: Client, url: str) -> list[dict[str, Any]]:
    """What a list holds, from its first page to its last."""
    seen: list[dict[str, Any]] = []
    while url:
        page = client.get(url).json()
        seen += page["results"]
        url = page["next"]
    return seen


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json"), answer.content
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert body["title"]
    assert body["detail"]
    return body


def ids(client: Client, **query: Any) -> set[str]:
    answer = client.get(URL, query)
    assert answer.status_code == 200, answer.content
    return {caption["id"] for caption in answer.json()["results"]}
