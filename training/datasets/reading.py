"""A file of annotations in pieces that fit into memory: lines, or the entries of a JSON file's lists."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from captioner.errors import Refused
from training.datasets.refusals import bad_json, not_utf8, shown

MAX_LINE = 1_000_000  # bytes of a line, characters of an entry in JSON
BOM = b"\xef\xbb\xbf"

_BLANK = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 18  # bytes of JSON read at once
_SURE = 32  # characters behind a value that show that it has ended: a number or word cut in two could go on


def lines(file: BinaryIO, name: str, check: Callable[[], None]) -> Iterator[str]:
    """The lines of a file, each with its end. Only newlines end them: a line may hold U+2028 and the like.

    Raises:
        Refused: it is not UTF-8, or a line is too long.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number % 1000 == 0:  # empty lines are not rows
            check()
        if len(line) > MAX_LINE:
            raise Refused(
                "line_too_long",
                f"line {number} of {shown(name)} has more than {MAX_LINE:,} bytes; split it",
                status=422,
            )
        try:
            yield (line.removeprefix(BOM) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise not_utf8(name, number) from error


def parsed(line: str | bytes) -> Any:
    """What a line of JSON says; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def entries(file: BinaryIO, name: str, check: Callable[[], None]) -> Iterator[tuple[str, Any]]:
    """What the lists of a JSON file hold: each entry with the key of its list, "" if the file is one list.

    A value beside the lists comes as an entry, too. Each entry is read by `json`, as a line of JSON is: NaN and halves
    of characters, which Python writes itself, are values like others.

    Raises:
        Refused: it is not JSON, or an entry is too long.
    """
    text = _JsonReader(file, name, check)
    if text.next() == "[":
        for entry in text.items():
            yield "", entry
    elif text.next() == "{":
        text.skip()
        while text.next() != "}":
            key = text.value()
            if not isinstance(key, str):
                raise text.broken("a key is not a text")
            text.expect(":")
            if text.next() == "[":
                for entry in text.items():
                    yield key, entry
            else:
                yield key, text.value()
            if text.next() != "}":
                text.expect(",")
        text.skip()
    else:
        yield "", text.value()
    if text.next():
        raise text.broken("there is more data after the end")


class _JsonReader:
    """A JSON file, read value by value."""

    _decoder = json.JSONDecoder()

    def __init__(self, file: BinaryIO, name: str, check: Callable[[], None]) -> None:
        self._file, self._name, self._check = file, name, check
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._place, self._ended = "", 0, False
        self._count = 0

    def next(self) -> str:
        """The next letter that is not a blank, "" at the end."""
        while True:
            match = _BLANK.match(self._text, self._place)
            assert match is not None
            self._place = match.end()
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._more()

    def skip(self) -> None:
        """Go past the letter that `next` tells."""
        self._place += 1

    def expect(self, letter: str) -> None:
        """Go past this letter.

        Raises:
            Refused: there is another.
        """
        if self.next() != letter:
            raise self.broken(f"expected {letter!r}, not {self.next()!r}" if self.next() else "it is truncated")
        self.skip()

    def items(self) -> Iterator[Any]:
        """The entries of the list that begins here."""
        self.skip()
        while self.next() != "]":
            yield self.value()
            self._count += 1
            if self.next() != "]":
                self.expect(",")
        self.skip()

    def value(self) -> Any:
        """The value that begins here, whole."""
        self.next()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._place)
                if end + _SURE <= len(self._text) or self._ended:
                    if end - self._place > MAX_LINE:
                        raise self.broken("it is too large")
                    self._place = end
                    return found
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.broken(error.msg) from error
            except RecursionError as error:
                raise self.broken("it is nested too deeply") from error
            except ValueError as error:
                raise self.broken("a number is too long") from error
            if len(self._text) - self._place > MAX_LINE + _SURE:
                raise self.broken("it is malformed or too large")
            self._more()

    def _more(self) -> None:
        self._check()
        # As much again as there is, so that a long value is not begun again too often.
        rest = self._text[self._place :]
        data = self._file.read(max(_CHUNK, len(rest)))
        try:
            self._text, self._place = rest + self._bytes.decode(data, final=not data), 0
        except UnicodeDecodeError as error:
            raise self.broken("it is not UTF-8") from error
        self._ended = not data

    def broken(self, cause: str) -> Refused:
        """Why it cannot be read on from here."""
        return bad_json(self._name, self._count, cause)
