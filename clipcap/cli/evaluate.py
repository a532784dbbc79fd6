"""`clipcap evaluate CAPTIONS.jsonl`: how close a style's captions are to people's."""

import argparse
import json
from pathlib import Path

from clipcap.cli.captioned_photos import add_data, embedded, read_captions
from clipcap.cli.models import add_models, set_threads, style_files
from clipcap.evaluation.names import metric_name
from clipcap.progress import ProgressBar

BATCH = 32
SHOWN = ("Bleu_4", "ROUGE_L", "CIDEr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `clipcap evaluate` takes."""
    add_data(parser)
    parser.add_argument("--style", metavar="SLUG", default="factual", help="a style of the models (factual)")
    parser.add_argument("--mapper", type=Path, metavar="FILE", help="a mapper file to use in place of a style")
    parser.add_argument("--json", action="store_true", help="print all scores, including those of each photo, as JSON")
    add_models(parser)


def run(options: argparse.Namespace) -> int:
    """Caption the photos and compare with their captions.

    Returns:
        0.

    Raises:
        ValueError: what was named cannot be evaluated; the message names the cause and the remedy.
    """
    from clipcap.captioner import Captioner
    from clipcap.evaluation.metrics import evaluate
    from clipcap.options import DecodingOptions

    set_threads(options)
    references = read_captions(options.captions, options.photos)
    captioner = Captioner.load(options.models, device=options.device)
    model = captioner.load_model(options.mapper or style_files(options.models, [options.style])[options.style])
    written = []
    with ProgressBar("photo", total=len(references)) as progress:
        for part in embedded(captioner, list(references)).split(BATCH):  # in batches, for the memory that they take
            written += captioner.caption(part, [model] * len(part), DecodingOptions("beam"))
            progress.show(len(written), len(references), "captioning")
    texts = {str(path): answer[0].text if answer else "" for path, answer in zip(references, written, strict=True)}
    found = evaluate(texts, {str(path): given for path, given in references.items()}, java_metrics=False)
    if options.json:
        print(json.dumps({"scores": found.scores, "captions": texts, "per_photo": found.per_item}, ensure_ascii=False))
        return 0
    for metric in SHOWN:
        print(f"{metric_name(metric):<8} {found.scores[metric]:.3f}")
    print(f"{len(texts)} photos, {found.distinct:.0%} of the captions distinct, {found.mean_length:.1f} words each")
    return 0
