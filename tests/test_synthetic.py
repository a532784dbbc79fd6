"""The drawn pictures and captions that the embedded models see beside photos."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from recipes.drawing_captions import PHRASES, five_word_runs
from recipes.drawings import KINDS
from recipes.drawings.canvas import Colour
from recipes.drawings.sites import DESKTOPS, PHONES, Screen
from recipes.synthetic import draw_all

COUNT = 10 * len(KINDS)
STYLES = {"factual": (6, 16), "humorous": (10, 16), "romantic": (10, 16)}  # fewest and most words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic")
    draw_all(out, COUNT, seed=3)
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]


def captions(rows: list[dict[str, Any]], style: str) -> list[str]:
    return [caption for row in rows for caption in row[style]]


def test_the_same_seed_draws_the_same_files_and_another_seed_draws_others(folder: Path, tmp_path: Path) -> None:
    draw_all(tmp_path / "again", len(KINDS), seed=3)
    draw_all(tmp_path / "other", len(KINDS), seed=4)
    first = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()[: len(KINDS)]
    assert (tmp_path / "again" / "captions.jsonl").read_text(encoding="utf-8").splitlines() == first
    changed = 0
    for path in sorted((tmp_path / "again" / "images").iterdir()):
        assert path.read_bytes() == (folder / "images" / path.name).read_bytes()
        changed += path.read_bytes() != (tmp_path / "other" / "images" / path.name).read_bytes()
    assert changed > len(KINDS) * 0.8


def test_every_picture_opens_and_is_at_most_640_pixels_long(folder: Path, rows: list[dict[str, Any]]) -> None:
    assert sorted(p.name for p in (folder / "images").iterdir()) == sorted(row["image"] for row in rows)
    for row in rows:
        with Image.open(folder / "images" / row["image"]) as image:
            image.load()
            assert image.mode == "RGB"
            assert 200 <= min(image.size) <= max(image.size) <= 640


def test_there_are_as_many_pictures_of_each_kind_and_a_tenth_of_each_is_for_dev(rows: list[dict[str, Any]]) -> None:
    kinds = Counter((row["image"].split("_", 1)[1], row["split"]) for row in rows)
    assert kinds == {(f"{k}.png", split): n for k in KINDS for split, n in (("train", 9), ("dev", 1))}


@pytest.mark.parametrize("style", STYLES)
def test_captions_are_one_sentence_of_the_right_length(rows: list[dict[str, Any]], style: str) -> None:
    fewest, most = STYLES[style]
    for text in captions(rows, style):
        assert fewest <= len(text.split()) <= most, text
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert text.count(".") == 1, text
        assert not set("(){}|") & set(text), text


@pytest.mark.parametrize("style", STYLES)
def test_captions_differ_and_repeat_no_stock_phrase(rows: list[dict[str, Any]], style: str) -> None:
    texts = captions(rows, style)
    assert len(set(texts)) >= 0.98 * len(texts)
    runs = Counter(run for text in texts for run in five_word_runs(text))
    assert max(runs.values()) <= 5 * len(texts) / 100
    assert all(len(set(row[style])) == 2 for row in rows)


def test_every_kind_has_six_phrases_or_more_in_every_style() -> None:
    assert PHRASES.keys() == KINDS.keys()
    assert all(len(set(PHRASES[kind][style])) >= 6 for kind in KINDS for style in STYLES)


class Watched(Screen):
    """A screen that keeps the texts it draws."""

    def __init__(self, rng: Random, sizes: list[tuple[int, int]]) -> None:
        super().__init__(rng, sizes)
        self.drawn: list[str] = []

    def text(self, at: tuple[float, float], text: str, letter: int, ink: Colour | None = None) -> None:
        self.drawn.append(text)
        super().text(at, text, letter, ink)


def test_a_site_is_said_to_have_links_on_top_only_where_they_are_drawn() -> None:
    found = set()
    for seed in range(40):
        screen = Watched(Random(seed), [*DESKTOPS, *PHONES])
        screen.bar()
        assert screen.links == (len(screen.drawn) > 1), "the first text is the site's name"
        found.add(screen.links)
    assert found == {True, False}
