"""Styles as far as pages can tell, and somebody who is signed in."""

from pathlib import Path

import pytest
from django.core.cache import cache
from django.test import Client

from captioner.models import (
    Caption,
    MapperVersion,
    Promotion,
    Style,
    Viewer,
)
from tests.pages.captions import asked


@pytest.fixture(autouse=True)
def _no_throttle_counts() -> None:
    cache.clear()


@pytest.fixture
def styles(db: None, media: Path) -> dict[str, Style]:
    """Three styles in service as far as pages can tell: their mappers are never loaded here."""
    for slug in ("factual", "humorous", "romantic"):
        style = Style.objects.create(slug=slug, name=slug.capitalize(), is_default=slug == "factual")
        version = style.versions.create(number=1, sha256="0" * 64, origin=MapperVersion.Origin.SHIPPED)
        Promotion.objects.create(style=style, version=version)
    return {style.slug: style for style in Style.objects.all()}


@pytest.fixture
def signed_in(client: Client, viewer: Viewer) -> Client:
    client.force_login(viewer.user)
    return client


@pytest.fixture
def caption(styles: dict[str, Style], viewer: Viewer) -> Caption:
    """Ada's, queued in the default style."""
    return asked(viewer)[0]
