"""Is the candidate better? Paired bootstrap over the captions of the same held-out images, and the gate's verdict."""

import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

HELD_OUT_SHARE = 0.1  # of a dataset's photos
RESAMPLES = 2000
LEAST_JUDGED = 20  # images; on fewer the interval is far too narrow: on 5, chance alone passes one candidate in ten

Verdict = Literal["better", "unclear", "worse"]


@dataclass(frozen=True)
class Difference:
    """Mean difference candidate - baseline of a metric, with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(candidate: Mapping[str, float], baseline: Mapping[str, float], seed: int = 0) -> Difference:
    """Resample the images, with replacement, and look at the mean difference of their scores (Efron's percentile
    interval; Koehn 2004 for machine translation).

    Args:
        candidate, baseline: the score of each image's caption, by image; the same images.
    """
    differences = [candidate[image] - baseline[image] for image in sorted(candidate)]
    rng = random.Random(seed)
    means = sorted(
        statistics.fmean(rng.choices(differences, k=len(differences))) for _ in range(RESAMPLES if differences else 0)
    )
    return Difference(
        statistics.fmean(differences), means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]
    )


def verdict(difference: Difference, margin: float, images: int) -> Verdict:
    """What the interval says: better or worse if it clears zero by the margin, else unclear; always unclear where there
    are too few images to tell."""
    if images < LEAST_JUDGED:
        return "unclear"
    if difference.low > margin:
        return "better"
    if difference.high < -margin:
        return "worse"
    return "unclear"
