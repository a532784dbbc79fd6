"""The pictures, captions and embeddings that the recipes train on, read from a folder the caller names.

Layout of that folder (`--data`):

    flickr8k/captions.jsonl    {"image", "split": train|dev, "factual": [...]} a line
    flickr8k/images/
    photos/captions.jsonl      {"image", "source", "by": written|people|web, "split", "factual": [...], "humorous",
                               "romantic", "web": [...]} a line, with the captions there are; the styles' may be lists
    photos/images/             of the dev part
    coco_cc/captions.json      [{"file", "captions": [...]}]: never trained on, kept to look at
    coco_cc/images/
    text/*.txt                 captions without photos, one a line
    clip_vitb16/NAME.npz, photos/clip_vitb16.npz
                               `names` and `emb` (512,): CLIP ViT-B/16's embedding of each picture
    synthetic/                 made by `recipes.synthetic`: captions.jsonl as for photos, images/, clip_vitb16.npz

FlickrStyle's crowd captions are not read: they are about what was imagined rather than what is there.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STYLES = ("factual", "humorous", "romantic")
# People describe a photo in other words than a writer who wants every caption to be new, and the web in others again.
# The language model learns each manner behind a constant of its own, so that none gets into the others.
MANNERS = ("people", "written", "humorous", "romantic", "web")
# The manner that a style starts from: factual captions sound as people's do.
STARTS = {"factual": "people", "humorous": "humorous", "romantic": "romantic"}
DEV_SETS = ("flickr8k", "coco", "mixed", "coco_cc")


@dataclass(frozen=True)
class Photo:
    """One picture with its captions by manner, and CLIP's embedding of it, (512,).

    `path` may name a file that is not there: of most training pictures only the embedding is needed.
    """

    name: str
    path: Path
    source: str
    by: str
    split: str
    captions: dict[str, list[str]]
    embedding: npt.NDArray[np.float16]

    @property
    def dev_set(self) -> str | None:
        """Which of DEV_SETS the picture belongs to; None for one that is trained on."""
        if self.source == "coco_cc":
            return "coco_cc"
        if self.split != "dev":
            return None
        return "flickr8k" if self.source == "flickr8k" else "coco" if self.by == "people" else "mixed"

    def references(self, style: str) -> list[str]:
        """The captions of a style: for the factual one, people's where there are any."""
        if style != "factual":
            return self.captions.get(style, [])
        return self.captions.get("people") or self.captions.get("written", [])


def load_photos(data: Path) -> list[Photo]:
    """Every picture below `data`, in a fixed order; `split` is train or dev, and `look` for those of coco_cc."""
    photos = []
    embeddings = _embeddings(data / "clip_vitb16" / "flickr8k.npz")
    for row in _lines(data / "flickr8k" / "captions.jsonl"):
        captions = {"people": [tidy(c) for c in row["factual"]]}
        name = row["image"]
        path = data / "flickr8k" / "images" / name
        photos.append(Photo(name, path, "flickr8k", "people", row["split"], captions, embeddings[name]))
    for folder in ("photos", "synthetic"):
        if not (data / folder).is_dir():
            continue
        embeddings = _embeddings(data / folder / "clip_vitb16.npz")
        for row in _lines(data / folder / "captions.jsonl"):
            name = row["image"]
            captions = {"people" if row["by"] == "people" else "written": row.get("factual", [])}
            captions |= {style: _several(row.get(style, [])) for style in STYLES[1:]}
            captions["web"] = row.get("web", [])
            captions = {manner: [tidy(c) for c in found] for manner, found in captions.items() if found}
            path = data / folder / "images" / name
            photos.append(Photo(name, path, row["source"], row["by"], row["split"], captions, embeddings[name]))
    embeddings = _embeddings(data / "clip_vitb16" / "coco_cc.npz")
    for row in json.loads((data / "coco_cc" / "captions.json").read_text(encoding="utf-8")):
        name = row["file"]
        captions = {"people": [tidy(c) for c in row["captions"]]}
        path = data / "coco_cc" / "images" / name
        photos.append(Photo(name, path, "coco_cc", "people", "look", captions, embeddings[name]))
    return photos


def load_texts(data: Path, photos: list[Photo]) -> list[str]:
    """Captions without photos, in people's manner, but none of the photos that are kept to measure with."""
    kept_back = {c for p in photos if p.dev_set for captions in p.captions.values() for c in captions}
    texts = [
        tidy(line)
        for path in sorted((data / "text").glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    return [text for text in dict.fromkeys(texts) if text not in kept_back]


def tidy(caption: str) -> str:
    """One spelling for all corpora: single blanks, none before punctuation, no double quotes, a capital first, a full
    stop last."""
    text = re.sub(r"\s+([.,;:!?'])", r"\1", " ".join(caption.replace('"', "").split())).strip(" .,;:-")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?")) else ".")


def _several(captions: str | list[str]) -> list[str]:
    return [captions] if isinstance(captions, str) else captions


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _embeddings(path: Path) -> dict[str, npt.NDArray[np.float16]]:
    with np.load(path) as stored:
        return dict(zip(stored["names"].tolist(), stored["emb"], strict=True))
