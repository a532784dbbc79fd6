"""Which of two do people prefer? A sequential sign test: its verdict holds however often it is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clipcap.evaluation.comparison import Verdict

ALPHA = 0.05  # probability of any wrong verdict, ever, where people prefer neither


@dataclass(frozen=True)
class Preference:
    """How often each of two was preferred, once for each photo; who prefers neither says nothing (Dixon and Mood 1946).

    Whoever bets a fair share on every vote cannot expect to win where people prefer neither; their capital exceeds
    1 / ALPHA with a probability of ALPHA at most, at whatever moment one stops (Ville 1939). The bet is the mixture of
    all constant ones, with equal weights (Robbins 1970, "Statistical methods related to the law of the iterated
    logarithm"; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence
    sequences"). A test for a fixed number of votes, looked at after each, would be wrong far more often.

    Args:
        wins: votes for the candidate.
        losses: votes for the other.
    """

    wins: int
    losses: int

    @property
    def votes(self) -> int:
        """Votes for one of the two."""
        return self.wins + self.losses

    @property
    def share(self) -> float | None:
        """Of these, the share for the candidate, 0 to 1."""
        return self.wins / self.votes if self.votes else None

    @property
    def interval(self) -> tuple[float, float]:
        """The shares that are not excluded: with 95 % probability the true one is never outside, at no moment."""
        share = self.share
        if share is None:
            return 0.0, 1.0
        return self._bound(share, 0.0), self._bound(share, 1.0)

    @property
    def verdict(self) -> Verdict:
        """What is known of the candidate."""
        if self._capital(0.5) < -math.log(ALPHA):
            return "unclear"
        return "better" if self.wins > self.losses else "worse"

    def _capital(self, share: float) -> float:
        """The logarithm of what who bet against this being the true share has made of 1."""
        mixed = math.lgamma(self.wins + 1) + math.lgamma(self.losses + 1) - math.lgamma(self.votes + 2)
        return mixed - _times_log(self.wins, share) - _times_log(self.losses, 1 - share)

    def _bound(self, inside: float, outside: float) -> float:
        """Where the capital reaches 1 / ALPHA, between a share that is not excluded and the end of the scale."""
        if self._capital(outside) < -math.log(ALPHA):
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            if self._capital(middle) < -math.log(ALPHA):
                inside = middle
            else:
                outside = middle
        return outside


def _times_log(count: int, share: float) -> float:
    return 0.0 if count == 0 else -math.inf if share <= 0 else count * math.log(share)
