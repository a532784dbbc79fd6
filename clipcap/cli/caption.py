"""`clipcap caption PHOTO...`: a caption of each photo in each style."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap import jsonl
from clipcap.cli.models import add_models, set_threads, style_files
from clipcap.image import SUFFIXES
from clipcap.options import DecodingOptions, is_unsure
from clipcap.progress import ProgressBar

if TYPE_CHECKING:
    from clipcap.captioner import Caption

BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `clipcap caption` takes."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files or folders")
    parser.add_argument("--style", action="append", metavar="SLUG", help="use only this style (may be repeated)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    add_models(parser)
    parser.add_argument(
        "--method", choices=("greedy", "beam", "nucleus"), default="beam", help="decoding method (beam)"
    )
    parser.add_argument("--captions", type=int, metavar="N", help="the caption and N - 1 alternatives (beam: 5)")
    parser.add_argument("--max-length", type=int, default=40, metavar="N", help="maximum number of tokens (40)")
    parser.add_argument("--beam-size", type=int, metavar="N", help="beam size (5)")
    parser.add_argument("--temperature", type=float, metavar="T", help="temperature of nucleus sampling (1.0)")
    parser.add_argument("--top-p", type=float, metavar="P", help="top_p of nucleus sampling (0.9)")
    parser.add_argument("--seed", type=int, metavar="N", help="makes nucleus sampling repeatable")
    parser.add_argument(
        "--no-rerank", action="store_true", help="use the captions of beam search without reranking: faster"
    )
    parser.add_argument(
        "--min-confidence", type=float, metavar="P", help="withhold captions with a lower confidence, from 0 to 1"
    )


def run(options: argparse.Namespace) -> int:
    """Caption the photos named on the command line.

    Returns:
        0, or 1 if a photo could not be captioned.

    Raises:
        ValueError: nothing could be done; the message names the cause and the remedy.
    """
    # Imported late: a mistyped option should not wait for torch.
    import torch

    from clipcap.captioner import Captioner
    from clipcap.fingerprint import file_sha256
    from clipcap.image import ImageError

    set_threads(options)
    least = options.min_confidence
    if least is not None and not 0 <= least <= 1:
        raise ValueError(f"--min-confidence must be from 0 to 1, not {least}")
    captions = options.captions
    if captions is None:
        captions = (options.beam_size or 5) if options.method == "beam" else 1
    decoding = DecodingOptions(
        method=options.method,
        captions=captions,
        max_length=options.max_length,
        beam_size=options.beam_size,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        rerank=False if options.no_rerank else None,
    )
    photos = _photos(options.photos)
    paths = style_files(options.models, options.style)
    captioner = Captioner.load(options.models, device=options.device)
    if least is not None and not captioner.reranks(decoding):
        raise ValueError(
            "--min-confidence needs captions that have a confidence: those of beam search with reranking, by models "
            "that have a reranking.json"
        )
    models = {slug: captioner.load_model(path) for slug, path in paths.items()}
    names = {slug: f"{slug}@{file_sha256(path)[:16]}" for slug, path in paths.items()}

    out = jsonl.as_utf8(sys.stdout) if options.json else sys.stdout
    failed = 0
    with ProgressBar("photo", total=len(photos)) as progress:
        for batch in _batches(photos):
            readable, pixels = [], []
            for photo in batch:
                try:
                    pixels.append(captioner.encoder.preprocess(photo))
                    readable.append(photo)
                except ImageError as error:
                    failed += 1
                    progress.write(f"error: {jsonl.shown(photo)}: {error}")
            if readable:
                embeddings = captioner.encoder.encode_pixels(torch.stack(pixels))
                rows = [(photo, row, slug) for row, photo in enumerate(readable) for slug in models]
                answers = captioner.caption(
                    embeddings[[row for _, row, _ in rows]], [models[slug] for _, _, slug in rows], decoding
                )
                shown = None
                for (photo, _, slug), answer in zip(rows, answers, strict=True):
                    if not answer:
                        failed += 1
                        cause = f"{slug} returns values that are not finite (NaN or infinity) for it"
                        progress.write(f"error: {jsonl.shown(photo)}: {cause}; train it again")
                        continue
                    best, *others = answer
                    withheld = None
                    if least is not None and best.confidence is not None and best.confidence < least:
                        detail = f"its confidence, {best.confidence:.0%}, is below {least:.0%}"
                        withheld = {"code": "low_confidence", "detail": detail}
                        best, others = replace(best, text=""), []
                    if options.json:
                        captions = [_in_line(caption) for caption in (best, *others)]
                        line = jsonl.written(jsonl.record(photo, slug, captions, names[slug], withheld))
                    else:
                        heading = "" if photo == shown else f"{jsonl.shown(photo)}\n"
                        said = f"(withheld: {withheld['detail']})" if withheld else best.text + _judgement(best)
                        line = f"{heading}  {slug:<10} {said}\n"
                        shown = photo
                    progress.write(line, file=out, end="")
                sys.stdout.flush()
            progress.advance(len(batch))
    return 1 if failed else 0


def _photos(named: list[str]) -> list[str]:
    """The photos named, and those of the folders named."""
    photos: list[str] = []
    for name in named:
        if Path(name).is_dir():
            found, _ = jsonl.photos_in(Path(name))
            if not found:
                raise ValueError(f"{name!r} contains no photos ({', '.join(SUFFIXES)})")
            photos += map(str, found)
        else:
            photos.append(name)
    return photos


def _in_line(caption: "Caption") -> dict[str, Any]:
    unsure = is_unsure(caption.confidence)
    return jsonl.caption(caption.text, caption.confidence, caption.log_probability, unsure)


def _judgement(caption: "Caption") -> str:
    """What is said behind a caption: its confidence, and that it is unsure if it is."""
    if caption.confidence is None:
        return ""
    confidence = round(caption.confidence, 4)  # as JSON has it, so that both round to the same percentage
    return f"  ({confidence:.0%}{', unsure' if is_unsure(caption.confidence) else ''})"


def _batches(photos: list[str]) -> Iterator[list[str]]:
    """A first photo at once, so that something shows early, then full batches."""
    yield photos[:1]
    for first in range(1, len(photos), BATCH):
        yield photos[first : first + BATCH]
