"""The language model: any causal LM of Hugging Face, loaded from a folder, frozen."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTForCausalLM,
    PhiForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from clipcap.decoding import decode
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.language_model import LanguageModel, LanguageModelError
from clipcap.mapper import MapperConfig, build_mapper
from clipcap.options import DecodingOptions
from clipcap.training.loss import caption_loss

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def stored(model: PreTrainedModel, tiny_lm_dir: Path, folder: Path) -> str:
    """The source of a model that is stored in this folder, beside the tokenizer of the small one."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_lm_dir).save_pretrained(folder)
    return f"local-dir:{folder}"


def test_no_parameter_takes_a_gradient_and_the_mode_is_evaluation(tiny_lm: LanguageModel) -> None:
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())
    assert not any(module.training for module in tiny_lm.model.modules())


def test_any_text_survives_the_tokenizer(tiny_lm: LanguageModel) -> None:
    for text in ("A dog.", "naïve café", "犬が走る", "🐕 & ☃!!!"):
        assert tiny_lm.decode(tiny_lm.encode(text)) == text


def test_a_caption_that_spells_the_end_token_does_not_end_there(tiny_lm: LanguageModel) -> None:
    text = f"A sign says {tiny_lm.tokenizer.eos_token} in red."
    assert tiny_lm.end_id not in tiny_lm.encode(text)
    assert tiny_lm.decode(tiny_lm.encode(text)) == text


def test_a_text_ends_at_the_end_token_wherever_decoding_stopped(tiny_lm: LanguageModel) -> None:
    assert tiny_lm.decode([*tiny_lm.encode("A dog"), tiny_lm.end_id, *tiny_lm.encode(" and more.")]) == "A dog"


def test_another_architecture_of_the_auto_classes_trains_and_decodes(tiny_lm_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3))
    lm = LanguageModel.load(stored(model, tiny_lm_dir, tmp_path), device="cpu")
    mapper = build_mapper(MapperConfig("mlp", embedding_size=8, lm_size=lm.size, prefix_length=4))

    embeddings = torch.randn(2, 8)
    packed = caption_loss(mapper, lm, embeddings, [[[5, 6, 7], [8, 9]], [[10, 11]]], lm.end_id)
    rows = [(0, [5, 6, 7]), (0, [8, 9]), (1, [10, 11])]
    alone = [caption_loss(mapper, lm, embeddings[[i]], [[c]], lm.end_id) * (len(c) + 1) for i, c in rows]
    assert packed.item() == pytest.approx(sum(x.item() for x in alone) / 10, abs=1e-5)

    prefixes = [prefix.detach() for prefix in mapper(embeddings)]
    prefixes[1] = prefixes[1][:2]
    options = DecodingOptions("beam", captions=2, max_length=8)
    together = decode(EagerBackend(lm), prefixes, options, [0, 0])
    assert [[h.tokens for h in answers] for answers in together] == [
        [h.tokens for h in decode(EagerBackend(lm), [prefix], options, [0])[0]] for prefix in prefixes
    ]


@pytest.mark.parametrize(
    "build",
    [
        lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=300,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                attention_types=[[["global"], 2]],
                max_position_embeddings=64,
            )
        ),
        lambda: BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)),
    ],
    ids=["without fused attention", "without positions"],
)
def test_models_of_other_makes_write_in_a_batch_what_they_write_alone(
    build: Callable[[], PreTrainedModel], tiny_lm_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lm = LanguageModel.load(stored(build(), tiny_lm_dir, tmp_path), device="cpu")
    prefixes = list(torch.randn(2, 5, lm.size))
    options = DecodingOptions("beam", max_length=8)
    together = decode(EagerBackend(lm), prefixes, options, [299, 299])
    alone = [decode(EagerBackend(lm), [prefix], options, [299])[0] for prefix in prefixes]
    assert [[h.tokens for h in a] for a in together] == [[h.tokens for h in a] for a in alone]


@pytest.mark.parametrize(
    "build",
    [
        lambda: MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, state_size=8, num_hidden_layers=2)),
        lambda: RwkvForCausalLM(RwkvConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, context_length=64)),
        lambda: RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**SIZES | {"num_hidden_layers": 3, "lru_width": 32})),
        lambda: JambaForCausalLM(
            JambaConfig(**SIZES, num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False)
        ),
        lambda: BertLMHeadModel(BertConfig(**SIZES)),
    ],
    ids=["Mamba", "RWKV", "recurrent in part", "state space in part", "looks ahead"],
)
def test_a_model_that_cannot_be_decoded_as_it_reads_is_refused_when_it_is_loaded(
    build: Callable[[], PreTrainedModel], tiny_lm_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = stored(build(), tiny_lm_dir, tmp_path)
    with pytest.raises(LanguageModelError, match=r"cannot be decoded correctly: .*Choose one that attends"):
        LanguageModel.load(source, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "build", [LlamaForCausalLM, OPTForCausalLM, GPT2LMHeadModel, MixtralForCausalLM, PhiForCausalLM]
)
def test_models_that_attend_to_all_that_was_written_are_decoded_as_they_generate(
    build: Any, dtype: torch.dtype, tiny_lm: LanguageModel
) -> None:
    torch.manual_seed(0)
    model = build(build.config_class(**SIZES, initializer_range=0.1)).to(dtype)
    lm = LanguageModel(model, tiny_lm.tokenizer, "made here")
    assert lm.misreads() is None
    if dtype == torch.float32:
        text = torch.tensor([[5, 6, 7, 8]])
        own = model.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=6, do_sample=False)[0, 4:]
        (ours,) = decode(EagerBackend(lm), [lm.embed(text)[0]], DecodingOptions("greedy", max_length=6), [0])
        assert ours[0].tokens == tuple(own.tolist())


def test_a_model_without_an_opinion_is_not_refused(tiny_lm: LanguageModel) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    nn.init.zeros_(model.transformer.wte.weight)
    assert LanguageModel(model, tiny_lm.tokenizer, "silent").misreads() is None


def mistral(sliding_window: int | None) -> MistralForCausalLM:
    return MistralForCausalLM(MistralConfig(**SIZES, initializer_range=0.3, sliding_window=sliding_window))


@pytest.mark.parametrize(
    ("build", "packed"),
    [
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)), False),
        (lambda: MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=300, max_seq_len=64)), False),
        (lambda: mistral(sliding_window=16), False),
        (lambda: mistral(sliding_window=None), True),
    ],
    ids=["ALiBi, masks refused", "ALiBi", "sliding window", "rotary positions"],
)
def test_where_masks_are_not_heeded_each_caption_is_trained_in_a_row_of_its_own(
    build: Callable[[], PreTrainedModel], packed: bool, tiny_lm_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lm = LanguageModel.load(stored(build(), tiny_lm_dir, tmp_path), device="cpu")
    assert lm.heeds_masks == packed
    mapper = build_mapper(MapperConfig("mlp", embedding_size=8, lm_size=lm.size, prefix_length=4))
    embeddings = torch.randn(2, 8)
    captions = [[[5, 6, 7] * 7, [8, 9]], [[10, 11]]]

    def alone(embedding: Tensor, caption: list[int]) -> Tensor:
        x = torch.cat([mapper(embedding[None]), lm.embed(torch.tensor([caption]))], dim=1)
        target = torch.tensor([*caption, lm.end_id])
        return F.cross_entropy(lm.logits(x)[0, 3:], target, reduction="sum")

    sums = [alone(e, caption) for e, row in zip(embeddings, captions, strict=True) for caption in row]
    loss = caption_loss(mapper, lm, embeddings, captions, lm.end_id)
    assert loss.item() == pytest.approx(sum(x.item() for x in sums) / 28, abs=1e-5)


def test_the_identity_of_a_folder_follows_its_weights(tiny_lm_dir: Path, tmp_path: Path) -> None:
    first = LanguageModel.load(f"local-dir:{tiny_lm_dir}", device="cpu")
    with torch.no_grad():
        next(first.model.parameters()).add_(1)
    first.model.save_pretrained(tmp_path / tiny_lm_dir.name)
    first.tokenizer.save_pretrained(tmp_path / tiny_lm_dir.name)
    second = LanguageModel.load(f"local-dir:{tmp_path / tiny_lm_dir.name}", device="cpu")
    assert first.identity.split("@")[0] == second.identity.split("@")[0] == tiny_lm_dir.name
    assert first.identity != second.identity


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match="nowhere"):
        LanguageModel.load(f"local-dir:{tmp_path / 'nowhere'}")


def test_damaged_weights_are_an_error_that_says_so(tiny_lm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_lm_dir, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(LanguageModelError, match="cannot be loaded"):
        LanguageModel.load(f"local-dir:{tmp_path}")


def test_weights_that_lack_a_layer_are_refused_by_its_name(tiny_lm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_lm_dir, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    whole = load_file(weights)
    layer = [name for name in whole if "h.0." in name]
    save_file({name: tensor for name, tensor in whole.items() if name not in layer}, weights, {"format": "pt"})
    with pytest.raises(LanguageModelError, match=r"incomplete: its weights lack \S*h\.0\."):
        LanguageModel.load(f"local-dir:{tmp_path}")


def test_a_device_that_is_not_there_is_refused(tiny_lm_dir: Path) -> None:
    with pytest.raises(ValueError, match="device"):
        LanguageModel.load(f"local-dir:{tiny_lm_dir}", device="cuda:99")
