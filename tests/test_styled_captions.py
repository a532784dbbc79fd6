"""The captions in styles that the recipes have beyond those of the data."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipes.drawing_captions import five_word_runs
from recipes.photos import Photo
from recipes.styled_captions import CAPTIONS, add_styled_captions

TEXT = CAPTIONS.read_text(encoding="utf-8")
ROWS = list(csv.reader(TEXT.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def photo(name: str, split: str, captions: dict[str, list[str]]) -> Photo:
    return Photo(name, Path(name), "flickr8k", "people", split, captions, np.zeros(4, np.float16))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "more.tsv"
    path.write_text("a.jpg\tThe dog drives\tThe dog dreams.\nb.jpg\tA cat sings\tA cat sighs\n", encoding="utf-8")
    return path


def test_a_training_picture_gets_the_captions_beside_those_it_has(path: Path) -> None:
    known = {"people": ["A dog."], "humorous": ["A dog barks."]}
    photos = [photo("a.jpg", "train", known), photo("c.jpg", "train", {})]
    first, other = add_styled_captions(photos, path)
    assert first.captions == {
        "people": ["A dog."],
        "humorous": ["A dog barks.", "The dog drives."],
        "romantic": ["The dog dreams."],
    }
    assert other is photos[1]
    assert photos[0].captions["humorous"] == ["A dog barks."]


def test_what_is_measured_with_stays_as_it_is(path: Path) -> None:
    kept = [photo("a.jpg", "dev", {}), photo("b.jpg", "dev", {"humorous": ["A cat."]})]
    assert add_styled_captions(kept, path) == kept


def test_every_line_is_a_picture_with_a_sentence_in_each_style() -> None:
    assert {len(row) for row in ROWS} == {3}
    assert len({name for name, *_ in ROWS}) == len(ROWS)
    for _, *captions in ROWS:
        for caption in captions:
            assert caption.isascii(), caption
            assert caption.endswith((".", "!", "?")), caption
            assert 5 <= len(caption.split()) <= 24, caption


@pytest.mark.parametrize("column", [1, 2])
def test_no_caption_comes_twice_and_no_five_words_are_a_habit(column: int) -> None:
    captions = [row[column] for row in ROWS]
    assert len(set(captions)) == len(captions)
    runs = Counter(run for caption in captions for run in set(five_word_runs(caption)))
    assert max(runs.values()) <= 0.0025 * len(captions), runs.most_common(3)
