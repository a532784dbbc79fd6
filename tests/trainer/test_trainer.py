"""Training one style: its mapper alone, with adapters, or with a language model of its own."""

import dataclasses
import math
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipcap.checkpoint import load_mapper
from clipcap.decoding import decode
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.language_model import LanguageModel
from clipcap.mapper import MapperConfig
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions, TrainingChoices
from clipcap.training import (
    CaptionedImages,
    TrainingCanceled,
    TrainingError,
    TrainingOptions,
    new_mapper,
    train_mapper,
    trainable,
)
from clipcap.training.data import batches_of
from clipcap.training.loss import caption_loss
from tests.trainer.models import LEARNING, OPTIONS, NewModel, Train, images_of, mapper_for, model_for


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
    assert result.trainable_parameters == sum(p.numel() for p in result.model.mapper.parameters())
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())


def test_a_mapper_learns_captions_by_heart_and_ends_them_without_a_full_stop(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    images = CaptionedImages(["a", "b"], torch.eye(8)[:2, None], [["!!!! !!"], ["ooh"]])
    options = TrainingOptions(epochs=150, batch_size=2, learning_rate=1e-2, patience=150, precision="float32")
    config = MapperConfig("mlp", 8, tiny_lm.size, prefix_length=6)
    result = train_mapper(
        ClipCaptionModel(new_mapper(config, images, 0)), tiny_lm, "e", images, images, options, tmp_path
    )
    prefixes = list(result.model.mapper(images.embeddings[:, 0]))
    answers = decode(EagerBackend(tiny_lm), prefixes, DecodingOptions("greedy", max_length=20), [tiny_lm.end_id] * 2)
    assert [tiny_lm.decode(answer[0].tokens) for answer in answers] == ["!!!! !!", "ooh"]


def test_the_best_checkpoint_is_what_training_returns(train: Train) -> None:
    result = train()
    stored = load_mapper(result.path)
    embeddings = torch.randn(2, 8)
    assert torch.equal(stored.mapper(embeddings), result.model.mapper(embeddings))
    assert stored.notes["validation_loss"] == result.best_validation_loss == min(v for _, v in result.history)
    assert stored.encoder == "encoder@1"


def test_training_stops_early_when_validation_gets_no_better(train: Train) -> None:
    result = train(options=dataclasses.replace(OPTIONS, epochs=60, patience=2, learning_rate=5e-2))
    assert len(result.history) < 60
    assert result.history[-3][1] == result.best_validation_loss


@pytest.mark.parametrize("learning", LEARNING[1:])
def test_language_model_weights_learn_and_those_that_all_share_stay_as_they_are(
    train: Train, tiny_lm: LanguageModel, learning: str, tmp_path: Path
) -> None:
    before, alone = tiny_lm.fingerprint(), train(folder=tmp_path / "alone")
    options = dataclasses.replace(OPTIONS, language_model_learning_rate=5e-3)
    result = train(model=model_for(tiny_lm, learning), options=options)
    assert tiny_lm.fingerprint() == before
    assert not any(weights.requires_grad for weights in tiny_lm.model.parameters())
    assert result.history[-1][0] < alone.history[-1][0], "it learns more than a mapper alone"
    model = result.model
    assert result.trainable_parameters == sum(weights.numel() for weights in model.weights.parameters())
    assert not any(weights.requires_grad for weights in model.weights.parameters())
    stored = load_mapper(result.path)
    assert stored.described()["config"]["language_model"] == learning
    if learning == "adapters":
        assert model.language_model is None
        assert stored.adapters
        assert model.adapters
        assert model.adapters.rank == 3
        assert all(torch.equal(stored.adapters.weights[name], t) for name, t in model.adapters.weights.items())
        assert all(bool(tensor.any()) for name, tensor in model.adapters.weights.items())
    else:
        assert model.language_model
        assert model.adapters is None
        assert all(tensor.dtype == torch.float16 for tensor in stored.weights.values())
        assert model.language_model.has(stored.weights), "what is compared is what is stored"
        assert not tiny_lm.has(stored.weights)


@pytest.mark.parametrize("learning", LEARNING[1:])
def test_mapper_and_language_model_have_learning_rates_of_their_own(
    train: Train, tiny_lm: LanguageModel, learning: str
) -> None:
    slow = dataclasses.replace(OPTIONS, epochs=1, language_model_learning_rate=1e-9)
    model = model_for(tiny_lm, learning)
    mapper = {name: weights.clone() for name, weights in model.mapper.named_parameters()}
    own = {name: tensor.clone() for name, tensor in model.weights.named_parameters() if not name.startswith("mapper.")}
    train(model=model, options=slow)
    moved = [(w - mapper[name]).abs().max().item() for name, w in model.mapper.named_parameters()]
    assert max(moved) > 1e-3
    for name, weights in model.weights.named_parameters():
        if name in own:
            assert torch.allclose(weights, own[name], atol=1e-6)


def test_a_step_in_parts_is_the_same_step(
    train: Train, new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(*arguments: Any) -> torch.Tensor:
        sizes.append(len(arguments[2]))
        return caption_loss(*arguments)

    monkeypatch.setattr("clipcap.training.steps.caption_loss", noted)
    options = dataclasses.replace(OPTIONS, batch_size=9)
    whole = train(model=new_model(), options=options, folder=tmp_path / "whole")
    largest = max(sizes)
    sizes.clear()
    parts = train(model=new_model(), options=dataclasses.replace(options, accumulation=3))
    assert max(sizes) == math.ceil(largest / 3)
    assert [loss for epoch in parts.history for loss in epoch] == pytest.approx(
        [loss for epoch in whole.history for loss in epoch], rel=1e-3
    )


def test_a_step_that_recomputes_keeps_less_and_is_the_same_step_to_the_last_bit(
    train: Train, tiny_lm: LanguageModel, new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def counted(*arguments: Any) -> torch.Tensor:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.nbytes
            return tensor

        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return caption_loss(*arguments)

    whole = train(model=new_model(), folder=tmp_path / "whole")
    monkeypatch.setattr("clipcap.training.steps.caption_loss", counted)
    with pytest.raises(TrainingCanceled):
        train(model=new_model(), on_progress=lambda progress: progress.step < 3)
    usual = min(kept)
    kept.clear()
    recomputing = dataclasses.replace(OPTIONS, recompute=True)
    result = train(model=new_model(), options=recomputing)
    assert min(kept) < 0.7 * usual
    assert result.path.read_bytes() == whole.path.read_bytes(), "the run was begun without, and is the same run"
    assert not any("forward" in vars(module) for module in tiny_lm.model.modules())


def test_what_learns_is_what_was_chosen_or_what_the_paper_advises_or_what_learned_before(
    tiny_lm: LanguageModel,
) -> None:
    def learns(model: ClipCaptionModel, further: bool = False, chosen: str | None = None) -> set[str]:
        choices = TrainingChoices(language_model=chosen)  # type: ignore[arg-type]
        made = trainable(model, tiny_lm, choices, further=further)
        return {n.partition(".")[0] for n, weights in made.weights.named_parameters() if weights.requires_grad}

    def new(kind: str) -> ClipCaptionModel:
        return ClipCaptionModel(mapper_for(tiny_lm, images_of(2), kind))

    assert learns(new("transformer")) == {"mapper"}
    assert learns(new("mlp")) == {"mapper", "language_model"}
    assert learns(new("mlp"), chosen="frozen") == {"mapper"}
    assert learns(new("transformer"), chosen="finetuned") == {"mapper", "language_model"}
    assert learns(new("mlp"), further=True) == {"mapper"}
    for learning, part in (("adapters", "adapters"), ("finetuned", "language_model")):
        before = model_for(tiny_lm, learning)
        before.weights.requires_grad_(False)
        before.mapper.requires_grad_(True)
        assert learns(before, further=True) == {"mapper", part}
        before.weights.requires_grad_(False)
        before.mapper.requires_grad_(True)
        assert learns(before, further=True, chosen="frozen") == {"mapper"}


def test_a_model_that_is_trained_further_goes_on_from_its_own_language_model(tiny_lm: LanguageModel) -> None:
    before = model_for(tiny_lm, "finetuned")
    assert before.language_model
    for weights in before.language_model.weights.values():
        weights.data += 1
    after = trainable(before, tiny_lm, TrainingChoices(), further=True)
    assert after.language_model
    assert after.language_model.has(before.language_model.weights)
    assert after.language_model.model is not before.language_model.model
    adapted = model_for(tiny_lm, "adapters")
    assert trainable(adapted, tiny_lm, TrainingChoices(rank=9), further=True).adapters is adapted.adapters


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
        train(training=images, model=ClipCaptionModel(mapper_for(tiny_lm, images_of(2))))
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
    rows = [(image, [array("i", [0] * length) for length in row]) for image, row in enumerate(lengths)]
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


def test_bfloat16_trains_to_about_the_same_loss(train: Train, new_model: NewModel, tmp_path: Path) -> None:
    exact = train(model=new_model(), folder=tmp_path / "exact")
    options = dataclasses.replace(OPTIONS, precision="bfloat16")
    rough = train(model=new_model(), options=options)
    assert rough.best_validation_loss == pytest.approx(exact.best_validation_loss, rel=0.05)


def test_attention_and_its_gradient_take_torch_s_kernel_but_for_bfloat16_on_a_cpu(
    train: Train, new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[bool] = []

    def note(*_: object) -> None:
        fused.append(torch.backends.cuda.flash_sdp_enabled())  # of the CPU's kernel too

    def noted(*arguments: Any) -> torch.Tensor:
        note()
        loss = caption_loss(*arguments)
        loss.register_hook(note)
        return loss

    monkeypatch.setattr("clipcap.training.steps.caption_loss", noted)
    exact, rough = (dataclasses.replace(OPTIONS, precision=one) for one in ("float32", "bfloat16"))
    for options, expected in ((exact, True), (rough, False)):
        fused.clear()
        train(model=new_model(), options=options, folder=tmp_path / options.precision)
        assert len(fused) > 2
        assert set(fused) == {expected}
    note()
    assert fused[-1], "as before, once training has ended"


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
        ("language_model_learning_rate", 0.0),
        ("warmup", 1.0),
        ("noise", -1.0),
        ("precision", "float8"),
        ("clip", float("nan")),
    ],
)
def test_senseless_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(TrainingError, match=option):
        TrainingOptions(**{option: value})  # type: ignore[arg-type]
