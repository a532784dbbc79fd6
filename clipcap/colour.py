"""From the colours of an ICC profile, or of ITU-T H.273's numbers, to sRGB, as a colour-managed viewer shows them."""

import io
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

MAX_PROFILE = 1 << 23  # bytes; those of printing presses have one to three million
_CLASSES = ("mntr", "scnr", "prtr", "spac")  # the others describe no picture's colours
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_SAME = 2  # levels of 255 within which a profile is sRGB itself, rounded

Levels = npt.NDArray[np.float64]  # from 0 to 1

_PRIMARIES = {  # by their number in H.273: x and y of red, green, blue and white
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.3100, 0.3160),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, 0.3127, 0.3290),
    7: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, 0.3127, 0.3290),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3140, 0.3510),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.3290),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])
_WHITE_OF_PQ = 203 / 10_000  # of the brightest that PQ can tell: what ITU-R BT.2408 takes for white


class ToSrgb:
    """What an embedded profile says about a picture's colours, ready to be applied.

    `mode` is the Pillow mode that `apply` reads: L, RGB or CMYK.
    """

    def __init__(self, transform: ImageCms.ImageCmsTransform, mode: str) -> None:
        self.transform, self.mode = transform, mode

    def apply(self, image: Image.Image) -> Image.Image:
        """A picture in `mode`, or in RGB where that is L -> the same in sRGB."""
        if self.mode == "L":
            image = image.getchannel(0)
        if self.mode == "RGB":
            ImageCms.applyTransform(image, self.transform, inPlace=True)
            return image
        changed = ImageCms.applyTransform(image, self.transform)
        assert changed is not None
        return changed


def profile_of(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile of colours that a file describes by two numbers of H.273; none where they say nothing."""
    if primaries not in _PRIMARIES:
        return None
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in np.reshape(_PRIMARIES[primaries], (4, 2))]).T
    white = xyz[:, 3]
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD
    columns = adapted @ (xyz[:, :3] * np.linalg.solve(xyz[:, :3], white))
    light = _LIGHT.get(transfer, _srgb)(np.linspace(0, 1, 1024))
    curve = struct.pack(">4sII1024H", b"curv", 0, 1024, *np.rint(light * 65535).astype(int))
    tags = {b"wtpt": _xyz(_D50), b"cprt": b"text\0\0\0\0none\0"}
    tags |= {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    rest = table + body
    header = struct.pack(">I4sI12s12x4s", 128 + len(rest), b"", 0x02400000, b"mntrRGB XYZ ", b"acsp")
    return header.ljust(68, b"\0") + _xyz(_D50)[8:] + bytes(48) + rest


def _xyz(value: Levels) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *np.rint(value * 65536).astype(int))


def _srgb(level: Levels) -> Levels:
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def _pq(level: Levels) -> Levels:
    """What is brighter than white is white."""
    power = level ** (1 / 78.84375)
    light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    return np.minimum(light / _WHITE_OF_PQ, 1)


# From level to light, by the number of the transfer function. Those of television (1, 6, 14, 15) are left to the
# default, sRGB's, as browsers do; that of HLG (18) was made to look right there, too.
_LIGHT: dict[int, Callable[[Levels], Levels]] = {
    4: lambda level: level**2.2,
    5: lambda level: level**2.8,
    8: lambda level: level,
    16: _pq,
    17: lambda level: level**2.6,
}


def to_srgb(image: Image.Image) -> ToSrgb | None:
    """The way to sRGB from a picture in any mode; none where it has no profile, or one that does not fit the picture,
    cannot be read or is sRGB already. A broken profile must not cost a good picture."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _mode(source.profile.xcolor_space.strip(), image.mode)
        if mode is None or source.profile.device_class not in _CLASSES:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        found = ToSrgb(transform, mode)
        return None if mode == "RGB" and _changes_nothing(found) else found
    except Exception:  # lcms and Pillow each have their own for bytes that are not a profile
        return None


def _mode(space: str, mode: str) -> str | None:
    """The mode in which a profile for `space` reads a picture that has Pillow's `mode`, if it is for such pictures."""
    if mode in ("CMYK", "LAB"):
        return "CMYK" if space == mode else None
    if space == "GRAY":
        return "L" if mode in _GREY_MODES or mode.startswith("I;16") else None
    return "RGB" if space == "RGB" else None


def _changes_nothing(way: ToSrgb) -> bool:
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    changed = np.asarray(way.apply(Image.fromarray(cube)))
    return bool(abs(changed.astype(int) - cube).max() <= _SAME)
