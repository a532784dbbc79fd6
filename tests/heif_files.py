"""HEIF files put together by hand: any item, property and reference, true or not."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pillow_heif
from PIL import Image

from tests.pictures import saved

pillow_heif.register_heif_opener()  # so that pictures can be saved


@dataclass
class Item:
    """One item of a file: its kind, its bytes, its properties in order, and the items that it refers to, by number
    from 1."""

    kind: bytes
    data: bytes
    properties: list[bytes] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A box that begins with its version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def extent(width: int, height: int) -> bytes:
    """The property that says how large an item is."""
    return full_box(b"ispe", 0, 0, struct.pack(">II", width, height))


def turned(quarters: int) -> bytes:
    """The property that turns an item to the left by so many quarters."""
    return box(b"irot", bytes([quarters]))


def mirrored(axis: int) -> bytes:
    """The property that mirrors an item: top and bottom change places (0), or left and right (1)."""
    return box(b"imir", bytes([axis]))


def nclx(primaries: int, transfer: int, matrix: int, full_range: bool = True) -> bytes:
    """The property that says in numbers of ITU-T H.273 what colours mean."""
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, matrix, full_range << 7))


def coded(image: Image.Image, *properties: bytes, size: tuple[int, int] | None = None) -> Item:
    """A picture as an item in HEVC, which says to be of another `size` if one is given."""
    data = saved(image, "HEIF", quality=90, save_nclx_profile=False)
    start = data.index(b"hvcC") - 4
    configuration = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    content = data[data.index(b"mdat") + 4 :]
    return Item(b"hvc1", content, [configuration, extent(*(size or image.size)), *properties])


def grid(columns: int, rows: int, width: int, height: int, tiles: Sequence[int], *properties: bytes) -> Item:
    """An item that puts others side by side on so many pixels."""
    data = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    return Item(b"grid", data, [extent(width, height), *properties], {b"dimg": list(tiles)})


def overlay(width: int, height: int, layers: Sequence[int], *properties: bytes) -> Item:
    """An item that puts others one over the other on so many pixels."""
    data = struct.pack(">BB4HII", 0, 1, 0, 0, 0, 65535, width, height) + bytes(8 * len(layers))
    return Item(b"iovl", data, [extent(width, height), *properties], {b"dimg": list(layers)})


def heif(*items: Item, primary: int = 1, brand: bytes = b"heic") -> bytes:
    """The file of these items, which are numbered from 1."""
    numbered = list(enumerate(items, start=1))
    properties = list(dict.fromkeys(part for item in items for part in item.properties))
    entries = b"".join(full_box(b"infe", 2, 0, struct.pack(">HH4sB", n, 0, i.kind, 0)) for n, i in numbered)
    links = b"".join(
        struct.pack(">HB", n, len(i.properties)) + bytes(0x80 | properties.index(p) + 1 for p in i.properties)
        for n, i in numbered
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(to)}H", n, len(to), *to))
        for n, i in numbered
        for kind, to in i.references.items()
    )

    def meta(first: int) -> bytes:
        places, place = b"", first
        for n, i in numbered:
            places += struct.pack(">HHHII", n, 0, 1, place, len(i.data))
            place += len(i.data)
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, b"\0\0\0\0pict" + bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", primary)),
            full_box(b"iinf", 0, 0, struct.pack(">H", len(items)), entries),
            full_box(b"iref", 0, 0, references) if references else b"",
            box(b"iprp", box(b"ipco", *properties), full_box(b"ipma", 0, 0, struct.pack(">I", len(items)), links)),
            full_box(b"iloc", 0, 0, struct.pack(">BBH", 0x44, 0, len(items)), places),
        )

    head = box(b"ftyp", brand, bytes(4), b"mif1", brand)
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *(item.data for item in items))
