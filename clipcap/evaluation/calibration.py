"""Whether a confidence means something: does it order captions by how good they are, and is it the share of right ones?

Legend: N captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation of N pairs, from -1 to 1; values that are equal share the mean of their ranks.

    0 where all values of one side are equal, since they order nothing.

    Raises:
        ValueError: the lengths differ, there are fewer than two pairs, or a value is not a number.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a rank correlation needs at least two pairs, not {len(first)} and {len(second)} values")
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / spread) if spread else 0.0


@dataclass(frozen=True)
class Bin:
    """Captions of like confidence: how many they are, their mean confidence, and the share of them that is right."""

    count: int
    confidence: float
    right: float


def calibration_bins(confidences: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Sort N captions by confidence and cut them into parts of the same size, from least to most confident.

    Parts of the same size rather than of the same width, because a model's confidences lie close together: ten parts of
    the same width would leave most of them empty. Captions with the same confidence stay together, so there may be
    fewer parts than `bins`.

    Raises:
        ValueError: there are no captions, the lengths differ, or a confidence is not a probability.
    """
    if not confidences or len(confidences) != len(right):
        raise ValueError(f"{len(confidences)} confidences and {len(right)} judgements: give one judgement for each")
    values = np.asarray(confidences, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a confidence is a probability, from 0 to 1")
    order = values.argsort(kind="stable")
    values, judged = values[order], np.asarray(right, dtype=np.float64)[order]
    total = len(values)
    starts = sorted({int(np.searchsorted(values, values[part * total // bins])) for part in range(bins)})
    return [
        Bin(end - start, float(values[start:end].mean()), float(judged[start:end].mean()))
        for start, end in zip(starts, [*starts[1:], total], strict=True)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """How far confidence and share of right captions are apart, on average over the captions: 0 at best, 1 at worst."""
    return sum(b.count * abs(b.confidence - b.right) for b in bins) / sum(b.count for b in bins)


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    if np.isnan(values).any():
        raise ValueError("values that are not numbers have no rank")
    _, group, sizes = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    mean_rank = sizes.cumsum() - (sizes - 1) / 2
    return np.asarray(mean_rank[group])
