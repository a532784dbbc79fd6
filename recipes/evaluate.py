"""How good the embedded models are on photos they were not trained on; the figures of the model card.

    python -m recipes.evaluate --data DATA --models models/mini [--split dev] [--show 20] [--mapper STYLE=FILE]

Style is judged as a plain reader would: a naive Bayes classifier, fitted on the training captions of the three styles,
says how many captions it takes for the style they were asked for, beside how many of people's it does.
"""

import argparse
import json
import time
from pathlib import Path

from clipcap.captioner import Captioner
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.options import DecodingOptions
from recipes.photos import STYLES, load_photos
from training.evaluation import evaluate
from training.style_classifier import StyleClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/, lm/ and styles/")
    parser.add_argument("--split", default="dev", help="dev, coco or train (dev)")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--show", type=int, default=0, help="print the captions of the first so many photos")
    parser.add_argument(
        "--mapper", action="append", default=[], metavar="STYLE=FILE", help="another mapper in place of a style's own"
    )
    parser.add_argument("--java", action="store_true", help="compute METEOR too")
    arguments = parser.parse_args()

    everything = load_photos(arguments.data)
    photos = [photo for photo in everything if photo.split == arguments.split]
    captioner = Captioner(
        Encoder.load(f"local-dir:{arguments.models / 'encoder'}"),
        LanguageModel.load(f"local-dir:{arguments.models / 'lm'}"),
    )
    paths = {style: arguments.models / "styles" / f"{style}.safetensors" for style in STYLES}
    paths |= {style: Path(file) for style, file in (given.split("=", 1) for given in arguments.mapper)}
    mappers = {style: captioner.load_mapper(path) for style, path in paths.items()}
    classifier = StyleClassifier.fit(
        {
            s: [c for p in everything if p.split == "train" for c in p.captions[s]]
            if s == "factual"
            else [c for p in everything if p.split == "train" and s in p.captions for c in p.captions[s]]
            for s in STYLES
        }
    )
    options = DecodingOptions("beam", beam_size=arguments.beam_size)
    started = time.monotonic()
    embeddings = captioner.encoder.encode([photo.path for photo in photos])
    written: dict[str, dict[str, str]] = {}
    for style, mapper in mappers.items():
        answers = []
        for first in range(0, len(photos), 32):
            chunk = embeddings[first : first + 32]
            answers += captioner.caption(chunk, [mapper] * len(chunk), options)
        written[style] = {p.path.name: a[0].text for p, a in zip(photos, answers, strict=True)}
    print(f"{len(photos)} photos in {len(STYLES)} styles: {time.monotonic() - started:.0f} s")

    for style in STYLES:
        references = {p.path.name: p.captions[style] for p in photos if style in p.captions}
        if not references:
            continue
        for writer in dict.fromkeys((style, "factual")):
            candidates = {name: written[writer][name] for name in references}
            factual = {name: written["factual"][name] for name in references} if writer != "factual" else None
            found = evaluate(candidates, references, factual=factual, java_metrics=arguments.java)
            figures = {name: round(score, 4) for name, score in found.scores.items()}
            figures |= {"words": round(found.mean_length, 2), "distinct": round(found.distinct, 4)}
            if found.differs_from_factual is not None:
                figures["differs from factual"] = round(found.differs_from_factual, 4)
            figures[f"told {style}"] = round(classifier.share(list(candidates.values()), style), 4)
            people = [c for captions in references.values() for c in captions]
            figures[f"people told {style}"] = round(classifier.share(people, style), 4)
            print(f"{writer} mapper on {style} references: {json.dumps(figures)}")
    for photo in photos[: arguments.show]:
        print(photo.path.name, "|", photo.captions["factual"][0])
        for style in STYLES:
            print(f"    {style:<9} {written[style][photo.path.name]}")


if __name__ == "__main__":
    main()
