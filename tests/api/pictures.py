"""Forms written by hand, small pictures, and what is none."""

import io
import json
from typing import Any

from django.test import Client
from PIL import Image as Pillow

URL = "/api/captions/"


def problem(answer: Any, status: int, code: str = "") -> dict[str, Any]:
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json"), answer.content
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "detail"} <= set(body)
    assert body["status"] == status
    assert not code or body["code"] == code, body
    assert "Traceback" not in body["detail"]
    return body


def post(client: Client, data: bytes, name: str = "photo.jpg", kind: str = "image/jpeg", **fields: str) -> Any:
    """A form written by hand, since Django's client tidies names."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
        for field, value in fields.items()
    ]
    head = f'--limit\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
    body = b"".join(parts) + head.encode() + data + b"\r\n--limit--\r\n"
    return client.generic("POST", URL, body, content_type="multipart/form-data; boundary=limit")


def post_json(client: Client, body: Any) -> Any:
    return client.post(URL, body if isinstance(body, bytes | str) else json.dumps(body), "application/json")


def saved(picture: Pillow.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


SMALL = Pillow.linear_gradient("L").convert("RGB").resize((64, 48))
