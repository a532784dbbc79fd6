"""Let each style learn from the best of its own captions; from that come the mappers that ship.

    python -m recipes.best_of --data DATA --models models/mini --work WORK

People word one photo in many ways, and a small model that has learned all of them hedges. So each mapper writes a
dozen captions about every training photo, those nearest to people's by CIDEr are kept, and it is trained on them for
one more epoch, by the same trainer and with the LM as frozen as ever (rejection sampling, a plain relative of
self-critical training, arXiv 1612.00563). For the styles it counts too whether a caption is true, by the photo's
factual captions, and whether it is told as being in style. What the humorous mapper has learned is then averaged with
the factual one, which began from the same weights: it jokes less often, and more often about what is on the photo.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from pycocoevalcap.cider.cider import Cider
from torch import Tensor

from clipcap.checkpoint import MapperCheckpoint, load_mapper, save_mapper
from clipcap.decoding import decode
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.options import DecodingOptions
from recipes.mappers import images_of, report
from recipes.photos import STYLES, Photo, load_photos
from training.ptb_tokenizer import ptb_tokenize
from training.style_classifier import StyleClassifier
from training.trainer import CaptionedImages, TrainingOptions, train_mapper

SAMPLES, KEPT = 12, 3  # captions drawn about a photo beside the five of the beam, and those learned from
TRUTH = 0.3  # what CIDEr against the factual captions counts beside that against the style's own
FACTUAL_SHARE = 0.4  # of the factual mapper in the humorous one


@dataclass(frozen=True)
class Recipe:
    """How a style is trained on its best captions; `told` is what being told as in style counts, in CIDEr."""

    training: TrainingOptions
    told: float


RECIPES = {
    "factual": Recipe(TrainingOptions(epochs=1, batch_size=60, learning_rate=5e-4, noise=0.35, seed=1), 0.0),
    "humorous": Recipe(TrainingOptions(epochs=1, batch_size=40, learning_rate=3e-4, noise=0.25, seed=1), 0.2),
    "romantic": Recipe(TrainingOptions(epochs=1, batch_size=40, learning_rate=3e-4, noise=0.25, seed=1), 0.1),
}


def written(mapper: Mapper, lm: LanguageModel, embeddings: Tensor) -> list[list[str]]:
    """For each of (N, E) embeddings the captions of a beam and some samples, each caption once."""
    found: list[list[str]] = []
    ways = (
        DecodingOptions("beam", captions=5, max_length=30),
        DecodingOptions("nucleus", captions=SAMPLES, top_p=0.95, max_length=30, seed=1),
    )
    for part in embeddings.split(40):
        with torch.inference_mode():
            prefixes = list(mapper(part))
        answers = [decode(lm, prefixes, options, [lm.end_id] * len(part)) for options in ways]
        for of_beam, sampled in zip(*answers, strict=True):
            whole = [h for h in [*of_beam, *sampled] if h.tokens[-1] == lm.end_id] or of_beam
            found.append(list(dict.fromkeys(lm.decode(h.tokens) for h in whole)))
        print(f"{len(found)}/{len(embeddings)} photos written about", flush=True)
    return found


def scores(candidates: list[list[str]], references: list[list[str]]) -> list[list[float]]:
    """CIDEr of every candidate of each photo; how rare a phrase is, is told by all photos' references."""
    known = {i: [ptb_tokenize(text) for text in texts] for i, texts in enumerate(references)}
    found: list[list[float]] = [[] for _ in candidates]
    for place in range(max(map(len, candidates))):
        chosen = {i: [ptb_tokenize(texts[min(place, len(texts) - 1)])] for i, texts in enumerate(candidates)}
        _, per_photo = Cider().compute_score(known, chosen)
        for i, score in enumerate(per_photo):
            if place < len(candidates[i]):
                found[i].append(float(score))
    return found


def best(
    photos: list[Photo], style: str, candidates: list[list[str]], told: float, classifier: StyleClassifier
) -> list[list[str]]:
    """The captions of each photo that are learned from."""
    totals = scores(candidates, [photo.captions[style] for photo in photos])
    if style != "factual":
        truths = scores(candidates, [photo.captions["factual"] for photo in photos])
        totals = [
            [
                own + TRUTH * truth + told * (classifier.predict(text) == style)
                for own, truth, text in zip(*row, strict=True)
            ]
            for row in zip(totals, truths, candidates, strict=True)
        ]
    ranked = [
        sorted(zip(total, texts, strict=True), reverse=True) for total, texts in zip(totals, candidates, strict=True)
    ]
    return [[text for _, text in row[:KEPT]] for row in ranked]


def averaged(mapper: Mapper, other: Mapper, share: float) -> Mapper:
    """`mapper` with so much of another's weights in its own."""
    theirs = other.state_dict()
    mapper.load_state_dict({name: own.lerp(theirs[name], share) for name, own in mapper.state_dict().items()})
    return mapper


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds lm/ and styles/, which are replaced")
    parser.add_argument("--work", type=Path, required=True, help="where recipes.language_model left its results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    everything = load_photos(arguments.data)
    lm = LanguageModel.load(f"local-dir:{arguments.models / 'lm'}")
    stored = torch.load(arguments.work / "views.pt", weights_only=True)
    learned = {s: [c for p in everything if p.split == "train" for c in p.captions.get(s, ())] for s in STYLES}
    classifier = StyleClassifier.fit(learned)
    mappers: dict[str, Mapper] = {}
    for style in STYLES:
        recipe = RECIPES[style]
        training = images_of(everything, style, "train", stored["views"])
        photos = [photo for photo in everything if photo.split == "train" and style in photo.captions]
        mapper = load_mapper(arguments.models / "styles" / f"{style}.safetensors").mapper
        texts = best(photos, style, written(mapper, lm, training.embeddings[:, 0]), recipe.told, classifier)
        mappers[style] = train_mapper(
            mapper,
            lm,
            stored["encoder"],
            CaptionedImages(training.names, training.embeddings, texts),
            images_of(everything, style, "dev", stored["views"]),
            recipe.training,
            arguments.work / f"best-{style}",
            report,
        ).mapper
    mappers["humorous"] = averaged(mappers["humorous"], mappers["factual"], FACTUAL_SHARE)
    for style, mapper in mappers.items():
        save_mapper(
            MapperCheckpoint(mapper, stored["encoder"], lm.identity, {"style": style}),
            arguments.models / "styles" / f"{style}.safetensors",
            dtype=torch.float16,
        )


if __name__ == "__main__":
    main()
