import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap.evaluation.calibration import Bin, calibration_bins, expected_calibration_error, rank_correlation

NUMBERS = st.floats(-1e6, 1e6)
JUDGED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def test_the_same_order_correlates_with_1_and_the_opposite_with_minus_1() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 4000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [0.3, 0.2, -5]) == pytest.approx(-1)


def test_without_ties_it_is_the_textbook_formula() -> None:
    # The ranks differ by 1, 1, 1 and 1: 1 - 6 * 4 / (4 * (16 - 1)).
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 24 / 60)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4; about their mean: -1.5, 0, 0, 1.5 and -1.5, -0.5, 0.5, 1.5.
    assert rank_correlation([0, 7, 7, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_what_is_all_the_same_orders_nothing() -> None:
    assert rank_correlation([0.5, 0.5, 0.5], [1, 2, 3]) == 0


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=30))
def test_it_depends_on_the_order_alone(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    correlation = rank_correlation(first, second)
    assert -1 - 1e-9 <= correlation <= 1 + 1e-9
    assert rank_correlation(second, first) == pytest.approx(correlation)
    assert rank_correlation([-a for a in first], second) == pytest.approx(-correlation)
    places = {value: float(place) for place, value in enumerate(sorted(set(first)))}
    assert rank_correlation([places[a] for a in first], second) == pytest.approx(correlation)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([1.0], [1.0], "two pairs"), ([1.0, 2.0], [1.0], "two pairs"), ([1.0, math.nan], [1.0, 2.0], "not numbers")],
)
def test_what_has_no_rank_correlation_is_refused(first: list[float], second: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(first, second)


def test_bins_hold_equally_many_captions_from_least_to_most_confident() -> None:
    bins = calibration_bins([0.9, 0.1, 0.7, 0.3], [True, False, True, True], bins=2)
    assert [(b.count, b.right) for b in bins] == [(2, 0.5), (2, 1.0)]
    assert [b.confidence for b in bins] == pytest.approx([0.2, 0.8])


def test_the_calibration_error_is_how_far_bins_are_off_weighted_by_their_captions() -> None:
    bins = [Bin(3, 0.5, 1.0), Bin(1, 0.9, 0.8)]
    assert expected_calibration_error(bins) == pytest.approx((3 * 0.5 + 1 * 0.1) / 4)


def test_confidence_that_is_the_share_of_right_captions_has_no_error() -> None:
    bins = calibration_bins([0.25] * 4 + [1.0] * 4, [True, False, False, False] + [True] * 4)
    assert bins == [Bin(4, 0.25, 0.25), Bin(4, 1.0, 1.0)]
    assert expected_calibration_error(bins) == 0


def test_certainty_that_is_always_wrong_has_an_error_of_1() -> None:
    assert expected_calibration_error(calibration_bins([1.0, 1.0], [False, False])) == 1


@given(JUDGED, st.randoms(use_true_random=False))
def test_every_caption_is_in_one_bin_whatever_their_order(
    captions: list[tuple[float, bool]], shuffle: random.Random
) -> None:
    bins = calibration_bins([c for c, _ in captions], [r for _, r in captions])
    assert len(bins) <= 10
    assert sum(b.count for b in bins) == len(captions)
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)
    assert 0 <= expected_calibration_error(bins) <= 1
    shuffled = shuffle.sample(captions, len(captions))
    others = calibration_bins([c for c, _ in shuffled], [r for _, r in shuffled])
    assert [b.count for b in others] == [b.count for b in bins]
    assert [b.right for b in others] == pytest.approx([b.right for b in bins])


@pytest.mark.parametrize(
    ("confidences", "right", "message"),
    [
        ([], [], "one judgement for each"),
        ([0.5], [], "one judgement for each"),
        ([1.5], [True], "from 0 to 1"),
        ([math.nan], [True], "from 0 to 1"),
        ([-0.2], [True], "from 0 to 1"),
    ],
)
def test_what_is_no_confidence_is_refused(confidences: list[float], right: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_bins(confidences, right)
