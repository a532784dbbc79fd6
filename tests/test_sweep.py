"""The paper's experiments as commands: the sweep over mappers, and what a prefix says."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from captioner import uploads
from captioner.inference.engine import CaptionEngine
from captioner.models import Style
from training import services

COCO = Path(__file__).parent.parent / "examples" / "coco_cc"

pytestmark = pytest.mark.small_models


@pytest.fixture(autouse=True)
def loaded(engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands find their models loaded already."""
    monkeypatch.setattr(CaptionEngine, "load", lambda name: engine)


@pytest.fixture
def style(styles: dict[str, Style]) -> Style:
    """The factual style with the captions of two dozen photos."""
    for row in json.loads((COCO / "captions.json").read_text(encoding="utf-8"))[:24]:
        image = uploads.store((COCO / row["file"]).read_bytes())
        services.add_example(style=styles["factual"], image=image, text=row["captions"][0], source="imported")
    return styles["factual"]


def said(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


@pytest.mark.usefixtures("style")
def test_the_sweep_prints_and_draws_score_against_prefix_length_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "java"  # METEOR and SPICE are not drawn, and are not waited for
    java.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n", encoding="utf-8")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    plot = tmp_path / "sweep.svg"
    small = ("--prefix-lengths", "2", "4", "--layers", "1", "--epochs", "1")
    table = said("sweep", "factual", *small, "--plot", str(plot))
    rows = re.findall(r"^(\w+) +frozen +(\d+) +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+)$", table, re.MULTILINE)
    assert [row[:2] for row in rows] == [("transformer", "2"), ("transformer", "4"), ("mlp", "2"), ("mlp", "4")]
    parameters = [int(row[2].replace(",", "")) for row in rows]
    assert parameters[0] < parameters[1]
    assert parameters[2] < parameters[3]
    for name in ("sweep.svg", "sweep-parameters.svg", "sweep-seconds.svg"):
        drawing = (tmp_path / name).read_text(encoding="utf-8")
        assert drawing.count("<polyline") == 2
        assert drawing.count("<circle") == 4
        assert "mlp" in drawing
    assert not (tmp_path / "started").exists()


@pytest.mark.usefixtures("style")
def test_the_sweep_reproduces_the_papers_ablation_in_one_table_and_plot(tmp_path: Path) -> None:
    plot = tmp_path / "ablation.svg"
    ablation = ("--language-models", "frozen", "adapters", "finetuned", "--prefix-lengths", "2")
    table = said(
        "sweep",
        "factual",
        *ablation,
        "--layers",
        "1",
        "--epochs",
        "1",
        "--rank",
        "2",
        *("--targets", "attention"),
        "--plot",
        str(plot),
    )
    rows = re.findall(r"^(transformer|mlp) +(\w+) +2 +([\d,]+) +[\d.]+ +[\d.]+ +[\d.]+$", table, re.MULTILINE)
    variants = ["frozen", "adapters", "finetuned"]
    assert [row[:2] for row in rows] == [(kind, learning) for kind in ("transformer", "mlp") for learning in variants]
    for first in (0, 3):
        frozen, adapters, finetuned = (int(row[2].replace(",", "")) for row in rows[first : first + 3])
        assert frozen < adapters < finetuned
    drawing = (tmp_path / "ablation-parameters.svg").read_text(encoding="utf-8")
    assert drawing.count("<circle") == 6
    assert "mlp, finetuned" in drawing


@pytest.mark.usefixtures("style")
def test_prefixes_prints_the_nearest_words_and_how_far_the_photos_are_apart() -> None:
    photos = [str(path) for path in sorted(COCO.glob("*.jpg"))[:2]]
    text = said("prefixes", "factual", *photos, "--words", "2")
    assert len(re.findall(r"^ +\d+ +'.+' -?\d\.\d\d +'.+' -?\d\.\d\d$", text, re.MULTILINE)) == 8
    (distance,) = re.findall(r"prefixes: (\d\.\d+)", text)
    assert 0 < float(distance) < 1


@pytest.mark.usefixtures("styles")
def test_what_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no style 'sad'"):
        said("sweep", "sad")
    with pytest.raises(CommandError, match="image"):
        said("sweep", "factual")
    with pytest.raises(CommandError, match="is not a directory"):
        said("sweep", "factual", "--plot", "/nowhere/sweep.svg")
    with pytest.raises(CommandError, match="no such version"):
        said("prefixes", "factual", "a.jpg", "--number", "99")
    with pytest.raises(CommandError, match=r"gone\.jpg"):
        said("prefixes", "factual", "gone.jpg")
