"""Photos of a folder with captions in JSON Lines, as `clipcap train` and `clipcap evaluate` read them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.progress import ProgressBar

if TYPE_CHECKING:
    from torch import Tensor

    from clipcap.captioner import Captioner


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that name photos and captions."""
    parser.add_argument(
        "captions",
        type=Path,
        metavar="CAPTIONS.jsonl",
        help='one line per caption or photo: {"image": "a.jpg", "caption": "…"} or {…, "captions": ["…", "…"]}',
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="folder of the photos (the folder of the captions file)"
    )


def read_captions(path: Path, folder: Path | None) -> dict[Path, list[str]]:
    """Each photo with its captions, in the file's order.

    Args:
        folder: that the names of photos are relative to; the captions' own, if None.

    Raises:
        ValueError: the file cannot be read, a line is not understood, or a photo is not there; with the line.
    """
    root = folder or path.parent
    found: dict[Path, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, captions = _parsed(line, f"{path}, line {number}")
        photo = root / name
        if photo not in found and not photo.is_file():
            raise ValueError(
                f"{path}, line {number}: {photo} does not exist; give the folder of the photos with --photos"
            )
        found.setdefault(photo, []).extend(captions)
    if not found:
        raise ValueError(f"{path} contains no captions")
    return found


def embedded(captioner: "Captioner", photos: Sequence[Path]) -> "Tensor":
    """The embeddings of photos: (N, E).

    Raises:
        ValueError: a photo cannot be read.
    """
    import torch

    from clipcap.image import ImageError

    made = []
    with ProgressBar("photo", total=len(photos)) as progress:
        for number, photo in enumerate(photos):
            progress.show(number, len(photos), "embedding")
            try:
                made.append(captioner.encoder.encode([photo]))
            except ImageError as error:
                raise ValueError(f"{photo}: {error}; remove it from the captions") from error
    return torch.cat(made)


def _parsed(line: str, where: str) -> tuple[str, Sequence[str]]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    name = entry.get("image") if isinstance(entry, dict) else None
    captions = entry.get("captions", [entry.get("caption")]) if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise ValueError(f'{where} needs "image", a file name, and "caption", a text, or "captions", a list of texts')
    return name, captions
