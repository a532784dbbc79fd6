"""A style with thirty photos as its dataset, and a training worker's engine.

Its models are small ones, with which a run takes a second, but for tests marked `embedded_models`.
"""

import json
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings

from captioner import uploads
from captioner.inference.engine import CaptionEngine
from captioner.models import Image, MapperVersion, Style
from clipcap.options import DecodingOptions
from tests.runs.photos import COCO
from training import examples as training_examples
from training import services
from training import worker as training_worker
from training.models import Example
from training.worker import TrainingEngine


@pytest.fixture
def loaded_engine(request: pytest.FixtureRequest) -> CaptionEngine:
    embedded = request.node.get_closest_marker("embedded_models")
    engine: CaptionEngine = request.getfixturevalue("loaded_engine" if embedded else "small_engine")
    return engine


@pytest.fixture
def shipped(request: pytest.FixtureRequest) -> tuple[list[MapperVersion], Path]:
    embedded = request.node.get_closest_marker("embedded_models")
    made: tuple[list[MapperVersion], Path] = request.getfixturevalue("shipped" if embedded else "small_shipped")
    return made


@pytest.fixture(scope="session")
def captioned_photos() -> list[tuple[bytes, list[str]]]:
    """The photos that come with the project, with people's captions."""
    rows = json.loads((COCO / "captions.json").read_text(encoding="utf-8"))
    return [((COCO / row["file"]).read_bytes(), row["captions"]) for row in rows]


@pytest.fixture(scope="session")
def stored(
    django_db_setup: None,
    django_db_blocker: Any,
    captioned_photos: list[tuple[bytes, list[str]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Image], Path]:
    """Thirty of them, stored once: images, of which there are no rows, and the folder of their files."""
    folder = tmp_path_factory.mktemp("stored")
    with django_db_blocker.unblock(), override_settings(MEDIA_ROOT=folder), transaction.atomic():
        images = [uploads.store(data) for data, _ in captioned_photos[:30]]
        transaction.set_rollback(True)
    return images, folder


@pytest.fixture
def factual(
    styles: dict[str, Style],
    captioned_photos: list[tuple[bytes, list[str]]],
    stored: tuple[list[Image], Path],
    media: Path,
) -> Style:
    """The factual style with thirty photos as its dataset, some of them held out."""
    style, (images, folder) = styles["factual"], stored
    shutil.copytree(folder, media, dirs_exist_ok=True)
    images = Image.objects.bulk_create(deepcopy(images))
    for image, (_, captions) in zip(images, captioned_photos, strict=False):
        for text in captions[:2]:
            services.add_example(style=style, image=image, text=text, source=Example.Source.IMPORTED)
    return style


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path) -> None:
    """Folders of runs are a test's own: the numbers of the runs come again in the next one."""
    settings.HOME = tmp_path


@pytest.fixture(autouse=True)
def quick_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a checkpoint one photo is captioned, and captions are cut early: those of mappers that have learned next to
    nothing would never end."""
    monkeypatch.setattr(training_worker, "SAMPLES", 1)
    monkeypatch.setattr(training_examples, "DecodingOptions", partial(DecodingOptions, max_length=12))


@pytest.fixture
def trainer(engine: CaptionEngine) -> TrainingEngine:
    return TrainingEngine(engine)
