"""Captions that are too long for the language model are reported when they are imported."""

import json
from pathlib import Path
from typing import Any

import pytest

from captioner.inference.engine import CaptionEngine
from captioner.models import MapperVersion, Style
from tests.dataset_files import json_lines, packed, picture, pictures
from tests.importing import queued, reasons, run_command
from training.lengths import too_long
from training.models import Import
from training.worker import TrainingEngine

pytestmark = pytest.mark.django_db(transaction=True)

HINDI = Path(__file__).parent / "data/datasets/hindi.jsonl"


def test_a_caption_may_fill_what_the_prefix_leaves(style: Style) -> None:
    problem = too_long(style, str.encode, 100)  # a byte is a number, too
    assert problem("x" * 90) == ""
    assert problem("x" * 91) == (
        "the caption has 91 tokens, and the language model has room for 90 after a prefix of 10; shorten it"
    )


def test_the_prefix_is_that_of_the_version_in_service(styles: dict[str, Style]) -> None:
    MapperVersion.objects.update(config={"kind": "mlp", "prefix_length": 40})
    problem = too_long(styles["factual"], str.encode, 100)
    assert problem("x" * 60) == ""
    assert "after a prefix of 40" in problem("x" * 61)


def test_the_command_reports_captions_that_are_too_long(style: Style, tmp_path: Path) -> None:
    names = [json.loads(line)["image"] for line in HINDI.read_text(encoding="utf-8").splitlines()]
    archive = tmp_path / "hindi.zip"
    archive.write_bytes(packed({"hindi.jsonl": HINDI.read_bytes()} | dict.fromkeys(names, picture(1))))
    said = run_command("plain", str(archive))
    assert "50 rows: 0 new examples, 0 already present, 50 rejected" in said
    assert "tokens, and the language model has room for 118 after a prefix of 10" in said


def test_the_worker_reports_captions_that_are_too_long(style: Style, engine: CaptionEngine) -> None:
    files = {"a.jsonl": json_lines([("1.jpg", "\u0916" * 60), ("1.jpg", "short enough")])}
    batch = queued(style, packed(files | pictures(["1.jpg"])))
    assert TrainingEngine(engine).work() == 1
    assert list(style.examples.values_list("text", flat=True)) == ["short enough"]
    ((line, reason),) = reasons(batch)
    assert line == 1
    assert "shorten it" in reason


def test_without_a_tokenizer_everything_is_imported(style: Style, tmp_path: Path, settings: Any) -> None:
    settings.LANGUAGE_MODEL = f"local-dir:{tmp_path / 'none'}"
    archive = tmp_path / "set.zip"
    archive.write_bytes(packed({"a.jsonl": json_lines([("1.jpg", "\u0916 " * 100)])} | pictures(["1.jpg"])))
    assert "1 new examples" in run_command("plain", str(archive))
    assert Import.objects.get().rejected.count() == 0
