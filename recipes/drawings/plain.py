"""Pictures without objects: blank, blurred, dark, noise and patterns."""

import math
from random import Random

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from recipes.drawings.canvas import COLOURS, Colour, Drawn, contrasting_pair, near_colour, new_canvas, some_size, two_of


def blank(rng: Random) -> Drawn:
    name = rng.choice(["white", "black", "grey", *COLOURS])
    return Image.new("RGB", some_size(rng), near_colour(rng, COLOURS[name])), {"colour": name}


def gradient(rng: Random) -> Drawn:
    first, second = two_of(rng, list(COLOURS))
    way = rng.choice(["from top to bottom", "from left to right", "from the centre to the edges"])
    mask = Image.radial_gradient("L") if "centre" in way else Image.linear_gradient("L")
    mask = mask.transpose(Image.Transpose.ROTATE_90) if "left" in way else mask
    size = some_size(rng)
    start, end = (Image.new("RGB", size, COLOURS[name]) for name in (first, second))
    return Image.composite(end, start, mask.resize(size)), {"first": first, "second": second, "way": way}


def noise(rng: Random) -> Drawn:
    size, sort, grain = (
        some_size(rng),
        rng.choice(["coloured", "grey", "black and white"]),
        rng.choice(["fine", "coarse"]),
    )
    step = rng.choice([1, 2]) if grain == "fine" else rng.choice([8, 12, 16])
    width, height = math.ceil(size[0] / step), math.ceil(size[1] / step)
    if sort == "coloured":
        image = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
    else:
        image = Image.frombytes("L", (width, height), rng.randbytes(width * height))
        if sort == "black and white":
            image = image.point([0] * 128 + [255] * 128)
    image = image.convert("RGB").resize((width * step, height * step), Image.Resampling.NEAREST).crop((0, 0, *size))
    if sort != "black and white":
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.4, 1))
    return image, {"sort": sort, "grain": grain}


def blur(rng: Random) -> Drawn:
    first, second = two_of(rng, [name for name in COLOURS if name not in ("white", "beige")])
    return _blobs(rng, some_size(rng), COLOURS[first], COLOURS[second]), {"first": first, "second": second}


def dark(rng: Random) -> Drawn:
    image, scale = _murk(rng), rng.uniform(0.03, 0.1)
    return image.point([round(i * scale) for i in range(256)] * 3), {}


def overexposed(rng: Random) -> Drawn:
    image, scale = _murk(rng), rng.uniform(0.04, 0.1)
    return image.point([255 - round((255 - i) * scale) for i in range(256)] * 3), {}


def pattern(rng: Random) -> Drawn:
    first, second = contrasting_pair(rng)
    size, step = some_size(rng), rng.choice([16, 24, 32, 48])
    image, draw = new_canvas(size, COLOURS[second])
    ink = COLOURS[first]
    sort = rng.choice(["checkerboard", "horizontal", "vertical", "diagonal", "dots", "grid"])
    across, down = range(0, size[0] + size[1], step), range(0, size[1], step)
    both = f"{first} and {second}"
    if sort == "checkerboard":
        for x in across:
            for y in down:
                if (x + y) // step % 2:
                    draw.rectangle((x, y, x + step - 1, y + step - 1), fill=ink)
        return image, {"pattern": f"{both} checkerboard", "made": f"{both} squares"}
    if sort == "dots":
        for x in across:
            for y in down:
                draw.circle((x + step / 2, y + step / 2), step / 4, fill=ink)
        return image, {"pattern": f"{both} dotted pattern", "made": f"{first} dots on {second}"}
    if sort == "grid":
        for x in across:
            draw.line((x, 0, x, size[1]), fill=ink, width=3)
        for y in down:
            draw.line((0, y, size[0], y), fill=ink, width=3)
        return image, {"pattern": f"{both} grid", "made": f"crossing {first} lines on {second}"}
    for at in range(-size[1], max(size) + size[1], 2 * step):
        if sort == "horizontal":
            draw.rectangle((0, at, size[0], at + step - 1), fill=ink)
        elif sort == "vertical":
            draw.rectangle((at, 0, at + step - 1, size[1]), fill=ink)
        else:
            top = [(at, 0), (at + step, 0)]
            draw.polygon([*top, (at + step + size[1], size[1]), (at + size[1], size[1])], fill=ink)
    return image, {"pattern": f"{both} striped pattern", "made": f"{both} {sort} stripes"}


def _blobs(rng: Random, size: tuple[int, int], first: Colour, second: Colour) -> Image.Image:
    small = Image.new("RGB", (32, 32), first)
    draw = ImageDraw.Draw(small)
    for _ in range(rng.randint(2, 4)):
        draw.circle((rng.uniform(0, 32), rng.uniform(0, 32)), rng.uniform(5, 11), fill=second)
    return small.filter(ImageFilter.GaussianBlur(rng.uniform(3, 5))).resize(size, Image.Resampling.BICUBIC)


def _murk(rng: Random) -> Image.Image:
    """Blobs with grain over them: what is left of a photo that went wrong."""
    size = some_size(rng)
    image = _blobs(rng, size, *(COLOURS[name] for name in two_of(rng, list(COLOURS))))
    grain = Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).convert("RGB")
    return Image.blend(ImageOps.autocontrast(image), grain, rng.uniform(0, 0.3))
