"""What is in a HEIF or AVIF file, read before anything of it is decoded.

Such a file is a set of items: coded pictures, pictures put together from others (tiles of a grid, layers of an overlay)
and texts. Decoders do what an item asks for, as often as it asks: a few kilobytes may name one large picture as each
of 256 tiles, or one text 900 times. So it is counted here first, by ISO/IEC 14496-12 and 23008-12.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_DEPTH = 4  # pictures made of pictures made of pictures; phones need two
_READ_AGAIN = 2  # times a file's bytes may be read, as items may share them
_FREE = 1 << 20  # bytes that may be read however small the file is
_MOST = 1000  # items, and boxes in the file; libheif takes no more items
_MOST_EXTENTS = 32  # of an item
_MOST_PROPERTIES = 64  # of an item
_MOST_PARTS = 1 << 16  # of an item: the largest grid is 256 x 256


class DecodingCost(NamedTuple):
    """Pixels that are decoded for a picture, each as often as it is used, and those of its largest part."""

    total: int
    largest: int


@dataclass
class _Item:
    kind: bytes
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    companions: list[int] = field(default_factory=list)  # its transparency, depth, brightness for bright screens

    def is_transparency(self) -> bool:
        auxiliary = [body for kind, body in self.properties if kind == b"auxC"]
        return any(b":alpha\0" in body or b":auxid:1\0" in body for body in auxiliary)

    def length(self) -> int:
        return sum(end - start for start, end in self.extents)

    def size(self) -> tuple[int, int]:
        sizes = [struct.unpack_from(">II", body, 4) for kind, body in self.properties if kind == b"ispe"]
        if len(sizes) != 1:
            raise ValueError("the size of a picture is missing or given twice")
        return sizes[0][0], sizes[0][1]


def decoding_cost(data: bytes) -> DecodingCost:
    """How much a decoder has to do for the picture that the file shows.

    Raises:
        ValueError: the file is truncated or malformed.
    """
    try:
        primary, items = _read(data)
        counted: dict[int, tuple[DecodingCost, int]] = {}
        found, length = _count(data, items, primary, counted, _DEPTH)
        length += sum(item.length() for number, item in items.items() if number not in counted)
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError("the file is truncated or malformed") from error
    if length > _READ_AGAIN * len(data) + _FREE:
        raise ValueError(f"{length:,} bytes are needed, and there are {len(data):,}")
    return found


def colours(data: bytes) -> tuple[int, int] | None:
    """The numbers of ITU-T H.273 for the primaries and the transfer function of the picture's colours.

    None where the file has none, or an ICC profile, which says more.
    """
    try:
        primary, items = _read(data)
        found = [body for kind, body in items[primary].properties if kind == b"colr"]
    except (ValueError, struct.error, KeyError, IndexError):
        return None
    if len(found) != 1 or found[0][:4] != b"nclx" or len(found[0]) < 10:
        return None
    primaries, transfer = struct.unpack_from(">HH", found[0], 4)
    return primaries, transfer


def _count(
    data: bytes, items: dict[int, _Item], number: int, counted: dict[int, tuple[DecodingCost, int]], depth: int
) -> tuple[DecodingCost, int]:
    """What decoding an item costs, and how many bytes are read for it."""
    if number in counted:
        return counted[number]
    if not depth:
        raise ValueError("pictures refer to each other, or are nested too deeply")
    item = items[number]
    width, height = item.size()
    own, length = width * height, item.length()
    if item.kind in (b"grid", b"iovl") and (width, height) != _canvas(item, data):
        raise ValueError("a composed picture has two sizes")
    parts = Counter(item.parts)
    transparency = Counter(part for part in item.companions if items[part].is_transparency())
    total = largest = 0
    for part, times in (parts + transparency).items():
        below, read = _count(data, items, part, counted, depth - 1)
        total += times * below.total
        largest = max(largest, below.largest)
        length += times * read
    counted[number] = DecodingCost(max(own, total) if parts else own + total, max(own, largest)), length
    return counted[number]


def _canvas(item: _Item, data: bytes) -> tuple[int, int]:
    content = b"".join(data[start:end] for start, end in item.extents)
    place = 4 if item.kind == b"grid" else 10
    width, height = struct.unpack_from(">II" if content[1] & 1 else ">HH", content, place)
    return width, height


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, beginning and end of what is in each box."""
    while start < end:
        length, kind = struct.unpack_from(">I4s", data, start)
        first = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, first)
            first += 8
        if start + length < first or start + length > end:
            raise ValueError(f"a box {kind!r} has an invalid length")
        yield kind, first, start + length
        start += length


def _one_of_each(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    found: dict[bytes, tuple[int, int]] = {}
    for kind, first, last in _boxes(data, start, end):
        if kind in found and kind not in (b"free", b"skip", b"uuid"):
            raise ValueError(f"there are two boxes {kind!r}")
        found[kind] = first, last
    return found


def _read(data: bytes) -> tuple[int, dict[int, _Item]]:
    """The number of the picture that is shown, and all items."""
    metas = []
    place = 0
    for _ in range(_MOST):
        if place + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
        if kind == b"meta":
            metas.append((place + 12, place + length))
        if length < 8:  # the last one goes on to the end
            break
        place += length
    if len(metas) != 1 or metas[0][1] > len(data):
        raise ValueError("the list of items is missing, repeated or truncated")
    boxes = _one_of_each(data, *metas[0])
    items = _items(data, *boxes[b"iinf"])
    idat = boxes.get(b"idat", (0, 0))
    _locate(data, items, boxes[b"iloc"][0], idat)
    if b"iref" in boxes:
        _refer(data, items, *boxes[b"iref"])
    _describe(data, items, *boxes[b"iprp"])
    version, start = data[boxes[b"pitm"][0]], boxes[b"pitm"][0] + 4
    return struct.unpack_from(">I" if version else ">H", data, start)[0], items


def _items(data: bytes, start: int, end: int) -> dict[int, _Item]:
    found: dict[int, _Item] = {}
    for kind, first, _ in _boxes(data, start + (8 if data[start] else 6), end):
        version = data[first]
        if kind != b"infe" or version not in (2, 3):
            continue
        number, _, what = struct.unpack_from(">HH4s" if version == 2 else ">IH4s", data, first + 4)
        if number in found or len(found) >= _MOST:
            raise ValueError("two items have the same number, or there are too many")
        found[number] = _Item(what)
    return found


def _locate(data: bytes, items: dict[int, _Item], start: int, idat: tuple[int, int]) -> None:
    version, sizes = data[start], struct.unpack_from(">H", data, start + 4)[0]
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    number_size = 4 if version == 2 else 2
    place = start + 6

    def number(size: int) -> int:
        nonlocal place
        place += size
        if place > len(data):
            raise ValueError("the locations of items are truncated")
        return int.from_bytes(data[place - size : place], "big")

    entries = number(number_size)
    if entries > _MOST:
        raise ValueError(f"there are {entries:,} items")
    for _ in range(entries):
        item = items.get(number(number_size), _Item(b""))
        method = number(2) & 15 if version else 0
        number(2)  # another file, which there is none of
        base = number(base_size)
        begin, end = (0, len(data)) if method == 0 else idat
        extents = number(2)
        if method > 1 or extents > _MOST_EXTENTS:
            raise ValueError("an item is stored in an unsupported way")
        for _ in range(extents):
            number(index_size if version else 0)
            first = begin + base + number(offset_size)
            length = number(length_size)
            last = first + length if length else end
            if first > last or last > end:
                raise ValueError("an item extends past the end")
            item.extents.append((first, last))


def _refer(data: bytes, items: dict[int, _Item], start: int, end: int) -> None:
    size, code = (4, "I") if data[start] else (2, "H")
    for kind, first, _ in _boxes(data, start + 4, end):
        source, count = struct.unpack_from(f">{code}H", data, first)
        targets = struct.unpack_from(f">{count}{code}", data, first + size + 2)
        if kind == b"dimg":
            items[source].parts += targets
            if len(items[source].parts) > _MOST_PARTS:
                raise ValueError("a picture has too many parts")
        elif kind == b"auxl":
            for target in targets:
                items[target].companions.append(source)


def _describe(data: bytes, items: dict[int, _Item], start: int, end: int) -> None:
    found = [(kind, first, last) for kind, first, last in _boxes(data, start, end)]
    properties = [
        (kind, data[first:last])
        for container, begin, stop in found
        if container == b"ipco"
        for kind, first, last in _boxes(data, begin, stop)
    ]
    for kind, first, last in found:
        if kind != b"ipma":
            continue
        version, wide = data[first], data[first + 3] & 1
        (entries,) = struct.unpack_from(">I", data, first + 4)
        place = first + 8
        for _ in range(entries):
            if place >= last:
                raise ValueError("the properties of items are truncated")
            (number,) = struct.unpack_from(">I" if version else ">H", data, place)
            place += 4 if version else 2
            count, place = data[place], place + 1
            for _ in range(count):
                index = struct.unpack_from(">H" if wide else ">B", data, place)[0] & (0x7FFF if wide else 0x7F)
                place += 2 if wide else 1
                if index:
                    items[number].properties.append(properties[index - 1])
            if len(items[number].properties) > _MOST_PROPERTIES:
                raise ValueError("an item has too many properties")
