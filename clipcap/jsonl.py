"""Photos of a folder, and their captions in JSON Lines: what `./run caption` and `caption_folder` have in common."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from clipcap import strict_json
from clipcap.image import SUFFIXES


def photos_in(folder: Path) -> tuple[list[Path], int]:
    """All photos below a folder, recognised and ordered by their names, and how many other files there are.

    What macOS keeps beside a file on a foreign disk (`._x.jpg`) is called like a photo and is none.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    photos = [path for path in files if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("._")]
    return photos, len(files) - len(photos)


def caption(text: str, confidence: float | None, log_probability: float | None, unsure: bool) -> dict[str, Any]:
    """A caption, the best or another, as a line has it."""
    return {
        "caption": text,
        "confidence": None if confidence is None else round(confidence, 4),
        "log_probability": None if log_probability is None else round(log_probability, 4),
        "unsure": unsure,
    }


def record(
    image: str,
    style: str,
    captions: Sequence[dict[str, Any]],
    mapper: str,
    withheld: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a line says of a photo in a style.

    Args:
        captions: the best first, each made by `caption`.
        withheld: code and detail of why the best has no words.
    """
    best, *others = captions
    return {"image": image, "style": style, **best, "withheld": withheld, "alternatives": others, "mapper": mapper}


def written(record: dict[str, Any]) -> str:
    """A record as a line of JSON, with its end.

    The line is text that stays one line for every reader: what is not printable is escaped, such as U+2028, at which
    many readers break lines, and the bytes of a name that is not UTF-8, which Python holds as lone surrogates.
    """
    text = strict_json.dumps(record, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    return f"{text}\n"


def read(data: bytes) -> list[Any]:
    """The records of such lines, also of lines that hold the bytes of names as they are.

    Raises:
        ValueError: a line is not JSON.
    """
    return [json.loads(line.decode(errors="surrogateescape")) for line in data.split(b"\n") if line.strip()]


def shown(name: str) -> str:
    """A photo's name on one line of a terminal, whatever is in it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def as_utf8(stream: TextIO) -> TextIO:
    """A stream to write lines to. JSON Lines are UTF-8, whatever the terminal is set to."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8")
    return stream
