"""Picture files and colour profiles made by hand, for the tests of what opens them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipcap.image import open_image

FILES = Path(__file__).parent / "data" / "images"
Pixels = npt.NDArray[np.uint8]
RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 128, 0), (255, 255, 255), (0, 0, 0)
RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)  # the grey levels 0 to 255 in 16 bits


def opened(data: bytes) -> Pixels:
    """The picture in a file as our reader gives it."""
    return np.asarray(open_image(data, min_side=448))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of Pillow's format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> Pixels:
    """(H, W, 3)"""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int = 64, height: int = 48) -> Image.Image:
    """A picture that compresses well."""
    return Image.linear_gradient("L").rotate(30).resize((width, height)).convert("RGB")


def png_chunk(kind: bytes, data: bytes, *, checksum: bytes | None = None) -> bytes:
    """A chunk of a PNG, with a right checksum unless another is given."""
    return struct.pack(">I", len(data)) + kind + data + (checksum or struct.pack(">I", zlib.crc32(kind + data)))


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, *, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG written by hand; `rows` are its scan lines, each behind its filter byte, between other chunks."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + png_chunk(b"IEND", b"")


def icc_profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], device: bytes = b"mntr") -> bytes:
    """A minimal profile of version 2: `space` is that of the pixels, `connection` XYZ or Lab."""
    tags = {b"wtpt": _xyz(0.9642, 1.0, 0.8249), b"cprt": b"text\0\0\0\0none\0", **tags}
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    rest = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(rest), b"\0" * 4, 0x02400000, device, space, connection)
    header += bytes(12) + b"acsp" + bytes(24) + bytes(4) + _xyz(0.9642, 1.0, 0.8249)[8:]
    return header.ljust(128, b"\0") + rest


def grey_profile(gamma: float) -> bytes:
    """A profile for grey pictures."""
    return icc_profile(b"GRAY", b"XYZ ", {b"kTRC": struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256))})


def ink_profile(cyan: tuple[int, int, int]) -> bytes:
    """A profile for CMYK pictures in which paper is white, full cyan has these L, a, b (8 bits each, as Lab tables are
    stored), and all other inks are black."""
    corners = bytes(
        channel
        for inks in range(16)
        for channel in {0: (255, 128, 128), 8: cyan}.get(inks, (0, 128, 128))  # cyan is the slowest index
    )
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    curve = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + curve * 4 + corners + curve * 3
    return icc_profile(b"CMYK", b"Lab ", {b"A2B0": table}, device=b"prtr")


def _xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in (x, y, z)))
