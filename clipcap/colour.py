"""From the colours of an ICC profile to sRGB, as a colour-managed viewer shows them."""

import io

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 1 << 23  # bytes; those of printing presses have one to three million
_CLASSES = ("mntr", "scnr", "prtr", "spac")  # the others describe no picture's colours
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_SAME = 2  # levels of 255 within which a profile is sRGB itself, rounded


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
    except Exception:  # lcms and Pillow each have their own for bytes that are no profile
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
