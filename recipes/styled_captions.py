"""More humorous and romantic captions of the training pictures than their data has, written for this project.

`styled_captions.tsv` has a line a picture: its file name, a humorous and a romantic caption. Most are of Flickr8k's
photos, of which the recipes read none in these styles: without them the styles know little of running dogs and playing
children. They were written by a language model that read what people, or the writer, said is on the picture, and did
not see it. What trains the styles adds them; what tells how good a style is does not, so that figures stay comparable.
"""

import csv
from dataclasses import replace
from pathlib import Path

from recipes.photos import STYLES, Photo, tidy

CAPTIONS = Path(__file__).with_suffix(".tsv")


def add_styled_captions(photos: list[Photo], path: Path = CAPTIONS) -> list[Photo]:
    """The photos, those to be trained on with the captions of the file at `path` too."""
    with path.open(encoding="utf-8", newline="") as file:
        more = {name: styled for name, *styled in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    return [_with(photo, more[photo.name]) if photo.name in more and not photo.dev_set else photo for photo in photos]


def _with(photo: Photo, styled: list[str]) -> Photo:
    added = {
        style: [*photo.captions.get(style, []), tidy(caption)]
        for style, caption in zip(STYLES[1:], styled, strict=True)
    }
    return replace(photo, captions=photo.captions | added)
