"""The sequential test of blind votes: right however often it is looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap.evaluation.preference import ALPHA, Preference

COUNTS = st.integers(0, 5000)


def ever(says: Callable[[Preference], bool], share: float, votes: int) -> float:
    """The exact probability that, looked at after each of so many votes, it says so at any of them."""
    alive, ended = {0: 1.0}, 0.0
    for vote in range(1, votes + 1):
        following: dict[int, float] = {}
        for wins, probability in alive.items():
            for won, chance in ((1, share), (0, 1 - share)):
                following[wins + won] = following.get(wins + won, 0.0) + probability * chance
        alive = {}
        for wins, probability in following.items():
            if says(Preference(wins, vote - wins)):
                ended += probability
            else:
                alive[wins] = probability
    return ended


def ends_as(verdicts: set[str], share: float, votes: int) -> float:
    return ever(lambda found: found.verdict in verdicts, share, votes)


def test_looked_at_after_every_vote_it_seldom_finds_a_difference_where_there_is_none() -> None:
    assert 0.01 < ends_as({"better", "worse"}, 0.5, 400) <= ALPHA


@pytest.mark.parametrize("share", [0.3, 0.45])
def test_it_seldom_finds_the_worse_one_better(share: float) -> None:
    assert ends_as({"better"}, share, 300) <= ALPHA


def test_it_finds_clear_differences_soon() -> None:
    assert ends_as({"better"}, 0.8, 60) > 0.95
    assert ends_as({"worse"}, 0.2, 60) > 0.95


@pytest.mark.parametrize("share", [0.02, 0.5, 0.7])
def test_at_no_moment_is_the_true_share_outside_of_the_interval_but_seldom(share: float) -> None:
    def outside(found: Preference) -> bool:
        low, high = found.interval
        return not low <= share <= high

    assert ever(outside, share, 100) <= ALPHA


def test_eight_votes_of_one_mind_are_the_fewest_that_tell() -> None:
    assert [Preference(n, 0).verdict for n in (0, 7, 8)] == ["unclear", "unclear", "better"]
    assert [Preference(0, n).verdict for n in (7, 8)] == ["unclear", "worse"]


@given(COUNTS, COUNTS)
def test_verdict_and_interval_say_the_same_and_both_sides_are_alike(wins: int, losses: int) -> None:
    found, mirrored = Preference(wins, losses), Preference(losses, wins)
    low, high = found.interval
    assert 0 <= low <= (0.5 if found.share is None else found.share) <= high <= 1
    assert (found.verdict == "better", found.verdict == "worse") == (low > 0.5, high < 0.5)
    assert mirrored.interval == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert mirrored.verdict == {"better": "worse", "worse": "better", "unclear": "unclear"}[found.verdict]


def test_more_votes_of_the_same_share_make_the_interval_narrower() -> None:
    widths = [high - low for n in (1, 10, 100, 1000) for low, high in [Preference(7 * n, 3 * n).interval]]
    assert widths == sorted(widths, reverse=True)


def test_the_capital_is_a_martingale_where_people_prefer_neither() -> None:
    for wins, losses in product(range(12), repeat=2):
        now, won, lost = (
            math.exp(found._capital(0.5))
            for found in (Preference(wins, losses), Preference(wins + 1, losses), Preference(wins, losses + 1))
        )
        assert (won + lost) / 2 == pytest.approx(now)
