"""Training one mapper with the language model frozen."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipcap.checkpoint import load_mapper
from clipcap.decoding import decode
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig
from clipcap.options import DecodingOptions
from clipcap.training import (
    CaptionedImages,
    EpochEnd,
    Progress,
    TrainingCanceled,
    TrainingError,
    TrainingOptions,
    TrainingResult,
    new_mapper,
    train_mapper,
)
from clipcap.training.data import batches_of
from clipcap.training.loss import caption_loss

OPTIONS = TrainingOptions(epochs=3, batch_size=6, learning_rate=5e-3, noise=0.1, precision="float32", seed=3)


def images_of(count: int, captions_each: int = 3, views: int = 2, seed: int = 0) -> CaptionedImages:
    generator = torch.Generator().manual_seed(seed)
    captions = [[f"Photo {i} shows thing {n}{'!' * (i % 4)}" for n in range(captions_each)] for i in range(count)]
    return CaptionedImages(
        [f"{i}.jpg" for i in range(count)], torch.randn(count, views, 8, generator=generator), captions
    )


def mapper_for(lm: LanguageModel, images: CaptionedImages, kind: str = "transformer") -> Mapper:
    config = MapperConfig(kind, 8, lm.size, prefix_length=4, clip_length=3, layers=2, heads=4)  # type: ignore[arg-type]
    return new_mapper(config, images, seed=1)


Train = Callable[..., TrainingResult]


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
        if "mapper" not in arguments:
            arguments["mapper"] = mapper_for(tiny_lm, training)
        return train_mapper(**arguments)  # type: ignore[arg-type]

    return run


@settings(max_examples=20)
@given(
    captions=st.lists(
        st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), min_size=1, max_size=4), min_size=1, max_size=4
    )
)
def test_captions_behind_one_prefix_lose_what_they_lose_alone(
    tiny_lm: LanguageModel, captions: list[list[list[int]]]
) -> None:
    mapper = mapper_for(tiny_lm, images_of(4))
    embeddings = torch.randn(len(captions), 8, generator=torch.Generator().manual_seed(0))
    packed = caption_loss(mapper, tiny_lm, embeddings, captions, tiny_lm.end_id)
    total, count = 0.0, 0
    for row, several in enumerate(captions):
        for caption in several:
            prefix = mapper(embeddings[[row]])
            embedded = torch.cat([prefix, tiny_lm.embed(torch.tensor([caption]))], dim=1)
            scores = tiny_lm.logits(embedded)[0, 3:].log_softmax(-1)
            total -= sum(scores[i, token].item() for i, token in enumerate([*caption, tiny_lm.end_id]))
            count += len(caption) + 1
    assert packed.item() == pytest.approx(total / count, rel=1e-4)


def test_training_lowers_the_loss_and_leaves_every_byte_of_the_lm_alone(train: Train, tiny_lm: LanguageModel) -> None:
    before = tiny_lm.fingerprint()
    result = train()
    assert result.history[-1][0] < result.history[0][0]
    assert tiny_lm.fingerprint() == before
    assert result.trainable_parameters == sum(p.numel() for p in result.mapper.parameters())
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())


def test_a_mapper_learns_captions_by_heart_and_ends_them_without_a_full_stop(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    images = CaptionedImages(["a", "b"], torch.eye(8)[:2, None], [["!!!! !!"], ["ooh"]])
    options = TrainingOptions(epochs=150, batch_size=2, learning_rate=1e-2, patience=150, precision="float32")
    config = MapperConfig("mlp", 8, tiny_lm.size, prefix_length=6)
    result = train_mapper(new_mapper(config, images, 0), tiny_lm, "e", images, images, options, tmp_path)
    prefixes = list(result.mapper(images.embeddings[:, 0]))
    answers = decode(EagerBackend(tiny_lm), prefixes, DecodingOptions("greedy", max_length=20), [tiny_lm.end_id] * 2)
    assert [tiny_lm.decode(answer[0].tokens) for answer in answers] == ["!!!! !!", "ooh"]


def test_the_best_checkpoint_is_what_training_returns(train: Train) -> None:
    result = train()
    stored = load_mapper(result.path)
    embeddings = torch.randn(2, 8)
    assert torch.equal(stored.mapper(embeddings), result.mapper(embeddings))
    assert stored.notes["validation_loss"] == result.best_validation_loss == min(v for _, v in result.history)
    assert stored.encoder == "encoder@1"


def test_training_stops_early_when_validation_gets_no_better(train: Train) -> None:
    result = train(options=dataclasses.replace(OPTIONS, epochs=60, patience=2, learning_rate=5e-2))
    assert len(result.history) < 60
    assert result.history[-3][1] == result.best_validation_loss


@pytest.mark.parametrize("interrupted_at", [1, 7, 10])
def test_a_resumed_run_ends_with_the_same_bytes_as_an_uninterrupted_one(
    train: Train, tmp_path: Path, interrupted_at: int
) -> None:
    whole = train(folder=tmp_path / "whole")
    with pytest.raises(TrainingCanceled):
        train(on_progress=lambda p: p.step < interrupted_at)
    resumed = train()
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert resumed.history == whole.history


def test_a_run_killed_between_two_states_resumes_from_the_earlier_one_to_the_same_bytes(
    train: Train, tmp_path: Path
) -> None:
    whole = train(folder=tmp_path / "whole")

    def die(progress: Progress) -> bool:
        if progress.step == 9:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        train(on_progress=die, state_every=2)
    assert train(state_every=2).path.read_bytes() == whole.path.read_bytes()


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


def test_a_folder_of_another_run_is_not_continued(train: Train) -> None:
    train()
    with pytest.raises(TrainingError, match="other options or examples"):
        train(options=dataclasses.replace(OPTIONS, seed=4))
    with pytest.raises(TrainingError, match="other options or examples"):
        train(validation=images_of(3, seed=2))


def test_a_damaged_state_is_an_error_that_says_what_to_do(train: Train, tmp_path: Path) -> None:
    train()
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(b"not a state")
    with pytest.raises(TrainingError, match="delete it"):
        train()
    torch.save([1], state)
    with pytest.raises(TrainingError, match="not the state of a training run"):
        train()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (CaptionedImages([], torch.zeros(0, 1, 8), []), "no images"),
        (CaptionedImages(["a", "b"], torch.zeros(2, 1, 8), [[], [" "]]), "1 empty"),
        (CaptionedImages(["a"], torch.zeros(1, 1, 8), [["long " * 200]]), "1 too long"),
        (CaptionedImages(["a"], torch.zeros(1, 1, 9), [["x"]]), "size 9"),
        (CaptionedImages(["a"], torch.full((1, 1, 8), torch.nan), [["x"]]), "not finite"),
    ],
)
def test_data_that_cannot_be_trained_is_refused_before_any_work(
    train: Train, tmp_path: Path, tiny_lm: LanguageModel, images: CaptionedImages, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(training=images, mapper=mapper_for(tiny_lm, images_of(2)))
    assert not (tmp_path / "run").exists()


def test_embeddings_without_a_single_view_are_refused() -> None:
    with pytest.raises(TrainingError, match="at least one view"):
        CaptionedImages(["a"], torch.zeros(1, 0, 8), [["x"]])


def test_an_lm_in_half_precision_is_refused_for_training(train: Train, tiny_lm_dir: Path) -> None:
    half = LanguageModel.load(f"local-dir:{tiny_lm_dir}", device="cpu", dtype="float16")
    with pytest.raises(TrainingError, match="loaded in float16, in which gradients vanish"):
        train(lm=half)


def test_one_image_with_one_caption_trains(train: Train) -> None:
    one = images_of(1, captions_each=1)
    assert len(train(training=one, validation=one).history) == 3


def test_duplicates_blanks_and_long_captions_are_left_out_and_counted(train: Train) -> None:
    captions = [["A dog.", " A  dog.", "", "word " * 100], *([["A cat."]] * 8)]
    result = train(training=dataclasses.replace(images_of(9), captions=captions))
    assert result.left_out == {"empty": 1, "duplicate": 1, "too long": 1}


def test_a_caption_is_as_long_as_the_lm_has_room_for(train: Train, tiny_lm: LanguageModel) -> None:
    room = tiny_lm.max_length - 4  # behind the prefix; a letter is a token here
    captions = [["x" * room, "y" * (room + 1)], *([["A cat."]] * 8)]
    result = train(training=dataclasses.replace(images_of(9), captions=captions))
    assert result.left_out == {"empty": 0, "duplicate": 0, "too long": 1}


@given(st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=3), min_size=1, max_size=60), st.integers(1, 8))
def test_a_step_over_long_captions_takes_no_more_memory_than_others(lengths: list[list[int]], size: int) -> None:
    rows = [(image, [[0] * length for length in row]) for image, row in enumerate(lengths)]
    batches = batches_of(rows, TrainingOptions(batch_size=size), epoch=0)
    assert sorted(image for batch in batches for image, _ in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or sum(len(row) for _, row in batch) <= size
        assert len(batch) == 1 or len(batch) * max(sum(map(len, row)) for _, row in batch) <= 64 * size


def test_an_image_with_hundreds_of_captions_fits(train: Train) -> None:
    many = [[f"Caption number {n}" for n in range(300)], *([["A cat."]] * 8)]
    result = train(
        training=dataclasses.replace(images_of(9), captions=many), options=dataclasses.replace(OPTIONS, epochs=1)
    )
    assert result.left_out["too long"] == 0


def test_a_learning_rate_that_ruins_the_weights_is_reported(train: Train) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(options=dataclasses.replace(OPTIONS, learning_rate=1e30))


def test_bfloat16_trains_to_about_the_same_loss(train: Train, tmp_path: Path) -> None:
    exact = train(folder=tmp_path / "exact")
    rough = train(options=dataclasses.replace(OPTIONS, precision="bfloat16"))
    assert rough.best_validation_loss == pytest.approx(exact.best_validation_loss, rel=0.05)


def test_an_image_stays_in_its_part_when_others_come_and_go() -> None:
    large, small = images_of(400), images_of(250)
    training, validation = large.split(0.2)
    assert sorted([*training.names, *validation.names]) == sorted(large.names)
    assert 40 < len(validation.names) < 120
    assert set(small.split(0.2)[1].names) == set(validation.names) & set(small.names)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("warmup", 1.0),
        ("noise", -1.0),
        ("precision", "float8"),
        ("clip", float("nan")),
    ],
)
def test_senseless_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(TrainingError, match=option):
        TrainingOptions(**{option: value})  # type: ignore[arg-type]
