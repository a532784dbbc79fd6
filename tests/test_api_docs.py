"""The page that documents the API: all calls, in the site's clothes, to be tried with one's token."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from playwright.sync_api import Browser, Page, expect

from accounts.services import make_token
from captioner.api.docs import documentation
from captioner.models import Caption, CaptionRequest, Style
from tests.people import client_of

DOCS = "/api/docs/"
PHOTO = min((Path(__file__).parent.parent / "examples" / "coco_cc").glob("*.jpg"))


@pytest.fixture
def page(browser: Browser, live_server: Any) -> Iterator[Page]:
    """A stranger's window; what the page's scripts complain about fails the test."""
    complaints: list[str] = []
    context = browser.new_context(base_url=live_server.url)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def test_every_call_and_object_of_the_openapi_document_is_on_the_page(client: Client, db: None, tmp_path: Path) -> None:
    html = client.get(DOCS).content.decode()
    file = tmp_path / "openapi.json"
    call_command("spectacular", "--format", "openapi-json", file=str(file))
    document = json.loads(file.read_text(encoding="utf-8"))
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f'data-method="{method.upper()}" data-path="{path}"' in html
            assert f'id="{operation["operationId"]}"' in html
            for given in operation.get("parameters", ()):
                assert f'id="{operation["operationId"]}-{given["in"]}-{given["name"]}"' in html
    for name, schema in document["components"]["schemas"].items():
        assert (f'id="object-{name}"' in html) == ("properties" in schema)


def test_each_link_on_the_page_leads_somewhere_on_it(client: Client, db: None) -> None:
    html = client.get(DOCS).content.decode()
    aims = {part.split('"')[0] for part in html.split('href="#')[1:]}
    assert "object-Caption" in aims
    assert all(f'id="{aim}"' in html for aim in aims)


def test_the_page_comes_from_this_site_alone_and_runs_no_inline_script(client: Client, db: None) -> None:
    answer = client.get(DOCS)
    html = answer.content.decode()
    assert "://" not in html
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assert "unsafe-inline" not in answer["Content-Security-Policy"]
    assert len(gzip.compress(answer.content)) < 60_000


def test_types_are_described_in_words() -> None:
    found = {call.id: call for calls in documentation().groups.values() for call in calls}
    words = {field.name: "".join(part for part, _ in field.type) for field in found["captions_list"].fields}
    assert words["page_size"] == "whole number, 1 to 100"
    assert words["status"] == "list of one of canceled, failed, queued, running, succeeded"
    assert words["created_after"] == "date and time"
    fields = {field.name: field.type for field in documentation().objects["Caption"]}
    assert fields["alternatives"] == [("list of ", ""), ("Alternative", "Alternative")]
    assert "".join(part for part, _ in fields["withheld"]) == "Withheld or null"
    assert "* `" not in "".join(field.about for call in found.values() for field in call.fields)
    assert [answer.type for answer in found["images_thumbnail_retrieve"].answers] == [[("image/jpeg", "")], []], (
        "304 has no body"
    )


@pytest.mark.django_db(transaction=True)
def test_a_call_is_tried_with_ones_token(page: Page, styles: dict[str, Style]) -> None:
    owner = User.objects.create_user("owner")
    _, token = make_token(owner, name="tests")
    page.goto(DOCS)
    page.get_by_label("Your token").fill(token)
    page.locator("#captions_create > summary").click()
    form = page.get_by_role("form", name="Try POST /api/captions/", exact=True)
    form.get_by_label("image", exact=True).set_input_files(PHOTO)
    form.get_by_label("style", exact=True).fill("factual")
    form.get_by_role("button", name="Send").click()
    expect(form.get_by_role("status")).to_contain_text("202 Accepted")
    expect(form.get_by_role("status")).to_contain_text('"status": "queued"')
    assert CaptionRequest.objects.get().owner == owner

    page.locator("#captions_retrieve > summary").click()
    form = page.get_by_role("form", name="Try GET /api/captions/{id}/", exact=True)
    form.get_by_label("id", exact=True).fill(str(Caption.objects.get().pk))
    form.get_by_role("button", name="Send").click()
    expect(form.get_by_role("status")).to_contain_text('"style": "factual"')

    page.locator("#captions_correct > summary").click()
    form = page.get_by_role("form", name="corrections")
    form.get_by_label("id", exact=True).fill(str(Caption.objects.get().pk))
    form.get_by_label("Body, as JSON").fill('{"text": ""}')
    form.get_by_role("button", name="Send").click()
    expect(form.get_by_role("status")).to_contain_text('"code"')  # what is refused is shown as it was answered


@pytest.mark.django_db(transaction=True)
def test_without_a_token_a_call_is_made_as_whoever_is_signed_in(
    page: Page, live_server: Any, styles: dict[str, Style]
) -> None:
    client = client_of(User.objects.create_user("owner"))
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
    page.goto(DOCS)
    expect(page.locator("#token-hint")).to_contain_text("as owner")
    page.locator("#captions_cancel_all > summary").click()
    form = page.get_by_role("form", name="Try POST /api/captions/cancel/")
    form.get_by_role("button", name="Send").click()
    expect(form.get_by_role("status")).to_contain_text('"canceled": 0')


@pytest.mark.django_db(transaction=True)
def test_a_link_to_an_object_opens_it(page: Page) -> None:
    page.goto(f"{DOCS}#captions_retrieve")
    expect(page.get_by_role("form", name="Try GET /api/captions/{id}/", exact=True)).to_be_visible()
    page.locator("#captions_retrieve").get_by_role("link", name="Caption", exact=True).click()
    expect(page.get_by_role("region", name="Caption", exact=True)).to_be_visible()
