"""CLIP models in folders of small files: the same numbers as open_clip, and what is said of files that are no good."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clipcap import clip_folder
from clipcap.clip_folder import (
    TEXT,
    ClipFolderError,
    image_files,
    load_image_tower,
    new_text_tower,
    read_config,
    save_image_tower,
    save_text_tower,
    write_config,
)
from clipcap.encoder import Encoder, EncoderError, encode_tokens
from clipcap.tensor_file import HEADER, save_tensors

CONFIG = {
    "identity": "ViT-B-16/openai",
    "model_cfg": {
        "embed_dim": 16,
        "custom_text": True,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 257,
            "hf_tokenizer_name": "local",
            "tokenizer_kwargs": {"clean": "lower"},
            "width": 16,
            "heads": 2,
            "layers": 2,
            "pool_type": "eos",
            "pad_id": 0,
            "eos_id": 0,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "interpolation": "bilinear"},
}
TEXTS = ["A dog.", "", "two red cars " * 9, "a  DOG."]


def rounded(weight: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """8-bit integers and their scales, one a row (side 1) or a column (side 0)."""
    scale = weight.abs().amax(side, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and token 0 behind each text."""
    end = "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({end: 0} | {letter: i for i, letter in enumerate(letters, 1)}, []))
    tokenizer.add_special_tokens([end])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, model_max_length=12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with both halves; its image tower is in four files."""
    folder = tmp_path_factory.mktemp("models") / "small"
    write_config(CONFIG, folder)
    torch.manual_seed(0)
    tower = open_clip.CustomTextCLIP(**{k: v for k, v in CONFIG["model_cfg"].items() if k != "custom_text"})  # type: ignore[attr-defined]
    state: dict[str, Tensor] = {}
    for name, tensor in tower.visual.state_dict().items():
        if tensor.ndim == 2 and "embedding" not in name:
            state[name], state[f"{name}.scale"] = rounded(tensor, 0 if name == "proj" else 1)
        else:
            state[name] = tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_folder, "LARGEST", 20_000)
        save_image_tower(state, folder)
    bytes_tokenizer().save_pretrained(folder)
    save_text_tower(new_text_tower(CONFIG), folder)
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """A copy for a test to damage."""
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def test_the_image_tower_is_open_clips_with_the_weights_of_its_files(whole: Path, tmp_path: Path) -> None:
    files = image_files(whole)
    assert [path.name for path in files][::3] == [f"open_clip_image-0000{n}-of-00004.safetensors" for n in (1, 4)]
    stored = {name: tensor for path in files for name, tensor in load_file(path).items()}
    state = {
        name: tensor * stored[f"{name}.scale"] if tensor.dtype == torch.int8 else tensor
        for name, tensor in stored.items()
        if not name.endswith(".scale")
    }
    clip = open_clip.CustomTextCLIP(**{k: v for k, v in CONFIG["model_cfg"].items() if k != "custom_text"})  # type: ignore[attr-defined]
    clip.visual.load_state_dict(state)
    pixels = torch.randn(3, 3, 64, 64)
    encoder = Encoder.load(f"local-dir:{whole}", device="cpu", dtype="float32")
    with torch.inference_mode():
        torch.testing.assert_close(encoder.encode_pixels(pixels), clip.visual(pixels))
    assert (encoder.preprocessing.size, encoder.preprocessing.mean) == ((64, 64), [0.5, 0.4, 0.3])
    assert encoder.preprocessing.interpolation == "bilinear"


def test_no_file_is_larger_than_asked_for_and_those_of_another_model_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_folder, "LARGEST", 1000)
    state = {f"layer.{n}": torch.zeros(100, dtype=torch.int8) for n in range(25)}
    save_image_tower(state, tmp_path)
    assert len(image_files(tmp_path)) == 3
    monkeypatch.setattr(clip_folder, "LARGEST", 1300)
    save_image_tower(state, tmp_path)
    assert [path.name[-14:-12] for path in image_files(tmp_path)] == ["02", "02"]


def test_a_text_has_the_embedding_of_the_tower_that_was_saved(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tower = new_text_tower(CONFIG).eval()
    folder = Path(shutil.copytree(whole, tmp_path / "saved"))
    save_text_tower(tower, folder)
    encoder = Encoder.load(f"local-dir:{folder}", device="cpu")
    with torch.inference_mode():
        expected = tower(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS))
    got = encoder.encode_text(TEXTS)
    assert torch.cosine_similarity(got, expected).min() > 0.999  # 8 bits a weight
    assert (got[0] == got[3]).all()  # the config asks for lower case and single blanks
    assert (got.shape, got.dtype) == ((4, 16), torch.float32)
    torch.testing.assert_close(torch.cat([encoder.encode_text([text]) for text in TEXTS]), got)
    torch.testing.assert_close(encoder.encode_text(TEXTS[::-1]), got.flip(0))
    assert encoder.encode_text([]).shape == (0, 16)


def test_what_is_behind_the_end_of_all_texts_is_left_out_without_a_difference(whole: Path) -> None:
    tower = new_text_tower(CONFIG)
    tokens = open_clip.get_tokenizer(f"local-dir:{whole}")(["ab", "abcd", ""])
    seen: list[int] = []
    tower.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    torch.testing.assert_close(encode_tokens(tower, tokens), tower(tokens))
    assert seen == [5, 12]


def test_the_identity_is_the_published_models_or_the_weights(whole: Path, broken: Path) -> None:
    assert Encoder.load(f"local-dir:{whole}", device="cpu").identity == "ViT-B-16/openai"
    config = read_config(broken)
    del config["identity"]
    write_config(config, broken)
    own = Encoder.load(f"local-dir:{broken}", device="cpu")
    assert own.identity.startswith("broken@")
    assert own.text_identity is not None
    assert own.text_identity.startswith("broken@")
    assert own.text_identity != own.identity
    state = load_image_tower(broken, config).state_dict()
    save_image_tower(state | {"proj": state["proj"] * 2}, broken)
    assert Encoder.load(f"local-dir:{broken}", device="cpu").identity != own.identity


def test_a_folder_without_a_text_tower_says_what_to_do(broken: Path) -> None:
    (broken / TEXT).unlink()
    encoder = Encoder.load(f"local-dir:{broken}", device="cpu")
    assert encoder.text_identity is None
    with pytest.raises(EncoderError, match=r"ViT-B-16/openai has no text tower.*load a CLIP model that has one"):
        encoder.encode_text(["a dog"])


def test_loading_says_nothing_and_asks_nobody(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Encoder.load(f"local-dir:{whole}", device="cpu").encode_text(["a dog"])
    assert caplog.records == []


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_tensors(tensors, path, {"format": clip_folder.FORMAT})


def file_with(name: str, folder: Path) -> Path:
    return next(path for path in image_files(folder) if name in load_file(path))


def refused(folder: Path) -> str:
    with pytest.raises(EncoderError) as caught:
        Encoder.load(f"local-dir:{folder}", device="cpu").encode_text(["a dog"])
    return str(caught.value)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_missing_file_is_named(broken: Path, number: int) -> None:
    path = image_files(broken)[number]
    path.unlink()
    assert f"{path} is missing; copy the complete folder again" in refused(broken)


def test_files_of_two_models_are_not_mixed(broken: Path) -> None:
    shutil.copy(image_files(broken)[0], broken / "open_clip_image-00001-of-00005.safetensors")
    assert "00001-of-00005.safetensors does not belong to open_clip_image-00001-of-00004" in refused(broken)
    (broken / "open_clip_image-00001-of-00005.safetensors").unlink()
    first, second, *_ = image_files(broken)
    shutil.copy(first, second)
    assert "as an earlier file does" in refused(broken)


@pytest.mark.parametrize("name", ["open_clip_image-00002-of-00004.safetensors", TEXT])
@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_a_file_cut_short_is_named(broken: Path, name: str, length: int) -> None:
    path = broken / name
    path.write_bytes(path.read_bytes()[:length])
    assert f"{path} is damaged or truncated" in refused(broken)


@pytest.mark.parametrize("name", ["open_clip_image-00002-of-00004.safetensors", TEXT])
def test_a_single_wrong_byte_is_noticed(broken: Path, name: str) -> None:
    path = broken / name
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert f"{path} is damaged: its tensors do not match their SHA-256" in refused(broken)


def test_weights_of_other_shapes_are_refused(broken: Path) -> None:
    last = file_with("proj", broken)
    before = last.read_bytes()
    rewritten(last, lambda tensors: tensors.update({"proj": tensors["proj"][:-1]}))
    assert "proj should be (32, 16) and is (31, 16)" in refused(broken)
    last.write_bytes(before)
    rewritten(last, lambda tensors: tensors.update({"more": torch.zeros(2)}))
    assert "more should be absent and is (2,)" in refused(broken)
    last.write_bytes(before)
    rewritten(broken / TEXT, lambda tensors: tensors.pop("ln_final.bias"))
    assert "ln_final.bias should be (16,) and is absent" in refused(broken)


@pytest.mark.parametrize("scale", [None, torch.ones(3, 1), torch.ones(16), torch.ones(1, 1, 1)])
def test_scales_that_do_not_fit_are_refused(broken: Path, scale: Tensor | None) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["proj.scale"]
        if scale is not None:
            tensors["proj.scale"] = scale

    rewritten(file_with("proj", broken), change)
    assert "so the 8-bit proj of shape (32, 16) cannot be read; write the tower again" in refused(broken)


def test_what_is_no_number_is_refused(broken: Path) -> None:
    rewritten(file_with("proj", broken), lambda tensors: tensors["proj.scale"].fill_(float("nan")))
    assert "proj contains values that are not finite" in refused(broken)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "was not written by this project"),
        ({HEADER: "no json"}, "was not written by this project"),
        ({HEADER: "[" * 100_000}, "was not written by this project"),
        ({HEADER: "[]"}, "was not written by this project"),
        ({HEADER: json.dumps({"format": "clipcap-clip-9", "sha256": ""})}, "has format 'clipcap-clip-9'"),
        ({HEADER: json.dumps({"format": clip_folder.FORMAT, "sha256": 5})}, "is damaged"),
    ],
)
def test_a_header_that_is_none_is_refused(broken: Path, metadata: dict[str, str], message: str) -> None:
    path = image_files(broken)[0]
    save_file(load_file(path), path, metadata)
    assert f"{path} {message}" in refused(broken)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(whole: Path, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "open_clip_image-00001-of-00001.safetensors"
    path.write_bytes(data)
    with pytest.raises(ClipFolderError, match=r"00001-of-00001\.safetensors"):
        load_image_tower(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "model",
    [
        None,
        [],
        {},
        {"vision_cfg": {"layers": "two"}},
        {"vision_cfg": {"width": -3}},
        {"vision_cfg": {"width": 10**30}},
        {"surprise": 1},
    ],
)
def test_a_config_that_describes_no_model_is_refused(broken: Path, model: object) -> None:
    whole_config = read_config(broken)
    changed = whole_config["model_cfg"] | model if isinstance(model, dict) and model else model
    write_config(whole_config | {"model_cfg": changed}, broken)
    assert "open_clip_config.json" in refused(broken)


@pytest.mark.parametrize(
    ("half", "entry"), [("text_cfg", {"hf_model_name": "roberta-base"}), ("vision_cfg", {"timm_model_name": "vit"})]
)
def test_a_tower_that_is_not_open_clips_own_is_refused(broken: Path, half: str, entry: dict[str, str]) -> None:
    config = read_config(broken)
    config["model_cfg"][half] |= entry
    write_config(config, broken)
    assert f"the {half} of open_clip_config.json describes no tower of open_clip's own" in refused(broken)


@pytest.mark.parametrize("identity", ["", " ", 5, ["ViT-B-16/openai"]])
def test_an_identity_that_is_no_name_is_refused(broken: Path, identity: object) -> None:
    write_config(read_config(broken) | {"identity": identity}, broken)
    assert "write the name of a published model" in refused(broken)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_no_good_is_explained(broken: Path, name: str) -> None:
    (broken / name).write_text("{")
    assert "check its text tower and tokenizer" in refused(broken)
