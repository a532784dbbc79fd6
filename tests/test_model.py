"""Styles with language-model weights of their own: in a file, in memory, and in a batch with the others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from clipcap.adapters import Adapters, Mixture, projections
from clipcap.captioner import Captioner
from clipcap.checkpoint import CheckpointError, MapperCheckpoint, load_mapper, read_original, save_mapper
from clipcap.decoding import decode
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.language_model import LanguageModel, LanguageModelError
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from clipcap.tensor_file import save_tensors
from tests.test_checkpoint import ORIGINAL, TokenizerStandIn, header_changed
from tests.test_decoding import adapters_of

WAYS = [
    DecodingOptions("greedy", max_length=8),
    DecodingOptions("beam", captions=3, max_length=8),
    DecodingOptions("nucleus", captions=2, max_length=8, seed=1),
]


def a_mapper(seed: int, prefix_length: int = 3) -> Mapper:
    torch.manual_seed(seed)
    return build_mapper(MapperConfig("mlp", 16, 32, prefix_length)).eval().requires_grad_(False)


def changed(lm: LanguageModel, seed: int) -> dict[str, Tensor]:
    """Weights of such a model, each a little elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in lm.weights.items()}


def checkpoint(lm: LanguageModel, seed: int, dtype: torch.dtype = torch.float32) -> MapperCheckpoint:
    weights = {name: tensor.to(dtype) for name, tensor in changed(lm, seed).items()}
    return MapperCheckpoint(a_mapper(seed), None, lm.identity, {"origin": "here"}, weights)


@pytest.mark.parametrize("options", WAYS, ids=[way.method for way in WAYS])
def test_rows_of_several_language_models_get_in_their_order_what_each_gets_alone(
    captioner: Captioner, options: DecodingOptions
) -> None:
    lm = captioner.language_model
    shared, other = ClipCaptionModel(a_mapper(0)), ClipCaptionModel(a_mapper(1, prefix_length=5))
    owns = [captioner.adopt(checkpoint(lm, seed)) for seed in (2, 3)]
    adapted = [ClipCaptionModel(a_mapper(0), adapters=adapters_of(lm, seed, rank=2 + seed)) for seed in (4, 5)]
    rows = [owns[0], adapted[0], shared, owns[1], other, adapted[1], shared, adapted[0], owns[0]]
    embeddings = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    together = captioner.caption(embeddings, rows, options)
    for embedding, model, captions in zip(embeddings, rows, together, strict=True):
        (alone,) = captioner.caption(embedding[None], [model], options)
        assert [c.text for c in captions] == [c.text for c in alone]
    same_mapper = captioner.caption(embeddings[:1], [ClipCaptionModel(owns[0].mapper)], options)
    assert [c.text for c in same_mapper[0]] != [c.text for c in together[0]], "its language model matters"
    same_mapper = captioner.caption(embeddings[1:2], [shared], options)
    assert [c.text for c in same_mapper[0]] != [c.text for c in together[1]], "its adapters matter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_holds_a_mapper_and_its_language_model_in_half_precision_if_wanted(
    captioner: Captioner, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm, path = captioner.language_model, tmp_path / "own.safetensors"
    written = checkpoint(lm, 1, dtype)
    save_mapper(written, path)
    back = load_mapper(path)
    assert (back.encoder, back.language_model, back.notes) == (None, lm.identity, {"origin": "here"})
    assert back.described()["config"]["language_model"] == "finetuned"
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in written.weights.items())
    model = captioner.load_model(path)
    assert model.language_model
    assert model.language_model.dtype == lm.dtype, "it is computed in the type of the loaded model"
    for name, tensor in model.language_model.weights.items():
        assert torch.equal(tensor, written.weights[name].to(lm.dtype))
    stored = MapperCheckpoint.of(model, None, lm.identity, {"origin": "here"})
    assert all(tensor.dtype == torch.float16 for tensor in stored.weights.values())
    assert path.stat().st_size < (1.05 if dtype == torch.float32 else 0.6) * model.bytes
    save_mapper(replace(stored, weights=written.weights), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("targets", "projections"), [("both", 8), ("attention", 4), ("mlp", 4)])
def test_a_file_holds_a_mapper_and_its_adapters(
    captioner: Captioner, targets: str, projections: int, tmp_path: Path
) -> None:
    lm, path = captioner.language_model, tmp_path / "adapted.safetensors"
    adapters = adapters_of(lm, 1, rank=3, targets=targets)
    assert len(adapters.names) == projections
    written = MapperCheckpoint(a_mapper(0), None, lm.identity, {}, adapters=adapters)
    save_mapper(written, path)
    back = load_mapper(path)
    config = back.described()["config"]
    assert (config["language_model"], config["rank"], config["targets"]) == ("adapters", 3, targets)
    model = captioner.load_model(path)
    assert written.adapters
    assert model.adapters
    assert all(torch.equal(model.adapters.weights[name], t) for name, t in written.adapters.weights.items())
    assert not any(weights.requires_grad for weights in model.adapters.parameters())
    assert model.bytes == sum(
        weights.nbytes for part in (model.mapper, model.adapters) for weights in part.parameters()
    )
    save_mapper(MapperCheckpoint.of(model, None, lm.identity, {}), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transformer.h.1.attn.c_attn.up": None}, r"two matrices, down and up, unlike that of .*c_attn\.up"),
        ({"transformer.h.1.attn.c_attn.bias": torch.ones(3)}, r"unlike that of .*c_attn\.bias"),
        ({"down": torch.ones(1, 3)}, "unlike that of "),
        ({"keys.down": torch.ones(1, 3), "keys.up": torch.ones(3, 1)}, r"keys should be absent and is \(1, 1\)"),
        ({"transformer.h.1.attn.c_attn.up": torch.ones(2, 96)}, "not of one rank"),
        ({"transformer.h.1.attn.c_attn.up": torch.ones(3)}, "not of one rank"),
        ({"transformer.h.1.attn.c_attn.up": torch.ones(3, 95)}, r"c_attn should be \(32, 96\) and is \(32, 95\)"),
        (
            {f"transformer.h.1.mlp.c_fc.{part}": None for part in ("down", "up")},
            r"mlp\.c_fc should be \(32, 128\) and is absent",
        ),
        ({"x.up": torch.ones(3, 1), "x.down": torch.ones(1, 3)}, r"x should be absent and is \(1, 1\)"),
        ({"transformer.h.1.attn.c_attn.up": torch.full((3, 96), math.nan)}, r"c_attn\.up contains values that are not"),
    ],
    ids=["half", "more", "no name", "a method", "ranks", "vector", "size", "one less", "name", "nan"],
)
def test_adapters_that_are_none_of_this_language_model_are_refused_with_the_reason(
    captioner: Captioner, change: dict[str, Tensor | None], said: str, tmp_path: Path
) -> None:
    lm, path = captioner.language_model, tmp_path / "adapted.safetensors"
    written = MapperCheckpoint(a_mapper(0), None, lm.identity, {}, adapters=adapters_of(lm, 1, rank=3))
    save_mapper(written, path)
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        header = json.loads(stored.metadata()["clipcap"])
    changed = tensors | {f"adapters.{name}": tensor for name, tensor in change.items()}
    save_tensors({name: tensor for name, tensor in changed.items() if tensor is not None}, path, header)
    with pytest.raises(CheckpointError, match=said) as error:
        captioner.load_model(path)
    assert "adapted.safetensors" in str(error.value)


def test_a_copy_made_while_another_thread_decodes_with_adapters_has_none_of_them(captioner: Captioner) -> None:
    lm = captioner.language_model
    with Mixture(lm, [adapters_of(lm, 1, rank=3)]).applied():
        copied = lm.with_weights(lm.weights)
    x = torch.randn(2, 4, lm.size)
    assert torch.equal(copied.logits(x), lm.logits(x))


def test_adapters_reach_the_projections_of_models_that_flatten_rows(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    lm = LanguageModel(LlamaForCausalLM(config), TokenizerStandIn(), "llama")  # type: ignore[arg-type]
    names = [name for name, _ in projections(lm)]
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert [len(adapters_of(lm, 1, 2, targets).names) for targets in ("attention", "mlp")] == [2 * 4, 2 * 3]
    adapters = adapters_of(lm, 1, rank=2)
    x = torch.randn(2, 5, 16)
    plain = lm.logits(x)
    with Mixture(lm, [None, adapters]).applied():
        mixed = lm.logits(x)
    assert torch.allclose(mixed[0], plain[0], atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-2)


def test_a_language_model_without_the_parts_that_adapters_are_wanted_for_is_named(tiny_lm: LanguageModel) -> None:
    lm = tiny_lm.with_weights(tiny_lm.weights)
    blocks: Any = lm.model.transformer
    for block in blocks.h:
        del block.attn
    with pytest.raises(ValueError, match=r"tiny-lm@\w+ has no projections of its attention for adapters; choose other"):
        Adapters.new(lm, 2, seed=0, targets="attention")
    assert Adapters.new(lm, 2, seed=0).targets == "mlp"


def test_a_mapper_alone_is_stored_as_it_always_was(tmp_path: Path) -> None:
    save_mapper(MapperCheckpoint(a_mapper(0), "e", "l"), tmp_path / "mapper.safetensors")
    with safe_open(tmp_path / "mapper.safetensors", framework="pt") as stored:
        assert sorted(stored.keys()) == ["hidden.bias", "hidden.weight", "out.bias", "out.weight"]
        header = json.loads(stored.metadata()["clipcap"])
    assert list(header) == ["format", "config", "encoder", "language_model", "notes", "sha256"]
    assert header["format"] == "clipcap-mapper-1"


def test_a_model_knows_what_it_takes_and_what_is_tied_takes_it_once(captioner: Captioner) -> None:
    lm, mapper = captioner.language_model, a_mapper(0)
    alone = ClipCaptionModel(mapper).bytes
    assert alone == 4 * sum(weights.numel() for weights in mapper.parameters())
    own = lm.with_weights(lm.weights)
    assert ClipCaptionModel(mapper, own).bytes == alone + 4 * lm.model.num_parameters()
    assert own.model.get_output_embeddings().weight is own.model.get_input_embeddings().weight
    assert own.model.get_input_embeddings().weight is not lm.model.get_input_embeddings().weight
    assert not any(weights.requires_grad for weights in own.model.parameters())


def test_a_copy_leaves_the_shared_language_model_as_it_is(captioner: Captioner) -> None:
    lm = captioner.language_model
    before = lm.fingerprint()
    model = captioner.adopt(checkpoint(lm, 5))
    assert model.language_model
    assert model.language_model.fingerprint() != before
    assert lm.fingerprint() == before


def test_weights_of_another_language_model_are_refused_by_name_with_a_remedy(
    captioner: Captioner, tmp_path: Path
) -> None:
    written = checkpoint(captioner.language_model, 1)
    more = {**written.weights, "transformer.h.2.ln_1.weight": torch.ones(32)}
    save_mapper(replace(written, weights=more), tmp_path / "larger.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"larger\.safetensors cannot be used.*h\.2\.ln_1\.weight should be absent and is \(32,\).*load the lang",
    ):
        captioner.load_model(tmp_path / "larger.safetensors")
    with pytest.raises(LanguageModelError, match=r"wte\.weight should be \(300, 32\) and is absent"):
        captioner.language_model.with_weights(
            {n: t for n, t in written.weights.items() if n != "transformer.wte.weight"}
        )


def test_language_model_weights_that_are_no_numbers_are_refused_by_tensor(captioner: Captioner, tmp_path: Path) -> None:
    written = checkpoint(captioner.language_model, 1)
    written.weights["transformer.h.0.ln_1.bias"][3] = float("nan")
    save_mapper(written, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0\.ln_1\.bias contains values that are not finite"):
        load_mapper(tmp_path / "nan.safetensors")


def test_a_file_with_parts_that_are_neither_mapper_nor_language_model_is_refused(
    captioner: Captioner, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    save_mapper(checkpoint(captioner.language_model, 1), path)
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        header = json.loads(stored.metadata()["clipcap"])
    save_tensors(tensors | {"optimizer.step": torch.ones(1)}, path, header)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors contains optimizer\.step"):
        load_mapper(path)


def test_a_header_that_calls_it_a_mapper_alone_is_refused(captioner: Captioner, tmp_path: Path) -> None:
    save_mapper(checkpoint(captioner.language_model, 1), tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="does not match its own config"):
        load_mapper(header_changed(tmp_path / "own.safetensors", format="clipcap-mapper-1"))


@pytest.mark.parametrize("name", ["mlp_k10_d512", "transformer_k10_d512"])
def test_beside_any_gpt2_of_that_shape_the_authors_checkpoints_give_their_tokens(name: str) -> None:
    expected = json.loads((ORIGINAL / name / "expected.json").read_text())
    stored = read_original(ORIGINAL / name / "coco_prefix-009.pt")
    config = GPT2Config(**json.loads((ORIGINAL / name / "gpt2_config.json").read_text()))
    torch.manual_seed(7)
    base = LanguageModel(GPT2LMHeadModel(config), TokenizerStandIn(), "loaded")  # type: ignore[arg-type]
    assert not base.has(stored.weights)
    lm = base.with_weights(stored.weights)
    assert lm.has(stored.weights)
    prefixes = torch.from_numpy(np.load(ORIGINAL / name / "expected.npz")["prefix"])
    length = len(expected["greedy"][0].split())
    options = DecodingOptions("beam", captions=5, max_length=length)
    beam = decode(EagerBackend(lm), list(prefixes), options, [-1] * len(prefixes))
    assert [[" ".join(map(str, h.tokens)) for h in hypotheses] for hypotheses in beam] == expected["beam5"]


def test_weights_that_differ_by_the_rounding_of_the_loaded_model_are_its_own(tiny_lm: LanguageModel) -> None:
    half = tiny_lm.with_weights(tiny_lm.weights)
    torch.nn.Module.to(half.model, torch.bfloat16)
    assert half.has(tiny_lm.weights)
    assert not tiny_lm.has(half.weights)
