"""Requests that are wrong, broken or hostile: each gets a clear 4xx as a problem document, and nothing is queued."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from captioner.models import Caption, MapperVersion, Promotion, Style, Viewer
from tests.api.pictures import SMALL, URL, post, post_json, problem, saved

pytestmark = pytest.mark.django_db
NOWHERE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def styles(db: None, media: Path) -> None:
    """One style in service. No worker is there to look for its file."""
    style = Style.objects.create(slug="factual", name="Factual", is_default=True)
    version = MapperVersion.objects.create(style=style, number=1, sha256="0" * 64, origin=MapperVersion.Origin.SHIPPED)
    Promotion.objects.create(style=style, version=version)


# Bodies


def test_a_body_whose_length_nobody_gives_is_refused(client: Client, styles: None) -> None:
    answer = client.generic("POST", URL, content_type="application/json", headers={"Transfer-Encoding": "chunked"})

    problem(answer, 411, "length_required")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"seed": NaN}', 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"seed": 1e400}', 422),
        (b'{"image_id": "\\ud800"}', 422),
        (b'{"style": "\\u0000"}', 422),
        (b'{"webhook_url": "http://\\ud800"}', 422),
        (b'{"\\ud800": 1}', 422),
    ],
    ids=range(15),
)
def test_broken_json_is_refused(client: Client, styles: None, body: bytes, status: int) -> None:
    problem(post_json(client, body), status)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("styel", "factual"),
        ("image", "a file in JSON"),
        ("style", "no such style"),
        ("style", ["factual", 7.5, None]),
        ("style", []),
        ("style", {"slug": "factual"}),
        ("captions", 0),
        ("captions", 11),
        ("captions", "many"),
        ("captions", None),
        ("max_length", 10**30),
        ("beam_size", -1),
        ("temperature", 0),
        ("top_p", 1.5),
        ("seed", 2**63),
        ("method", "magic"),
        ("min_confidence", 1.01),
        ("min_confidence", "nan"),
        ("bulk", "perhaps"),
        ("deadline_seconds", 0),
        ("deadline_seconds", 10**9),
        ("image_id", "1; DROP TABLE"),
        ("image_id", NOWHERE.replace("0", "z")),
        ("webhook_url", "x" * 2001),
        ("webhook_secret", "without an address"),
    ],
)
def test_a_wrong_field_is_named(client: Client, styles: None, field: str, value: Any) -> None:
    image = base64.b64encode(saved(SMALL)).decode()

    body = problem(post_json(client, {"image_base64": image, field: value}), 422, "invalid")

    assert {error["field"].split(".")[0] for error in body["errors"]} == {field}
    assert body["detail"].startswith(field)
    assert not Caption.objects.exists()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"style": "unheard-of"}, "unknown_style"),
        ({"method": "greedy", "captions": 2}, "invalid_options"),
        ({"method": "beam", "seed": 1}, "invalid_options"),
        ({"image_id": NOWHERE}, "unknown_image"),
        ({"webhook_url": "ftp://example.com"}, "invalid_webhook_url"),
        ({"webhook_url": "https://example.com", "webhook_secret": "short"}, "invalid_webhook_secret"),
    ],
)
def test_what_does_not_go_together_is_explained(
    client: Client, styles: None, fields: dict[str, Any], code: str
) -> None:
    problem(post_json(client, {"image_base64": base64.b64encode(saved(SMALL)).decode(), **fields}), 422, code)
    assert not Caption.objects.exists()


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "image/jpeg", "nonsense", "a/b; x="]
)
def test_other_media_types_are_refused(client: Client, kind: str) -> None:
    problem(client.generic("POST", URL, b"image=1", content_type=kind), 415, "unsupported_media_type")


@pytest.mark.parametrize("boundary", ["", "; boundary=\x01", "; boundary="])
@pytest.mark.parametrize("known", [False, True])
def test_broken_forms_are_refused(viewer: Viewer, boundary: str, known: bool) -> None:
    browser, headers = Client(enforce_csrf_checks=True), {}
    if known:  # then the check of the CSRF token reads the form first
        browser.force_login(viewer.user)
        browser.cookies["csrftoken"] = "a" * 32
        headers["X-CSRFToken"] = "a" * 32

    answer = browser.generic(
        "POST", URL, b"--x\r\nnothing", content_type=f"multipart/form-data{boundary}", headers=headers
    )

    problem(answer, 400)


def test_a_form_that_breaks_off_has_no_image(client: Client, styles: None) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
    problem(client.generic("POST", URL, body, content_type="multipart/form-data; boundary=x"), 422, "no_image")


def test_a_file_in_the_wrong_field_is_refused(client: Client, styles: None) -> None:
    for field in ("style", "captions", "seed", "bulk", "webhook_url", "image_base64"):
        file = io.BytesIO(saved(SMALL))
        body = problem(client.post(URL, {field: file}), 422)
        assert body["code"] in ("invalid", "no_image")


@pytest.mark.parametrize("key", ["", " ", "k" * 256, "k\x7f", "käse", "two words"])
def test_an_idempotency_key_is_printable_and_short(client: Client, styles: None, key: str) -> None:
    answer = client.post(URL, {"image": io.BytesIO(saved(SMALL))}, headers={"Idempotency-Key": key})

    problem(answer, 400, "invalid_idempotency_key")


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=soon", "wait=-1", "wait=²", ";;==,,", "wait=1.5", "\xff"])
def test_a_preference_that_makes_no_sense_is_ignored(client: Client, styles: None, prefer: str) -> None:
    answer = client.post(URL, {"image": io.BytesIO(saved(SMALL))}, headers={"Prefer": prefer})

    assert answer.status_code == 202
    assert "Preference-Applied" not in answer


@pytest.mark.parametrize("text", ["", "   ", "x" * 501, "\0", "\ud800", None, ["a"]])
def test_a_correction_is_a_short_text(client: Client, styles: None, text: Any) -> None:
    caption = post(client, saved(SMALL)).json()["captions"][0]
    body = json.dumps({"text": text})

    answer = client.post(f"{caption['url']}corrections/", body, "application/json")

    problem(answer, 422, "invalid")


# Addresses and queries


@pytest.mark.parametrize(
    "path",
    [
        "nothing/",
        "captions/not-a-uuid/",
        f"captions/{NOWHERE}/",
        f"requests/{NOWHERE}/",
        f"requests/{NOWHERE}/deliveries/",
        f"images/{NOWHERE}/",
        f"images/{NOWHERE}/file/",
        f"images/{NOWHERE}/captions/",
        "images/%00/",
        "styles/no%20slug/",
        "styles/%F0%9F%98%80/",
        "../captions/",
        "captions/\x00/",
    ],
)
@pytest.mark.parametrize("development", [False, True])
def test_what_is_not_there_is_a_problem(client: Client, settings: Any, path: str, development: bool) -> None:
    settings.DEBUG = development
    problem(client.get(f"/api/{path}"), 404, "not_found")


@pytest.mark.parametrize("development", [False, True])
def test_a_forgotten_slash_is_named_and_not_redirected(client: Client, settings: Any, development: bool) -> None:
    settings.DEBUG = development

    assert "/api/captions/" in problem(client.post("/api/captions"), 404, "not_found")["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "captions/"),
        ("PATCH", f"captions/{NOWHERE}/"),
        ("DELETE", "styles/"),
        ("GET", f"captions/{NOWHERE}/cancel/"),
        ("OPTIONS", "captions/"),
        ("TRACE", "captions/"),
        ("BREW", "captions/"),
    ],
)
def test_other_methods_are_a_problem(client: Client, method: str, path: str) -> None:
    answer = client.generic(method, f"/api/{path}")

    problem(answer, 405, "method_not_allowed")
    assert answer["Allow"]


@pytest.mark.parametrize(
    "query",
    [
        "stauts=failed",
        "status=finished",
        "status=failed&status=nonsense",
        "image=1",
        "request=%00",
        "style=%00",
        "unsure=perhaps",
        "created_after=yesterday",
        "created_after=0001-01-01T00:00:00%2B14:00",
        "created_before=9999-12-31T23:59:59-14:00",
        "ordering=password",
        "page_size=0",
        "page_size=101",
        "page_size=²",
        "page_size=" + "9" * 5000,
        "cursor=nonsense",
        "cursor=" + base64.b64encode(b"p=never").decode(),
        "cursor=" + base64.b64encode(b"p=9999-12-31T23:59:59-14:00").decode(),
        "cursor=" + base64.b64encode(b"p=%00").decode(),
        "cursor=" + base64.b64encode(b"o=-1").decode(),
        "cursor=ü",
    ],
)
def test_a_query_that_is_not_understood_is_refused(client: Client, query: str) -> None:
    body = problem(client.get(f"{URL}?{query}"), 422, "invalid")

    assert body["errors"][0]["field"] == query.split("=")[0]


def test_searching_for_anything_is_harmless(client: Client) -> None:
    for text in ("%00", "%25%5F", "'; DROP TABLE", "\\", "%F0%9F%98%80", "a " * 1000, "%ED%A0%80"):
        assert client.get(f"{URL}?search={text}").status_code == 200


def test_a_host_that_is_not_ours_is_a_problem(client: Client, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["captions.example"]

    problem(client.get(URL, headers={"Host": "evil.example"}), 400)


def test_an_unacceptable_answer_is_a_problem(client: Client) -> None:
    problem(client.get(URL, headers={"Accept": "text/html"}), 406, "not_acceptable")


def test_an_unforeseen_error_is_a_problem_without_its_trace(
    client: Client, settings: Any, styles: None, caplog: pytest.LogCaptureFixture
) -> None:
    client.raise_request_exception = False
    settings.MAX_IMAGES_PER_REQUEST = "a setting gone wrong"
    for development in (False, True):
        settings.DEBUG = development
        problem(post(client, saved(SMALL)), 500, "internal_error")
    assert "Traceback" in caplog.text


def test_pages_keep_their_own_errors(client: Client) -> None:
    answer = client.get("/no-such-page/")

    assert answer.status_code == 404
    assert answer["Content-Type"].startswith("text/html")
