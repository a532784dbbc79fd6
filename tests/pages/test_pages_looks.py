"""What pages say about captions that are not there yet, licences, long pictures, moments and numbers."""

import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone
from PIL import Image as Pillow

from captioner import services
from captioner.models import EVERYBODY, Caption, Image, Style, Viewer
from captioner.templatetags.captions import number, when
from tests.pages.captions import asked, body, fail, finish

TEMPLATES = Path(__file__).parents[2] / "templates"


@pytest.mark.django_db
def test_recent_captions_say_how_far_they_are(signed_in: Client, viewer: Viewer, styles: dict[str, Style]) -> None:
    (caption,) = asked(viewer, "factual")

    def announced() -> str:
        return body(signed_in.get("/")).split("Recent captions")[1].split("</ul>")[0]

    assert "<span>Queued</span>" in announced()
    Caption.objects.update(status="running", lease_token=caption.pk, lease_expires_at=timezone.now())
    assert "<span>Generating caption…</span>" in announced()
    finish(caption, lease_token=None, lease_expires_at=None)
    assert "<span>a red wall</span>" in announced()
    Caption.objects.update(text="")
    fail(caption)
    assert "<span>Failed</span>" in announced()


@pytest.mark.django_db
def test_licences_are_behind_a_button(client: Client, styles: dict[str, Style]) -> None:
    asked(Viewer(visitor=EVERYBODY), "factual")
    Image.objects.update(credit="Photo: somebody, CC BY 2.0", credit_url="https://example.org/")
    for address in ("/gallery/", f"/images/{Image.objects.get().pk}/"):
        page = body(client.get(address))
        details = page.split('<details class="credit">')[1].split("</details>")[0]
        assert "Credit and licence" in details.split("</summary>")[0]
        assert "CC BY 2.0" in details.split("</summary>")[1]


@pytest.mark.parametrize(("size", "whole"), [((900, 100), True), ((100, 900), True), ((400, 300), False)])
def test_tiles_show_long_pictures_whole(
    size: tuple[int, int], whole: bool, client: Client, styles: dict[str, Style]
) -> None:
    out = io.BytesIO()
    Pillow.new("RGB", size, "red").save(out, "JPEG")
    photo = services.Upload(SimpleUploadedFile("a.jpg", out.getvalue()).read(), "a.jpg")
    services.request_captions(viewer=Viewer(visitor=EVERYBODY), images=[photo], styles=["factual"])
    for address in ("/", "/gallery/"):
        assert ('class="whole"' in body(client.get(address))) == whole


def test_moments_are_relative_with_the_date_on_hover() -> None:
    now = timezone.now()
    shown = when(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert 'datetime="2026-01-02T03:04:05+00:00" title="2 January 2026, 03:04 UTC"' in shown
    for apart, words in (
        (timedelta(seconds=-5), "just now"),
        (timedelta(minutes=-3, seconds=-1), "3\xa0minutes ago"),
        (timedelta(hours=2, seconds=5), "in 2\xa0hours"),
        (timedelta(seconds=30), "in a moment"),
    ):
        assert f">{words}</time>" in when(now + apart)
    assert when(now.isoformat()) == when(now)
    assert when(None) == ""


def test_no_page_shows_a_moment_or_a_number_in_another_way() -> None:
    """`when` and `number` alone have the date on hover and are put as the reader does."""
    others = re.compile(r"\|(date|time|timesince|timeuntil|naturaltime|intcomma|floatformat)\b")
    found = {
        (str(path.relative_to(TEMPLATES)), way)
        for path in TEMPLATES.rglob("*.html")
        for way in others.findall(path.read_text(encoding="utf-8"))
    }
    assert found == {
        ("clipcap_site/dashboard_fragment.html", "date"),  # the time of the day, by its clock
        ("captioner/home.html", "floatformat"),  # a limit of a few megabytes
    }


def test_numbers_can_be_put_as_the_reader_does() -> None:
    assert number(12345) == '<data value="12345">12,345</data>'
    assert number(0.5, 3) == '<data value="0.500">0.500</data>'
    assert number(None) == ""
