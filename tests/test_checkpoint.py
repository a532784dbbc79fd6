"""Mapper files: whole or refused, ours and the authors'."""

import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from clipcap.checkpoint import (
    CheckpointError,
    MapperCheckpoint,
    load_mapper,
    read_original,
    save_mapper,
)
from clipcap.decoding import decode
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.options import DecodingOptions

ORIGINAL = Path(__file__).parent / "data" / "original"
SMALL = MapperConfig("transformer", embedding_size=8, lm_size=16, prefix_length=3, clip_length=2, layers=2, heads=4)


def written(folder: Path, config: MapperConfig = SMALL, **notes: object) -> tuple[Path, Mapper]:
    mapper = build_mapper(config)
    save_mapper(MapperCheckpoint(mapper, "encoder@1", "lm@1", notes), folder / "mapper.safetensors")
    return folder / "mapper.safetensors", mapper


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        MapperConfig("mlp", embedding_size=8, lm_size=16, prefix_length=5, normalize=True),
        MapperConfig("mlp", embedding_size=8, lm_size=16, hidden_size=7, stop_text="."),
    ],
)
def test_a_mapper_comes_back_from_its_file_with_config_identities_and_notes(
    config: MapperConfig, tmp_path: Path
) -> None:
    path, mapper = written(tmp_path, config, cider=0.5)
    back = load_mapper(path)
    embeddings = torch.randn(3, 8)
    assert torch.equal(back.mapper(embeddings), mapper(embeddings))
    assert (back.mapper.config, back.encoder, back.language_model) == (config, "encoder@1", "lm@1")
    assert back.notes == {"cider": 0.5}


def test_a_file_comes_back_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    mapper = written(tmp_path)[1]
    lengths = set()
    for extra in range(0, 264, 8):  # headers are padded to eight bytes
        save_mapper(MapperCheckpoint(mapper, None, None, {"origin": "x" * extra}), tmp_path / "mapper.safetensors")
        lengths.add((tmp_path / "mapper.safetensors").read_bytes()[0])
        assert load_mapper(tmp_path / "mapper.safetensors").notes == {"origin": "x" * extra}
    assert 0x80 in lengths  # which is how a pickle begins


def test_half_precision_files_are_half_as_large_and_close(tmp_path: Path) -> None:
    path, mapper = written(tmp_path)
    half = tmp_path / "half.safetensors"
    save_mapper(MapperCheckpoint(mapper, None, None), half, dtype=torch.float16)
    embeddings = torch.randn(3, 8)
    assert half.stat().st_size < 0.7 * path.stat().st_size
    assert torch.allclose(load_mapper(half).mapper(embeddings), mapper(embeddings), atol=0.02)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["cut", "flip", "zero", "insert"]))
def test_a_damaged_file_is_refused_whatever_the_damage(
    seed: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path, mapper = written(folder)
    rng, whole = random.Random(seed), path.read_bytes()
    place = rng.randrange(len(whole))
    if kind == "cut":
        damaged = whole[:place]
    elif kind == "flip":
        damaged = whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]
    elif kind == "zero":
        damaged = whole[:place] + bytes(min(64, len(whole) - place)) + whole[place + 64 :]
    else:
        damaged = whole[:place] + rng.randbytes(5) + whole[place:]
    path.write_bytes(damaged)
    try:
        back = load_mapper(path)
    except CheckpointError:
        return
    # The damage hit a blank, or notes and identities, which nothing can tell from what was meant.
    assert all(torch.equal(a, b) for a, b in zip(back.mapper.parameters(), mapper.parameters(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10" + bytes(7) + b"{"])
)
def test_a_foreign_file_is_refused(content: bytes, start: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("foreign") / "file.pt"
    path.write_bytes(start + content)
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        load_mapper(path)


def test_a_missing_file_and_a_folder_are_refused_by_path(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_mapper(path)


def test_safetensors_of_something_else_are_distinguished_from_damage(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a mapper"):
        load_mapper(tmp_path / "other.safetensors")


def header_changed(path: Path, **changes: object) -> Path:
    """The same file with another header."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8 : 8 + length])
    outer["__metadata__"]["clipcap"] = json.dumps(json.loads(outer["__metadata__"]["clipcap"]) | changes)
    header = json.dumps(outer).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    return path


def test_a_config_that_does_not_match_the_weights_is_refused_by_tensor(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    config = {"kind": "transformer", "embedding_size": 8, "lm_size": 16, "prefix_length": 4, "clip_length": 2}
    with pytest.raises(CheckpointError, match="does not match its own config"):
        load_mapper(header_changed(path, config=config | {"layers": 2, "heads": 4}))


def test_a_header_that_asks_for_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    config = {"kind": "mlp", "embedding_size": 10**6, "lm_size": 10**6, "prefix_length": 1, "hidden_size": 10**6}
    with pytest.raises(CheckpointError, match="does not match its own config"):
        load_mapper(header_changed(path, config=config))


@pytest.mark.parametrize(
    "oddity",
    [
        {"prefix_length": 4.0},
        {"prefix_length": True},
        {"embedding_size": 10**30},
        {"kind": "transformer", "layers": 20_000},
        {"kind": "transformer", "mlp_ratio": float("inf")},
        {"embedding_size": 2**24, "lm_size": 2**24, "prefix_length": 2**24, "hidden_size": 2**24},
        {"stop_text": 5},
    ],
)
def test_a_header_with_impossible_values_is_refused(oddity: dict[str, object], tmp_path: Path) -> None:
    path, mapper = written(tmp_path)
    with pytest.raises(CheckpointError):
        load_mapper(header_changed(path, config=vars(mapper.config) | oddity))


def test_tensors_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    for odd, message in (
        (torch.tensor(1.0), "damaged"),
        (torch.tensor([True]), "something other than weights"),
        (torch.tensor([1 + 1j]), "something other than weights"),
    ):
        save_file(tensors | {"odd": odd}, path, metadata)
        with pytest.raises(CheckpointError, match=message):
            load_mapper(path)


def test_a_pt_file_whose_tensors_are_larger_than_what_is_stored_is_refused(tmp_path: Path) -> None:
    torch.save({"clip_project.prefix_const": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "inflated.pt")
    with pytest.raises(CheckpointError, match="is malformed: clip_project"):
        load_mapper(tmp_path / "inflated.pt")


def test_a_file_of_a_later_format_says_so(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with pytest.raises(CheckpointError, match="clipcap-mapper-9"):
        load_mapper(header_changed(path, format="clipcap-mapper-9"))


def test_a_mapper_made_for_other_models_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = load_mapper(written(tmp_path)[0])
    fits = {"encoder": "encoder@1", "embedding_size": 8, "language_model": "lm@1", "lm_size": 16}
    checkpoint.check_fits(**fits)  # type: ignore[arg-type]
    for change, named in (
        ({"encoder": "encoder@2"}, "encoder@2"),
        ({"language_model": "lm@2"}, "lm@2"),
        ({"embedding_size": 9}, "size 8"),
        ({"lm_size": 17}, "size 16"),
    ):
        with pytest.raises(CheckpointError, match=named):
            checkpoint.check_fits(**(fits | change))  # type: ignore[arg-type]


def test_a_mapper_fits_its_models_in_a_folder_of_another_name(tmp_path: Path) -> None:
    checkpoint = load_mapper(written(tmp_path)[0])
    checkpoint.check_fits(encoder="renamed@1", embedding_size=8, language_model="copy@1", lm_size=16)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mapper = written(tmp_path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipcap.tensor_file.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_mapper(MapperCheckpoint(mapper, None, None), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class TokenizerStandIn:
    """The golden files hold token ids, so no text is ever encoded."""

    eos_token_id = 999


@pytest.mark.parametrize("name", ["mlp_k10_d512", "transformer_k10_d512"])
def test_the_authors_checkpoints_give_their_prefixes_logits_and_tokens(name: str) -> None:
    expected = json.loads((ORIGINAL / name / "expected.json").read_text())
    arrays = np.load(ORIGINAL / name / "expected.npz")
    stored = read_original(ORIGINAL / name / "coco_prefix-009.pt")
    heads = json.loads((ORIGINAL / name / "gpt2_config.json").read_text())["n_head"]
    lm = LanguageModel(stored.build_gpt2(heads=heads), TokenizerStandIn(), "golden")  # type: ignore[arg-type]

    prefixes = stored.mapper(torch.tensor(expected["clip_embeddings"]))
    assert torch.allclose(prefixes, torch.from_numpy(arrays["prefix"]), atol=1e-4)
    tokens = torch.tensor(expected["caption_tokens"])
    logits = lm.logits(torch.cat([prefixes, lm.embed(tokens)], dim=1))
    assert torch.allclose(logits, torch.from_numpy(arrays["logits"]), atol=1e-4)

    never, length = [-1] * len(prefixes), len(expected["greedy"][0].split())
    greedy = decode(EagerBackend(lm), list(prefixes), DecodingOptions("greedy", max_length=length), never)
    assert [" ".join(map(str, h[0].tokens)) for h in greedy] == expected["greedy"]
    beam = decode(EagerBackend(lm), list(prefixes), DecodingOptions("beam", captions=5, max_length=length), never)
    assert [[" ".join(map(str, h.tokens)) for h in hypotheses] for hypotheses in beam] == expected["beam5"]


def original_state(config: MapperConfig, layout: str = "transformer") -> dict[str, Tensor]:
    """A state dict as the authors' code would save it, of any size."""
    e, d, k, c = config.embedding_size, config.lm_size, config.prefix_length, config.clip_length
    if layout == "mlp":
        h = config.hidden_size or k * d // 2
        shapes: dict[str, tuple[int, ...]] = {"model.0.weight": (h, e), "model.0.bias": (h,)}
        shapes |= {"model.2.weight": (k * d, h), "model.2.bias": (k * d,)}
    else:
        m = int(d * config.mlp_ratio)
        shapes = {"prefix_const": (k, d), "linear.weight": (c * d, e), "linear.bias": (c * d,)}
        for n in range(config.layers):
            layer: dict[str, tuple[int, ...]] = {f"norm{i}.{w}": (d,) for i in (1, 2) for w in ("weight", "bias")}
            layer |= {"attn.to_queries.weight": (d, d), "attn.to_keys_values.weight": (2 * d, d)}
            layer |= {"attn.project.weight": (d, d), "attn.project.bias": (d,), "mlp.fc1.weight": (m, d)}
            layer |= {"mlp.fc1.bias": (m,), "mlp.fc2.weight": (d, m), "mlp.fc2.bias": (d,)}
            shapes |= {f"transformer.layers.{n}.{name}": shape for name, shape in layer.items()}
    return {f"clip_project.{name}": torch.randn(shape) for name, shape in shapes.items()}


def the_authors(kind: str) -> tuple[Path, Tensor, Tensor]:
    """A checkpoint of the authors' code, embeddings as the encoder gives them, of norm 8, and their prefixes."""
    folder = ORIGINAL / f"{kind}_k10_d512"
    embeddings = torch.tensor(json.loads((folder / "expected.json").read_text())["clip_embeddings"])
    prefixes = torch.from_numpy(np.load(folder / "expected.npz")["prefix"])
    return folder / "coco_prefix-009.pt", 8 * F.normalize(embeddings, dim=-1), prefixes


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_authors_mappers_take_embeddings_of_the_encoders_norm(
    kind: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path, embeddings, prefixes = the_authors(kind)
    stored = load_mapper(path)
    assert stored.mapper.config.normalize == (kind == "transformer")
    assert torch.allclose(stored.mapper(embeddings), prefixes, atol=1e-4)
    assert "does not record whether it was trained on embeddings" in caplog.text
    said = (
        f"embeddings {'normalized to unit length' if kind == 'transformer' else 'as the encoder gives them'} (guessed)"
    )
    assert said.removesuffix(" (guessed)") in caplog.text
    save_mapper(stored, tmp_path / "ours.safetensors")
    ours = load_mapper(tmp_path / "ours.safetensors")
    assert ours.described()["config"]["trained_on"] == said
    assert torch.allclose(ours.mapper(embeddings), prefixes, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("normalize", [True, False])
def test_whoever_knows_how_a_mapper_of_the_authors_was_trained_can_say_so(
    normalize: bool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, embeddings, _ = the_authors(kind)
    stored = load_mapper(path, normalize=normalize)
    assert stored.mapper.config.normalize == normalize
    assert torch.allclose(stored.mapper(embeddings), stored.mapper(3 * embeddings), atol=1e-4) == normalize
    assert stored.described()["config"]["trained_on"].endswith("(given)")
    assert not caplog.text


def test_a_file_that_says_how_its_mapper_was_trained_is_not_contradicted(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    assert not load_mapper(path, normalize=False).mapper.config.normalize
    with pytest.raises(CheckpointError, match="records that it was trained on embeddings as the encoder gives them"):
        load_mapper(path, normalize=True)


@pytest.mark.parametrize("front", ["", "module.", "model.", "model.module.", "_orig_mod."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_the_authors_weights_are_found_in_what_trainers_wrap_them(
    front: str, nested: str | None, tmp_path: Path
) -> None:
    path, embeddings, prefixes = the_authors("transformer")
    state: dict[str, Any] = {f"{front}{n}": t for n, t in torch.load(path, weights_only=True).items()}
    state["criterion.weight"] = torch.ones(3)
    if nested:
        optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
        state = {nested: state, "optimizer_states": [optimizer], "epoch": 9, "hyper_parameters": {"prefix_length": 10}}
    torch.save(state, tmp_path / "last.ckpt")
    back = load_mapper(tmp_path / "last.ckpt")
    assert torch.allclose(back.mapper(embeddings), prefixes, atol=1e-4)
    assert back.weights.keys() == load_mapper(path).weights.keys()


def test_of_several_networks_in_a_file_none_is_guessed(tmp_path: Path) -> None:
    state = torch.load(the_authors("transformer")[0], weights_only=True)
    for number, content in enumerate(
        ({"model": state, "ema": state}, state | {f"module.{name}": tensor for name, tensor in state.items()})
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(CheckpointError, match="holds 2 mapping networks"):
            load_mapper(tmp_path / f"{number}.pt")


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64), "text", [1.0]],
    ids=["sparse", "without data", "complex", "text", "list"],
)
def test_tensors_that_are_no_plain_weights_are_refused(tensor: object, tmp_path: Path) -> None:
    state = torch.load(the_authors("transformer")[0], weights_only=True)
    torch.save(state | {"clip_project.linear.bias": tensor}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        load_mapper(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "config",
    [
        MapperConfig("transformer", 640, 768, 40, normalize=True, clip_length=40, layers=1, stop_text="."),
        MapperConfig("transformer", 512, 64, 1, normalize=True, clip_length=3, layers=3, stop_text="."),
        MapperConfig("transformer", 512, 32, 7, True, clip_length=2, layers=11, mlp_ratio=4.0, stop_text="."),
        MapperConfig("mlp", 640, 768, prefix_length=4, hidden_size=1536, stop_text="."),
        MapperConfig("mlp", 512, 1024, prefix_length=5, hidden_size=99, stop_text="."),
    ],
)
def test_sizes_of_the_authors_format_are_inferred_from_shapes(config: MapperConfig, tmp_path: Path) -> None:
    torch.save(original_state(config, config.kind), tmp_path / "original.pt")
    back = load_mapper(tmp_path / "original.pt")
    assert back.mapper.config == config
    assert (back.encoder, back.language_model) == (None, None)
    assert back.mapper(torch.randn(2, config.embedding_size)).shape == (2, config.prefix_length, config.lm_size)


def test_what_the_authors_format_does_not_tell_can_be_given(tmp_path: Path) -> None:
    config = MapperConfig("transformer", 512, 36, prefix_length=2, clip_length=2, layers=1, heads=4)
    torch.save(original_state(config), tmp_path / "original.pt")
    stored = read_original(tmp_path / "original.pt", normalize=True, heads=4)
    assert (stored.mapper.config.normalize, stored.mapper.config.heads) == (True, 4)
    with pytest.raises(CheckpointError, match="heads"):
        read_original(tmp_path / "original.pt")
    with pytest.raises(CheckpointError, match="only a mapper"):
        stored.build_gpt2()


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"clip_project.linear.weight": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="not unpickled"):
        load_mapper(tmp_path / "hostile.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_that_is_larger_unpacked_is_refused_before_it_is(tmp_path: Path) -> None:
    torch.save({"clip_project.linear.weight": torch.zeros(4_000_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="is compressed"):
        load_mapper(tmp_path / "bomb.pt")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_mapper_with_weights_that_are_no_numbers_is_refused_by_tensor(number: float, tmp_path: Path) -> None:
    path, mapper = written(tmp_path)
    with torch.no_grad():
        mapper.first_layer.bias[0] = number
    save_mapper(MapperCheckpoint(mapper, None, None), path)
    with pytest.raises(CheckpointError, match=r"linear\.bias contains values that are not finite"):
        load_mapper(path)


def test_original_checkpoints_that_are_cut_short_or_lack_tensors_are_refused(tmp_path: Path) -> None:
    source = ORIGINAL / "transformer_k10_d512" / "coco_prefix-009.pt"
    whole = source.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    state = torch.load(source, weights_only=True)
    torch.save({n: t for n, t in state.items() if "layers.3.mlp.fc1" not in n}, tmp_path / "hole.pt")
    torch.save({n: t for n, t in state.items() if n.startswith("gpt.")}, tmp_path / "gpt2 only.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("cut.pt", "hole.pt", "gpt2 only.pt", "list.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_mapper(tmp_path / name)
    shutil.copy(source, tmp_path / "renamed.safetensors")
    assert load_mapper(tmp_path / "renamed.safetensors").mapper.config.prefix_length == 10
