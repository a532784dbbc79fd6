"""The encoder against open_clip itself, and what it says when a model cannot be loaded."""

import dataclasses
import io
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn

from clipcap.encoder import Encoder, EncoderError
from clipcap.fingerprint import file_sha256
from clipcap.image import ImageError, open_image

LEVEL = 1 / 255 / 0.26  # one step of an 8-bit value after normalisation


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Gradients, shapes and some noise: edges and texture at any size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 80 * np.sin(x / width * a + y / height * b) for a, b in rng.uniform(2, 12, (3, 2))]
    image = Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for left, top, size, *colour in rng.uniform(0, 1, (12, 6)):
        box = (left * width, top * height, (left + size / 3) * width, (top + size / 3) * height)
        draw.ellipse(box, fill=(int(colour[0] * 255), int(colour[1] * 255), int(colour[2] * 255)))
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b).min())


def pooling_encoder(**preprocessing: Any) -> Encoder:
    """An encoder for input of any shape; its embedding is the mean colour."""
    tower = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Encoder(tower, PreprocessCfg(**preprocessing), "pooling", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_dir: Path) -> Encoder:
    return Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu", dtype="float32")


@pytest.fixture
def broken_dir(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder for a test to damage."""
    return Path(shutil.copytree(tiny_encoder_dir, tmp_path / "broken"))


def test_an_encoder_knows_what_it_is(encoder: Encoder, tiny_encoder_dir: Path) -> None:
    digest = file_sha256(tiny_encoder_dir / "open_clip_model.safetensors")
    assert encoder.identity == f"tiny-clip@{digest[:16]}"
    assert (encoder.embedding_size, encoder.device, encoder.dtype) == (16, torch.device("cpu"), torch.float32)


def test_only_the_frozen_image_tower_is_kept(encoder: Encoder) -> None:
    assert not encoder.tower.training
    assert not any(parameter.requires_grad for parameter in encoder.tower.parameters())
    assert not any("token_embedding" in name or "logit_scale" in name for name in encoder.tower.state_dict())


def test_embeddings_are_those_of_open_clip(encoder: Encoder, tiny_encoder_dir: Path) -> None:
    clip = open_clip.create_model(f"local-dir:{tiny_encoder_dir}", require_pretrained=True).eval()
    transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip)), is_train=False)
    photos = [picture(400, 300), picture(301, 447, seed=1), picture(224, 224, seed=2), picture(90, 120, seed=3)]
    with torch.inference_mode():
        expected = clip.encode_image(torch.stack([transform(photo) for photo in photos]))
    got = encoder.encode([saved(photo, "PNG") for photo in photos])
    assert cosine(got, expected) > 0.9999
    torch.testing.assert_close(got.norm(dim=1), expected.norm(dim=1), rtol=1e-3, atol=0)  # not normalised


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(400, 300), (301, 447), (30, 20), (2000, 10), (10, 1500)])
def test_preprocessing_is_open_clips(resize_mode: str, interpolation: str, size: tuple[int, int]) -> None:
    encoder = pooling_encoder(size=112, resize_mode=resize_mode, interpolation=interpolation, fill_color=9)
    photo = picture(*size)
    difference = encoder.preprocess(photo) - image_transform_v2(encoder.preprocessing, is_train=False)(photo)
    # Pillow rounds between its two passes and chooses their order by the size of the output, which is smaller here.
    assert difference.abs().max() < 8 * LEVEL
    assert difference.abs().mean() < 0.3 * LEVEL


@pytest.mark.parametrize("size", [(112, 56), (56, 112)])
def test_preprocessing_is_open_clips_for_input_that_is_not_square(size: tuple[int, int]) -> None:
    encoder = pooling_encoder(size=size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    for photo in (picture(200, 161), picture(150, 203)):
        difference = encoder.preprocess(photo) - image_transform_v2(encoder.preprocessing, is_train=False)(photo)
        assert difference.abs().max() < 8 * LEVEL


@pytest.mark.parametrize(("kind", "read_height"), [("JPEG", 675), ("BMP", 450)])
def test_a_big_photo_keeps_its_embedding_though_read_smaller(encoder: Encoder, kind: str, read_height: int) -> None:
    data = saved(picture(600, 450).resize((1800, 1350)), kind)
    transform = image_transform_v2(encoder.preprocessing, is_train=False)
    expected = encoder.encode_pixels(transform(Image.open(io.BytesIO(data)))[None])
    assert open_image(data, min_side=448).height == read_height
    assert cosine(encoder.encode([data]), expected) > 0.995


@given(st.integers(1, 900), st.integers(1, 900), st.integers(4, 300), st.sampled_from(["JPEG", "PNG"]))
def test_a_picture_is_never_read_smaller_than_needed(width: int, height: int, min_side: int, kind: str) -> None:
    got = open_image(saved(Image.new("L", (width, height), 77), kind), min_side=min_side)
    assert min(got.size) >= min(min_side, width, height)
    assert min(got.size) < 4 * min_side or got.size == (width, height)
    assert math.isclose(got.width / got.height, width / height, rel_tol=1 / min(got.size))
    assert abs(np.asarray(got).astype(int) - 77).max() <= 2  # no band was left out


def test_every_kind_of_source_gives_the_same_embedding(encoder: Encoder, tmp_path: Path) -> None:
    photo = picture(300, 260)
    data = saved(photo, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    rows = encoder.encode([data, path, str(path), photo])
    assert (rows == rows[0]).all()


def test_a_picture_given_open_is_left_as_it_was(encoder: Encoder) -> None:
    with Image.open(io.BytesIO(saved(Image.new("L", (1800, 1350)), "JPEG"))) as image:
        encoder.preprocess(image)
        assert (image.size, image.mode) == ((1800, 1350), "L")


def test_an_embedding_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    photos = [picture(250, 240, seed) for seed in range(5)]
    alone = torch.cat([encoder.encode([photo]) for photo in photos])
    for batch_size in (2, 5):
        torch.testing.assert_close(encoder.encode(photos, batch_size), alone, rtol=1e-4, atol=1e-5)


def test_no_pictures_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 16)


def test_embeddings_are_float32_whatever_the_precision_of_the_model(encoder: Encoder, tiny_encoder_dir: Path) -> None:
    half = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu", dtype="bfloat16")
    photos = [picture(250, 240, seed) for seed in range(3)]
    got = half.encode(photos)
    assert (half.dtype, got.dtype, got.device.type) == (torch.bfloat16, torch.float32, "cpu")
    assert cosine(got, encoder.encode(photos)) > 0.995


def test_an_error_names_the_picture_it_is_about(encoder: Encoder) -> None:
    good = saved(picture(20, 20), "PNG")
    with pytest.raises(ImageError) as caught:
        encoder.encode([good, good, good, b"no picture"], batch_size=2)
    assert (caught.value.index, caught.value.code) == (3, "not_an_image")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.index, again.code, str(again)) == (3, "not_an_image", str(caught.value))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (65_000, 1)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_a_picture_of_any_shape_has_an_embedding(encoder: Encoder, size: tuple[int, int], resize_mode: str) -> None:
    preprocessing = dataclasses.replace(encoder.preprocessing, resize_mode=resize_mode)
    other = Encoder(encoder.tower, preprocessing, "other", encoder.device, encoder.dtype)
    row = other.encode([saved(Image.new("RGB", size, (200, 30, 60)), "PNG")])
    assert row.shape == (1, 16)
    assert row.isfinite().all()


@pytest.fixture
def named_model(tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model among open_clip's published ones, under two tags that differ in the activation they ask for."""
    config = json.loads((tiny_encoder_dir / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-named.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-named.json")
    tag = {"file": str(tiny_encoder_dir / "open_clip_model.safetensors"), "mean": (0.5, 0.5, 0.5)}
    tags = {"plain": tag, "quick": tag | {"quick_gelu": True}, "openai": tag}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-named", tags)
    return "tiny-named"


def test_a_published_model_is_loaded_by_name_and_tag(encoder: Encoder, named_model: str) -> None:
    plain = Encoder.load(f"{named_model}/plain", device="cpu", dtype="float32")
    assert plain.identity == "tiny-named/plain"
    assert plain.preprocessing.mean == (0.5, 0.5, 0.5)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert plain.encode_pixels(pixels).equal(encoder.encode_pixels(pixels))


def test_a_model_of_the_hub_is_loaded_by_its_owner_and_name(
    encoder: Encoder, tiny_encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--someone--tiny"  # as the hub's library lays out what it has fetched
    shutil.copytree(tiny_encoder_dir, cached / "snapshots" / "1234")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1234")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    fetched = Encoder.load("hf-hub:someone/tiny", device="cpu", dtype="float32")
    assert fetched.identity == "hf-hub:someone/tiny"
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert fetched.encode_pixels(pixels).equal(encoder.encode_pixels(pixels))
    with pytest.raises(EncoderError, match=r"'hf-hub:someone/other' cannot be loaded.*check the network"):
        Encoder.load("hf-hub:someone/other", device="cpu")


def test_a_published_model_embeds_texts_by_its_own_tower_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
    }
    (tmp_path / "tiny-reader.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-reader.json")
    torch.manual_seed(0)
    clip = open_clip.create_model("tiny-reader").eval()
    save_file(clip.state_dict(), tmp_path / "weights.safetensors")
    tags = {"openai": {"file": str(tmp_path / "weights.safetensors")}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-reader", tags)
    encoder = Encoder.load("tiny-reader", device="cpu")
    assert encoder.text_identity == "tiny-reader/openai"
    texts = ["a dog", "A DOG", "two people on a beach", ""]
    with torch.inference_mode():
        expected = clip.encode_text(open_clip.get_tokenizer("tiny-reader")(texts))
    torch.testing.assert_close(encoder.encode_text(texts, batch_size=3), expected)


def test_a_text_tower_that_is_there_for_the_form_is_none(encoder: Encoder) -> None:
    assert encoder.text_identity is None
    with pytest.raises(EncoderError, match=r"tiny-clip@.* has no text tower.*such as ViT-B-32/openai"):
        encoder.encode_text(["a dog"])


def test_a_name_alone_means_the_weights_of_openai(named_model: str) -> None:
    assert Encoder.load(named_model, device="cpu").identity == "tiny-named/openai"


def test_weights_trained_with_quick_gelu_get_it(encoder: Encoder, named_model: str) -> None:
    quick = Encoder.load(f"{named_model}/quick", device="cpu", dtype="float32")
    clip = open_clip.create_model(named_model, "quick", force_quick_gelu=True).eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert quick.encode_pixels(pixels).equal(clip.encode_image(pixels))
    assert not quick.encode_pixels(pixels).equal(encoder.encode_pixels(pixels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23/openai", "did you mean ViT-B-32"),
        ("vit-b-32/openai", "did you mean ViT-B-32"),
        ("coca_ViT-B-32", "does not say which weights to load; write coca_ViT-B-32/TAG with one of: laion2b"),
        ("ViT-B-32/opnai", "no pretrained weights 'opnai'; write ViT-B-32/TAG with one of: openai"),
        ("zzzzzz", "'zzzzzz' is not a model of open_clip .an encoder is named"),
        ("", "is not a model of open_clip"),
        ("local-dir:/no/such/folder", "'/no/such/folder' cannot be used: it does not exist"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        Encoder.load(name, device="cpu")


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(broken_dir: Path, missing: str) -> None:
    (broken_dir / missing).unlink()
    with pytest.raises(EncoderError, match=f"it has no {missing}"):
        Encoder.load(f"local-dir:{broken_dir}", device="cpu")


@pytest.mark.parametrize("length", [0, 5, 300, 20_000, -1])
def test_truncated_weights_are_refused(broken_dir: Path, length: int) -> None:
    weights = broken_dir / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(EncoderError, match="files are damaged"):
        Encoder.load(f"local-dir:{broken_dir}", device="cpu")


@pytest.mark.parametrize("config", ["", "{}", "[]", '{"model_cfg": {}}', '{"model_cfg": {"embed_dim": 24}}'])
def test_a_config_that_does_not_fit_the_weights_is_refused(broken_dir: Path, config: str) -> None:
    (broken_dir / "open_clip_config.json").write_text(config)
    with pytest.raises(EncoderError, match=r"copy (the complete folder|all of them) again"):
        Encoder.load(f"local-dir:{broken_dir}", device="cpu")


def test_weights_of_another_size_are_refused(broken_dir: Path) -> None:
    path = broken_dir / "open_clip_config.json"
    path.write_text(path.read_text().replace('"embed_dim": 16', '"embed_dim": 24'))
    with pytest.raises(EncoderError, match="size mismatch"):
        Encoder.load(f"local-dir:{broken_dir}", device="cpu")


def test_without_a_network_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match=r"downloaded on first use: check the network.*local-dir:PATH"):
        Encoder.load("ViT-B-32/openai", device="cpu")


def test_an_unusable_device_or_precision_is_refused(tiny_encoder_dir: Path) -> None:
    with pytest.raises(ValueError, match="'abacus'"):
        Encoder.load(f"local-dir:{tiny_encoder_dir}", device="abacus")
    with pytest.raises(ValueError, match="'float7'"):
        Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu", dtype="float7")
