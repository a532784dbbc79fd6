"""How good the embedded models are on pictures they were not trained on; the figures of the model card.

    python -m recipes.evaluate --data DATA --models models/base [--set coco] [--json FILE] [--show 20]

Captions are written as for a user, by the models of one folder with all that lies in it. Beside each figure of theirs
stands the one of people: for factual captions each of a photo's against its others, for the styles what their writers
wrote. Objects are always compared with the factual captions, since a joke too should be about what is there. Style is
judged by a naive Bayes classifier that is fitted on the training captions.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from clipcap.captioner import Caption, Captioner
from clipcap.encoder import Encoder
from clipcap.evaluation.calibration import Bin, calibration_bins, expected_calibration_error, rank_correlation
from clipcap.evaluation.child_in_love import child_in_love
from clipcap.evaluation.metrics import Evaluation, commonest_phrase, evaluate
from clipcap.evaluation.names import NAMES
from clipcap.evaluation.objects import is_right, object_figures, objects_named
from clipcap.evaluation.retrieval import recall_at
from clipcap.evaluation.style_classifier import StyleClassifier
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from clipcap.progress import ProgressBar
from recipes.photos import DEV_SETS, STYLES, Photo, load_photos

PHOTOS_AT_ONCE = 16
LABELS = {
    **NAMES,
    "captions_wrong": "captions that name what is not there (CHAIRs)",
    "objects_wrong": "objects named that are not there (CHAIRi)",
    "recall": "recall of objects",
    "classified": "classified as this style",
    "distinct": "distinct captions",
    "phrase_share": "captions with the commonest five words",
    "equals_factual": "equal to the factual caption",
    "child_in_love": "a child in the words of romantic love",
    "words": "words",
    "spearman": "confidence: Spearman with the caption's CIDEr",
    "calibration_error": "confidence: expected calibration error",
}


@dataclass(frozen=True)
class StyleReport:
    """What is found about one style on one set of photos.

    references: how many photos have captions of that style; 0 where the factual ones took their place.
    ours, people: figures by the names of `LABELS`; people's has those there are.
    phrase: the five words that most of our captions contain.
    bins: confidence and share of right captions; None where the captions have no confidence.
    captions: one for each photo, with all that was found about it.
    """

    style: str
    references: int
    ours: dict[str, float]
    people: dict[str, float]
    phrase: str
    bins: list[Bin] | None
    captions: list[dict[str, Any]]


def embed(encoder: Encoder, photos: Sequence[Photo], stored: bool) -> Tensor:
    """The embeddings of the photos, (N, E): by the encoder, or those that came with the data."""
    if stored:
        return torch.stack([torch.from_numpy(photo.embedding).float() for photo in photos])
    if missing := [photo.name for photo in photos if not photo.path.is_file()]:
        sys.exit(f"{len(missing)} pictures are not there ({missing[0]} …): --stored-embeddings does without them")
    embeddings = []
    with ProgressBar("picture", total=len(photos)) as progress:
        for first in range(0, len(photos), PHOTOS_AT_ONCE):
            part = photos[first : first + PHOTOS_AT_ONCE]
            embeddings.append(encoder.encode([photo.path for photo in part]))
            progress.advance(len(part))
    return torch.cat(embeddings)


def write(
    captioner: Captioner, mappers: Mapping[str, ClipCaptionModel], embeddings: Tensor, options: DecodingOptions
) -> dict[str, list[Caption]]:
    """The caption of each photo, by style; all styles of a photo are written in one batch, as for a user."""
    written: dict[str, list[Caption]] = {style: [] for style in mappers}
    with ProgressBar("captioned photo", total=len(embeddings)) as progress:
        for part in embeddings.split(PHOTOS_AT_ONCE):
            rows = part.repeat_interleave(len(mappers), dim=0)
            answers = iter(captioner.caption(rows, [*mappers.values()] * len(part), options))
            for _ in part:
                for style in mappers:
                    written[style].append(next(answers)[0])
            progress.advance(len(part))
    return written


def report(
    style: str,
    photos: Sequence[Photo],
    written: Mapping[str, Sequence[Caption]],
    classifier: StyleClassifier,
    java: bool,
) -> StyleReport:
    """Judge what was `written` in one style about the photos."""
    facts = {p.name: p.references("factual") for p in photos}
    own = {p.name: p.references(style) for p in photos if p.references(style)}
    caption_of = {p.name: c for p, c in zip(photos, written[style], strict=True)}
    factual = {p.name: c.text for p, c in zip(photos, written["factual"], strict=True)}
    texts = {name: caption.text for name, caption in caption_of.items()}

    judged = own or facts
    found = evaluate(
        {name: texts[name] for name in judged},
        judged,
        factual=None if style == "factual" else {name: factual[name] for name in judged},
        java_metrics=java,
    )
    ours = _figures(texts, found, facts, style, classifier)
    cider = found.per_item["CIDEr"]
    right = {name: is_right(texts[name], facts[name]) for name in texts}
    confidences = {n: c.confidence for n, c in caption_of.items() if c.confidence is not None}
    bins = None
    if len(confidences) == len(texts):
        bins = calibration_bins(list(confidences.values()), [right[name] for name in confidences])
        ours["spearman"] = rank_correlation([confidences[name] for name in cider], list(cider.values()))
        ours["calibration_error"] = expected_calibration_error(bins)
    return StyleReport(
        style,
        len(own),
        ours,
        _people(own, facts, style, classifier, java),
        commonest_phrase(list(texts.values()))[0],
        bins,
        [
            {
                "image": p.name,
                "source": p.source,
                "style": style,
                "caption": caption.text,
                "confidence": caption.confidence,
                "similarity": caption.similarity,
                "log_probability": caption.log_probability,
                "right": right[p.name],
                "objects": sorted(objects_named(caption.text)),
                **{metric: item[p.name] for metric, item in found.per_item.items() if p.name in item},
                "references": own.get(p.name, facts[p.name]),
            }
            for p, caption in zip(photos, written[style], strict=True)
        ],
    )


def finds(encoder: Encoder, photos: Sequence[Photo], embeddings: Tensor) -> dict[int, float]:
    """How often a photo is among the 1, 5 and 10 nearest to each factual caption of it, among the photos given."""
    rows = [row for row, photo in enumerate(photos) for _ in photo.references("factual")]
    texts = encoder.encode_text([text for photo in photos for text in photo.references("factual")])
    return recall_at((1, 5, 10), texts.numpy(), embeddings.numpy(), rows)


def _people(
    own: Mapping[str, Sequence[str]],
    facts: Mapping[str, Sequence[str]],
    style: str,
    classifier: StyleClassifier,
    java: bool,
) -> dict[str, float]:
    """What people reach: in the factual style each caption against the photo's others, averaged."""
    if style != "factual":
        if not own:
            return {}
        texts = {name: captions[0] for name, captions in own.items()}
        true = {name: facts[name] for name in own}
        figures = _figures(texts, evaluate(texts, true, java_metrics=False), true, style, classifier)
        return {name: figure for name, figure in figures.items() if name not in NAMES}  # those are of the same style
    rounds = []
    for turn in range(max(map(len, facts.values()))):
        texts = {name: captions[turn] for name, captions in facts.items() if len(captions) > max(turn, 1)}
        others = {name: [*facts[name][:turn], *facts[name][turn + 1 :]] for name in texts}
        found = evaluate(texts, others, java_metrics=java)
        rounds.append(_figures(texts, found, others, style, classifier))
    return {name: fmean(figures[name] for figures in rounds) for name in rounds[0]}


def _figures(
    texts: Mapping[str, str],
    found: Evaluation,
    facts: Mapping[str, Sequence[str]],
    style: str,
    classifier: StyleClassifier,
) -> dict[str, float]:
    captions = list(texts.values())
    figures = {metric: found.scores[metric] for metric in NAMES if metric in found.scores}
    figures |= asdict(object_figures(captions, [facts[name] for name in texts]))
    figures["classified"] = classifier.share(captions, style)
    figures["distinct"] = found.distinct
    figures["phrase_share"] = commonest_phrase(captions)[1]
    figures["child_in_love"] = fmean(map(child_in_love, captions))
    if found.differs_from_factual is not None:
        figures["equals_factual"] = 1 - found.differs_from_factual
    return figures | {"words": found.mean_length}


def show(report: StyleReport) -> None:
    against = "its own references" if report.references else "factual references"
    print(f"\n{report.style}, judged by {against}{'':<20}{'ours':>8}{'people':>8}")
    for name, label in LABELS.items():
        if name in report.ours:
            people = f"{report.people[name]:8.3f}" if name in report.people else ""
            print(f"  {label:<48}{report.ours[name]:8.3f}{people}")
    print(f'  the commonest five words: "{report.phrase}"')
    if report.bins is None:
        print("  the captions have no confidence: there is no calibration that fits these models")
        return
    print(f"  {'captions':>10}{'confidence':>12}{'right':>8}")
    for b in report.bins:
        print(f"  {b.count:>10}{b.confidence:12.3f}{b.right:8.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/, lm/ and styles/")
    parser.add_argument("--set", action="append", choices=DEV_SETS, help="may be repeated (all of them)")
    parser.add_argument("--limit", type=int, help="so many photos of each set, evenly spread (all)")
    parser.add_argument("--stored-embeddings", action="store_true", help="those of the data, in place of the encoder's")
    parser.add_argument("--beam-size", type=int)
    parser.add_argument(
        "--mapper", action="append", default=[], metavar="STYLE=FILE", help="another mapper in place of a style's own"
    )
    parser.add_argument("--java", action="store_true", help="compute METEOR and SPICE too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures, and every caption with its scores")
    parser.add_argument("--show", type=int, default=0, help="print the captions of the first so many photos")
    given = parser.parse_args(arguments)

    everything = load_photos(given.data)
    captioner = Captioner.load(given.models)
    encoder = captioner.encoder
    paths = {style: given.models / "styles" / f"{style}.safetensors" for style in STYLES}
    paths |= {style: Path(file) for style, file in (mapper.split("=", 1) for mapper in given.mapper)}
    mappers = {style: captioner.load_model(path) for style, path in paths.items()}
    training = [photo for photo in everything if photo.dev_set is None]
    classifier = StyleClassifier.fit(
        {
            style: [c for p in training for manner in manners for c in p.captions.get(manner, [])]
            for style, manners in {"factual": ("people", "written"), **{s: (s,) for s in STYLES[1:]}}.items()
        }
    )
    options = DecodingOptions("beam", beam_size=given.beam_size)

    kept: dict[str, Any] = {}
    for name in given.set or DEV_SETS:
        photos = [photo for photo in everything if photo.dev_set == name]
        if given.limit:
            photos = photos[:: max(1, len(photos) // given.limit)][: given.limit]
        started = time.monotonic()
        embeddings = embed(encoder, photos, given.stored_embeddings)
        embedded = time.monotonic()
        written = write(captioner, mappers, embeddings, options)
        ended = time.monotonic()
        print(f"\n== {name}: {len(photos)} photos, embedded in {embedded - started:.0f} s, ", end="")
        print(f"captioned in {len(mappers)} styles in {ended - embedded:.0f} s")
        reports = [report(style, photos, written, classifier, given.java) for style in mappers]
        for found in reports:
            show(found)
        kept[name] = {"styles": [asdict(found) for found in reports]}
        if encoder.text_identity is None:
            print("\nthe encoder has no text half: photos cannot be found by text")
        else:
            recall = finds(encoder, photos, embeddings)
            kept[name]["text_to_photo"] = recall
            print("\ntext to photo: " + ", ".join(f"R@{k} {share:.3f}" for k, share in recall.items()))
        for row, photo in enumerate(photos[: given.show]):
            print(f"{photo.name} | {photo.references('factual')[0]}")
            for style in mappers:
                caption = written[style][row]
                sure = "" if caption.confidence is None else f"  ({caption.confidence:.0%})"
                print(f"    {style:<9} {caption.text}{sure}")
    if given.json:
        given.json.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
