"""Draws pictures that are not photos, with captions, for the embedded models to learn from.

    python -m recipes.synthetic --out FOLDER --count 900 --seed 0

writes FOLDER/images/*.png and FOLDER/captions.jsonl, one line a picture, as `recipes.photos` reads it. The kinds of
picture take turns, so that there are as many of each, and every tenth picture is for dev. The same count and seed write
the same files."""

import argparse
import json
from pathlib import Path
from random import Random

from recipes.drawing_captions import Captions
from recipes.drawings import KINDS


def draw_all(out: Path, count: int, seed: int) -> None:
    """Writes `count` pictures and their captions below `out`."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    kinds = list(KINDS)
    captions = Captions(Random(f"{seed}/captions"))
    with (out / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(count):
            turn, place = divmod(number, len(kinds))
            kind = kinds[place]
            image, facts = KINDS[kind](Random(f"{seed}/{number}"))
            name = f"{number:05}_{kind}.png"
            image.save(out / "images" / name)
            row = {
                "image": name,
                "source": "synthetic",
                "by": "drawn",
                "split": "dev" if (turn + place) % 10 == 9 else "train",
                "factual": [captions.write("factual", kind, facts), captions.write("factual", kind, facts)],
                "humorous": captions.write("humorous", kind, facts),
                "romantic": captions.write("romantic", kind, facts),
            }
            lines.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw pictures that are not photos, with captions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw_all(options.out, options.count, options.seed)


if __name__ == "__main__":
    main()
