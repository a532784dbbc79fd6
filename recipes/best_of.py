"""Let the language model and its mappers learn from the best of their own captions; after this the LM is frozen.

    python -m recipes.best_of --data DATA --models models/mini --work WORK [--learn factual]

People word one photo in many ways, and a small model that has learned all of them hedges. So each style's mapper
writes a dozen captions about every training photo, those nearest to people's by CIDEr are kept, and LM and mapper are
trained on them together for one more epoch (rejection sampling, a plain relative of self-critical training, arXiv
1612.00563). For the styles it counts too whether a caption is true, by the photo's factual captions, and whether it is
told as being in style. Two runs of other learning rates are averaged, which is better than either.
Calling it again is another round. WORK receives what was kept, `best.json`, and the mappers, for `recipes.mappers`.
"""

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pycocoevalcap.cider.cider import Cider
from torch import Tensor
from transformers import GPT2LMHeadModel

from clipcap.checkpoint import MapperCheckpoint, load_mapper, save_mapper
from clipcap.decoding import decode
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.options import DecodingOptions
from recipes.language_model import Data, Joint, save_lm, train_jointly
from recipes.photos import STYLES, Photo, load_photos
from training.ptb_tokenizer import ptb_tokenize
from training.style_classifier import StyleClassifier

SAMPLES, KEPT = 12, 3  # captions drawn about a photo beside the five of the beam, and those learned from
TRUTH = 0.3  # what CIDEr against the factual captions counts beside that against the style's own
TOLD = {"factual": 0.0, "humorous": 0.6, "romantic": 0.0}  # what being told as in style counts, in CIDEr
RUNS = ((3e-4, 0.5), (1e-3, 0.2))  # the mappers' learning rate, and what share of it the LM has


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


def best(photos: list[Photo], style: str, candidates: list[list[str]], classifier: StyleClassifier) -> list[list[str]]:
    """The captions of each photo that are learned from."""
    totals = scores(candidates, [photo.captions[style] for photo in photos])
    if style != "factual":
        truths = scores(candidates, [photo.captions["factual"] for photo in photos])
        totals = [
            [
                own + TRUTH * truth + TOLD[style] * (classifier.predict(text) == style)
                for own, truth, text in zip(*row, strict=True)
            ]
            for row in zip(totals, truths, candidates, strict=True)
        ]
    ranked = [
        sorted(zip(total, texts, strict=True), reverse=True) for total, texts in zip(totals, candidates, strict=True)
    ]
    return [[text for _, text in row[:KEPT]] for row in ranked]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds lm/, which is replaced")
    parser.add_argument("--work", type=Path, required=True, help="where recipes.language_model left its results")
    parser.add_argument("--learn", action="append", choices=STYLES, help="from this style only (may be repeated)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    everything = load_photos(arguments.data)
    folder = arguments.models / "lm"
    lm = LanguageModel.load(f"local-dir:{folder}")
    stored = torch.load(arguments.work / "views.pt", weights_only=True)
    learned = {s: [c for p in everything if p.split == "train" for c in p.captions.get(s, ())] for s in STYLES}
    classifier = StyleClassifier.fit(learned)
    mappers = {style: load_mapper(arguments.work / f"start-{style}.safetensors").mapper for style in STYLES}
    kept: dict[str, dict[str, list[str]]] = {}
    for style, mapper in mappers.items():
        rows = [i for i, photo in enumerate(everything) if photo.split == "train" and style in photo.captions]
        photos = [everything[i] for i in rows]
        texts = best(photos, style, written(mapper, lm, stored["views"][rows, 0]), classifier)
        kept[style] = {photo.path.name: own for photo, own in zip(photos, texts, strict=True)}
    (arguments.work / "best.json").write_text(json.dumps(kept))

    tokenizer: Any = lm.tokenizer
    learned_from = {style: kept[style] for style in arguments.learn or STYLES}
    training = Data([with_captions(photo, learned_from) for photo in everything], "train", tokenizer)
    start = Joint(GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32), list(mappers.values()))
    runs = [
        train_jointly(
            copy.deepcopy(start),
            training,
            views=list(stored["views"][training.rows].unbind(1)),
            steps=len(training.rows) // 16,
            size=16,
            captions_each=KEPT,
            peak=peak,
            final=0.0,
            lm_share=share,
            noise=0.35,
            styled_weight=1,
            seed=1,
        )
        for peak, share in RUNS
    ]
    weights = [run.state_dict() for run in runs]
    start.load_state_dict({name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]})
    save_lm(start.model, tokenizer, folder)
    for style, mapper in mappers.items():  # those that `start` holds
        save_mapper(MapperCheckpoint(mapper, None, None), arguments.work / f"start-{style}.safetensors")


def with_captions(photo: Photo, kept: dict[str, dict[str, list[str]]]) -> Photo:
    """The photo with those captions of each style that are kept of it."""
    name = photo.path.name
    return replace(photo, captions={style: texts[name] for style, texts in kept.items() if name in texts})


if __name__ == "__main__":
    main()
