"""How far long work has got: a bar on a terminal, and elsewhere, in a log say, a plain line every half minute."""

import sys
import time
from typing import Any, Self

from tqdm import tqdm

EVERY = 30.0  # seconds


class ProgressBar:
    """Progress of work that is counted in `unit`, shown on standard error or another stream."""

    def __init__(self, unit: str, *, total: int | None = None, done: int = 0, file: Any = None) -> None:
        self.unit, self.file = unit, file or sys.stderr
        self.done, self.total, self.phase = done, total, ""
        # None: where there is no terminal. One photo is done before a bar says anything.
        self.bar = tqdm(total=total, initial=done, unit=unit, file=self.file, disable=True if total == 1 else None)
        self.said_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, more: int = 1) -> None:
        """So many more are done."""
        self.show(self.done + more, self.total)

    def show(self, done: int, total: int | None, phase: str = "") -> None:
        """So many are done, of so many if that is known, in a phase of the work if it has several."""
        changed = (total, phase) != (self.total, self.phase)
        self.done, self.total, self.phase = done, total, phase
        if not self.bar.disable:
            self.bar.total = total
            self.bar.update(done - self.bar.n)
            if changed:
                self.bar.set_description(phase or None)
        elif time.monotonic() - self.said_at >= EVERY:
            self.said_at = time.monotonic()
            self.file.write(f"{self}\n")
            self.file.flush()

    def write(self, text: str, *, file: Any = None, end: str = "\n") -> None:
        """Print a text, on `file` or where the progress is shown, without the bar in it."""
        tqdm.write(text, file=file or self.file, end=end)

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total else ""
        return f"{f'{self.phase}: ' if self.phase else ''}{self.done:,}{of} {self.unit}s"
