"""Fit what chooses among candidate captions, and what says how likely one is right, on photos of the dev sets.

    python -m recipes.reranking --data DATA --models models/base --work WORK [--keep-choice]

Candidates are written once and kept in WORK. The weights that choose are those with the highest expected reward when
candidates are drawn by the softmax of their scores (minimum risk, Smith and Eisner 2006). The reward is CIDEr, less
where a candidate names what is not there, says what many captions say or says a thing again; for the styles more where
it is classified as in style and where it is likelier. CIDEr itself hardly minds "a lamp, a desk and a lamp", which a
reader does, nor by the one caption there is of a photo in a style whether another makes sense: of 230 pairs a judge who
did not know which is which preferred the likelier caption in 69 %. What is likely is said often, so stock phrases cost.

A confidence has to order captions by how good they are, and to be the share that is right. So it is a score with two
halves, a ridge regression on the rank of a caption's CIDEr in its set, by what sets it apart from the others there, and
a logistic regression on whether it is right; a last logistic regression makes a probability of them.

Photos are seen as their files are, which is how a user's are; kept in WORK too.

What is printed was fitted on one half of the photos and measured on the other, both ways; what is stored was fitted on
all. The sets count alike, whatever their size, and so do the styles.
"""

import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer
from torch import Tensor
from torch.nn import functional as F

from clipcap.captioner import Captioner
from clipcap.decoding.rerank import FEATURES, OF_CAPTION, Candidate, Reranker, phrases_of, words_of
from clipcap.evaluation.calibration import calibration_bins, expected_calibration_error, rank_correlation
from clipcap.evaluation.objects import is_right, object_figures
from clipcap.evaluation.ptb_tokenizer import ptb_tokenize
from clipcap.evaluation.style_classifier import StyleClassifier
from clipcap.fingerprint import file_sha256
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from recipes.command import new_parser, parsed
from recipes.photos import STYLES, Photo, load_photos
from recipes.views import views_at_hand

SETS = ("flickr8k", "coco", "mixed")
# Samples at a low temperature are the better captions. Those at a high one, the last, are what all are compared with:
# they are many, since what most of them say is then less a matter of chance.
WAYS = (
    DecodingOptions("beam", captions=5, beam_size=5),
    DecodingOptions("nucleus", captions=4, temperature=0.6, top_p=0.9, seed=1),
    DecodingOptions("nucleus", captions=16, temperature=0.9, top_p=0.9, seed=2),
)
WRONG = 0.5  # what naming something that is not there costs, in CIDEr
CLASSIFIED = 0.3  # what being classified as in its style is worth
LIKELY = 1.0  # what a nat of the mean log-probability of its tokens is worth, in a style
STOCK = 50.0  # what a phrase costs that all captions of a style have, and none of people's
REPETITION = 4.0  # what repeated words cost, times their share
ORDER = 4.0  # how much more the order of captions counts in a confidence than the share that is right
PHRASE = 4  # words of a stock phrase: of five, "has started to feel underdressed" and "have started to feel" are two
USUAL = 0.003  # of a style's candidates more than of people's captions have a phrase that is a stock one
DIRECTIONS = 32  # of the space of photos, those in which they differ least
COMMON = 4  # a word that fewer captions have is taken to be as rare as one that none has
PHOTOS_AT_ONCE = 16
PHOTOS_A_SET = 400  # at most


@dataclass(frozen=True)
class Row:
    """A photo in one style: its candidates, FEATURES of each (C, F), and how good each is (C,)."""

    photo: Photo
    style: str
    candidates: list[Candidate]
    table: Tensor
    cider: Tensor
    right: Tensor
    classified: Tensor

    @property
    def group(self) -> tuple[str, str]:
        return self.style, self.photo.dev_set or ""

    @property
    def eligible(self) -> Tensor:
        """Those that may be taken: all whose flaws are the least."""
        flaws = torch.tensor([candidate.flaw for candidate in self.candidates])
        return flaws == flaws.min()


def write(
    captioner: Captioner, mappers: dict[str, ClipCaptionModel], photos: list[Photo]
) -> dict[str, list[list[Candidate]]]:
    """The candidates of each photo, by style."""
    found: dict[str, list[list[Candidate]]] = {style: [] for style in mappers}
    started = time.monotonic()
    for embeddings in _embeddings(photos).split(PHOTOS_AT_ONCE):
        rows = embeddings.repeat_interleave(len(mappers), dim=0)
        answers = iter(captioner.candidates(rows, [*mappers.values()] * len(embeddings), WAYS))
        for _ in embeddings:
            for style in mappers:
                found[style].append(next(answers))
        done = len(found["factual"])
        print(f"{done}/{len(photos)} photos written about, {time.monotonic() - started:.0f} s", flush=True)
    return found


def kept(path: Path, models: dict[str, Any]) -> dict[str, list[list[Candidate]]] | None:
    """What `write` found with these models, None where it has not or with others."""
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if stored.get("models") != models:
        return None
    return {s: [[Candidate(**c) for c in row] for row in rows] for s, rows in stored["candidates"].items()}


def unweighted(captioner: Captioner, learned: list[Photo], stock: dict[str, float]) -> Reranker:
    """What is known of candidates, by the photos and captions that were learned from; nothing is weighed yet."""
    seen = F.normalize(_embeddings(learned).double(), dim=1)
    captions = [c for photo in learned for manner, own in photo.captions.items() if manner != "web" for c in own]
    said = captioner.encoder.encode_text(random.Random(0).sample(captions, min(4000, len(captions))))
    variances, directions = torch.linalg.eigh(torch.cov((seen - seen.mean(0)).T))  # the smallest first
    containing = Counter(word for caption in captions for word in set(words_of(caption)))
    rarity = {word: round(math.log(len(captions) / n), 2) for word, n in containing.items() if n >= COMMON}
    return Reranker(
        encoder=captioner.encoder.identity,
        text=captioner.encoder.text_identity or "",
        language_model=captioner.language_model.identity,
        ways=WAYS,
        choice={},
        confidence={},
        intercept=0.0,
        photo_mean=seen.mean(0),
        text_mean=F.normalize(said.double(), dim=1).mean(0),
        whitening=(directions / variances.clamp(min=1e-9).sqrt()).T[:DIRECTIONS],
        rarity=dict(sorted(rarity.items())),
        stock=stock,
        notes={},
    )


def stock_phrases(
    photos: list[Photo], candidates: dict[str, list[list[Candidate]]], captions: dict[str, list[str]]
) -> dict[str, float]:
    """The words that candidates of a style often have in a row, and how much more often than captions of that style
    that were learned from: the difference of the shares that have them, in the set of photos where it is largest.

    Not of factual captions: like photos may be described alike.
    """
    found: dict[str, float] = {}
    for style in STYLES[1:]:
        learned = _shares(captions[style])
        for name in SETS:
            own = [c.text for p, row in zip(photos, candidates[style], strict=True) if p.dev_set == name for c in row]
            for phrase, share in _shares(own).items():
                if (more := round(share - learned.get(phrase, 0.0), 4)) >= USUAL:
                    found[phrase] = max(found.get(phrase, 0.0), more)
    return dict(sorted(found.items()))


def _shares(texts: list[str]) -> dict[str, float]:
    """In what share of the texts each phrase is."""
    counts = Counter(phrase for text in texts for phrase in set(phrases_of(text, PHRASE)))
    return {phrase: count / len(texts) for phrase, count in counts.items()}


def cider(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Tensor]:
    """CIDEr of every candidate of each photo, as if each were the one of its photo that is scored."""
    known = [[ptb_tokenize(text) for text in texts] for texts in references]
    frequencies = CiderScorer()
    for texts in known:
        frequencies += (None, texts)
    frequencies.compute_doc_freq()
    scorer = CiderScorer()
    for texts, own in zip(known, candidates, strict=True):
        for text in own:
            scorer += (ptb_tokenize(text), texts)
    # It counts the photo of each candidate: so it has to know that every sequence is in so many times as many photos.
    times = scorer.size() / len(known)
    scorer.document_frequency = defaultdict(
        lambda: times, {gram: times * count for gram, count in frequencies.document_frequency.items()}
    )
    scores = torch.tensor(scorer.compute_cider(), dtype=torch.float64)
    return list(scores.split([len(own) for own in candidates]))


def rows_of(
    reranker: Reranker,
    captioner: Captioner,
    photos: list[Photo],
    candidates: dict[str, list[list[Candidate]]],
    classifier: StyleClassifier,
) -> list[Row]:
    """All that is to be known of the candidates of each photo in each style that it has captions of."""
    rows = []
    for style, by_photo in candidates.items():
        texts = captioner.encoder.encode_text([c.text for own in by_photo for c in own])
        vectors = texts.split([len(own) for own in by_photo])
        for name in SETS:
            places = [i for i, p in enumerate(photos) if p.dev_set == name and p.references(style)]
            written = [[c.text for c in by_photo[i]] for i in places]
            scores = cider(written, [photos[i].references(style) for i in places]) if places else []
            for i, own, score in zip(places, written, scores, strict=True):
                photo = photos[i]
                facts = photo.references("factual")
                rows.append(
                    Row(
                        photo,
                        style,
                        by_photo[i],
                        reranker.features(torch.from_numpy(photo.embedding), by_photo[i], vectors[i]),
                        score,
                        torch.tensor([is_right(text, facts) for text in own], dtype=torch.float64),
                        torch.tensor([classifier.predict(text) == style for text in own], dtype=torch.float64),
                    )
                )
    return rows


def fit_choice(rows: list[Row]) -> dict[str, float]:
    """The weights that choose, of the features of a caption."""
    scale = torch.cat([row.table for row in rows])[:, : len(OF_CAPTION)].std(0).clamp(min=1e-9)
    longest = max(len(row.candidates) for row in rows)
    sizes = Counter(row.group for row in rows)

    def padded(values: list[Tensor], fill: float = 0.0) -> Tensor:
        return torch.stack([F.pad(v, (0, 0) * (v.ndim - 1) + (0, longest - len(v)), value=fill) for v in values])

    table = padded([row.table[:, : len(OF_CAPTION)] / scale for row in rows])  # (N, C, F)
    reward = padded(
        [
            row.cider
            - WRONG * (1 - row.right)
            - STOCK * row.table[:, FEATURES.index("stock")]
            - REPETITION * row.table[:, FEATURES.index("repetition")]
            + (_worth_in_style(row) if row.style != "factual" else 0)
            for row in rows
        ]
    )
    out = padded([(~row.eligible).double() for row in rows], fill=1.0).bool()
    share = torch.tensor([1 / sizes[row.group] for row in rows], dtype=torch.float64)
    share /= share.sum()
    weights = torch.ones(len(OF_CAPTION), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        drawn = (table @ weights).masked_fill(out, -torch.inf).softmax(1)
        found = 1e-3 * weights.square().mean() - share @ (drawn * reward).sum(1)
        found.backward()
        return found

    optimizer.step(loss)
    return {name: float(f"{w:.4g}") for name, w in zip(OF_CAPTION, (weights.detach() / scale).tolist(), strict=True)}


def _worth_in_style(row: Row) -> Tensor:
    return CLASSIFIED * row.classified + LIKELY * row.table[:, FEATURES.index("log_probability")]


def chosen(rows: list[Row], reranker: Reranker) -> list[int]:
    """The place of the candidate that is taken, row by row."""
    return [int(reranker.scores(row.table).masked_fill(~row.eligible, -torch.inf).argmax()) for row in rows]


def fit_confidence(rows: list[Row], reranker: Reranker) -> tuple[dict[str, float], float]:
    """The weights of a caption's confidence, and the intercept."""
    places = chosen(rows, reranker)
    table = torch.stack([row.table[place] for row, place in zip(rows, places, strict=True)])
    mean, scale = table.mean(0), table.std(0).clamp(min=1e-9)
    x = (table - mean) / scale
    right = torch.stack([row.right[place] for row, place in zip(rows, places, strict=True)])
    sizes = Counter(row.group for row in rows)
    share = torch.tensor([1 / sizes[row.group] for row in rows], dtype=torch.float64)
    share *= len(rows) / share.sum()
    rank, apart = torch.zeros(len(rows), dtype=torch.float64), x.clone()
    for group in sizes:
        own = torch.tensor([i for i, row in enumerate(rows) if row.group == group])
        values = torch.tensor([float(rows[i].cider[places[i]]) for i in own.tolist()])
        rank[own] = values.argsort().argsort().double() / len(own) - 0.5
        apart[own] -= x[own].mean(0)  # a rank within a set says nothing of how sets differ
    weighted = (apart * share[:, None]).T
    ridge = torch.linalg.solve(weighted @ apart + 10 * torch.eye(len(FEATURES), dtype=torch.float64), weighted @ rank)
    logistic = _logistic(x, right, share, 10.0)[:-1]
    direction = ORDER * ridge / (apart @ ridge).std() + logistic / (x @ logistic).std()
    slope, intercept = _logistic((x @ direction)[:, None], right, share, 0.0).tolist()
    weights = slope * direction / scale
    named = {name: float(f"{w:.4g}") for name, w in zip(FEATURES, weights.tolist(), strict=True)}
    return named, float(intercept - (weights * mean).sum())


def _logistic(x: Tensor, right: Tensor, share: Tensor, penalty: float) -> Tensor:
    """Weights of a logistic regression, the intercept last."""
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(x @ weights[:-1] + weights[-1], right, share, reduction="sum")
        found = found + penalty / 2 * weights[:-1].square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return weights.detach()


def fitted(rows: list[Row], start: Reranker) -> Reranker:
    """`start` with its weights; those that choose are fitted only where it has none."""
    reranker = start if start.choice else replace(start, choice=fit_choice(rows))
    confidence, intercept = fit_confidence(rows, reranker)
    return replace(reranker, confidence=confidence, intercept=intercept)


def figures(rows: list[Row], places: list[int], confidences: list[float] | None = None) -> dict[str, float]:
    """How good the candidates at `places` are, one of each row."""
    texts = [row.candidates[place].text for row, place in zip(rows, places, strict=True)]
    scores = [float(row.cider[place]) for row, place in zip(rows, places, strict=True)]
    objects = object_figures(texts, [row.photo.references("factual") for row in rows])
    found = {
        "CIDEr": fmean(scores),
        "wrong": objects.captions_wrong,
        "recall": objects.recall,
        "classified": fmean(float(row.classified[place]) for row, place in zip(rows, places, strict=True)),
        "distinct": len({ptb_tokenize(text) for text in texts}) / len(texts),
        "words": fmean(len(words_of(text)) for text in texts),
        "repetition": fmean(
            float(row.table[place, FEATURES.index("repetition")]) for row, place in zip(rows, places, strict=True)
        ),
        "phrase": max(Counter(phrase for text in texts for phrase in set(phrases_of(text, 5))).values()) / len(texts),
    }
    if confidences is not None:
        right = [bool(row.right[place]) for row, place in zip(rows, places, strict=True)]
        found["spearman"] = rank_correlation(confidences, scores)
        found["ece"] = expected_calibration_error(calibration_bins(confidences, right))
        found["confidence"] = fmean(confidences)
    return found


def compared(rows: list[Row], judges: list[tuple[list[Row], Reranker]]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by group: of the beam's first, of what is chosen by each of `judges` among its rows, and of the best."""
    place_of: dict[int, int] = {}
    confidence_of: dict[int, float] = {}
    for own, reranker in judges:
        for row, place in zip(own, chosen(own, reranker), strict=True):
            place_of[id(row)] = place
            confidence_of[id(row)] = float(reranker.confidences(row.table)[place])
    found = {}
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        found[" ".join(group)] = {
            "beam": figures(own, [0] * len(own)),
            "chosen": figures(own, [place_of[id(row)] for row in own], [confidence_of[id(row)] for row in own]),
            "best": figures(own, [int(row.cider.argmax()) for row in own]),
        }
    return found


def show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    for group, kinds in found.items():
        print(group)
        for kind, values in kinds.items():
            print(f"  {kind:<7}" + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))


def _embeddings(photos: list[Photo]) -> Tensor:
    return torch.stack([torch.from_numpy(photo.embedding).float() for photo in photos])


def main() -> None:
    parser = new_parser(
        __doc__, models="encoder/, lm/ and styles/; gets reranking.json", work="where candidates are kept"
    )
    parser.add_argument(
        "--keep-choice",
        action="store_true",
        help="fit only the confidence of what the weights of the models choose, as after a mapper was trained again",
    )
    arguments = parsed(parser)
    start = Reranker.load(arguments.models / "reranking.json") if arguments.keep_choice else None
    everything = load_photos(arguments.data)
    learned = [photo for photo in everything if not photo.dev_set]
    of_set = [[photo for photo in everything if photo.dev_set == name] for name in SETS]
    photos = [photo for own in of_set for photo in random.Random(0).sample(own, min(PHOTOS_A_SET, len(own)))]
    captioner = Captioner.load(arguments.models, device="cpu")
    views = views_at_hand(photos, captioner.encoder, arguments.work / "dev_views.pt")
    photos = [replace(p, embedding=views[p.name].numpy()) if p.name in views else p for p in photos]
    paths = {style: arguments.models / "styles" / f"{style}.safetensors" for style in STYLES}
    mappers = {style: captioner.load_model(path) for style, path in paths.items()}

    models: dict[str, Any] = {style: file_sha256(path) for style, path in paths.items()}
    models |= {"lm": captioner.language_model.identity, "ways": [asdict(way) for way in WAYS], "photos": len(photos)}
    models["views"] = sum(photo.name in views for photo in photos)
    path = arguments.work / "candidates.json"
    candidates = kept(path, models)
    if candidates is None:
        candidates = write(captioner, mappers, photos)
        stored = {style: [[asdict(c) for c in row] for row in rows] for style, rows in candidates.items()}
        path.write_text(json.dumps({"models": models, "candidates": stored}))
    manners = {"factual": ("people", "written"), **{style: (style,) for style in STYLES[1:]}}
    captions = {s: [c for p in learned for m in names for c in p.captions.get(m, [])] for s, names in manners.items()}
    classifier = StyleClassifier.fit(captions)
    if start is None:
        unweighted(captioner, learned, stock_phrases(photos, candidates, captions)).save(
            arguments.work / "unweighted.json"
        )
        start = Reranker.load(arguments.work / "unweighted.json")  # with the precision in which it will be used
    rows = rows_of(start, captioner, photos, candidates, classifier)

    names = sorted({photo.name for photo in photos})
    random.Random(0).shuffle(names)
    first = set(names[: len(names) // 2])
    halves = [[row for row in rows if (row.photo.name in first) == one] for one in (True, False)]
    held_out = compared(rows, [(halves[0], fitted(halves[1], start)), (halves[1], fitted(halves[0], start))])
    show(held_out)
    reranker = fitted(rows, start)
    print(json.dumps({"choice": reranker.choice, "confidence": reranker.confidence, "intercept": reranker.intercept}))
    notes = {
        "fitted on": dict(Counter(" ".join(row.group) for row in rows)),
        "held out": {
            group: {kind: {n: round(v, 4) for n, v in values.items()} for kind, values in kinds.items()}
            for group, kinds in held_out.items()
        },
    }
    replace(reranker, notes=notes).save(arguments.models / "reranking.json")


if __name__ == "__main__":
    main()
