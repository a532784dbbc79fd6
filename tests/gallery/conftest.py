"""Two styles in service as far as pages can tell, and ada with her photos."""

from pathlib import Path

import pytest
from django.test import Client

from captioner.models import Image, MapperVersion, Promotion, Style, Viewer
from tests.gallery.photos import COLOURS, photo_of


@pytest.fixture(autouse=True)
def styles(db: None, media: Path) -> None:
    """Their mappers are never loaded here."""
    for slug in ("factual", "romantic"):
        style = Style.objects.create(slug=slug, name=slug.capitalize(), is_default=slug == "factual")
        version = style.versions.create(number=1, sha256="0" * 64, origin=MapperVersion.Origin.SHIPPED)
        Promotion.objects.create(style=style, version=version)


@pytest.fixture
def images(viewer: Viewer) -> list[Image]:
    """Ada's photos, the oldest first."""
    return [photo_of(viewer, colour) for colour in COLOURS]


@pytest.fixture
def ada(viewer: Viewer, client: Client) -> Client:
    client.force_login(viewer.user)
    return client
