"""Datasets as people send them, and the examples that they are to become."""

import hashlib
import io
import json
import zipfile
from functools import cache
from typing import Any

from PIL import Image as Pillow

CAPTIONS = {
    "one.jpg": ["a red square", "nothing but red"],
    "two.jpg": ["grün, wie ein Wald"],
    "three.jpg": ['a "blue" thing'],
}


@cache
def picture(number: int) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (8, 8), (number * 8 % 256, 99, 200)).save(out, "JPEG")
    return out.getvalue()


def pictures(names: Any = CAPTIONS) -> dict[str, bytes]:
    return {name: picture(number) for number, name in enumerate(names)}


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def json_lines(pairs: Any) -> bytes:
    return "".join(json.dumps({"image": image, "caption": text}) + "\n" for image, text in pairs).encode()


def pairs() -> list[tuple[str, str]]:
    return [(name, text) for name, texts in CAPTIONS.items() for text in texts]


def coco(images_first: bool) -> bytes:
    number = {name: 100 + n for n, name in enumerate(CAPTIONS)}
    images = {"images": [{"id": n, "file_name": name, "width": 8} for name, n in number.items()]}
    texts = {"annotations": [{"id": n, "image_id": number[i], "caption": t} for n, (i, t) in enumerate(pairs())]}
    info = {"info": {"year": 2014, "nested": {"deeper": [1, 2.5, None, True]}}, "licenses": [{"id": 1}]}
    return json.dumps(info | (images | texts if images_first else texts | images), indent=1).encode()


FORMATS: dict[str, bytes] = {
    "COCO": coco(True),
    "COCO, images last": coco(False),
    "Karpathy": json.dumps(
        {
            "images": [
                {
                    "filepath": "val2014",
                    "filename": n,
                    "sentences": [{"raw": t, "tokens": []} for t in ts],
                }
                for n, ts in CAPTIONS.items()
            ],
            "dataset": "coco",
        }
    ).encode(),
    "CSV": b"image,caption\n" + b"".join(f'{i},"{t}"\n'.replace('"blue"', '""blue""').encode() for i, t in pairs()),
    "CSV of a spreadsheet": b"\xef\xbb\xbfsep;FILE;Text\r\n"
    + b"".join(f'1;{i};"{t}"\r\n'.replace('"blue"', '""blue""').encode() for i, t in pairs())
    + b";;\r\n",
    "TSV": b"file_name\tid\tsentence\n" + b"".join(f"{i}\t7\t{t}\n".encode() for i, t in pairs()),
    "TSV of a program that quotes": b'"image"\t"caption"\n'
    + b"".join(f'"{i}"\t"{t}"\n'.replace('"blue"', '""blue""').encode() for i, t in pairs()),
    "CSV of Excel": b"sep=;\r\nfile;text\r\n"
    + b"".join(f'{i};"{t}"\r\n'.replace('"blue"', '""blue""').encode() for i, t in pairs()),
    "TSV of Excel": b'"sep=\t"\r\nimage\ttext\r\n' + b"".join(f"{i}\t{t}\r\n".encode() for i, t in pairs()),
    "results.csv of Flickr30k": b"image_name| comment_number| comment\n"
    + b"".join(f"{i}| 0| {t}\n".encode() for i, t in pairs()),
    "tokens of Flickr8k": b"".join(f"{i}#{n}\t{t}\n".encode() for n, (i, t) in enumerate(pairs())),
    "JSONL": json_lines(pairs()),
    "JSONL with lists": b"".join(
        json.dumps({"file": i, "captions": t}).encode() + b"\n\n" for i, t in CAPTIONS.items()
    ),
    "JSON list": json.dumps([{"file": i, "captions": t, "licence": "CC"} for i, t in CAPTIONS.items()]).encode(),
    "JSON list of Windows": b"\xef\xbb\xbf" + json.dumps([{"image": i, "text": t} for i, t in pairs()]).encode(),
}


def expected() -> set[tuple[str, str]]:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in pictures().items()}
    return {(digests[name], text) for name, text in pairs()}
