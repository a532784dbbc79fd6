"""Options that people choose are declared once; checks, commands, the form and the API say the same of each."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import pytest
from rest_framework import serializers

from clipcap.choices import OptionError, add_arguments, chosen, options_of
from clipcap.options import TrainingChoices
from clipcap.training import for_trainer
from training.api import RunOptionsSerializer
from training.forms import RetrainForm
from training.options import RunOptions

CHANGED: dict[str, Any] = {
    **{"epochs": 3, "learning_rate": 1e-4, "batch_size": 8, "noise": 0.5, "seed": 7, "mapper": "mlp"},
    **{"prefix_length": 20, "layers": 2, "start": "scratch", "sources": ("imported", "correction")},
    **{"accumulation": 2, "language_model": "adapters", "rank": 4, "language_model_learning_rate": 1e-4},
    **{"recompute": "yes", "targets": "attention"},
}


def test_every_option_is_offered_by_the_form_the_api_and_the_command_with_its_default() -> None:
    options = options_of(RunOptions)
    assert set(options) == set(CHANGED) == {field for field in RunOptionsSerializer().fields}
    form, parser = RetrainForm(), argparse.ArgumentParser()
    add_arguments(parser, RunOptions)
    assert list(form.fields)[:2] == ["start", "sources"]
    for name, declared in options.items():
        field = form.fields[name]
        assert (list(field.initial) if declared.several else field.initial) == (
            list(declared.default) if declared.several else declared.default
        )
        assert field.help_text == RunOptionsSerializer().fields[name].help_text == declared.full_help
        assert field.required == (not declared.automatic)
    assert RunOptions(**chosen(RunOptions, vars(parser.parse_args([])))) == RunOptions()


def test_what_is_chosen_arrives_by_each_way() -> None:
    wanted = RunOptions(**CHANGED)
    words = [word for name, value in CHANGED.items() for word in _argument(name, value)]
    parser = argparse.ArgumentParser()
    add_arguments(parser, RunOptions)
    typed = chosen(RunOptions, vars(parser.parse_args(words)))
    assert RunOptions(**{**typed, "sources": tuple(typed["sources"])}) == wanted
    sent = RunOptionsSerializer(data={**CHANGED, "sources": list(CHANGED["sources"])})
    assert sent.is_valid(), sent.errors
    assert RunOptions(**{**sent.validated_data, "sources": tuple(sent.validated_data["sources"])}) == wanted
    form = RetrainForm({**CHANGED, "sources": list(CHANGED["sources"])})
    assert form.is_valid(), form.errors
    assert RunOptions(**{**form.cleaned_data, "sources": tuple(form.cleaned_data["sources"])}) == wanted


def _argument(name: str, value: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]


def test_automatic_is_none_however_it_is_left_open() -> None:
    left_open = (
        *("epochs", "learning_rate", "batch_size", "language_model", "language_model_learning_rate", "recompute"),
    )
    form = RetrainForm({**CHANGED, **dict.fromkeys(left_open, ""), "sources": ["imported"]})
    assert form.is_valid(), form.errors
    assert [form.cleaned_data[name] for name in left_open] == [None] * 6
    sent = RunOptionsSerializer(data=dict.fromkeys(left_open))
    assert sent.is_valid(), sent.errors
    assert RunOptions(**sent.validated_data) == RunOptions()
    new = for_trainer(RunOptions(), captions=1000, further=False)
    assert (new.learning_rate, new.epochs, new.batch_size, new.recompute) == (1e-3, 30, 40, False)
    assert for_trainer(RunOptions(), captions=1000, further=False, short=True).recompute
    assert not for_trainer(RunOptions(recompute="no"), captions=1000, further=False, short=True).recompute
    assert for_trainer(RunOptions(learning_rate=0.5), captions=1000, further=True).learning_rate == 0.5


@pytest.mark.parametrize(("captions", "size"), [(3, 4), (17, 4), (200, 20), (400, 40), (100_000, 40)])
def test_an_epoch_of_few_captions_takes_several_steps_unless_people_choose_otherwise(captions: int, size: int) -> None:
    assert for_trainer(RunOptions(), captions=captions, further=True).batch_size == size
    assert for_trainer(RunOptions(batch_size=64), captions=captions, further=True).batch_size == 64


def test_a_column_is_read_as_it_was_written_by_this_release_and_the_one_before() -> None:
    assert RunOptions.read(RunOptions().to_json()) == RunOptions()
    assert RunOptions.read(RunOptions(**CHANGED).to_json()) == RunOptions(**CHANGED)
    assert RunOptions.read({}) == RunOptions()
    stored = RunOptions().to_json()
    assert (stored["epochs"], stored["learning_rate"]) == (0, 0), "the release before knows no null"
    assert "batch_size" not in stored, "the release before knows no automatic one"
    assert RunOptions.read({**stored, "of a later release": 1}) == RunOptions()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1 to 200, not 0"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 1,024, not 0"),
        ({"noise": float("nan")}, r"noise must be a number from 0\.0 to 2\.0"),
        ({"language_model": "thawed"}, "language_model must be 'frozen' or 'adapters' or 'finetuned', not 'thawed'"),
        ({"targets": "head"}, "targets must be 'both' or 'attention' or 'mlp', not 'head'"),
        ({"mapper": "cnn"}, "mapper must be 'transformer' or 'mlp', not 'cnn'"),
    ],
)
def test_an_option_without_sense_is_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says) as error:
        TrainingChoices(**wrong)
    assert error.value.name == next(iter(wrong))


@pytest.mark.parametrize("name", ["epochs", "seed"])
def test_the_api_tells_the_bounds_that_are_checked(name: str) -> None:
    field, declared = RunOptionsSerializer().fields[name], options_of(RunOptions)[name]
    assert isinstance(field, serializers.IntegerField)
    assert (field.min_value, field.max_value) == declared.within
    assert inspect.signature(RunOptions).parameters[name].default == declared.default
