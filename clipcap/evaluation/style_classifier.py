"""Classifies the style of captions: a simple classifier for evaluating styles."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from clipcap.evaluation.ptb_tokenizer import ptb_tokenize


@dataclass(frozen=True)
class StyleClassifier:
    """Multinomial naive Bayes on the words and pairs of neighbouring words of a caption, with Laplace smoothing.

    All styles are held equally likely beforehand, however many captions each was fitted on.

    log_likelihoods: of each word and pair of words seen in fitting, by style; all styles know the same ones.
    """

    log_likelihoods: Mapping[str, Mapping[str, float]]

    @classmethod
    def fit(cls, captions_by_style: Mapping[str, Sequence[str]]) -> "StyleClassifier":
        """Learn to tell the styles apart.

        Raises:
            ValueError: there are fewer than two styles, or one has no words.
        """
        counts = {
            style: Counter(f for c in captions for f in _features(c)) for style, captions in captions_by_style.items()
        }
        if len(counts) < 2:
            raise ValueError("a classifier needs the captions of at least two styles")
        if empty := [style for style, count in counts.items() if not count]:
            raise ValueError(f"the captions of these styles have no words: {', '.join(empty)}")
        vocabulary = set().union(*counts.values())
        totals = {style: count.total() + len(vocabulary) for style, count in counts.items()}
        return cls(
            {
                style: {f: math.log((count[f] + 1) / totals[style]) for f in vocabulary}
                for style, count in counts.items()
            }
        )

    def predict(self, caption: str) -> str:
        """The likeliest style of the caption.

        What was not seen in fitting says nothing. Of styles that are equally likely it is the first that was fitted.
        """
        features = _features(caption)
        return max(
            self.log_likelihoods, key=lambda style: sum(self.log_likelihoods[style].get(f, 0.0) for f in features)
        )

    def share(self, captions: Sequence[str], style: str) -> float:
        """The share of the captions, from 0 to 1, that are classified as `style`.

        Raises:
            ValueError: there are no captions, or no captions of that style were fitted.
        """
        if not captions:
            raise ValueError("there are no captions to classify")
        if style not in self.log_likelihoods:
            raise ValueError(f"the style {style!r} is unknown; there are {', '.join(self.log_likelihoods)}")
        return sum(self.predict(caption) == style for caption in captions) / len(captions)


def _features(caption: str) -> list[str]:
    words = ptb_tokenize(caption).split()
    return words + [f"{first} {second}" for first, second in pairwise(words)]
