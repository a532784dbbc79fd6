"""What holds for every page of the admin, whatever stands in the database."""

from __future__ import annotations

import re
import uuid

import pytest
from django.test import Client
from django.urls import reverse

from captioner.admin.plots import bars, score_bars
from captioner.models import (
    Style,
)
from tests.admin.rows import text_of
from training.admin.loss import loss_curves

pytestmark = pytest.mark.django_db


def test_no_page_needs_more_than_the_content_security_policy_allows(
    addresses: dict[str, str], style: Style, boss: Client
) -> None:
    for name, address in addresses.items():
        response = boss.get(address)
        if response.status_code == 405 or not response.get("Content-Type", "").startswith("text/html"):
            continue
        assert "default-src 'self'" in response["Content-Security-Policy"], name
        page = text_of(response)
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", page), name
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page), name


def test_drawings_hold_strange_numbers_and_names() -> None:
    assert "No training steps" in loss_curves([], [])
    assert "polyline" in loss_curves([[1, 4.0, 0.0]], [])
    assert "circle" in loss_curves([], [(5, 2.0, 2.0)])
    assert "nothing yet" in bars([], {"captions": []}, "Lengths")
    assert "nothing yet" in bars(["1"], {"captions": [0]}, "Lengths")
    assert "&lt;b&gt;" in bars(["<b>"], {"captions": [1]}, "Lengths")
    drawn = score_bars({"CIDEr": {"<v1>": 0.0, "v2": 1.2}, "SPICE": {"v2": 0.1}}, "Scores", {"<v1>": 1, "v2": 2})
    assert "&lt;v1&gt;" in drawn
    assert drawn.count("<rect") == 3


def test_addresses_that_lead_nowhere_say_so(boss: Client, style: Style) -> None:
    nobody = uuid.uuid4()
    for address in (
        reverse("admin:captioner_caption_change", args=[nobody]),
        reverse("admin:captioner_caption_change", args=["nonsense"]),
        reverse("image-file", args=[nobody]),
        reverse("admin:training_trainingrun_change", args=["9" * 30]),
        reverse("admin:captioner_mapperversion_compare") + "?version=x",
        "/admin/queues/lunch/pause/",
    ):
        assert boss.get(address).status_code == 404, address
    assert boss.get(reverse("admin:captioner_style_take", args=[style.pk])).status_code == 405
