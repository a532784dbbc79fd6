"""`./run manage check_mapper FILE`: whether a file is a mapper that fits the models that workers load, and writes; as
JSON. With --write one of the authors' is stored in this software's format, which says how a mapper was trained."""

from __future__ import annotations

import json
from argparse import ArgumentParser, BooleanOptionalAction
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from captioner.management.command import SiteCommand

if TYPE_CHECKING:
    from clipcap.captioner import Captioner
    from clipcap.model import ClipCaptionModel

LEAST = 5  # photos that tell one way from another


class Command(SiteCommand):
    """Print as JSON what a mapper file contains, or why it cannot be used here."""

    requires_system_checks = ()  # it touches neither the database nor the site

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", type=Path, help="a mapper file (*.safetensors) or a checkpoint of the ClipCap authors' code (*.pt)"
        )
        add_unrecorded(parser)
        parser.add_argument("--write", type=Path, metavar="FILE", help="output file (*.safetensors)")
        parser.add_argument(
            "--photos",
            type=Path,
            metavar="FILE",
            help='JSON: [{"embeddings": {encoder: [number]}, "captions": [text]}]; a checkpoint of the authors\' is '
            "tried on them with and without --normalize, and unless that is given the better way is taken",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported late: they load torch, which `manage.py help` should not wait for.
        import torch

        from clipcap.captioner import Captioner
        from clipcap.checkpoint import gpt2_sizes, is_original, load_mapper, save_mapper
        from clipcap.encoder import Encoder
        from clipcap.language_model import LanguageModel

        torch.set_num_threads(settings.THREADS)
        holds = ""
        try:
            lm = LanguageModel.load(settings.LANGUAGE_MODEL, device="cpu")
            given, heads = options["normalize"], options["heads"]
            checkpoint = load_mapper(options["file"], lm_size=lm.size, normalize=given, heads=heads)
            if options["encoder"]:
                checkpoint = replace(checkpoint, encoder=options["encoder"])
            holds = gpt2_sizes(checkpoint.weights)
            encoder = Encoder.load(settings.ENCODER, device="cpu")  # takes longest, and what is not a mapper needs none
            captioner = Captioner(encoder, lm)
            model = captioner.adopt(checkpoint)
            original = is_original(options["file"])
            if original and options["photos"]:
                photos = json.loads(options["photos"].read_text())
                if how := _better_way(captioner, model, photos, given):
                    checkpoint.notes["normalize"] = how
            if checkpoint.weights:  # they are those of the LM that is loaded, or became what they are from there
                own = checkpoint.weights if model.language_model else {}
                checkpoint = replace(checkpoint, language_model=lm.identity, weights=own)
            if options["write"] and original:
                save_mapper(checkpoint, options["write"])
        except (ValueError, OSError) as error:
            found: dict[str, Any] = {"error": f"{error}{f' (the file holds {holds})' if holds else ''}"}
        else:
            found = checkpoint.described()
        self.stdout.write(json.dumps(found))


def add_unrecorded(parser: ArgumentParser) -> None:
    """The options for what the authors' files do not record."""
    parser.add_argument(
        "--normalize",
        action=BooleanOptionalAction,
        help="whether it was trained on embeddings divided by their norm, which the authors' files do not record "
        "(guessed: yes for a Transformer, no for an MLP)",
    )
    parser.add_argument(
        "--heads", type=int, metavar="N", help="attention heads of its Transformer, which they do not record (8)"
    )
    parser.add_argument(
        "--encoder",
        default="",
        metavar="NAME",
        help="encoder that it was trained with, as workers call theirs (any with embeddings of the same size)",
    )


def _better_way(captioner: Captioner, model: ClipCaptionModel, photos: list[dict[str, Any]], given: bool | None) -> str:
    """Let a model caption photos that people have captioned, as trained on normalised embeddings and not; leave it the
    way that scores better, or that is given.

    Returns:
        How the way was found, for people; "" where there are too few photos or both ways score alike.
    """
    import torch

    from clipcap.evaluation.metrics import evaluate
    from clipcap.options import DecodingOptions

    known = [photo for photo in photos if captioner.encoder.identity in photo["embeddings"]]
    if len(known) < LEAST:
        return ""
    embeddings = torch.tensor([photo["embeddings"][captioner.encoder.identity] for photo in known])
    references = {str(number): photo["captions"] for number, photo in enumerate(known)}
    guessed = model.mapper.config.normalize
    scores = {}
    for normalize in (True, False):
        model.mapper.config = replace(model.mapper.config, normalize=normalize)
        answers = captioner.caption(embeddings, [model] * len(known), DecodingOptions("greedy"))
        texts = {str(number): answer[0].text if answer else "" for number, answer in enumerate(answers)}
        scores[normalize] = evaluate(texts, references, java_metrics=False).scores["CIDEr"]
    taken = max(scores, key=lambda way: (scores[way], way == guessed)) if given is None else given
    model.mapper.config = replace(model.mapper.config, normalize=taken)
    if scores[True] == scores[False]:
        return ""
    found = "chosen by score" if given is None else "given"
    return (
        f"{found}: CIDEr {scores[taken]:.3f} on {len(known)} held-out photos, and {scores[not taken]:.3f} the other way"
    )
