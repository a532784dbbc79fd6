"""A style, a worker that embeds what people search for, and somebody who is signed in."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from captioner.models import (
    Style,
    Viewer,
    Worker,
)
from captioner.search import meaning
from tests.search.rows import ENCODER, READER


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine, the index is fed to the end."""
    monkeypatch.setattr(meaning, "CATCH_UP", 60)


@pytest.fixture
def style(db: None) -> Style:
    return Style.objects.create(slug="plain", name="Plain")


@pytest.fixture
def worker(db: None) -> Worker:
    """A caption worker that was heard from just now and never does anything."""
    tomorrow = timezone.now() + timedelta(days=1)
    return Worker.objects.create(
        name="w", queue="captions", models_loaded="x", encoder=ENCODER, text_encoder=READER, seen_at=tomorrow
    )


@pytest.fixture
def client(client: Client, viewer: Viewer) -> Client:
    client.force_login(viewer.user)
    return client
