"""Repairs files that decoders refuse although the picture in them is intact.

The same holds for every format. What carries no pixels may be missing or wrong: the end mark, the file's length,
texts, dates, their checksums. Of the pixels a corner at the end may be missing (`MOST_LOST`), which viewers show grey
or black; that can be found out in JPEG, PNG, WebP, BMP and TIFF. More is damage.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from math import ceil

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

MOST_LOST = 0.05  # of a picture

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS")  # what the pixels cannot be understood without
_PNG_KEPT = (b"iCCP", b"eXIf")  # what says how they are to be shown, if it is whole
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by a PNG's type of colour
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_STEP = 1 << 20  # bytes inflated at a time
_END = b"\xff\xd9"  # of a JPEG


def repaired(data: bytes, max_pixels: int) -> bytes | None:
    """The file with the same pixels, and without what makes decoders refuse it.

    Args:
        max_pixels: of a picture that declares more the pixels are not looked at; whoever opens it refuses it.

    Returns:
        None where nothing is known to help, or too much of the picture is missing.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return data.rstrip(b"\xff") + _END if _lost_of_jpeg(data) <= MOST_LOST else None
    if data.startswith(_PNG):
        return _repaired_png(data, max_pixels)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _repaired_webp(data)
    if data[:2] in (b"BM", b"II", b"MM"):  # where pixels are stored as they are, the last row or two are made up
        return data + bytes(int(len(data) * MOST_LOST))
    return None


def is_whole_png(data: bytes) -> bool:
    """Whether a PNG's data are as long as the picture is large; where they end early, decoders say nothing."""
    header = next((body for kind, body, _ in _png_chunks(data) if kind == b"IHDR"), b"")
    pixels = b"".join(body for kind, body, _ in _png_chunks(data) if kind == b"IDAT")
    return sum(len(part) for part in _inflated(pixels)) >= _png_length(header)


def _lost_of_jpeg(data: bytes) -> float:
    """The share of the picture that the missing end of a JPEG would have been: what comes after the first place that
    differs where it goes on with nothing and where it goes on with noise. At an eighth of the size each block of 8 x 8
    is one pixel, its mean; blocks are stored in groups, one beside the other."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 512), dtype=np.uint8)  # without 255, which begins a mark
    restarts = b"".join(bytes(part) + bytes([0xFF, 0xD0 + number]) for number, part in enumerate(noise))
    ends = []
    for end in (_END, restarts + _END):
        with Image.open(io.BytesIO(data.rstrip(b"\xff") + end), formats=("JPEG",)) as image:
            assert isinstance(image, JpegImageFile)
            sampling = [layer[1:3] for layer in image.layer] if len(image.layer) > 1 else [(1, 1)]
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            ends.append(np.atleast_3d(np.asarray(image).astype(np.int16)))  # (H / 8, W / 8, channels)
    rows, columns = np.nonzero(np.any(abs(ends[0] - ends[1]) > 8, axis=2))
    across, down = (max(factors) for factors in zip(*sampling, strict=True))
    height, width = (ceil(side / factor) for side, factor in zip(ends[0].shape, (down, across), strict=False))
    groups = rows // down * width + columns // across
    first = int(groups.min(initial=height * width))
    return float(1 - first / (height * width))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Kind and body of each chunk, and whether it is whole by its checksum; the last one may be cut short."""
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        sum_ = data[place + 8 + length : place + 12 + length]
        yield kind, body, sum_ == struct.pack(">I", zlib.crc32(kind + body))
        place += 12 + length


def _repaired_png(data: bytes, max_pixels: int) -> bytes | None:
    out, pixels, header = [_PNG], [], b""
    for kind, body, whole in _png_chunks(data):
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in _PNG_NEEDED:
            if not whole:
                return None
            header = body if kind == b"IHDR" else header
            out.append(_png_chunk(kind, body))
        elif kind in _PNG_KEPT and whole and not (kind == b"iCCP" and b"\0\0" not in body[:81]):
            out.append(_png_chunk(kind, body))
    packed = _completed(b"".join(pixels), header) if _png_pixels(header) <= max_pixels else b""
    if packed is None:
        return None
    return b"".join([*out, _png_chunk(b"IDAT", packed), _png_chunk(b"IEND", b"")])


def _completed(packed: bytes, header: bytes) -> bytes | None:
    """A PNG's packed pixels up to the length that its header asks for, with zeros for what is missing."""
    wanted = _png_length(header)
    packer, parts, got = zlib.compressobj(1), [], 0
    for part in _inflated(packed):
        parts.append(packer.compress(part[: wanted - got]))
        got += len(part)
        if got >= wanted:
            break
    missing = max(0, wanted - got)
    if not wanted or missing > wanted * MOST_LOST:
        return None
    return b"".join([*parts, packer.compress(bytes(missing)), packer.flush()])


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_pixels(header: bytes) -> int:
    return int.from_bytes(header[:4], "big") * int.from_bytes(header[4:8], "big")


def _png_length(header: bytes) -> int:
    """Bytes of a PNG's pixels before they are packed; 0 where the header makes no sense."""
    if len(header) != 13:
        return 0
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits *= _CHANNELS.get(colour, 0)
    length = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = ceil((width - left) / across), ceil((height - top) / down)
        if columns > 0 and rows > 0:
            length += rows * (1 + ceil(columns * bits / 8))
    return length if bits else 0


def _inflated(packed: bytes) -> Iterator[bytes]:
    """What zlib makes of the bytes, part by part, as far as they go."""
    inflater = zlib.decompressobj()
    try:
        while not inflater.eof:
            part = inflater.decompress(packed, _STEP)
            packed = inflater.unconsumed_tail
            if not part:
                return
            yield part
    except zlib.error:
        return


def _repaired_webp(data: bytes) -> bytes | None:
    """The chunks that are whole or nearly, without those that only speak of the picture."""
    chunks, place = [], 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        body = data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
        if kind in (b"VP8 ", b"VP8L") and length - len(body) <= length * MOST_LOST:
            body = body.ljust(length, b"\0")
        if len(body) < length or kind not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"):
            continue
        if kind == b"VP8X" and body:
            body = bytes([body[0] & 0b110000]) + body[1:]  # profile and transparency; no animation, EXIF or XMP
        chunks.append(struct.pack("<4sI", kind, length) + body + b"\0" * (length % 2))
    if not any(chunk.startswith((b"VP8 ", b"VP8L")) for chunk in chunks):
        return None
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content
