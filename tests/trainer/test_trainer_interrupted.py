"""Training that is interrupted, canceled or damaged goes on to the same bytes, or says what to do."""

import dataclasses
from pathlib import Path

import pytest
import torch

from clipcap.language_model import LanguageModel
from clipcap.training import (
    EpochEnd,
    Progress,
    TrainingCanceled,
    TrainingError,
)
from tests.trainer.models import OPTIONS, NewModel, Train, images_of, model_for


@pytest.mark.parametrize("interrupted_at", [1, 7, 10])
def test_a_resumed_run_ends_with_the_same_bytes_as_an_uninterrupted_one(
    train: Train, new_model: NewModel, tmp_path: Path, interrupted_at: int
) -> None:
    whole = train(model=new_model(), folder=tmp_path / "whole")
    with pytest.raises(TrainingCanceled):
        train(model=new_model(), on_progress=lambda p: p.step < interrupted_at)
    resumed = train(model=new_model())
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert resumed.history == whole.history


def test_a_run_killed_between_two_states_resumes_from_the_earlier_one_to_the_same_bytes(
    train: Train, new_model: NewModel, tmp_path: Path
) -> None:
    whole = train(model=new_model(), folder=tmp_path / "whole")

    def die(progress: Progress) -> bool:
        if progress.step == 9:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        train(model=new_model(), on_progress=die, state_every=2)
    assert train(model=new_model(), state_every=2).path.read_bytes() == whole.path.read_bytes()


def test_a_run_canceled_while_validating_resumes_to_the_same_bytes(train: Train, tmp_path: Path) -> None:
    whole = train(folder=tmp_path / "whole")
    steps: list[int] = []

    def until_a_step_comes_again(progress: Progress) -> bool:
        steps.append(progress.step)
        return steps.count(progress.step) < 2

    with pytest.raises(TrainingCanceled):
        train(on_progress=until_a_step_comes_again)
    assert train().path.read_bytes() == whole.path.read_bytes()


def test_a_run_canceled_while_tokenizing_has_stored_nothing_and_tells_how_far_it_was(
    train: Train, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []

    def stop_in_the_validation_part(done: int, images: int) -> bool:
        told.append((done, images))
        return images == 9

    with pytest.raises(TrainingCanceled, match="before the first step"):
        train(on_tokens=stop_in_the_validation_part)
    assert told == [(0, 9), (0, 3)]
    assert not (tmp_path / "run").exists()


def test_an_epoch_whose_report_was_cut_off_is_reported_again(train: Train) -> None:
    seen: list[int] = []

    def die_in_the_second(epoch: EpochEnd) -> None:
        seen.append(epoch.epoch)
        if seen == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(on_epoch=die_in_the_second)
    train(on_epoch=die_in_the_second)
    assert seen[:3] == [1, 2, 2]
    assert sorted(set(seen)) == list(range(1, seen[-1] + 1))


def test_a_best_mapper_that_vanished_is_written_again(train: Train, tmp_path: Path) -> None:
    whole = train(folder=tmp_path / "whole")

    def vanish(progress: Progress) -> bool:
        (tmp_path / "run" / "mapper.safetensors").unlink(missing_ok=True)
        return True

    result = train(on_progress=vanish)
    assert result.path.read_bytes() == whole.path.read_bytes()


def test_progress_counts_up_to_the_last_step_with_rate_and_time_left(train: Train) -> None:
    reports: list[Progress] = []

    def note(progress: Progress) -> bool:
        reports.append(progress)
        return True

    train(on_progress=note)
    steps = [p.step for p in reports]
    assert steps == sorted(steps)  # some come again while validating
    assert list(dict.fromkeys(steps)) == list(range(1, reports[-1].steps + 1))
    assert reports[0].validation_loss is None
    assert reports[-1].validation_loss is not None
    assert reports[-1].eta_seconds == 0
    assert all(p.samples_per_second > 0 for p in reports)
    rates = [p.learning_rate for p in reports]
    assert max(rates) == OPTIONS.learning_rate
    assert rates[-1] < rates[len(rates) // 2]


def test_a_folder_of_another_run_is_not_continued(train: Train, tiny_lm: LanguageModel) -> None:
    train()
    with pytest.raises(TrainingError, match="other options or examples"):
        train(options=dataclasses.replace(OPTIONS, seed=4))
    with pytest.raises(TrainingError, match="other options or examples"):
        train(validation=images_of(3, seed=2))
    with pytest.raises(TrainingError, match="other options or examples"):
        train(model=model_for(tiny_lm, "adapters"))


def test_a_damaged_state_is_an_error_that_says_what_to_do(train: Train, tmp_path: Path) -> None:
    train()
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(b"not a state")
    with pytest.raises(TrainingError, match="delete it"):
        train()
    torch.save([1], state)
    with pytest.raises(TrainingError, match="not the state of a training run"):
        train()
