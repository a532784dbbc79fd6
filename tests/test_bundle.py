"""The embedded models, and the command that captions with them."""

import copy
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import original
from clipcap.captioner import Captioner
from clipcap.checkpoint import CheckpointError, MapperCheckpoint, load_mapper, save_mapper
from clipcap.cli import main
from clipcap.cli.models import BASE
from clipcap.decoding.rerank import find_reranker
from clipcap.encoder import Encoder
from clipcap.evaluation.metrics import evaluate
from clipcap.language_model import LanguageModel
from clipcap.mapper import MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "coco_cc"
STYLES = ["factual", "humorous", "romantic"]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner(
        Encoder.load(f"local-dir:{BASE / 'encoder'}", device="cpu"),
        LanguageModel.load(f"local-dir:{BASE / 'lm'}", device="cpu"),
    )


@pytest.fixture
def loaded(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, run in this process, finds the embedded models loaded already."""
    whole = Captioner(captioner.encoder, captioner.language_model, find_reranker(BASE / "reranking.json"))
    monkeypatch.setattr(Captioner, "load", lambda models, device: whole)


@pytest.fixture(scope="module")
def small(tiny_encoder_dir: Path, tiny_lm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that are quickly loaded, with a style that writes anything."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "encoder").symlink_to(tiny_encoder_dir)
    (folder / "lm").symlink_to(tiny_lm_dir)
    (folder / "styles").mkdir()
    config = MapperConfig("mlp", embedding_size=16, lm_size=32, prefix_length=2, hidden_size=4)
    save_mapper(MapperCheckpoint(build_mapper(config), None, None), folder / "styles" / "any.safetensors")
    return folder


@pytest.fixture(scope="module")
def mappers(captioner: Captioner) -> dict[str, ClipCaptionModel]:
    return {style: captioner.load_model(BASE / "styles" / f"{style}.safetensors") for style in STYLES}


def command(models: Path, *photos: str | Path) -> list[str]:
    """What `clipcap` is called with to caption photos."""
    return ["caption", "--method", "greedy", "--models", str(models), *map(str, photos)]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """What a command prints to a terminal of an encoding that refuses what it does not know."""

    def call(arguments: list[str], encoding: str) -> bytes:
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert main(arguments) == 0
        out.flush()
        return out.buffer.getvalue()

    return call


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return sorted(EXAMPLES.glob("*.jpg"))[::2]


@pytest.fixture(scope="module")
def embeddings(captioner: Captioner, photos: list[Path]) -> torch.Tensor:
    return captioner.encoder.encode(photos)


def test_the_bundle_fits_into_git() -> None:
    assert max(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 50_000_000
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) <= 130_000_000


def test_styles_mixed_in_one_batch_give_the_captions_of_each_alone(
    captioner: Captioner, mappers: dict[str, ClipCaptionModel], embeddings: torch.Tensor
) -> None:
    mixed = captioner.caption(embeddings[:6].repeat_interleave(3, 0), list(mappers.values()) * 6)
    for number, mapper in enumerate(mappers.values()):
        alone = captioner.caption(embeddings[:6], [mapper] * 6)
        assert [a[0].text for a in mixed[number::3]] == [a[0].text for a in alone]


def test_captions_of_unseen_photos_are_about_them(
    captioner: Captioner, mappers: dict[str, ClipCaptionModel], embeddings: torch.Tensor, photos: list[Path]
) -> None:
    rows = json.loads((EXAMPLES / "captions.json").read_text())
    people = {row["file"]: row["captions"] for row in rows if EXAMPLES / row["file"] in photos}
    texts = [a[0].text for a in captioner.caption(embeddings, [mappers["factual"]] * len(photos))]
    own = evaluate({p.name: t for p, t in zip(photos, texts, strict=True)}, people, java_metrics=False)
    shifted = texts[19:] + texts[:19]
    others = evaluate({p.name: t for p, t in zip(photos, shifted, strict=True)}, people, java_metrics=False)
    assert own.scores["CIDEr"] > 1.5 * others.scores["CIDEr"]
    assert all(text.endswith((".", "!", "?")) for text in texts)


def test_the_lm_of_the_bundle_knows_every_byte(captioner: Captioner) -> None:
    for text in ("Ein schöner Tag.", "犬が走る 🐕", "!!!"):
        assert captioner.language_model.decode(captioner.language_model.encode(text)) == text


def test_a_mapper_of_other_models_is_refused(captioner: Captioner) -> None:
    stored = load_mapper(BASE / "styles" / "factual.safetensors")
    other = type(stored)(stored.mapper, stored.encoder, "another@lm")
    with pytest.raises(CheckpointError, match="another@lm"):
        captioner.adopt(other)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "fine-tuned"])
def test_an_authors_mapper_speaks_to_the_gpt2_it_was_trained_with(
    trained: bool, captioner: Captioner, embeddings: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "original.pt"
    lm = captioner.language_model
    torch.manual_seed(0)
    mapper = build_mapper(MapperConfig("mlp", embedding_size=512, lm_size=320, prefix_length=2, hidden_size=4))
    names = {"hidden": "clip_project.model.0", "out": "clip_project.model.2"}
    state = {
        f"{names[name]}.{kind}": t for name, kind, t in ((*n.split("."), t) for n, t in mapper.state_dict().items())
    }
    theirs = copy.deepcopy(lm.model)
    if trained:
        with torch.no_grad():
            for weights in theirs.parameters():
                weights.add_(0.02 * torch.randn_like(weights))
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for n in range(lm.layers)}
    torch.save(state | {f"gpt.{name}": tensor for name, tensor in (theirs.state_dict() | masks).items()}, path)
    before = lm.fingerprint()
    model = captioner.load_model(path, normalize=False)
    assert (model.language_model is not None) == trained, "the loaded GPT-2 is shared where it is the same"
    found = captioner.caption(embeddings[:3], [model] * 3, DecodingOptions("greedy", max_length=12))
    stop = captioner.stop_id(mapper := model.mapper)
    for embedding, (caption,) in zip(embeddings, found, strict=False):
        prefix = mapper(embedding[None].to(lm.device))[0]
        assert caption.text == lm.decode(original.greedy(theirs, prefix, stop, 12))
    assert lm.fingerprint() == before


def test_a_mapper_stops_at_its_own_text(captioner: Captioner, mappers: dict[str, ClipCaptionModel]) -> None:
    assert captioner.stop_id(mappers["factual"].mapper) == captioner.language_model.end_id


def test_a_mapper_that_cannot_end_its_captions_with_this_lm_is_refused_when_it_is_loaded(captioner: Captioner) -> None:
    config = MapperConfig("mlp", embedding_size=512, lm_size=320, prefix_length=2, hidden_size=4, stop_text="the end")
    with pytest.raises(CheckpointError, match="the mapper stops at 'the end', which is 3 tokens"):
        captioner.adopt(MapperCheckpoint(build_mapper(config), None, None))


def test_a_mapper_without_a_gpt2_in_its_file_is_read_for_the_lm_that_is_loaded(
    captioner: Captioner, tmp_path: Path
) -> None:
    outputs = 3 * 1280  # 3 positions of GPT-2 large's size, 5 of GPT-2's own, 12 of this bundle's
    layers = {"0.weight": (4, 512), "0.bias": (4,), "2.weight": (outputs, 4), "2.bias": (outputs,)}
    path = tmp_path / "original.pt"
    torch.save({f"clip_project.model.{name}": torch.zeros(shape) for name, shape in layers.items()}, path)
    assert captioner.load_model(path).mapper.config.prefix_length == 12
    assert load_mapper(path, lm_size=1280).mapper.config.prefix_length == 3
    assert load_mapper(path).mapper.config.prefix_length == 5


@pytest.mark.usefixtures("loaded")
def test_the_command_prints_one_json_object_a_line_and_nothing_else(
    photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos[0]), str(photos[1]), "--json", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["image"], line["style"]) for line in lines] == [(str(p), s) for p in photos[:2] for s in STYLES]
    for line in lines:
        told = {"caption", "confidence", "log_probability", "unsure"}
        assert set(line) == {"image", "style", "alternatives", "mapper", "withheld"} | told
        assert all(set(other) == told for other in line["alternatives"])
        assert line["caption"]
        assert line["log_probability"] < 0
        assert 0 < line["confidence"] < 1
        assert len(line["alternatives"]) == 4
        assert line["mapper"].startswith(f"{line['style']}@")


@pytest.mark.usefixtures("loaded")
def test_the_command_names_a_bad_photo_and_captions_the_others(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    arguments = [str(photos[0]), str(tmp_path / "bad.jpg"), str(tmp_path / "missing.jpg"), str(photos[1])]
    assert main(["caption", *arguments, "--style", "factual", "--device", "cpu"]) == 1
    output = capsys.readouterr()
    assert output.out.count("factual") == 2
    assert "bad.jpg" in output.err
    assert "missing.jpg" in output.err


def test_a_photo_whose_name_is_no_text_is_captioned_like_any_other(
    photos: list[Path], small: Path, tmp_path: Path, said: Callable[..., bytes]
) -> None:
    odd = os.fsencode(tmp_path) + b"/odd\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(photos[0].read_bytes())
    call = command(small, os.fsdecode(odd), photos[1])
    first, second = (json.loads(line) for line in said([*call, "--json"], "utf-8").decode().splitlines())
    assert os.fsencode(first["image"]) == odd
    assert second["image"] == str(photos[1])
    assert b"odd\\udcff.jpg" in said(call, "utf-8")


def test_a_folder_means_its_photos_whatever_their_names_and_the_terminal(
    photos: list[Path],
    small: Path,
    tmp_path: Path,
    said: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a\u2028b.jfif", "c\u00e9.JPE"):
        (tmp_path / name).write_bytes(photos[0].read_bytes())
    (tmp_path / "notes.txt").write_text("not a photo")
    lines = [json.loads(line) for line in said(command(small, tmp_path, "--json"), "latin-1").decode().splitlines()]
    assert [line["image"] for line in lines] == [f"{tmp_path}/a\u2028b.jfif", f"{tmp_path}/c\u00e9.JPE"]
    (tmp_path / "empty").mkdir()
    assert main(command(small, tmp_path / "empty")) == 2
    assert "contains no photos" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error_to_speak_of(photos: list[Path], small: Path) -> None:
    call = [sys.executable, "-m", "clipcap", *command(small, *photos[:3])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 141


def test_forty_photos_draw_no_bar_where_there_is_no_terminal(
    photos: list[Path], small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(small, *photos[:20], *photos[:20]), "--json"]) == 0
    printed = capsys.readouterr()
    assert len([json.loads(line) for line in printed.out.splitlines()]) == 40
    assert re.fullmatch(r"(\d+ of 40 photos\n)*", printed.err)  # no bar where there is no terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "pirate"], "unknown style 'pirate'; the styles are factual, humorous, romantic"),
        (["--method", "greedy", "--beam-size", "3"], "beam_size"),
        (["--models", "nowhere"], "no styles in nowhere"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--max-length", "1000"], "max_length must be at most"),
        (["--captions", "0"], "captions must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    photos: list[Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos[0]), *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_captioning_is_the_same_whatever_the_method_returns_first(
    captioner: Captioner, mappers: dict[str, ClipCaptionModel], embeddings: torch.Tensor
) -> None:
    (single,) = captioner.caption(embeddings[:1], [mappers["factual"]], DecodingOptions("beam", captions=1))
    (several,) = captioner.caption(embeddings[:1], [mappers["factual"]], DecodingOptions("beam", captions=5))
    assert single[0] == several[0]
