import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap.evaluation.style_classifier import StyleClassifier

CAPTIONS = {
    "factual": ["A dog runs on the beach.", "Two men ride bikes on the road.", "A cat sits on a chair."],
    "romantic": ["A dog runs to meet his true love.", "Two men in love ride into the sunset."],
}


def test_captions_are_classified_by_the_words_of_their_style() -> None:
    classifier = StyleClassifier.fit(CAPTIONS)
    assert classifier.predict("a girl dreams of her true love") == "romantic"
    assert classifier.predict("A bird sits on the beach") == "factual"


def test_pairs_of_words_tell_styles_apart_that_have_the_same_words() -> None:
    classifier = StyleClassifier.fit({"first": ["man bites dog"], "second": ["dog bites man"]})
    assert classifier.predict("a man bites") == "first"
    assert classifier.predict("a dog bites") == "second"


def test_likelihoods_are_smoothed_counts_of_words_and_pairs() -> None:
    classifier = StyleClassifier.fit({"x": ["Red dog.", "red"], "y": ["cat"]})
    # "x" has red twice, dog and "red dog" once each; with cat, four different features are known.
    expected = {"red": 3 / 8, "dog": 2 / 8, "red dog": 2 / 8, "cat": 1 / 8}
    assert classifier.log_likelihoods["x"] == pytest.approx({f: math.log(p) for f, p in expected.items()})


def test_a_style_with_more_captions_is_not_preferred_for_it() -> None:
    classifier = StyleClassifier.fit({"rare": ["a b"], "frequent": ["a b"] * 2})
    assert sum(map(math.exp, classifier.log_likelihoods["rare"].values())) == pytest.approx(1)
    assert classifier.predict("nothing known") == "rare"
    assert classifier.predict("") == "rare"


def test_the_share_counts_the_captions_classified_as_the_style() -> None:
    captions = ["true love", "into the sunset in love", "a cat sits on a chair", "men ride bikes on the road"]
    classifier = StyleClassifier.fit(CAPTIONS)
    assert classifier.share(captions, "romantic") == 1 / 2
    assert classifier.share(captions[:2], "factual") == 0


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({}, "at least two styles"),
        ({"factual": ["a dog"]}, "at least two styles"),
        ({"factual": ["a dog"], "romantic": [], "humorous": ["..."]}, "no words: romantic, humorous"),
    ],
)
def test_styles_without_captions_are_refused(captions: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleClassifier.fit(captions)


def test_a_share_of_nothing_and_of_an_unknown_style_are_refused() -> None:
    classifier = StyleClassifier.fit(CAPTIONS)
    with pytest.raises(ValueError, match="no captions"):
        classifier.share([], "factual")
    with pytest.raises(ValueError, match="'humorous' is unknown; there are factual, romantic"):
        classifier.share(["a dog"], "humorous")


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_captions_are_shared_out_among_the_styles(captions: list[str]) -> None:
    classifier = StyleClassifier.fit(CAPTIONS)
    assert sum(classifier.share(captions, style) for style in CAPTIONS) == pytest.approx(1)
