"""How good captions are: the field's metrics, computed by its own scorer, `pycocoevalcap`.

BLEU, ROUGE-L and CIDEr are always computed. METEOR and SPICE are Java programs that the package starts: they are
computed where Java works, and otherwise reported as not computed, with the reason. SPICE also needs the Stanford models
that `python -m pycocoevalcap.spice.get_stanford_models` downloads. The package asks for Java 8; METEOR runs on 17 too.
"""

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from clipcap.evaluation.ptb_tokenizer import ptb_tokenize
from clipcap.words import has_word

_JAVA_SCORERS = {"METEOR": ("pycocoevalcap.meteor.meteor", "Meteor"), "SPICE": ("pycocoevalcap.spice.spice", "Spice")}

# Runs one Java scorer. SPICE gives several scores for an image, of which the F-score of all its tuples is the metric.
# The scorers may print, so that only the last line is the result. After a failure the program ends at once, because
# METEOR's destructor would wait for a lock that its failed method still holds.
_SCORER_PROGRAM = """
import importlib, json, os, sys
references, candidates = json.load(sys.stdin)
module, scorer = sys.argv[1:]
try:
    score, scores = getattr(importlib.import_module(module), scorer)().compute_score(references, candidates)
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)
print()
print(json.dumps([float(score), [s["All"]["f"] if isinstance(s, dict) else s for s in scores]]))
"""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` finds.

    scores: of the whole set, by metric: "Bleu_1" to "Bleu_4", "ROUGE_L", "CIDEr", and "METEOR" and "SPICE" if computed.
        The best is 1, but for CIDEr, where it is 10.
    not_computed: why a metric is missing from `scores`, by metric.
    per_item: the metrics of each caption, by metric and image id.
    mean_length: words in a caption, on average.
    distinct: how many different captions there are, as a share of all.
    differs_from_factual: the share of the captions that differ from the factual caption of their image; None if there
        was none to compare.
    """

    scores: dict[str, float]
    not_computed: dict[str, str]
    per_item: dict[str, dict[str, float]]
    mean_length: float
    distinct: float
    differs_from_factual: float | None


def evaluate(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    factual: Mapping[str, str] | None = None,
    java_metrics: bool = True,
    java_timeout_s: float = 1800.0,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Compare the caption of each image with what people wrote about it.

    All captions are tokenized first, and two of them are the same if their words are. A caption without words scores 0.
    CIDEr weighs words by how rare they are among the references given here, so that it depends on the whole set, and is
    0 for a set of one.

    Args:
        candidates: the caption to judge, by image id.
        references: the captions to compare it with, by image id.
        factual: the captions in the factual style by image id, if a style is judged that should differ from it.
        java_metrics: whether to compute METEOR and SPICE too, which takes from seconds to minutes.
        java_timeout_s: how long each of the two may take, in seconds.
        check: called every second while they run; it may raise to end them.

    Raises:
        ValueError: there are no captions, the ids of the mappings differ, or an image has no reference with words.
    """
    _check_ids("references", candidates, references)
    if factual is not None:
        _check_ids("factual captions", candidates, factual)
    ids = sorted(candidates)  # the order in which SPICE returns its scores
    words = {i: _words(candidates[i]) for i in ids}
    candidate_lists = {i: [words[i]] for i in ids}
    reference_lists = {i: [_words(reference) for reference in references[i]] for i in ids}
    if unreferenced := [i for i in ids if not any(reference_lists[i])]:
        raise ValueError(f"{_some(unreferenced)} have no reference with words: give each at least one, or leave it out")

    scores: dict[str, float] = {}
    per_item: dict[str, dict[str, float]] = {}
    not_computed: dict[str, str] = {}

    def add(metric: str, score: float, item_scores: Sequence[float]) -> None:
        scores[metric] = float(score)
        per_item[metric] = {i: float(item_score) for i, item_score in zip(ids, item_scores, strict=True)}

    bleu, item_bleu = Bleu(4).compute_score(reference_lists, candidate_lists, verbose=0)
    for n in range(4):
        add(f"Bleu_{n + 1}", bleu[n], item_bleu[n])
    _, item_rouge = Rouge().compute_score(reference_lists, candidate_lists)
    # The scorer gives full marks to a caption without words that meets a reference without words.
    item_rouge = [score if words[i] else 0.0 for i, score in zip(ids, item_rouge, strict=True)]
    add("ROUGE_L", statistics.fmean(item_rouge), item_rouge)
    add("CIDEr", *Cider().compute_score(reference_lists, candidate_lists))

    for metric in _JAVA_SCORERS:
        if not java_metrics:
            not_computed[metric] = "the metrics that need Java were not asked for"
            continue
        try:
            add(metric, *_java_scores(metric, reference_lists, candidate_lists, java_timeout_s, check))
        except _NotComputedError as error:
            not_computed[metric] = str(error)

    return Evaluation(
        scores=scores,
        not_computed=not_computed,
        per_item=per_item,
        mean_length=statistics.fmean(len(caption.split()) for caption in words.values()),
        distinct=len(set(words.values())) / len(ids),
        differs_from_factual=(
            None if factual is None else statistics.fmean(_words(factual[i]) != words[i] for i in ids)
        ),
    )


def commonest_phrase(captions: Sequence[str], words: int = 5) -> tuple[str, float]:
    """The phrase of so many words that most captions contain, and the share of the captions that do.

    Of equally common phrases it is the first in the alphabet; "" and 0 where no caption is long enough.

    Raises:
        ValueError: there are no captions.
    """
    if not captions:
        raise ValueError("there are no captions to search")
    containing: Counter[str] = Counter()
    for caption in captions:
        tokens = _words(caption).split()
        containing.update({" ".join(tokens[i : i + words]) for i in range(len(tokens) - words + 1)})
    if not containing:
        return "", 0.0
    phrase = min(containing, key=lambda phrase: (-containing[phrase], phrase))
    return phrase, containing[phrase] / len(captions)


def _words(caption: str) -> str:
    """A caption's words, as the field tokenizes it; of scripts that its tokenizer drops, what blanks divide."""
    if words := ptb_tokenize(caption):
        return words
    return " ".join(unicodedata.normalize("NFKC", caption).lower().split()) if has_word(caption) else ""


def _check_ids(name: str, candidates: Collection[str], others: Collection[str]) -> None:
    if not candidates:
        raise ValueError("there are no captions to evaluate")
    if without_other := sorted(set(candidates) - set(others)):
        raise ValueError(f"{_some(without_other)} have a caption but are not among the {name}")
    if without_caption := sorted(set(others) - set(candidates)):
        raise ValueError(f"{_some(without_caption)} are among the {name} but have no caption")


def _some(ids: Sequence[str]) -> str:
    return f"{len(ids)} of the ids ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"


class _NotComputedError(Exception):
    """Says why a metric could not be computed."""


def _java_scores(
    metric: str,
    references: Mapping[str, list[str]],
    candidates: Mapping[str, list[str]],
    timeout_s: float,
    check: Callable[[], None],
) -> tuple[float, list[float]]:
    """The score of the set and of each caption, in the order of `candidates`.

    The scorer runs in a process group of its own, since the package waits for its Java programs without end, and does
    not stop them when it fails.
    """
    if shutil.which("java") is None:
        raise _NotComputedError("there is no `java` on the PATH: install a Java runtime")
    if metric == "SPICE" and not _spice_models_installed():
        raise _NotComputedError(
            "the Stanford models are not installed: run `python -m pycocoevalcap.spice.get_stanford_models`, "
            "which downloads them"
        )
    with subprocess.Popen(
        [sys.executable, "-c", _SCORER_PROGRAM, *_JAVA_SCORERS[metric]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as scorer:
        ends = time.monotonic() + timeout_s
        sent: str | None = json.dumps([references, candidates])
        try:
            while True:
                check()
                try:
                    output, errors = scorer.communicate(sent, max(0.0, min(1.0, ends - time.monotonic())))
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= ends:
                        raise _NotComputedError(f"its Java program did not finish within {timeout_s:g} s") from None
                    sent = None  # it is on its way; communicate goes on with it
        finally:
            with suppress(ProcessLookupError):
                os.killpg(scorer.pid, signal.SIGKILL)
    if scorer.returncode != 0:
        cause = errors.strip().splitlines()[-1:] or [f"exit status {scorer.returncode}"]
        raise _NotComputedError(f"its Java program failed ({cause[0]}): check with `java -version` that Java works")
    score, item_scores = json.loads(output.splitlines()[-1])
    return score, item_scores


def _spice_models_installed() -> bool:
    # Looked for here because the scorer would start to download them by itself, and wait for the network without end.
    package = importlib.util.find_spec("pycocoevalcap.spice")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "lib"
    return all((library / f"stanford-corenlp-3.6.0{part}.jar").is_file() for part in ("", "-models"))
