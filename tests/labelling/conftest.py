"""A photo, captions of it that are finished, and people who label."""

from collections.abc import Callable
from typing import Any

import pytest

from captioner import uploads
from captioner.models import Caption, Image, Style, Viewer
from tests.captions import finished
from tests.people import member


@pytest.fixture
def image(media: Any, photo: bytes) -> Image:
    return uploads.store(photo)


@pytest.fixture
def make(style: Style, image: Image) -> Callable[..., Caption]:
    """Makes finished captions."""

    def made(text: str = "a dog", confidence: float | None = 0.5, **fields: Any) -> Caption:
        return finished(**{"image": image, "style": style, "text": text, "confidence": confidence, **fields})

    return made


@pytest.fixture
def bob(db: None) -> Viewer:
    """A labeller."""
    return Viewer(member("bob", "Labellers"))


@pytest.fixture
def eve(db: None) -> Viewer:
    """Another."""
    return Viewer(member("eve", "Labellers"))
