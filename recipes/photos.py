"""The photos, captions and embeddings the recipes train on, read from a folder the caller names.

Layout of that folder (`--data`):

    flickr8k/captions.jsonl   {"image", "split": train|dev, "factual": [...], "humorous", "romantic"} a line
    flickr8k/images/          the photos, 224x224
    imagenet_sample/images/   more photos, without captions
    coco_cc/captions.json     [{"file", "captions": [...]}]: never trained on, kept to look at
    coco_cc/images/
    text/*.txt                captions without photos, one a line
    clip_vitb16/*.npz         `names` and `emb` (512-d): the teacher's embedding of each photo above
    tiny_vit/*.safetensors    TinyViT-5M's ImageNet-22k weights
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

STYLES = ("factual", "humorous", "romantic")

# Crowd workers were asked to be funny or romantic about strangers. What mocks or sexualises people, or is about
# drugs, violence and excretion, is not taught: a styled caption with one of these words is left out.
OFF_COLOUR = re.compile(
    r"\b(sex\w*|naked|nude|nudist\w*|strip(per|tease|ping)?|boobs?|breasts?|butts?|buttocks|ass|virgin|condom\w*|"
    r"underwear|panties|bra|horny|porn\w*|prostitut\w*|hooker\w*|pervert\w*|"
    r"drunk\w*|booze|beer|alcohol\w*|drugs?|cocaine|weed|stoned|"
    r"kill\w*|murder\w*|die[sd]?|dying|dead|death|suicid\w*|corpse\w*|guns?|shoot\w*|terroris\w*|bomb\w*|zombie\w*|"
    r"fat|fatty|ugly|stupid|idiot\w*|dumb|crazy|insane|lunatic\w*|midget\w*|dwarf\w*|retard\w*|freak\w*|homeless|bum|"
    r"gay|lesbian\w*|bitch\w*|slave\w*|prison\w*|jail\w*|thie(f|ves)|rob(s|bed|bing|ber\w*)?|steal\w*|"
    r"poop\w*|pee\w?|peeing|piss\w*|urin\w*|toilet|fart\w*|vomit\w*|puk\w*|hell|"
    r"(like|as) an? (monkey|ape|gorilla|chimp\w*|animal|pig|cow|whale))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Photo:
    """One photo with its captions by style, and the teacher's embedding of it, (512,)."""

    path: Path
    split: str
    captions: dict[str, list[str]]
    teacher: npt.NDArray[np.float16]


def load_photos(data: Path) -> list[Photo]:
    """Every photo below `data`, in a fixed order; `split` is train, dev, extra (no captions) or coco."""
    photos = []
    teacher = _teacher(data, "flickr8k")
    for line in (data / "flickr8k" / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        captions = {"factual": [tidy(c) for c in row["factual"]]}
        for style in STYLES[1:]:
            if row.get(style) and not (row["split"] == "train" and OFF_COLOUR.search(row[style])):
                captions[style] = [tidy(row[style])]
        path = data / "flickr8k" / "images" / row["image"]
        photos.append(Photo(path, row["split"], captions, teacher[row["image"]]))
    teacher = _teacher(data, "imagenet_sample")
    for name in sorted(teacher):
        photos.append(Photo(data / "imagenet_sample" / "images" / name, "extra", {}, teacher[name]))
    teacher = _teacher(data, "coco_cc")
    for row in json.loads((data / "coco_cc" / "captions.json").read_text(encoding="utf-8")):
        path = data / "coco_cc" / "images" / row["file"]
        captions = {"factual": [tidy(c) for c in row["captions"]]}
        photos.append(Photo(path, "coco", captions, teacher[row["file"]]))
    return photos


def load_texts(data: Path, photos: list[Photo]) -> list[str]:
    """Captions to learn the language from: those of the training photos and those without photos, but none of the
    photos kept to look at."""
    kept_back = {c for p in photos if p.split in ("dev", "coco") for c in p.captions["factual"]}
    texts = [c for p in photos if p.split == "train" for captions in p.captions.values() for c in captions]
    for path in sorted((data / "text").glob("*.txt")):
        texts += [tidy(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [text for text in texts if text not in kept_back]


def tidy(caption: str) -> str:
    """One spelling for all corpora: single blanks, none before punctuation, a capital first, a full stop last."""
    text = re.sub(r"\s+([.,;:!?'])", r"\1", " ".join(caption.split())).rstrip(" .,;:")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?")) else ".")


def _teacher(data: Path, name: str) -> dict[str, npt.NDArray[np.float16]]:
    with np.load(data / "clip_vitb16" / f"{name}.npz") as stored:
        return dict(zip(stored["names"].tolist(), stored["emb"], strict=True))
