"""The recipe of the encoder: what transformers makes of an ONNX file's weights, and open_clip of those it stores."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from clipcap.clip_folder import load_image_tower, read_config, save_image_tower, write_config
from recipes import encoder as recipe


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's (outputs, inputs) in 8 bits, and an (outputs,) scale."""
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


@pytest.fixture
def published(tmp_path: Path) -> tuple[CLIPVisionModelWithProjection, Path]:
    """A small model of transformers, and the ONNX file of it with its linear layers in 8 bits."""
    widths: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "projection_dim": 16}
    config = CLIPVisionConfig(
        **widths, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=16, hidden_act="quick_gelu"
    )
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    entries, nodes = [], []

    def store(name: str, tensor: Tensor) -> None:
        entries.append(numpy_helper.from_array(tensor.numpy(), name))

    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for number, (name, layer) in enumerate(layers.items()):
        integers, scale = rounded(layer.weight)
        layer.weight.copy_(integers * scale[:, None])
        stored = f"onnx::MatMul_{number}"
        store(f"{stored}_quantized", integers.T.contiguous())
        store(f"{stored}_scale", scale)
        entries.append(numpy_helper.from_array(np.array(0, np.int8), f"{stored}_zero_point"))
        place = f"/{name.replace('.', '/').replace('/layers/', '/layers.')}/MatMul_quant"
        nodes.append(helper.make_node("MatMulInteger", ["x", f"{stored}_quantized"], ["y"], name=place))
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in layers and "position_ids" not in name:
            store(name, tensor)
    onnx.save(helper.make_model(helper.make_graph(nodes, "tower", [], [], entries)), tmp_path / "tower.onnx")
    return model, tmp_path / "tower.onnx"


def test_the_stored_tower_is_the_published_one_and_a_text_tower_stays(
    published: tuple[CLIPVisionModelWithProjection, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = published
    folder = tmp_path / "encoder"
    text = {"context_length": 48, "vocab_size": 6144, "hf_tokenizer_name": "local"}
    write_config({"model_cfg": {"text_cfg": text}}, folder)
    monkeypatch.setattr(recipe, "LAYERS", 2)
    tower = recipe.image_tower(recipe.read_onnx(file))
    config = recipe.config_of(folder)
    save_image_tower(tower, folder)
    write_config(config, folder)

    stored = read_config(folder)
    assert (stored["identity"], stored["model_cfg"]["text_cfg"]) == ("ViT-B-16/openai", text)
    sizes = {"layers": 2, "width": 64, "image_size": 32, "patch_size": 16, "mlp_ratio": 1.5}
    stored["model_cfg"] |= {"embed_dim": 16, "vision_cfg": sizes}
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        ours = load_image_tower(folder, stored)(pixels)
        theirs = model(pixel_values=pixels).image_embeds
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_halving_happens_only_where_it_costs_nothing() -> None:
    assert recipe.as_small(torch.tensor([0.5, -3.0])).dtype == torch.float16
    assert recipe.as_small(torch.tensor([0.1])).dtype == torch.float32
    assert recipe.as_small(torch.tensor([1e9])).dtype == torch.float32
