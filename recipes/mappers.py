"""Train the mappers that ship, one a style, with the language model frozen; and for comparison, with it trained along.

    python -m recipes.mappers --data DATA --models models/base --work WORK
    python -m recipes.mappers --data DATA --models models/base --work WORK --style humorous \
        --language-model finetuned --out OUT
    python -m recipes.evaluate --data DATA --models models/base --mapper humorous=OUT/humorous.safetensors

Each starts from the mapper that the language model learned beside, and is trained by the same trainer as anyone's
style, on the style's own captions.

CLIP's embeddings of a picture that was made smaller and compressed again have a cosine of 0.85 to 0.99 to those of the
original. The data's embeddings are those of originals, while what people upload has often been through such hands: so
the pictures that are there, Flickr8k's at 224 pixels, are embedded too, and each is learned from in both views.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clipcap.checkpoint import MapperCheckpoint, load_mapper, save_mapper
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.model import ClipCaptionModel
from clipcap.options import TrainingChoices
from clipcap.training import CaptionedImages, TrainingOptions, train_mapper, trainable
from recipes.command import new_parser, parsed
from recipes.photos import STARTS, STYLES, Photo, load_photos
from recipes.report import Report, report_epoch
from recipes.styled_captions import add_styled_captions
from recipes.views import views_at_hand

OPTIONS = TrainingOptions(epochs=1, batch_size=80, learning_rate=3e-4, noise=0.3, patience=1, seed=1)


def captions_of(photo: Photo, style: str) -> list[str]:
    """What a mapper learns to say of a training picture.

    What people see in photos of everyday scenes, factual captions learn from people alone: the writer describes COCO's
    photos too, but in other words.
    """
    return [] if style == "factual" and (photo.source, photo.by) == ("coco", "written") else photo.references(style)


def images_of(photos: list[Photo], captions: dict[str, list[str]], views: Mapping[str, Tensor]) -> CaptionedImages:
    """The pictures that have `captions`, by name, with two views each: as they are in the data, and as they are at
    hand where they are."""
    found = [photo for photo in photos if captions.get(photo.name)]
    given = [torch.from_numpy(photo.embedding).float() for photo in found]
    pairs = [torch.stack([one, views.get(photo.name, one)]) for photo, one in zip(found, given, strict=True)]
    return CaptionedImages([p.name for p in found], torch.stack(pairs), [captions[p.name] for p in found])


def main() -> None:
    parser = new_parser(
        __doc__, models="holds encoder/ and lm/, receives styles/", work="where recipes.language_model left its mappers"
    )
    parser.add_argument("--style", action="append", choices=STYLES, help="only this one (may be repeated)")
    parser.add_argument(
        "--language-model", choices=("frozen", "adapters", "finetuned"), default="frozen", help="frozen is what ships"
    )
    parser.add_argument("--epochs", type=int, default=OPTIONS.epochs)
    parser.add_argument("--out", type=Path, help="receives the styles in place of models/styles")
    arguments = parsed(parser)
    photos = add_styled_captions(load_photos(arguments.data))
    lm = LanguageModel.load(f"local-dir:{arguments.models / 'lm'}", device="cpu")
    encoder = Encoder.load(f"local-dir:{arguments.models / 'encoder'}", device="cpu")
    styles = arguments.style or STYLES
    training = [p for p in photos if not p.dev_set]
    seen = [p for p in training if any(captions_of(p, style) for style in styles)]
    views = views_at_hand(seen, encoder, arguments.work / "views.pt")
    before = lm.fingerprint()
    choices = TrainingChoices(language_model=arguments.language_model)
    out = arguments.out or arguments.models / "styles"
    out.mkdir(parents=True, exist_ok=True)
    for style in styles:
        learned = {p.name: captions_of(p, style) for p in training}
        checked = {p.name: p.references(style) for p in photos if p.dev_set in ("flickr8k", "coco", "mixed")}
        start = ClipCaptionModel(load_mapper(arguments.work / f"start-{STARTS[style]}.safetensors").mapper)
        result = train_mapper(
            trainable(start, lm, choices, further=True),
            lm,
            encoder.identity,
            images_of(photos, learned, views),
            images_of(photos, checked, views),
            replace(OPTIONS, epochs=arguments.epochs),
            arguments.work / f"{style}-{arguments.language_model}",
            Report(),
            on_epoch=report_epoch,
        )
        print(style, json.dumps({"history": result.history, "left out": result.left_out}), flush=True)
        # Half precision: the bundle has to be small, and the captions are the same but for near ties.
        save_mapper(
            MapperCheckpoint.of(result.model, encoder.identity, lm.identity, {"style": style}),
            out / f"{style}.safetensors",
            dtype=torch.float16,
        )
    if lm.fingerprint() != before:
        raise RuntimeError("training changed the language model; it must not")


if __name__ == "__main__":
    main()
