"""Somebody who is signed in, a program's token, and six captions."""

from typing import Any

import pytest
from django.test import Client

from accounts.services import make_token
from captioner.inference.engine import CaptionEngine
from captioner.models import Style, Viewer
from tests.api.asking import another, ask


@pytest.fixture
def as_ada(client: Client, viewer: Viewer) -> Client:
    client.force_login(viewer.user)
    return client


@pytest.fixture
def token(viewer: Viewer) -> dict[str, str]:
    """Headers of a program that ada gave a token."""
    return {"Authorization": f"Token {make_token(viewer.user, name='tests')[1]}"}


@pytest.fixture
def six(as_ada: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes) -> list[dict[str, Any]]:
    """Two photos in three styles, of which one photo's are finished."""
    captions: list[dict[str, Any]] = ask(as_ada, photo, style="all")["captions"]
    engine.work()
    return [*captions, *ask(as_ada, another(photo), style="all")["captions"]]
