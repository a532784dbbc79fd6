"""Splits that a dataset declares: what is for validation or test is never trained on."""

import hashlib
import json
from typing import Any

import pytest

from captioner import uploads
from captioner.models import Style
from tests.dataset_files import json_lines, packed, pictures
from tests.importing import imported
from training import services
from training.models import Example, is_held_out

pytestmark = pytest.mark.django_db

NAMES = [f"{n}.jpg" for n in range(30)]
TRAINED = ("train", "restval")


def split_of(number: int) -> str:
    return ("train", "restval", "val", "test")[number % 4]


def held_out(**of: Any) -> dict[str, bool]:
    """Whether each picture's examples are held out; all of one picture say the same."""
    names = {hashlib.sha256(data).hexdigest(): name for name, data in pictures(NAMES).items()}
    found: dict[str, bool] = {}
    for digest, out in Example.objects.filter(**of).values_list("image__sha256", "held_out"):
        assert found.setdefault(names[digest], out) == out
    return found


def karpathy() -> bytes:
    images = [
        {"filename": name, "split": split_of(n), "sentences": [{"raw": f"caption {n}"}, {"raw": f"another {n}"}]}
        for n, name in enumerate(NAMES)
    ]
    return json.dumps({"images": images, "dataset": "coco"}).encode()


def as_declared() -> dict[str, bool]:
    return {name: split_of(n) not in TRAINED for n, name in enumerate(NAMES)}


DECLARING: dict[str, dict[str, bytes]] = {
    "Karpathy": {"dataset.json": karpathy()},
    "a column": {
        "a.csv": b"image,split,caption\n"
        + b"".join(f"{n}.jpg,{split_of(n).upper()},a dog\n".encode() for n in range(30))
    },
    "a key": {
        "a.jsonl": b"".join(
            json.dumps({"image": name, "text": "a dog", "split": split_of(n)}).encode() + b"\n"
            for n, name in enumerate(NAMES)
        )
    },
    "the lists of Flickr8k": {
        "Flickr8k.token.txt": b"".join(f"{name}#0\ta dog .\n".encode() for name in NAMES),
        "Flickr_8k.trainImages.txt": "".join(f"{n}.jpg\n" for n in range(30) if split_of(n) in TRAINED).encode(),
        "Flickr_8k.devImages.txt": "".join(f"{n}.jpg\n" for n in range(30) if split_of(n) == "val").encode(),
        "Flickr_8k.testImages.txt": "".join(f"{n}.jpg\n" for n in range(30) if split_of(n) == "test").encode(),
    },
}


@pytest.mark.parametrize("way", DECLARING)
def test_splits_that_a_dataset_declares_are_kept(way: str, style: Style) -> None:
    batch = imported(style, packed(DECLARING[way] | pictures(NAMES)))
    assert batch.rejected.count() == 0
    assert held_out() == as_declared()


def test_what_a_dataset_does_not_split_is_split_by_its_bytes(style: Style) -> None:
    imported(style, packed({"a.jsonl": json_lines((name, "a dog") for name in NAMES)} | pictures(NAMES)))
    assert set(held_out().values()) == {False, True}
    assert all(one.held_out == is_held_out(one.image) for one in Example.objects.select_related("image"))


def test_test_photos_that_are_there_already_are_trained_on_no_more_in_any_style(style: Style) -> None:
    other = Style.objects.create(slug="other", name="Other")
    plain = packed({"a.jsonl": json_lines((name, "a dog") for name in NAMES)} | pictures(NAMES))
    imported(other, plain)
    by_bytes = held_out()
    imported(style, packed({"dataset.json": karpathy()} | pictures(NAMES)))
    # What was held out before stays so: it may have judged a version by now.
    assert held_out() == {name: out or by_bytes[name] for name, out in as_declared().items()}


def test_what_comes_later_without_a_split_goes_where_the_photo_is(style: Style) -> None:
    other = Style.objects.create(slug="other", name="Other")
    imported(style, packed({"dataset.json": karpathy()} | pictures(NAMES)))
    imported(other, packed({"a.jsonl": json_lines((name, "a dog") for name in NAMES)} | pictures(NAMES)))
    for data in pictures(NAMES).values():
        services.add_example(style=other, image=uploads.store(data), text="a person's words", source="correction")
    assert held_out(style=other) == as_declared()
