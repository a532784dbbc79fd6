"""What the command says about how sure the models are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from clipcap.cli import main
from clipcap.options import UNSURE_BELOW


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return str(path)


def test_the_command_shows_how_likely_a_caption_is_right_and_which_are_unsure(
    models: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [picture, "--models", str(models), "--device", "cpu", "--max-length", "12"]
    assert main(["caption", *common, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["caption", *common]) == 0
    shown = capsys.readouterr().out
    for line in lines:
        assert 0 < line["confidence"] < 1
        assert line["unsure"] == (line["confidence"] < UNSURE_BELOW)
        assert f"({line['confidence']:.0%}{', unsure' if line['unsure'] else ''})" in shown
        assert line["log_probability"] < 0
        assert line["withheld"] is None
        assert all(0 < other["confidence"] < 1 for other in line["alternatives"])


def test_the_command_withholds_on_request_what_is_less_likely_right(
    models: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [picture, "--models", str(models), "--device", "cpu", "--max-length", "12", "--style", "plain"]
    assert main(["caption", *common, "--json", "--min-confidence", "1"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["caption"] == ""
    assert line["alternatives"] == []
    assert "is below 100%" in line["withheld"]["detail"]
    assert main(["caption", *common, "--min-confidence", "1"]) == 0
    assert "withheld" in capsys.readouterr().out
    assert main(["caption", *common, "--json", "--min-confidence", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-confidence", "1.5"], "--min-confidence must be from 0 to 1"),
        (["--min-confidence", "nan"], "--min-confidence must be from 0 to 1"),
        (["--min-confidence", "0.5", "--no-rerank"], "--min-confidence needs captions that have a confidence"),
        (["--min-confidence", "0.5", "--method", "greedy"], "--min-confidence needs captions that have a confidence"),
    ],
)
def test_the_command_says_what_it_cannot_judge(
    models: Path, picture: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", picture, "--models", str(models), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_without_reranking_shows_captions_without_a_confidence(
    models: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "caption",
                picture,
                "--models",
                str(models),
                "--device",
                "cpu",
                "--max-length",
                "12",
                "--no-rerank",
                "--json",
            ]
        )
        == 0
    )
    for line in capsys.readouterr().out.splitlines():
        assert json.loads(line)["confidence"] is None
        assert json.loads(line)["unsure"] is False
