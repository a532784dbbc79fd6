"""Photos of a folder, and their captions in JSON Lines: what `./run caption` and `caption_folder` have in common."""

import io
import json
from pathlib import Path
from typing import Any, TextIO

from clipcap.image import SUFFIXES


def photos_in(folder: Path) -> tuple[list[Path], int]:
    """All photos below a folder, told and ordered by their names, and how many other files there are.

    What macOS keeps beside a file on a foreign disk (`._x.jpg`) is called like a photo and is none.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    photos = [path for path in files if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("._")]
    return photos, len(files) - len(photos)


def written(record: dict[str, Any]) -> str:
    """A record as a line of JSON, with its end.

    The line is text that stays one line for every reader: what is not printable is escaped, such as U+2028, at which
    many readers break lines, and the bytes of a name that is not UTF-8, which Python holds as lone surrogates.
    """
    text = json.dumps(record, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    return f"{text}\n"


def read(data: bytes) -> list[Any]:
    """The records of such lines, also of lines that hold the bytes of names as they are.

    Raises:
        ValueError: a line is no JSON.
    """
    return [json.loads(line.decode(errors="surrogateescape")) for line in data.split(b"\n") if line.strip()]


def as_utf8(stream: TextIO) -> TextIO:
    """A stream to write lines to. JSON Lines are UTF-8, whatever the terminal is set to."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8")
    return stream
