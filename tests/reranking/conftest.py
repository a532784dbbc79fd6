"""Small models of both halves with weights for choosing, and photos for them."""

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clipcap.captioner import Captioner
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.mapper import MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from tests.reranking.weights import SIZE, fitting


@pytest.fixture(scope="module")
def models(tiny_lm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models such as comes with the project: an encoder of two halves, a language model, two styles and
    weights for choosing."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "lm").symlink_to(tiny_lm_dir)
    encoder = folder / "encoder"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_lm_dir)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=40,
    ).save_pretrained(encoder)
    text = {"context_length": 40, "vocab_size": 300, "width": 16, "heads": 2, "layers": 2, "hf_tokenizer_name": "local"}
    config = {
        "embed_dim": SIZE,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": text | {"pool_type": "eos", "pad_id": 0, "eos_id": 0},
    }
    (encoder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{encoder}", load_weights=False)
    save_file(clip.state_dict(), encoder / "open_clip_model.safetensors")
    loaded = Captioner.load(folder, device="cpu")
    identities = loaded.encoder.identity, loaded.language_model.identity
    for number, style in enumerate(("plain", "odd")):
        torch.manual_seed(number)
        mapper = build_mapper(MapperConfig("mlp", SIZE, 32, prefix_length=3 + number))
        with torch.no_grad():
            mapper.out.weight.mul_(8)  # type: ignore[union-attr, operator]  # so that photos differ in their captions
        save_mapper(MapperCheckpoint(mapper, *identities), folder / "styles" / f"{style}.safetensors")
    fitting(loaded).save(folder / "reranking.json")
    return folder


@pytest.fixture(scope="module")
def captioner(models: Path) -> Captioner:
    return Captioner.load(models, device="cpu")


@pytest.fixture(scope="module")
def mappers(captioner: Captioner, models: Path) -> list[ClipCaptionModel]:
    return [captioner.load_model(path) for path in sorted((models / "styles").iterdir())]


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(5, SIZE, generator=torch.Generator().manual_seed(3))
