"""Progress is a bar on a terminal and plain lines elsewhere, so that logs stay readable."""

import io
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

from clipcap.progress import ProgressBar

ROOT = Path(__file__).parent.parent


def whatever_was_written(terminal: int) -> str:
    """What came through the terminal, in however many pieces, until its last writer closed it."""
    pieces = []
    with os.fdopen(terminal, "rb", buffering=0) as reader, suppress(OSError):  # Linux's end of a terminal is EIO
        while piece := reader.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_on_a_terminal_there_is_a_bar() -> None:
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as terminal, ProgressBar("photo", total=4, file=terminal) as bar:
        bar.advance(3)
        bar.write("a.jpg: broken")
        bar.show(3, 4, "resting")
        bar.advance()
    seen = whatever_was_written(reader)
    assert "4/4" in seen
    assert "photo" in seen
    assert "resting:  75%" in seen
    assert "a.jpg: broken\r\n" in seen


def test_elsewhere_there_is_nothing_of_short_work_but_what_is_written() -> None:
    log = io.StringIO()
    with ProgressBar("photo", total=4, file=log) as bar:
        bar.advance(4)
        bar.write("a.jpg: broken")
    assert log.getvalue() == "a.jpg: broken\n"


def test_elsewhere_long_work_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with ProgressBar("row", done=10, file=log) as bar:
        for second in range(0, 91, 10):
            now[0] = float(second)
            bar.show(10 + 100 * second, None if second < 60 else 9_110, "reading" if second < 60 else "")
    assert log.getvalue().splitlines() == ["reading: 3,010 rows", "6,010 of 9,110 rows", "9,010 of 9,110 rows"]


def test_nothing_else_draws_bars() -> None:
    files = [
        path for name in ("clipcap", "captioner", "training", "clipcap_site") for path in (ROOT / name).rglob("*.py")
    ]
    drawing = [path.name for path in files if re.search(r"^\s*(?:from|import) tqdm", path.read_text(), re.MULTILINE)]
    assert drawing == ["progress.py"]
