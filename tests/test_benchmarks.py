"""The benchmarks on tiny models: both sides answer the same, and the table comes out. How fast they are says nothing
here."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import fairness, loading, training
from benchmarks.__main__ import main
from benchmarks.comparisons import GROUPS, DisagreementError, ties_in_our_order
from benchmarks.measuring import compare, peak_memory
from benchmarks.subjects import QUICK, RandomGPT2
from clipcap.decoding import Hypothesis

ROOT = Path(__file__).parent.parent
TINY = dataclasses.replace(QUICK, batch=3, peer_greedy=3, peer_beam=3, pairs=1, photo=(640, 480))


@pytest.fixture
def small_models(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started take the small models."""
    monkeypatch.setenv("CLIPCAP_MODELS", str(small_bundle))


@pytest.fixture(scope="module")
def subject() -> RandomGPT2:
    return RandomGPT2(TINY, torch.device("cpu"))


@pytest.mark.parametrize("group", GROUPS)
def test_ours_and_the_original_agree_and_both_can_be_timed(subject: RandomGPT2, group: str) -> None:
    found = GROUPS[group](subject)
    found.check()
    for comparison in found.comparisons:
        assert compare(comparison, subject.sizes.pairs, subject.device).median > 0


def test_the_captions_that_are_compared_differ_from_picture_to_picture_and_never_end_early(
    subject: RandomGPT2,
) -> None:
    captions = GROUPS["greedy"](subject).comparisons[1].ours()
    assert isinstance(captions, list)
    tokens = [caption for (caption,) in captions]
    assert len(set(tokens)) == TINY.batch
    assert {len(caption) for caption in tokens} == {TINY.limit}
    assert all(len(set(caption)) > 1 for caption in tokens)


def test_hypotheses_may_change_places_only_where_their_scores_tie() -> None:
    ours = [Hypothesis((1, 2), -1.0), Hypothesis((3, 4), -2.0), Hypothesis((5, 6), -2.000001)]
    assert ties_in_our_order(ours, [[1, 2], [5, 6], [3, 4]]) == [[1, 2], [3, 4], [5, 6]]
    for other in ([[3, 4], [1, 2], [5, 6]], [[1, 2], [3, 4], [5, 7]]):
        assert ties_in_our_order(ours, other) == other


@pytest.mark.parametrize("group", ["greedy", "beam", "training"])
def test_a_disagreement_is_found(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = RandomGPT2(TINY, torch.device("cpu"))
    found = GROUPS[group](subject)
    answer = found.comparisons[0].ours()
    name, other = ("training_step", 0.5) if group == "training" else (group, [[0]] if group == "beam" else [0])
    monkeypatch.setattr(f"benchmarks.original.{name}", lambda *arguments: other)
    assert answer != other
    with pytest.raises(DisagreementError, match="original"):
        found.check()


def test_memory_counts_at_least_the_models_weights(subject: RandomGPT2) -> None:
    weights = sum(p.numel() * p.element_size() for p in subject.lm.model.parameters())
    assert peak_memory(subject, "greedy", 0, "ours") > weights


def test_the_command_prints_a_row_of_each_group_and_the_machine(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.subjects.BASE", small_bundle)
    assert main(["--quick", "--device", "cpu", "--only", "greedy", "images"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert "device cpu" in printed
    assert "greedy, batch 1 " in printed
    assert "JPEG to caption" in printed
    assert {line.split("  ")[0] for line in printed.splitlines() if "greedy" in line} >= {"tiny models", "models/base"}
    assert "training step," not in printed


def test_the_command_says_so_and_fails_where_the_two_disagree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.original.greedy", lambda *arguments: [1, 2, 3])
    assert main(["--quick", "--device", "cpu", "--only", "greedy"]) == 1
    printed = capsys.readouterr()
    assert "DISAGREE" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_a_wrong_number_of_threads_is_refused(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--threads={threads}"])
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.usefixtures("small_models")
def test_the_lists_of_a_large_installation_are_all_answered_and_timed(tables: Path, tmp_path: Path) -> None:
    database = shutil.copy(tables, tmp_path)
    command = [sys.executable, "-P", "-m", "benchmarks", "large", "--database", f"sqlite:///{database}"]
    command += ["--captions", "300", "--examples", "500"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "500 new, 0 rejected" in done.stdout
    assert " s  200 /admin/captioner/caption/\n" in done.stdout


def test_what_a_load_keeps_captions_waiting_for_is_told_as_ratios_of_a_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert loading.main(["--quick", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for what in ("while it is read", "that tries it out"):
        assert re.search(rf"^longest batch {what} +\d+\.\d\dx a batch's time", printed, re.MULTILINE)


@pytest.mark.usefixtures("small_models")
def test_the_memory_of_a_training_is_reported_phase_by_phase(
    tables: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{shutil.copy(tables, tmp_path)}"
    with patch.dict(os.environ):  # what is added is for its own processes
        assert training.main(["--photos", "60", "--database", database]) == 0
    printed = capfd.readouterr().out
    assert "60 photos with 5 captions each" in printed
    assert " MB now: tokenized, trained for 3 steps, and the state stored\n" in printed


@pytest.mark.usefixtures("small_models")
def test_the_benchmark_of_fairness_runs(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPCAP_DATABASE_URL", f"sqlite:///{shutil.copy(tables, tmp_path)}")
    fairness.main(["--queued", "150", "--single", "1"])
    printed = capsys.readouterr().out
    assert "ratio: " in printed
    assert re.search(r"\d+ captions canceled in one call: ", printed)
    assert re.search(r"[1-9]\d* captions canceled by one action of the admin: ", printed)
