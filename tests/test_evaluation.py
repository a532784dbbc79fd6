import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipcap.evaluation.metrics import Evaluation, commonest_phrase, evaluate

# Captions of COCO with their scores, computed by pycocoevalcap 1.2 after its own Java tokenizer.
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "coco_captions.json").read_text())
CANDIDATES: dict[str, str] = {i: image["candidate"] for i, image in GOLDEN["images"].items()}
REFERENCES: dict[str, list[str]] = {i: image["references"] for i, image in GOLDEN["images"].items()}
PYTHON_METRICS = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}


def assert_golden(evaluation: Evaluation, metric: str) -> None:
    assert evaluation.scores[metric] == pytest.approx(GOLDEN["scores"][metric], abs=1e-9)
    for i, image in GOLDEN["images"].items():
        assert evaluation.per_item[metric][i] == pytest.approx(image["scores"][metric], abs=1e-9)


def java_that_runs(shell_command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{shell_command}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_bleu_rouge_and_cider_equal_the_scores_of_the_original_scorer(capfd: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(CANDIDATES, REFERENCES, java_metrics=False)
    assert set(evaluation.scores) == PYTHON_METRICS
    for metric in PYTHON_METRICS:
        assert_golden(evaluation, metric)
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs java")
def test_meteor_equals_the_score_of_the_original_scorer_and_is_0_for_a_caption_without_words() -> None:
    evaluation = evaluate({**CANDIDATES, "wordless": "!"}, {**REFERENCES, "wordless": ["a dog", "| ||| |", "."]})
    assert evaluation.per_item["METEOR"].pop("wordless") == 0
    for i, score in evaluation.per_item["METEOR"].items():
        assert score == pytest.approx(GOLDEN["images"][i]["scores"]["METEOR"], abs=1e-9)
    # The wordless caption takes nothing from precision, and two of some 1,300 words from recall.
    assert evaluation.scores["METEOR"] == pytest.approx(GOLDEN["scores"]["METEOR"], abs=1e-3)


def test_without_java_its_metrics_are_not_computed_and_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    evaluation = evaluate(CANDIDATES, REFERENCES)
    assert set(evaluation.scores) == set(evaluation.per_item) == PYTHON_METRICS
    assert set(evaluation.not_computed) == {"METEOR", "SPICE"}
    assert all("install a Java runtime" in reason for reason in evaluation.not_computed.values())


def test_a_java_that_dies_leaves_its_metrics_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java_that_runs("exit 1", tmp_path, monkeypatch)
    evaluation = evaluate({"a": "a dog"}, {"a": ["a dog"]})
    assert set(evaluation.scores) == PYTHON_METRICS
    assert "its Java program failed" in evaluation.not_computed["METEOR"]


def test_a_java_that_hangs_leaves_its_metrics_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java_that_runs("exec tail -f /dev/null", tmp_path, monkeypatch)
    evaluation = evaluate({"a": "a dog"}, {"a": ["a dog"]}, java_timeout_s=1)
    assert set(evaluation.scores) == PYTHON_METRICS
    assert "did not finish within 1 s" in evaluation.not_computed["METEOR"]


def test_no_java_is_started_if_its_metrics_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java_that_runs(f"touch {tmp_path}/started", tmp_path, monkeypatch)
    evaluation = evaluate({"a": "a dog"}, {"a": ["a dog"]}, java_metrics=False)
    assert set(evaluation.not_computed) == {"METEOR", "SPICE"}
    assert not (tmp_path / "started").exists()


def test_a_caption_without_words_scores_0_even_if_a_reference_has_none() -> None:
    evaluation = evaluate(
        {"empty": "", "dots": "...", "dog": "a dog runs"},
        {"empty": ["a cat"], "dots": ["!", "a bird"], "dog": ["a dog runs"]},
        java_metrics=False,
    )
    for metric in PYTHON_METRICS:
        assert evaluation.per_item[metric]["empty"] == evaluation.per_item[metric]["dots"] == 0
    assert evaluation.scores["ROUGE_L"] == pytest.approx(1 / 3)


def test_the_order_of_the_images_makes_no_difference() -> None:
    backwards = evaluate(dict(reversed(CANDIDATES.items())), REFERENCES, java_metrics=False)
    assert backwards == evaluate(CANDIDATES, REFERENCES, java_metrics=False)


def test_length_and_distinctness_are_counted_in_words_whatever_their_case_and_punctuation() -> None:
    evaluation = evaluate(
        {"a": "A dog isn't here.", "b": "a dog is n't here", "c": "a cat", "d": ""},
        {i: ["a dog"] for i in "abcd"},
        java_metrics=False,
    )
    assert evaluation.mean_length == (5 + 5 + 2 + 0) / 4
    assert evaluation.distinct == 3 / 4
    assert evaluation.differs_from_factual is None


def test_captions_are_compared_with_the_factual_ones_of_the_same_images() -> None:
    evaluation = evaluate(
        {"a": "a dog", "b": "a cat in love"},
        {"a": ["a dog"], "b": ["a cat"]},
        factual={"a": "A dog .", "b": "a cat"},
        java_metrics=False,
    )
    assert evaluation.differs_from_factual == 1 / 2


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "there are no captions"),
        ({}, {"a": ["a dog"]}, "there are no captions"),
        ({"a": "a dog", "b": "a cat"}, {"a": ["a dog"]}, r"1 of the ids \(b\) .* not among the references"),
        ({"a": "a dog"}, {"a": ["a dog"], "b": ["a cat"]}, r"1 of the ids \(b\) .* have no caption"),
        ({"a": "a dog", "b": "a cat"}, {"a": ["a dog"], "b": []}, r"1 of the ids \(b\) have no reference"),
        ({"a": "a dog"}, {"a": ["...", ""]}, r"1 of the ids \(a\) have no reference with words"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_cause(
    candidates: dict[str, str], references: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(candidates, references, java_metrics=False)


def test_a_missing_factual_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="not among the factual captions"):
        evaluate({"a": "a dog"}, {"a": ["a dog"]}, factual={}, java_metrics=False)


def test_the_commonest_phrase_is_counted_once_a_caption_in_words() -> None:
    captions = ["A dog in search of bones.", "the Dog in search of, well", "in search of in search of", "a cat"]
    assert commonest_phrase(captions, words=3) == ("in search of", 3 / 4)
    assert commonest_phrase(captions) == ("a dog in search of", 1 / 4)


def test_captions_shorter_than_the_phrase_have_none() -> None:
    assert commonest_phrase(["a dog", ""]) == ("", 0)


def test_a_phrase_of_no_captions_is_refused() -> None:
    with pytest.raises(ValueError, match="no captions"):
        commonest_phrase([])


@given(st.lists(st.lists(st.sampled_from(["a", "dog", "runs"]), max_size=8).map(" ".join), min_size=1, max_size=6))
def test_no_phrase_is_commoner_than_the_commonest(captions: list[str]) -> None:
    phrase, share = commonest_phrase(captions, words=2)
    assert share == sum(phrase in caption for caption in captions) / len(captions) if phrase else share == 0
    for pair in ("a dog", "dog runs", "runs runs"):
        assert sum(f" {pair} " in f" {caption} " for caption in captions) / len(captions) <= share


@settings(max_examples=40)
@given(st.dictionaries(st.text(), st.tuples(st.text(), st.text().map("dog {}".format)), min_size=1, max_size=4))
def test_any_captions_get_finite_scores_of_0_or_more(captions: dict[str, tuple[str, str]]) -> None:
    evaluation = evaluate(
        {i: candidate for i, (candidate, _) in captions.items()},
        {i: [reference] for i, (_, reference) in captions.items()},
        java_metrics=False,
    )
    for metric in PYTHON_METRICS:
        assert set(evaluation.per_item[metric]) == set(captions)
        for score in [evaluation.scores[metric], *evaluation.per_item[metric].values()]:
            assert math.isfinite(score)
            assert score >= 0


def test_an_evaluation_can_be_written_as_json() -> None:
    evaluation = evaluate({"a": "a dog"}, {"a": ["a dog"]}, java_metrics=False)
    assert json.loads(json.dumps(dataclasses.asdict(evaluation)))["scores"] == evaluation.scores
