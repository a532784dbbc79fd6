"""Captions for the pictures of `recipes/drawings/`, put together from phrases and the facts of a picture.

In a phrase of `drawing_captions.toml`, `(a|b|c)` is one of the three and `{colour}` the fact of that name; `a`
becomes `an` where it must."""

import re
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from recipes.drawings import Facts

# By kind of picture and style.
PHRASES: dict[str, dict[str, list[str]]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
TRIES = 24  # phrases tried for a caption, of which the one that repeats the earlier captions least is kept


class Captions:
    """Writes captions that differ from those it wrote before."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.written: Counter[str] = Counter()
        self.runs: defaultdict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)

    def write(self, style: str, kind: str, facts: Facts) -> str:
        """One sentence in `style` that is true of a picture of this kind with these facts."""
        runs = self.runs[style]
        drafts = [_sentence(self.rng, self.rng.choice(PHRASES[kind][style]), facts) for _ in range(TRIES)]
        text = min(drafts, key=lambda draft: (self.written[draft], max(runs[run] for run in five_word_runs(draft))))
        self.written[text] += 1
        runs.update(five_word_runs(text))
        return text


def five_word_runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[\w'-]+", text.lower())
    return [tuple(words[i : i + 5]) for i in range(len(words) - 4)]


def _sentence(rng: Random, phrase: str, facts: Facts) -> str:
    text = re.sub(r"\(([^()]*)\)", lambda choice: rng.choice(choice[1].split("|")), phrase).format(**facts)
    text = re.sub(r"\b([Aa]) (?=[aeio])(?!one)", r"\1n ", " ".join(text.split()))
    return text[0].upper() + text[1:] + "."
