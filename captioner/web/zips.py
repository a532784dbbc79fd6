"""Photos with their captions in text files beside them, as a ZIP that is sent while it is made."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import PurePath

from django.db.models import QuerySet

from captioner.models import Caption, Image

log = logging.getLogger(__name__)

LONGEST_NAME = 100


class _Pipe(io.RawIOBase):
    """Takes what is written to it, and gives it away once; nobody can seek in it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # of all buffers, zipfile writes bytes
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def zip_parts(images: Sequence[Image], captions: QuerySet[Caption]) -> Iterator[bytes]:
    """The bytes of a ZIP of the images, each with a `.txt` of the same name: a line for each style that has a finished
    caption, its newest one, as a person corrected it or as it was written. A missing file is left out and logged."""
    pipe, taken = _Pipe(), set[str]()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # pictures do not get smaller
        for image in images:
            mine = list(captions.filter(image=image.pk, status="succeeded"))
            name = _free(_stem(mine, image), taken)
            try:
                with image.file.open("rb") as file:
                    archive.writestr(f"{name}.jpg", file.read())
            except Exception as error:  # every storage raises its own kinds, and the answer is under way
                log.warning("a picture is missing in a ZIP", extra={"image": image.pk, "error": error})
            else:
                archive.writestr(f"{name}.txt", "".join(f"{text}\n" for text in _newest(mine)))
            yield pipe.taken()
    yield pipe.taken()


def _newest(captions: Iterable[Caption]) -> list[str]:
    found: dict[tuple[bool, str], str] = {}
    for caption in captions:  # the newest first
        if text := " ".join(caption.best_text.split()):
            found.setdefault((not caption.style.is_default, caption.style.slug), text)
    return [text for _, text in sorted(found.items())]


def _stem(captions: Iterable[Caption], image: Image) -> str:
    """A file name that every system takes: that of the upload, or the photo's id."""
    name = next((caption.name for caption in captions if caption.name), "")
    stem = re.sub(r'[<>:"/\\|?*]', "_", PurePath(name).stem).strip(". ")
    return stem[:LONGEST_NAME] or str(image.pk)


def _free(stem: str, taken: set[str]) -> str:
    """The name, with a number where another photo of the ZIP has it already, in whatever case."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name
