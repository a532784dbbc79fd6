"""Draws pictures that are not photos, with captions, for the embedded models to learn from.

    python -m recipes.synthetic --out FOLDER --models models/base --count 1160 --seed 0

writes FOLDER/images/*.png, FOLDER/captions.jsonl, one line a picture, and FOLDER/clip_vitb16.npz, as `recipes.photos`
reads them. The kinds of picture take turns, so that there are as many of each, and every tenth picture is for dev. The
same count and seed write the same files."""

import argparse
import json
from pathlib import Path
from random import Random

import numpy as np

from clipcap.encoder import Encoder
from recipes.drawing_captions import Captions
from recipes.drawings import KINDS
from recipes.photos import STYLES

CAPTIONS = 2  # of a picture in each style


def draw_all(out: Path, count: int, seed: int) -> list[Path]:
    """Writes `count` pictures and their captions below `out`, and returns where the pictures are."""
    pictures = []
    (out / "images").mkdir(parents=True, exist_ok=True)
    kinds = list(KINDS)
    captions = Captions(Random(f"{seed}/captions"))
    with (out / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(count):
            turn, place = divmod(number, len(kinds))
            kind = kinds[place]
            image, facts = KINDS[kind](Random(f"{seed}/{number}"))
            name = f"{number:05}_{kind}.png"
            pictures.append(out / "images" / name)
            image.save(pictures[-1])
            row: dict[str, object] = {
                "image": name,
                "source": "synthetic",
                "by": "drawn",
                "split": "dev" if (turn + place) % 10 == 9 else "train",
            }
            for style in STYLES:
                row[style] = [captions.write(style, kind, facts) for _ in range(CAPTIONS)]
            lines.write(json.dumps(row) + "\n")
    return pictures


def embed(pictures: list[Path], encoder: Encoder, path: Path) -> None:
    """Writes the embeddings of `pictures` as `names` and `emb` (N, E)."""
    embeddings = encoder.encode(pictures).numpy().astype(np.float16)
    np.savez(path, names=np.array([picture.name for picture in pictures]), emb=embeddings)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw pictures that are not photos, with captions.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/, which embeds the pictures")
    parser.add_argument("--count", type=int, default=1160)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pictures = draw_all(options.out, options.count, options.seed)
    embed(
        pictures, Encoder.load(f"local-dir:{options.models / 'encoder'}", device="cpu"), options.out / "clip_vitb16.npz"
    )


if __name__ == "__main__":
    main()
