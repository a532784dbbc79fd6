"""`clipcap train` and `clipcap evaluate`: a style of one's own from a folder of photos, without a server."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipcap.checkpoint import load_mapper
from clipcap.cli import main
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.training.loss import caption_loss, validation_loss

COLOURS = ["red", "green", "blue", "white", "black", "orange", "purple", "grey", "brown", "pink"]


@pytest.fixture(scope="module")
def models(tiny_encoder_dir: Path, tiny_lm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, with no style yet."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "encoder").symlink_to(tiny_encoder_dir)
    (folder / "lm").symlink_to(tiny_lm_dir)
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Ten photos in one colour each, and a file that says which."""
    lines = []
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
        lines.append({"image": f"{colour}.png", "captions": [f"all {colour}", f"a {colour} wall"]})
    lines.append({"image": "red.png", "caption": "nothing but red"})
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_style_is_trained_and_evaluated_from_the_command_line(
    models: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    common = [str(captions), "--models", str(models), "--device", "cpu"]
    assert main(["train", *common, "--out", str(out), "--epochs", "2", "--validation", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "epoch 2: training loss" in said
    assert "mine.safetensors: trained on" in said
    stored = load_mapper(out)
    assert stored.encoder == Encoder.load(f"local-dir:{models / 'encoder'}", device="cpu").identity
    assert stored.language_model == LanguageModel.load(f"local-dir:{models / 'lm'}", device="cpu").identity
    assert stored.notes["captions"] == 21

    assert main(["evaluate", *common, "--mapper", str(out)]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["BLEU-4", "ROUGE-L", "CIDEr", "10"]
    assert "10 photos" in said
    assert main(["evaluate", *common, "--mapper", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["per_photo"]["CIDEr"]) == {str(tmp_path / f"{colour}.png") for colour in COLOURS}


@pytest.mark.parametrize("learning", ["adapters", "finetuned"])
def test_a_style_may_train_language_model_weights_too(
    learning: str, models: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    common = [str(captions), "--models", str(models), "--device", "cpu"]
    wanted = ["--language-model", learning, "--rank", "2", "--targets", "mlp", "--epochs", "1", "--validation", "0.3"]
    assert main(["train", *common, "--out", str(out), *wanted]) == 0
    stored = load_mapper(out)
    adapters = stored.adapters and (stored.adapters.rank, stored.adapters.targets)
    assert adapters == ((2, "mlp") if learning == "adapters" else None)
    assert bool(stored.weights) == (learning == "finetuned")
    assert main(["evaluate", *common, "--mapper", str(out)]) == 0
    assert "CIDEr" in capsys.readouterr().out


def test_a_training_that_is_stopped_goes_on_from_its_folder_to_the_same_bytes(
    models: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", str(captions), "--models", str(models), "--device", "cpu"]
    common += ["--epochs", "2", "--batch-size", "40"]
    assert main([*common, "--out", str(tmp_path / "straight.safetensors")]) == 0
    work = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "resumed.safetensors")]
    with monkeypatch.context() as patched:

        def interrupted(*arguments: Any, **options: Any) -> float:
            signal.raise_signal(signal.SIGINT)
            return validation_loss(*arguments, **options)

        patched.setattr("clipcap.training.steps.validation_loss", interrupted)
        assert main([*common, *work]) == 130
    assert "the same command continues from" in capsys.readouterr().err
    steps = []

    def counted(*arguments: Any, **options: Any) -> Any:
        steps.append(arguments)
        return caption_loss(*arguments, **options)

    monkeypatch.setattr("clipcap.training.steps.caption_loss", counted)
    assert main([*common, *work]) == 0
    assert len(steps) == 1, "of two epochs of one step each, the first was done already"
    straight, resumed = (load_mapper(tmp_path / f"{name}.safetensors").mapper for name in ("straight", "resumed"))
    assert all((a == b).all() for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        (None, [], "cannot be read (No such file or directory); check the path"),
        (b"", [], "contains no captions"),
        (b"\xff\xfe", [], "is not UTF-8"),
        (b"{", [], "line 1 is not valid JSON"),
        (b'{"image": "red.png"}', [], 'needs "image", a file name, and "caption", a text'),
        (b'["red.png"]', [], 'needs "image", a file name, and "caption", a text'),
        (
            b'{"image": "a.png", "caption": "a"}',
            [],
            "a.png does not exist; give the folder of the photos with --photos",
        ),
        (b'{"image": "bad.png", "caption": "a"}', [], "remove it from the captions"),
        (b'{"image": "red.png", "caption": "a"}', ["--start", "x"], "no styles in"),
        (b'{"image": "red.png", "caption": "a"}', ["--start", "x", "--scratch"], "cannot be used together"),
        (b'{"image": "red.png", "caption": "a"}', ["--threads", "0"], "--threads must be at least 1"),
        (b'{"image": "red.png", "caption": "a"}', ["--out", "x.pt"], "--out must end in .safetensors"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_cause_and_remedy(
    models: Path,
    tmp_path: Path,
    content: bytes | None,
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    path = tmp_path / "captions.jsonl"
    if content is not None:
        path.write_bytes(content)
    out = str(tmp_path / "mine.safetensors")
    assert main(["train", str(path), "--models", str(models), "--device", "cpu", "--out", out, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") <= 2
    assert not Path(out).exists()
