"""Bar, line and pie charts."""

from random import Random

from PIL import Image, ImageDraw

from recipes.drawings.canvas import COLOURS, NUMBERS, VIVID, WORDS, Drawn, font_of, new_canvas, some_size


def bar_chart(rng: Random) -> Drawn:
    image, draw, (left, top, right, bottom) = _axes(rng)
    count, name = rng.randint(3, 8), rng.choice([*VIVID, "several"])
    step = (right - left) / count
    inks = [COLOURS[n] for n in VIVID]
    for i in range(count):
        height = (bottom - top) * rng.uniform(0.12, 0.98)
        x = left + step * (i + 0.15)
        ink = inks[i] if name == "several" else COLOURS[name]
        draw.rectangle((x, bottom - height, x + step * 0.7, bottom - 1), fill=ink)
    return image, {"count": NUMBERS[count], "bars": "bars in several colours" if name == "several" else f"{name} bars"}


def line_chart(rng: Random) -> Drawn:
    image, draw, (left, top, right, bottom) = _axes(rng)
    count = rng.randint(1, 3)
    names = rng.sample(["red", "green", "blue", "orange", "purple", "teal"], count)
    for name in names:
        level, points = rng.uniform(0.2, 0.8), []
        for i in range(13):
            level = min(0.97, max(0.04, level + rng.uniform(-0.16, 0.16)))
            points.append((left + (right - left) * i / 12, bottom - (bottom - top) * level))
        draw.line(points, fill=COLOURS[name], width=3, joint="curve")
    if count == 1:
        return image, {"lines": f"one {names[0]} line", "s": "s"}
    lines = f"a {names[0]} and a {names[1]} line" if count == 2 else f"{names[0]}, {names[1]} and {names[2]} lines"
    return image, {"lines": lines, "s": ""}


def pie_chart(rng: Random) -> Drawn:
    width, height = some_size(rng)
    image, draw = new_canvas((width, height), (255, 255, 255))
    count, names = rng.randint(2, 6), rng.sample(VIVID, 6)
    shares = [rng.uniform(0.4, 1) for _ in range(count)]
    radius, angle = min(width, height) * rng.uniform(0.3, 0.42), -90.0
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    for share, name in zip(shares, names, strict=False):
        end = angle + 360 * share / sum(shares)
        draw.pieslice(box, angle, end, fill=COLOURS[name], outline=(255, 255, 255), width=2)
        angle = end
    return image, {"count": NUMBERS[count], "first": names[0], "second": names[1]}


def _axes(rng: Random) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[float, float, float, float]]:
    size = rng.choice([(320, 240), (480, 360), (400, 400), (640, 480)])
    image, draw = new_canvas(size, (255, 255, 255))
    left, top, right, bottom = 44.0, 30.0, size[0] - 16.0, size[1] - 34.0
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        draw.line((left, y, right, y), fill=(215, 215, 215))
        draw.text((left - 6, y), str(i * 25), font=font_of(11), fill=(70, 70, 70), anchor="rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(50, 50, 50), width=2)
    title = " ".join(rng.sample(WORDS, 3)).capitalize()
    draw.text((size[0] / 2, 14), title, font=font_of(15), fill=(30, 30, 30), anchor="mm")
    return image, draw, (left, top, right, bottom)
