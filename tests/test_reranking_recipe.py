"""What the recipe takes for a stock phrase, and which candidates the weights that it fits choose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clipcap.decoding.rerank import FEATURES, Candidate
from recipes.photos import Photo
from recipes.reranking import Row, chosen, fit_choice, stock_phrases
from tests.reranking.weights import reranker

STYLES = ("factual", "humorous", "romantic")
CATS = {style: ["A cat."] for style in STYLES}  # what people say


def photo(name: str, by: str = "written") -> Photo:
    return Photo(name, Path(name), "web", by, "dev", {}, np.zeros(4, np.float16))


def said(text: str) -> list[Candidate]:
    return [Candidate(text, -1.0)]


def test_a_stock_phrase_is_what_candidates_say_more_often_than_people() -> None:
    photos = [photo(str(number)) for number in range(10)]
    own = [said("It has started to feel underdressed.")] * 4 + [said("The dog is in the water.")] * 6
    people = ["The dog is in the water."] * 6 + ["A cat."] * 4
    found = stock_phrases(photos, dict.fromkeys(STYLES, own), dict.fromkeys(STYLES, people))
    assert found["started to feel underdressed"] == 0.4
    assert "dog is in the" not in found, "people say it as often"


def test_have_and_has_started_are_one_stock_phrase() -> None:
    photos = [photo(str(number)) for number in range(4)]
    own = [said("They have started to feel underdressed."), said("It has started to feel underdressed.")] * 2
    found = stock_phrases(photos, dict.fromkeys(STYLES, own), CATS)
    assert max(found, key=lambda phrase: found[phrase]) == "started to feel underdressed"


def test_a_phrase_counts_as_in_the_set_that_has_it_most_often() -> None:
    photos = [*(photo(f"mixed{n}") for n in range(8)), *(photo(f"coco{n}", "people") for n in range(2))]
    own = [said("A cat sleeps here all day.")] * 8 + [said("It runs so fast that the grass waits.")] * 2
    assert stock_phrases(photos, dict.fromkeys(STYLES, own), CATS)["so fast that the"] == 1


def test_factual_captions_may_be_worded_alike() -> None:
    own = {"factual": [said("A man stands in front of a house.")], "humorous": [said("")], "romantic": [said("")]}
    assert stock_phrases([photo("0")], own, CATS) == {}


def rows(style: str, features: dict[str, tuple[float, float]]) -> list[Row]:
    """Photos with two candidates as good as each other but for some of FEATURES, and by chance for the others."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(200):
        table = 0.01 * torch.randn(2, len(FEATURES), generator=generator, dtype=torch.float64)
        for name, values in features.items():
            table[:, FEATURES.index(name)] += torch.tensor(values, dtype=torch.float64)
        same = torch.ones(2, dtype=torch.float64)
        found.append(Row(photo(str(number)), style, [said("A dog.")[0], said("A cat.")[0]], table, same, same, same))
    return found


def test_in_a_style_the_likelier_caption_is_chosen_unless_it_is_a_stock_phrase() -> None:
    for features, place in (
        ({"log_probability": (-1.0, -2.0)}, 0),
        ({"log_probability": (-1.0, -2.0), "stock": (0.2, 0.0)}, 1),
        ({"repetition": (0.3, 0.0)}, 1),
    ):
        own = rows("humorous", features)
        places = chosen(own, replace(reranker(), choice=fit_choice(own)))
        assert places.count(place) > 190, features
