"""A circuit breaker: a worker that keeps failing claims nothing for a while, so that others get to the rows, and then
tries one row. It closes with the first that succeeds."""

from __future__ import annotations

import random
import time

STRIKES = 3  # turns in a row that failed
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds; twice as long with every further turn that fails


class Breaker:
    """Of one worker. `trouble` is what its last turn failed with, once it has paused; empty while all is well, or while
    there is nothing to try."""

    def __init__(self) -> None:
        self._strikes, self._until, self.trouble = 0, 0.0, ""

    def note(self, ended: int, handed_back: int, trouble: str = "") -> None:
        """Take in a turn: how many rows it brought to an end, and how many it had to hand back, the last for what."""
        if ended >= handed_back:
            self._strikes, self._until, self.trouble = 0, 0.0, ""
            return
        self._strikes += 1
        if self._strikes >= STRIKES:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._strikes - STRIKES))
            self._until, self.trouble = time.monotonic() + pause * random.uniform(0.5, 1.0), trouble

    def note_idle(self, unfinished: bool) -> None:
        """Take in that there was nothing to claim, and whether there are rows that will have to be tried again. If not,
        others have ended them, or their time has: a worker that waited for one to succeed would call itself paused
        until somebody asks for more. It still begins with one row, and is paused again if that fails."""
        if not unfinished:
            self.trouble = ""

    @property
    def seconds_left(self) -> float:
        """Of the pause; 0 if there is none."""
        return max(0.0, self._until - time.monotonic())

    def limit(self, most: int) -> int:
        """How many rows may be claimed now: none during a pause, one until one succeeds, else `most`."""
        if self.seconds_left:
            return 0
        return min(1, most) if self._strikes >= STRIKES else most
