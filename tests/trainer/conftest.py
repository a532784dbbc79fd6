"""Training on twelve images."""

from pathlib import Path

import pytest

from clipcap.language_model import LanguageModel
from clipcap.model import ClipCaptionModel
from clipcap.training import TrainingResult, train_mapper
from tests.trainer.models import LEARNING, OPTIONS, NewModel, Train, images_of, mapper_for, model_for


@pytest.fixture
def train(tiny_lm: LanguageModel, tmp_path: Path) -> Train:
    """Train on twelve images, three of them for validation, with anything changed by name."""

    def run(**changes: object) -> TrainingResult:
        training = images_of(9)
        arguments: dict[str, object] = {
            "lm": tiny_lm,
            "encoder_identity": "encoder@1",
            "training": training,
            "validation": images_of(3, seed=1),
            "options": OPTIONS,
            "folder": tmp_path / "run",
        }
        arguments |= changes
        if "model" not in arguments:
            arguments["model"] = ClipCaptionModel(mapper_for(tiny_lm, training))
        return train_mapper(**arguments)  # type: ignore[arg-type]

    return run


@pytest.fixture(params=LEARNING)
def new_model(tiny_lm: LanguageModel, request: pytest.FixtureRequest) -> NewModel:
    """Makes models that are each the same: with a frozen language model, with adapters, or with one of their own."""
    return lambda: model_for(tiny_lm, request.param)
