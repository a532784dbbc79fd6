"""Every format of captions, and what is refused in each."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from captioner import uploads
from captioner.jobs.job import Status
from captioner.models import Image, Style
from clipcap.evaluation.metrics import evaluate
from tests.dataset_files import FORMATS, expected, json_lines, packed, pairs, picture, pictures
from tests.importing import assert_consistent, examples, imported, reasons, said_of
from training.models import Example, is_held_out

DATA = Path(__file__).parent / "data/datasets"

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_beside_its_images_gives_the_same_examples(kind: str, style: Style) -> None:
    files = {"set/LICENSE.txt": b"do what you like", "set/annotations": FORMATS[kind]}
    batch = imported(style, packed(files | {f"set/images/{n}": data for n, data in pictures().items()}))
    assert (batch.status, batch.error_detail, reasons(batch)) == (Status.SUCCEEDED, "", [])
    assert (batch.rows, batch.total, batch.accepted, batch.duplicates) == (4, 4, 4, 0)
    assert examples(style) == expected()
    assert Image.objects.count() == 3
    for one in Example.objects.select_related("image"):
        assert one.held_out == is_held_out(one.image)
        assert (one.source, one.batch) == (Example.Source.IMPORTED, batch)


GUYS = "Two young guys with shaggy hair ."
AS_PUBLISHED: dict[str, list[tuple[str, str]]] = {
    "case.zip": [("A.JPG", "a thing"), ("b.jpeg", "another")],
    "clipcap.zip": [(f"train2014/COCO_train2014_{n:012}.jpg", f"a thing {n}") for n in range(4)],
    "coco.zip": [],
    "flickr30k.zip": [(f"{n}.jpg", GUYS) for n in range(4)],
    "flickr8k.zip": [(f"{n}.jpg", f"A child number {k} in a dress .") for n in range(4) for k in range(2)],
    "names.zip": [("caf\u00e9 \u00fc.jpg", "a thing")],
    "nan.zip": [("0.jpg", "x y")],
    "nan_lines.zip": [("0.jpg", "x y")],
    "nf.zip": [("caf\u00e9.jpg", "nfc thing"), ("cafe\u0301.jpg", "nfd thing")],
    "readme.zip": [("0.jpg", "a thing")],
    "sidecars.zip": [(f"{n}.jpg", f"a photo of thing {n}") for n in range(4)],
    "tsv.zip": [
        ("0.jpg", '"Hello" says the sign'),
        ("0.jpg", '"a man'),
        ("1.jpg", "b dog"),
        ("2.jpg", 'c cat"'),
        ("3.jpg", "d cow"),
    ],
    "tsv_to_eof.zip": [("0.jpg", '"a man'), ("1.jpg", "b dog"), ("2.jpg", "c cat"), ("3.jpg", "d cow")],
}


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_datasets_as_they_are_published_arrive_as_they_were_meant(name: str, style: Style) -> None:
    content = (DATA / name).read_bytes()
    batch = imported(style, content)
    with zipfile.ZipFile(io.BytesIO(content), metadata_encoding="utf-8") as archive:
        files = {file: archive.read(file) for file in archive.namelist()}
    assert (batch.status, batch.error_detail) == (Status.SUCCEEDED, "")
    assert sorted(said_of(style, files)) == sorted(AS_PUBLISHED[name])
    assert batch.rejected.count() == (2 if name == "coco.zip" else 0)


@pytest.mark.parametrize("by", ["id", "sha256", "sha256 and ending"])
def test_annotations_alone_mean_images_that_are_stored(by: str, style: Style) -> None:
    stored = {name: uploads.store(data) for name, data in pictures().items()}

    def key(image: Image) -> str:
        return {"id": str(image.pk), "sha256": image.sha256, "sha256 and ending": f"{image.sha256}.jpg"}[by]

    batch = imported(style, json_lines([(key(stored[name]), text) for name, text in pairs()] + [("f" * 64, "lost")]))
    assert examples(style) == expected()
    assert set(style.examples.values_list("source", flat=True)) == {"stored"}
    ((line, reason),) = reasons(batch)
    assert line == 5
    assert "no stored image" in reason


def test_coco_annotations_may_mean_stored_images_without_listing_them(style: Style) -> None:
    image = uploads.store(picture(0))
    content = {"annotations": [{"image_id": str(image.pk), "caption": "red"}, {"image_id": 5, "caption": "lost"}]}
    batch = imported(style, json.dumps(content).encode())
    assert examples(style) == {(image.sha256, "red")}
    assert [line for line, _ in reasons(batch)] == [2]


def test_each_rejected_row_is_reported_with_line_and_reason(style: Style) -> None:
    table = (
        "image,caption\n"
        "one.jpg,  good\tand\x00 tidy \n"
        "one.jpg,\n"
        ",a caption\n"
        '"one.jpg","two\nlines"\n'
        "one.jpg,a man, a dog\n"
        'one.jpg,"a" man\n'
        f"one.jpg,{'long ' * 101}\n"
        "gone.jpg,lost\n"
        "broken.jpg,cut short\n"
        "notes.jpg,no picture\n"
        "one.jpg,good again\n"
    )
    files = {"broken.jpg": picture(1)[:200], "notes.jpg": b"hello", "captions.csv": table.encode(), **pictures()}
    batch = imported(style, packed(files))
    assert set(style.examples.values_list("text", flat=True)) == {"good and tidy", "two lines", "good again"}
    told = [(line, reason[:33]) for line, reason in reasons(batch)]
    assert told == [
        (3, "a caption must have 1 to 500 char"),
        (4, "it has no image name; put the nam"),
        (7, "it has 3 columns and the header 2"),
        (8, "it cannot be split into columns ("),
        (9, "a caption must have 1 to 500 char"),
        (10, "'gone.jpg': there is no such file"),
        (11, "'broken.jpg': the JPEG picture is"),
        (12, "'notes.jpg': this is not a pictur"),
    ]
    assert_consistent(batch)
    assert {row.file for row in batch.rejected.all()} == {"captions.csv"}


def test_a_malformed_entry_of_json_is_refused_alone(style: Style) -> None:
    entries = [
        {"file": "one.jpg", "captions": ["fine", 7, {"raw": "raw"}, None]},
        ["no object"],
        {"file": {"a": 1}, "captions": ["x"]},
        {"file": "one.jpg", "captions": []},
        {"file": "one.jpg"},
        {"file": True, "captions": "fine too"},
        {"file": "one.jpg", "captions": "last"},
    ]
    batch = imported(style, packed({"a.json": json.dumps(entries).encode()} | pictures()))
    assert set(style.examples.values_list("text", flat=True)) == {"fine", "raw", "last"}
    assert [line for line, _ in reasons(batch)] == [1, 1, 2, 3, 4, 5, 6]
    assert_consistent(batch)


def test_several_files_with_captions_are_read_one_after_the_other(style: Style) -> None:
    files = {
        "train.csv": b"image,caption\none.jpg,a red square\none.jpg,\n",
        "sub/val.json": FORMATS["COCO"],
        "boxes.json": b'{"annotations": []}',
    }
    batch = imported(style, packed(files | pictures()))
    assert examples(style) == expected()
    assert (batch.rows, batch.accepted, batch.duplicates) == (6, 4, 1)
    assert list(batch.rejected.values_list("file", "line")) == [("train.csv", 3)]


def test_annotations_are_recognised_by_their_content(style: Style) -> None:
    boxes = {"images": [{"id": 1, "file_name": "one.jpg"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}] * 30}
    files = {
        "instances.json": json.dumps(boxes).encode(),
        "list.txt": b"one.jpg\ntwo.jpg\n",
        "sizes.csv": b"image,width\none.jpg,8\n",
        "empty.json": b"",
        "broken.json": b'{"images": [',
        ".editor/settings.json": b"{ // none of ours",
        "captions.json": FORMATS["COCO"],
    }
    batch = imported(style, packed(files | pictures()))
    assert examples(style) == expected()
    ((file, reason),) = batch.rejected.values_list("file", "reason")
    assert file == "broken.json"
    assert "not valid JSON" in reason


@pytest.mark.parametrize("content", [b"hello", b"PK\5\6" + bytes(18), b"[]", b"{}", b"[[1], 2]", b"image\none.jpg\n"])
def test_a_file_without_captions_is_refused_with_what_is_accepted(content: bytes, style: Style) -> None:
    batch = imported(style, content, "notes\n.txt")
    assert batch.error_code == "no_annotations"
    assert "COCO or Karpathy JSON" in batch.error_detail
    assert "image_name" in batch.error_detail


@pytest.mark.parametrize(
    "content",
    [
        "image,caption\na.jpg,fine\nb.jpg,caf\u00e9\n".encode("latin-1"),
        '{"image": "a.jpg", "caption": "fine"}\n\n{"image": "b.jpg", "caption": "caf\u00e9"}\n'.encode("latin-1"),
        "image,caption\na.jpg,fine\n".encode("utf-16"),
    ],
)
def test_another_encoding_is_refused_rather_than_misread(content: bytes, style: Style) -> None:
    batch = imported(style, content)
    assert batch.error_code == "not_utf8"
    assert ("line 3" if b"fine" in content else "line 1") in batch.error_detail
    assert batch.rows == 0


def rows(style: Style, name: str, content: bytes, pictures_there: Any = ("1.jpg", "2.jpg", "3.jpg")) -> tuple[Any, Any]:
    """What of a file beside some pictures is imported, and the lines and reasons of what is not."""
    files = pictures(pictures_there)
    batch = imported(style, packed({name: content} | files))
    assert (batch.status, batch.error_detail) == (Status.SUCCEEDED, "")
    assert_consistent(batch)
    return said_of(style, files), reasons(batch)


def test_a_quote_that_nobody_closes_costs_its_own_line_alone(style: Style) -> None:
    table = 'image,caption\n1.jpg,"a man\n2.jpg,b dog\n' + "3.jpg,c cat\n" * 200 + '3.jpg,"in\ntwo lines"\n'
    found, rejected = rows(style, "a.csv", table.encode())
    assert found == {("2.jpg", "b dog"), ("3.jpg", "c cat"), ("3.jpg", "in two lines")}
    assert [line for line, _ in rejected] == [2]
    assert "quote" in rejected[0][1]


def test_quotes_do_not_swallow_the_rows_between_them(style: Style) -> None:
    found, rejected = rows(style, "a.csv", b'image,caption\n1.jpg,"a man\n2.jpg,b dog\n3.jpg,c cat"\n')
    assert found == {("2.jpg", "b dog"), ("3.jpg", 'c cat"')}
    assert rejected == [
        (2, 'its quotes enclose lines that look like separate rows; write "" for a quote within a cell')
    ]


def test_in_a_tsv_a_cell_holds_no_tab_and_a_backslash_means_nothing(style: Style) -> None:
    found, rejected = rows(style, "a.tsv", b"image\tcaption\r\n1.jpg\ta\\tb\r\n2.jpg\ta\tb\r\n")
    assert found == {("1.jpg", "a\\tb")}
    assert rejected == [(3, "it has 3 columns and the header 2; no cell can contain '\\t'")]


def test_a_header_among_the_words_of_a_text_makes_no_table(style: Style) -> None:
    prose = {
        "README": b"image, caption\nare the columns, and that is all there is to say\n",
        "docs/readme.md": b"image,caption\n1.jpg,an example of a line\n",
        "notes.txt": b"image, caption\nare the columns\n",
        "LICENSE-images.txt": b"text,image\nboth,free\n",
    }
    batch = imported(style, packed(prose | {"a.csv": b"image,caption\n1.jpg,a thing\n"} | pictures(["1.jpg"])))
    assert (batch.rows, batch.accepted) == (1, 1)
    assert imported(style, packed(prose | pictures(["1.jpg"]))).error_code == "no_annotations"


def test_what_is_no_number_or_name_as_an_id_is_one_rows_problem(style: Style) -> None:
    images = [
        {"id": 1, "file_name": "1.jpg"},
        {"id": 2.0, "file_name": "2.jpg"},
        {"id": "3", "file_name": "3.jpg"},
        {"id": None, "file_name": "1.jpg"},
        {"id": float("nan"), "file_name": "2.jpg"},
        {"id": True, "file_name": "3.jpg"},
        {"file_name": "1.jpg"},
        {"id": 1, "file_name": "1.jpg"},
    ]
    ids = [1.0, 2, "3.0", None, float("nan"), True, {}, 1e300]
    texts = [{"image_id": key, "caption": f"of id {n}", "score": float("inf")} for n, key in enumerate(ids)]
    found, rejected = rows(style, "a.json", json.dumps({"images": images, "annotations": texts}).encode())
    assert found == {("1.jpg", "of id 0"), ("2.jpg", "of id 1"), ("3.jpg", "of id 2")}
    assert [line for line, _ in rejected] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("as_list", [True, False])
def test_values_that_are_none_cost_one_row_and_the_next_key_counts(as_list: bool, style: Style) -> None:
    entries = [
        {"image": None, "caption": "nothing"},
        {"image": "1.jpg", "caption": None},
        {"image": float("nan"), "caption": "not a number"},
        {"file_name": None, "image": "1.jpg", "caption": None, "text": "a thing"},
        {"image": "2.jpg", "caption": "half \ud83d a letter"},
        {"image": "\udce9.jpg", "caption": "no such name"},
        {"image": "2.jpg", "caption": "another", "score": float("-inf"), "big": 10**400},
    ]
    content = json.dumps(entries) if as_list else "".join(json.dumps(entry) + "\n" for entry in entries)
    found, rejected = rows(style, "a.json", content.encode())
    assert found == {("1.jpg", "a thing"), ("2.jpg", "another")}
    assert [line for line, _ in rejected] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("column", ["image_id", "image"])
def test_the_numbers_of_coco_mean_its_pictures(column: str, style: Style) -> None:
    names = ["val2014/COCO_val2014_000000000042.jpg", "train2017/000000000007.jpg"]
    names += ["train2014/COCO_train2014_000000000009.jpg", "000000000009.jpg", "11.jpg", "COCO_readme_12.jpg"]
    table = f"{column},caption\n42.0,a thing\n7,another\n9,which\n11,none\n12,none\n"
    found, rejected = rows(style, "a.csv", table.encode(), names)
    assert found == {(names[0], "a thing"), (names[1], "another")}
    assert [line for line, _ in rejected] == [4, 5, 6]
    assert "may be" in rejected[0][1]


def test_texts_beside_pictures_are_their_captions_a_line_each(style: Style) -> None:
    there = pictures(
        ["a/x.jpg", "a/Y.JPG", "b/x.png", "b/z.jpg", "b/z.png", "c.jpg", "empty.jpg", "latin.jpg", "u16.jpg"]
    )
    beside = {
        "a/x.txt": b"\xef\xbb\xbfa thing\r\n\r\nand another\n",
        "a/y.txt": b"small letters",
        "b/x.caption": b"[kohya's] own ending",
        "b/z.txt": b"of which of the two?",
        "c.jpg.txt": b"{whole} name",
        "empty.txt": b" \n",
        "latin.txt": "caf\u00e9".encode("latin-1"),
        "u16.txt": "words".encode("utf-16"),
        "classes.txt": b"cat\ndog\n",
    }
    batch = imported(style, packed(beside | there))
    assert said_of(style, there) == {
        ("a/x.jpg", "a thing"),
        ("a/x.jpg", "and another"),
        ("a/Y.JPG", "small letters"),
        ("b/x.png", "[kohya's] own ending"),
        ("c.jpg", "{whole} name"),
    }
    assert {row.file: row.reason.split()[-1] for row in batch.rejected.all()}.keys() == {
        "b/z.txt",
        "empty.txt",
        "latin.txt",
        "u16.txt",
    }


def test_of_flickr8k_the_lemmas_are_no_captions(style: Style) -> None:
    files = {
        "Flickr8k.token.txt": b"1.jpg#0\tChildren played .\n",
        "Flickr8k.lemma.token.txt": b"1.jpg#0\tchild play .\n",
    }
    batch = imported(style, packed(files | pictures(["1.jpg"])))
    assert (list(style.examples.values_list("text", flat=True)), batch.rows) == (["Children played ."], 1)


@pytest.mark.parametrize(
    "text",
    [
        "...",
        "123",
        "\u0967\u0968\u0969",
        "\u0964\u0964",
        "\u061f",
        "\u3002\u3001",
        "\U0001f600",
        "\u3164 \u3164",
        "\u0301",
        "\u30fc",
    ],
)
def test_a_caption_without_a_word_is_rejected_in_every_script(text: str, style: Style) -> None:
    found, rejected = rows(style, "a.jsonl", json_lines([("1.jpg", text)]))
    assert found == set()
    assert "no word" in rejected[0][1]


LETTERS = {
    "full-width Latin": "\uff21\uff22\uff23",
    "Han": "\u732b",
    "Devanagari": "\u0915\u0941\u0924\u094d\u0924\u093e",
    "Arabic": "\u0643\u0644\u0628",
    "Arabic's presentation forms": "\ufe8e\ufedf",
    "Adlam": "\U0001e922\U0001e923",
    "a supplement of Han": "\U00020000",
    "Georgian": "\u10d0",
    "mathematical script": "\U0001d49c",
    "Cherokee": "\u13a0",
}


@pytest.mark.parametrize("text", LETTERS.values(), ids=LETTERS)
def test_letters_of_every_script_are_words_and_can_be_judged_by(text: str, style: Style) -> None:
    found, _ = rows(style, "a.jsonl", json_lines([("1.jpg", text)]))
    assert found == {("1.jpg", text)}
    scores = evaluate({"a": text, "b": "a dog"}, {"a": [text], "b": ["a cat"]}, java_metrics=False)
    assert scores.per_item["Bleu_1"]["a"] == pytest.approx(1)
