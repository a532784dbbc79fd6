"""Train the mappers that ship, one a style, with the language model frozen.

    python -m recipes.mappers --data DATA --models models/mini --work WORK

Each starts from the mapper that the language model learned beside, and is trained by the same trainer as anyone's
style, on the captions that `recipes.best_of` kept.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clipcap.checkpoint import MapperCheckpoint, load_mapper, save_mapper
from clipcap.language_model import LanguageModel
from recipes.best_of import with_captions
from recipes.photos import STYLES, Photo, load_photos
from training.trainer import CaptionedImages, Progress, TrainingOptions, train_mapper

BRIEFLY = TrainingOptions(epochs=1, batch_size=60, learning_rate=1e-4, noise=0.5, seed=1)
OPTIONS = {
    "factual": BRIEFLY,
    # The language model has learned to be factual since the mapper began.
    "humorous": replace(BRIEFLY, epochs=2, learning_rate=3e-4, noise=0.35),
    "romantic": BRIEFLY,
}


def images_of(photos: list[Photo], style: str, split: str, views: Tensor) -> CaptionedImages:
    """The photos of a split that have a caption of the style; `views` is (N, A, 512) for all photos."""
    rows = [i for i, photo in enumerate(photos) if photo.split == split and style in photo.captions]
    captions = [photos[i].captions[style] for i in rows]
    return CaptionedImages([photos[i].path.name for i in rows], views[rows], captions)


def report(progress: Progress) -> bool:
    if progress.step % 50 == 0:
        print(
            f"{progress.step}/{progress.steps} loss {progress.train_loss:.3f} validation {progress.validation_loss} "
            f"{progress.samples_per_second:.0f} captions/s, {progress.eta_seconds:.0f} s left",
            flush=True,
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/ and lm/, receives styles/")
    parser.add_argument("--work", type=Path, required=True, help="where recipes.best_of left its results")
    parser.add_argument("--style", action="append", choices=STYLES, help="only this one (may be repeated)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    photos = load_photos(arguments.data)
    lm = LanguageModel.load(f"local-dir:{arguments.models / 'lm'}")
    before = lm.fingerprint()
    stored = torch.load(arguments.work / "views.pt", weights_only=True)
    kept = json.loads((arguments.work / "best.json").read_text())
    learned = [with_captions(photo, kept) for photo in photos]
    for style in arguments.style or STYLES:
        result = train_mapper(
            load_mapper(arguments.work / f"start-{style}.safetensors").mapper,
            lm,
            stored["encoder"],
            images_of(learned, style, "train", stored["views"]),
            images_of(photos, style, "dev", stored["views"]),
            OPTIONS[style],
            arguments.work / style,
            report,
        )
        print(style, json.dumps({"history": result.history, "left out": result.left_out}), flush=True)
        # Half precision: the bundle has to be small, and the captions are the same but for near ties.
        save_mapper(
            MapperCheckpoint(result.mapper, stored["encoder"], lm.identity, {"style": style}),
            arguments.models / "styles" / f"{style}.safetensors",
            dtype=torch.float16,
        )
    if lm.fingerprint() != before:
        raise RuntimeError("training changed the language model; it must not")


if __name__ == "__main__":
    main()
