"""Pictures that are not photos: blank ones, noise, screenshots, charts, drawings. Each function draws one at random and
returns it with the facts its captions are built from (`recipes/drawing_captions.py`).

Only Pillow and the font it brings are used, and all chance comes from the generator given: the same state of it draws
the same picture."""

import math
from collections.abc import Callable
from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Colour = tuple[int, int, int]
Facts = dict[str, str]
Drawn = tuple[Image.Image, Facts]

COLOURS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "red": (208, 32, 36),
    "green": (40, 150, 60),
    "blue": (36, 84, 204),
    "yellow": (248, 216, 40),
    "orange": (244, 132, 28),
    "purple": (124, 48, 160),
    "pink": (246, 150, 186),
    "brown": (116, 72, 40),
    "beige": (228, 212, 180),
    "teal": (20, 128, 128),
    "turquoise": (60, 208, 200),
    "navy": (20, 30, 92),
}
VIVID = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "teal"]
DEEP = ["red", "green", "blue", "purple", "brown", "teal", "navy", "black"]
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SIZES = [(224, 224), (320, 240), (400, 400), (480, 360), (640, 480), (480, 640), (360, 540), (640, 400)]
WORDS = [
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "was", "on", "are", "as", "with", "they", "at",
    "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were", "when", "we", "there",
    "can", "an", "your", "which", "their", "said", "if", "do", "will", "each", "about", "how", "up", "out", "them",
    "then", "she", "many", "some", "so", "these", "would", "other", "into", "has", "more", "her", "two", "like", "him",
    "see", "time", "could", "no", "make", "than", "first", "been", "its", "who", "now", "people", "my", "made", "over",
    "did", "down", "only", "way", "find", "use", "may", "water", "long", "little", "very", "after", "words", "called",
    "just", "where", "most", "know", "garden", "report", "meeting", "letter", "summer", "market", "value", "study",
    "window", "paper", "number", "city", "river", "answer", "public", "system", "history",
]  # fmt: skip


def blank(rng: Random) -> Drawn:
    name = rng.choice(["white", "black", "grey", *COLOURS])
    return Image.new("RGB", _size(rng), _near(rng, COLOURS[name])), {"colour": name}


def gradient(rng: Random) -> Drawn:
    first, second = _two(rng, list(COLOURS))
    way = rng.choice(["from top to bottom", "from left to right", "from the centre to the edges"])
    mask = Image.radial_gradient("L") if "centre" in way else Image.linear_gradient("L")
    mask = mask.transpose(Image.Transpose.ROTATE_90) if "left" in way else mask
    size = _size(rng)
    start, end = (Image.new("RGB", size, COLOURS[name]) for name in (first, second))
    return Image.composite(end, start, mask.resize(size)), {"first": first, "second": second, "way": way}


def noise(rng: Random) -> Drawn:
    size, sort, grain = _size(rng), rng.choice(["coloured", "grey", "black and white"]), rng.choice(["fine", "coarse"])
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
    first, second = _two(rng, [name for name in COLOURS if name not in ("white", "beige")])
    return _blobs(rng, _size(rng), COLOURS[first], COLOURS[second]), {"first": first, "second": second}


def dark(rng: Random) -> Drawn:
    image, scale = _murk(rng), rng.uniform(0.03, 0.1)
    return image.point([round(i * scale) for i in range(256)] * 3), {}


def overexposed(rng: Random) -> Drawn:
    image, scale = _murk(rng), rng.uniform(0.04, 0.1)
    return image.point([255 - round((255 - i) * scale) for i in range(256)] * 3), {}


def pattern(rng: Random) -> Drawn:
    first, second = _contrasting(rng)
    size, step = _size(rng), rng.choice([16, 24, 32, 48])
    image, draw = _canvas(size, COLOURS[second])
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


def text_page(rng: Random) -> Drawn:
    size = _size(rng, screen=True)
    ink, paper, theme = rng.choice(
        [
            ((16, 16, 16), (255, 255, 255), "black letters on white"),
            ((16, 16, 16), (255, 255, 255), "black letters on white"),
            ((220, 220, 220), (28, 28, 32), "pale letters on a dark background"),
            ((60, 44, 30), (244, 234, 212), "brown letters on a cream page"),
        ]
    )
    image, draw = _canvas(size, paper)
    letter, top, margin = rng.choice([11, 12, 14, 16, 20]), 16, rng.choice([14, 24, 40])
    if rng.random() < 0.4:
        _window_bar(rng, draw, size)
        top = 40
    if rng.random() < 0.6:
        title = " ".join(rng.sample(WORDS, 3)).capitalize()
        draw.text((margin, top), title, font=_font(letter * 2), fill=ink)
        top += letter * 3
    columns = rng.choice([1, 1, 2]) if size[0] >= 400 else 1
    width = (size[0] - margin * (columns + 1)) // columns
    for column in range(columns):
        _paragraphs(rng, draw, (margin + column * (width + margin), top, width, size[1] - 12), letter, ink)
    layout = "in two columns" if columns == 2 else "in one column"
    return image, {"theme": theme, "layout": layout}


def code_editor(rng: Random) -> Drawn:
    size = _size(rng, screen=True)
    night = rng.random() < 0.7
    paper, plain, mode = ((30, 30, 40), (212, 212, 220), "dark") if night else ((252, 252, 252), (40, 40, 40), "white")
    image, draw = _canvas(size, paper)
    inks = [COLOURS[name] for name in ("orange", "turquoise", "pink", "yellow")] if night else []
    inks = [*(inks or [COLOURS[name] for name in ("blue", "purple", "green", "red")]), plain, plain]
    left, letter, number, indent = 8, rng.choice([11, 12, 14, 16]), 1, 0
    if rng.random() < 0.4 and size[0] >= 400:
        left = 110
        draw.rectangle((0, 0, 100, size[1]), fill=(44, 44, 56) if night else (236, 236, 236))
        for y in range(14, size[1], letter * 2):
            draw.text((10, y), f"{rng.choice(WORDS)}.py", font=_font(letter), fill=plain)
    for y in range(10, size[1], round(letter * 1.5)):
        _monospace(draw, (left, y), f"{number:>3}", letter, (120, 120, 130))
        number, indent = number + 1, max(0, min(4, indent + rng.choice([-1, 0, 0, 1])))
        x = left + letter * (2.6 + indent * 1.8)
        for _ in range(rng.choice([0, 1, 2, 3, 4, 5])):
            token = rng.choice(["def", "if", "return", "=", "(x)", "[i]", "0:", "for", "+=", *rng.sample(WORDS, 9)])
            _monospace(draw, (x, y), token, letter, rng.choice(inks))
            x += letter * 0.62 * (len(token) + 1)
    return image, {"mode": mode}


def terminal(rng: Random) -> Drawn:
    size = _size(rng, screen=True)
    name = rng.choice(["green", "white", "white", "orange"])
    ink = {"green": (60, 230, 90), "white": (230, 230, 230), "orange": (255, 170, 50)}[name]
    image, draw = _canvas(size, (8, 8, 10))
    letter, top = rng.choice([11, 13, 15]), 8
    if rng.random() < 0.5:
        _window_bar(rng, draw, size)
        top = 34
    for y in range(top, round(size[1] * rng.uniform(0.6, 1)), round(letter * 1.4)):
        line = " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))
        prompt = rng.choice(["$ ", "", "", "> ", "[ok] ", f"{rng.randint(100, 99999)}  "])
        _monospace(draw, (8, y), prompt + line, letter, ink)
    return image, {"colour": name}


def chat(rng: Random) -> Drawn:
    size = rng.choice([(360, 640), (320, 480), (480, 480), (640, 480), (400, 400)])
    name, night = rng.choice(["blue", "green", "purple", "pink", "teal"]), rng.random() < 0.3
    image, draw = _canvas(size, (24, 26, 30) if night else (250, 250, 250))
    draw.rectangle((0, 0, size[0], 40), fill=(44, 48, 54) if night else (232, 234, 238))
    draw.circle((22, 20), 13, fill=COLOURS[rng.choice(VIVID)])
    face = (240, 240, 240) if night else (20, 20, 20)
    draw.text((44, 12), rng.choice(["Sam", "Alex", "Mum", "Team", "Kim"]), font=_font(15), fill=face)
    y, count = 54, 0
    while y < size[1] - 90 and count < 9:
        mine = rng.random() < 0.5 if count else False
        width, lines = round(size[0] * rng.uniform(0.35, 0.68)), rng.randint(1, 3)
        x = size[0] - width - 12 if mine else 12
        fill = COLOURS[name] if mine else ((60, 64, 70) if night else (222, 224, 228))
        draw.rounded_rectangle((x, y, x + width, y + 12 + 18 * lines), 12, fill=fill)
        ink = (20, 20, 20) if mine and name == "pink" else (255, 255, 255) if mine or night else (20, 20, 20)
        _paragraphs(rng, draw, (x + 10, y + 6, width - 20, y + 6 + 18 * lines), 13, ink)
        y, count = y + 24 + 18 * lines, count + 1
    draw.rounded_rectangle((10, size[1] - 38, size[0] - 10, size[1] - 8), 14, outline=(150, 150, 150), width=2)
    return image, {"colour": name}


def form(rng: Random) -> Drawn:
    size = _size(rng, screen=True)
    night = rng.random() < 0.25
    ink = (235, 235, 235) if night else (30, 30, 30)
    image, draw = _canvas(size, (36, 38, 44) if night else (247, 247, 249))
    name, sort = rng.choice(VIVID), rng.choice(["switches", "empty fields", "checkboxes", "sliders"])
    draw.text((18, 12), rng.choice(["Settings", "Options", "Account", "Profile", "Details"]), font=_font(22), fill=ink)
    step = 58 if sort == "empty fields" else 40
    for y in range(54, size[1] - 60, step):
        label = " ".join(rng.sample(WORDS, 2)).capitalize()
        draw.text((18, y), label, font=_font(14), fill=ink)
        on, right = rng.random() < 0.5, size[0] - 20
        if sort == "switches":
            draw.rounded_rectangle((right - 40, y, right, y + 20), 10, fill=COLOURS[name] if on else (170, 170, 175))
            draw.circle((right - 10 if on else right - 30, y + 10), 8, fill=(255, 255, 255))
        elif sort == "checkboxes":
            draw.rectangle((right - 20, y, right, y + 20), outline=ink, width=2)
            if on:
                draw.line([(right - 17, y + 10), (right - 11, y + 16), (right - 2, y + 3)], fill=COLOURS[name], width=3)
        elif sort == "sliders":
            at = rng.uniform(size[0] * 0.5, right)
            draw.line((size[0] * 0.5, y + 10, right, y + 10), fill=(160, 160, 165), width=4)
            draw.circle((at, y + 10), 8, fill=COLOURS[name])
        else:
            draw.rounded_rectangle((18, y + 20, right, y + 46), 4, fill=(255, 255, 255), outline=(150, 150, 155))
    draw.rounded_rectangle((size[0] - 120, size[1] - 44, size[0] - 20, size[1] - 14), 6, fill=COLOURS[name])
    button = (20, 20, 20) if name in ("yellow", "pink", "orange") else (255, 255, 255)
    draw.text((size[0] - 70, size[1] - 29), "Save", font=_font(15), fill=button, anchor="mm")
    return image, {"sort": sort, "colour": name}


def table(rng: Random) -> Drawn:
    size = _size(rng, screen=True)
    image, draw = _canvas(size, (255, 255, 255))
    name, wide, high = rng.choice(["grey", "blue", "green", "orange", "teal"]), rng.choice([64, 80, 100]), 24
    draw.rectangle((0, 0, size[0], high), fill=COLOURS[name])
    pale = name in ("orange", "grey")
    for row, y in enumerate(range(0, size[1], high)):
        draw.line((0, y, size[0], y), fill=(190, 190, 190))
        for x in range(0, size[0], wide):
            draw.line((x, 0, x, size[1]), fill=(190, 190, 190))
            cell = rng.choice(WORDS) if row == 0 or x == 0 else rng.choice([f"{rng.uniform(0, 999):.1f}"] * 4 + [""])
            ink = (255, 255, 255) if row == 0 and not pale else (20, 20, 20)
            draw.text((x + 5, y + 5), cell.capitalize(), font=_font(13), fill=ink)
    return image, {"colour": name}


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
    width, height = _size(rng)
    image, draw = _canvas((width, height), (255, 255, 255))
    count, names = rng.randint(2, 6), rng.sample(VIVID, 6)
    shares = [rng.uniform(0.4, 1) for _ in range(count)]
    radius, angle = min(width, height) * rng.uniform(0.3, 0.42), -90.0
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    for share, name in zip(shares, names, strict=False):
        end = angle + 360 * share / sum(shares)
        draw.pieslice(box, angle, end, fill=COLOURS[name], outline=(255, 255, 255), width=2)
        angle = end
    return image, {"count": NUMBERS[count], "first": names[0], "second": names[1]}


def drawing(rng: Random) -> Drawn:
    name = rng.choice(list(SUBJECTS))
    pen, facts = _sheet(rng, _size(rng))
    margin = rng.uniform(0.05, 0.2)
    side = min(pen.size) * (1 - 2 * margin)
    pen.place(((pen.size[0] - side) / 2, (pen.size[1] - side) / 2, side))
    SUBJECTS[name](pen)
    article = "the" if name in ("sun", "moon") else "a"
    return pen.finish(), facts | {"subject": f"{article} {name}", "noun": name}


def drawing_pair(rng: Random) -> Drawn:
    first, second = _two(rng, [name for name in SUBJECTS if name not in ("sun", "moon")])
    pen, facts = _sheet(rng, rng.choice([(320, 240), (480, 360), (400, 400), (640, 480)]))
    side = pen.size[0] * 0.42
    for name, x in ((first, 0.04), (second, 0.54)):
        pen.place((pen.size[0] * x, (pen.size[1] - side) * rng.uniform(0.35, 0.65), side))
        SUBJECTS[name](pen)
    return pen.finish(), facts | {"first": first, "second": second}


def shapes(rng: Random) -> Drawn:
    ink, paper = _contrasting(rng)
    shape, count, filled = rng.choice(["circle", "square", "triangle", "star"]), rng.randint(1, 6), rng.random() < 0.6
    size = rng.choice([(320, 240), (480, 360), (400, 400), (640, 480)])
    image, draw = _canvas((size[0] * 2, size[1] * 2), COLOURS[paper])
    cells = rng.sample([(x, y) for x in range(3) for y in range(2)], count)
    for x, y in cells:
        centre = (image.width * (x + 0.5) / 3, image.height * (y + 0.5) / 2)
        radius = min(image.width / 6, image.height / 4) * rng.uniform(0.5, 0.85)
        corners = {"circle": 72, "square": 4, "triangle": 3, "star": 10}[shape]
        turn = rng.uniform(-0.1, 0.1) + (math.pi / 4 if shape == "square" else 0)
        points = []
        for i in range(corners):
            reach = radius * (0.42 if shape == "star" and i % 2 else 1)
            angle = turn + 2 * math.pi * i / corners - math.pi / 2
            points.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
        if filled:
            draw.polygon(points, fill=COLOURS[ink])
        else:
            draw.line([*points, *points[:2]], fill=COLOURS[ink], width=8, joint="curve")
    image = image.resize(size, Image.Resampling.LANCZOS)
    things, ending = (shape, "s") if count == 1 else (f"{shape}s", "")
    sort = "filled" if filled else "outlined"
    return image, {"things": f"{NUMBERS[count]} {ink} {things}", "paper": paper, "sort": sort, "s": ending}


def receipt(rng: Random) -> Drawn:
    width, height = rng.choice([(320, 480), (360, 540), (400, 400), (480, 640)])
    name = rng.choice(["grey", "brown", "black", "blue", "beige", "teal"])
    table_top = _near(rng, COLOURS[name])
    image, draw = _canvas((width, height), table_top)
    left, right = width * 0.2, width * 0.8
    draw.rectangle((left, 12, right, height - 12), fill=(252, 252, 248))
    ink = (30, 30, 30)
    draw.text((width / 2, 36), rng.choice(["SHOP", "MARKET", "CAFE", "STORE"]), font=_font(24), fill=ink, anchor="mm")
    y, total = 66, 0.0
    while y < height - 90:
        price = rng.uniform(0.5, 40)
        draw.text((left + 12, y), rng.choice(WORDS).capitalize(), font=_font(14), fill=ink)
        draw.text((right - 12, y), f"{price:.2f}", font=_font(14), fill=ink, anchor="ra")
        y, total = y + 22, total + price
    draw.line((left + 12, y + 4, right - 12, y + 4), fill=ink)
    draw.text((left + 12, y + 14), "TOTAL", font=_font(18), fill=ink)
    draw.text((right - 12, y + 14), f"{total:.2f}", font=_font(18), fill=ink, anchor="ra")
    return image.rotate(rng.uniform(-4, 4), fillcolor=table_top), {"colour": name}


def sign(rng: Random) -> Drawn:
    board, letters = rng.choice(
        [("red", "white"), ("blue", "white"), ("green", "white"), ("yellow", "black"), ("white", "red"),
         ("black", "white"), ("orange", "black"), ("white", "black"), ("white", "blue"), ("black", "yellow")]
    )  # fmt: skip
    size = _size(rng)
    image, draw = _canvas(size, _near(rng, COLOURS[rng.choice(["grey", "beige", "turquoise"])]))
    words = rng.choice(
        ["OPEN", "CLOSED", "SALE", "EXIT", "WELCOME", "PARKING", "COFFEE", "THIS WAY", "NO ENTRY", "TAXI"]
    )
    lines = words.split()
    inset = min(size) * 0.1
    box = (inset, inset, size[0] - inset, size[1] - inset)
    draw.rounded_rectangle(box, 14, fill=COLOURS[board], outline=COLOURS[letters], width=5)
    letter = min((size[0] - 2 * inset) * 1.3 / max(map(len, lines)), (size[1] - 2 * inset) * 0.8 / len(lines))
    for i, line in enumerate(lines):
        at = (size[0] / 2, size[1] / 2 + (i - (len(lines) - 1) / 2) * letter)
        draw.text(at, line, font=_font(round(letter)), fill=COLOURS[letters], anchor="mm")
    return image, {"board": board, "letters": letters}


def square_code(rng: Random) -> Drawn:
    count, cell = rng.choice([21, 25, 29]), rng.choice([8, 10, 12])
    side = (count + 8) * cell
    image, draw = _canvas((side, side), (255, 255, 255))
    name = rng.choice(["black", "black", "black", "navy"])
    for row in range(count):
        for column in range(count):
            corner = min(row, count - 1 - row) < 8 and min(column, count - 1 - column) < 8
            corner = corner and not (row >= count - 8 and column >= count - 8)
            if not corner and rng.random() < 0.5:
                x, y = (column + 4) * cell, (row + 4) * cell
                draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=COLOURS[name])
    for x, y in ((4, 4), (count - 3, 4), (4, count - 3)):
        for inset, fill in ((0, COLOURS[name]), (1, (255, 255, 255)), (2, COLOURS[name])):
            box = ((x + inset) * cell, (y + inset) * cell, (x + 7 - inset) * cell - 1, (y + 7 - inset) * cell - 1)
            draw.rectangle(box, fill=fill)
    return image, {"colour": name}


def street_map(rng: Random) -> Drawn:
    width, height = _size(rng)
    image, draw = _canvas((width, height), (236, 230, 218))
    for _ in range(2):
        x, y = rng.uniform(0, width * 0.8), rng.uniform(0, height * 0.8)
        draw.rectangle((x, y, x + width * 0.25, y + height * 0.25), fill=(186, 220, 168))
    level = rng.uniform(0.25, 0.75) * height
    river = []
    for i in range(-1, 12):
        level += rng.uniform(-0.06, 0.06) * height
        river.append((width * i / 10, level))
    draw.line(river, fill=(150, 196, 232), width=round(height * 0.09), joint="curve")
    for _ in range(rng.randint(4, 6)):
        x, y, lean = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(-0.15, 0.15)
        across = [(0, y), (width, y + lean * height)]
        down = [(x, 0), (x + lean * width, height)]
        for ends in (across, down):
            draw.line(ends, fill=(206, 200, 188), width=9)
            draw.line(ends, fill=(255, 255, 255), width=6)
    name = rng.choice(["red", "blue", "purple"])
    x, y, r = width * rng.uniform(0.35, 0.65), height * rng.uniform(0.35, 0.55), min(width, height) * 0.05
    draw.polygon([(x - r, y), (x + r, y), (x, y + 2.4 * r)], fill=COLOURS[name])
    draw.circle((x, y), r, fill=COLOURS[name])
    draw.circle((x, y), r * 0.4, fill=(255, 255, 255))
    return image, {"colour": name}


def empty_frame(rng: Random) -> Drawn:
    size = _size(rng)
    frame, wall = rng.choice(["black", "brown", "red", "navy", "teal"]), rng.choice(["grey", "beige", "white", "pink"])
    image, draw = _canvas(size, _near(rng, COLOURS[wall]))
    x, y, thick = size[0] * 0.15, size[1] * 0.15, min(size) * rng.uniform(0.04, 0.08)
    right, bottom = size[0] - x, size[1] - y
    draw.rectangle((x + 6, y + 6, right + 6, bottom + 6), fill=(100, 100, 100))
    draw.rectangle((x, y, right, bottom), fill=COLOURS[frame])
    draw.rectangle((x + thick, y + thick, right - thick, bottom - thick), fill=(250, 250, 248))
    return image, {"frame": frame, "wall": wall}


class Pen:
    """Draws in a unit square placed on the sheet, a little shakily as a hand does; at twice the size, to be smooth."""

    def __init__(self, rng: Random, size: tuple[int, int], ink: Colour, paper: Colour) -> None:
        self.rng, self.ink = rng, ink
        self.size = (size[0] * 2, size[1] * 2)
        self.image, self.canvas = _canvas(self.size, paper)
        self.width = rng.choice([4, 6, 8, 10])
        self.place((0, 0, self.size[0]))

    def place(self, box: tuple[float, float, float]) -> None:
        self.x, self.y, self.side = box

    def line(self, *points: tuple[float, float]) -> None:
        shaken = [
            (self.x + self.side * (x + self.rng.gauss(0, 0.004)), self.y + self.side * (y + self.rng.gauss(0, 0.004)))
            for x, y in points
        ]
        self.canvas.line(shaken, fill=self.ink, width=self.width, joint="curve")

    def arc(self, x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> None:
        """An ellipse around (x, y), or the part of it from `start` to `end` degrees, clockwise from the right."""
        angles = [math.radians(start + (end - start) * i / 40) for i in range(41)]
        points = [
            (self.x + self.side * (x + rx * math.cos(a)), self.y + self.side * (y + ry * math.sin(a))) for a in angles
        ]
        self.canvas.line(points, fill=self.ink, width=self.width, joint="curve")

    def finish(self) -> Image.Image:
        return self.image.resize((self.size[0] // 2, self.size[1] // 2), Image.Resampling.LANCZOS)


def _house(pen: Pen) -> None:
    pen.line((0.1, 0.45), (0.1, 0.98), (0.9, 0.98), (0.9, 0.45), (0.1, 0.45))
    pen.line((0.03, 0.46), (0.5, 0.05), (0.97, 0.46))
    pen.line((0.42, 0.98), (0.42, 0.68), (0.6, 0.68), (0.6, 0.98))
    for x in (0.18, 0.68):
        pen.line((x, 0.55), (x + 0.15, 0.55), (x + 0.15, 0.7), (x, 0.7), (x, 0.55))


def _tree(pen: Pen) -> None:
    pen.line((0.44, 0.98), (0.45, 0.6))
    pen.line((0.56, 0.98), (0.55, 0.6))
    for x, y in ((0.3, 0.45), (0.5, 0.25), (0.7, 0.45), (0.5, 0.5)):
        pen.arc(x, y, 0.2, 0.18)


def _sun(pen: Pen) -> None:
    pen.arc(0.5, 0.5, 0.24, 0.24)
    for i in range(12):
        c, s = math.cos(i * math.pi / 6), math.sin(i * math.pi / 6)
        pen.line((0.5 + 0.3 * c, 0.5 + 0.3 * s), (0.5 + 0.46 * c, 0.5 + 0.46 * s))


def _moon(pen: Pen) -> None:
    pen.arc(0.5, 0.5, 0.42, 0.42, 60, 300)
    pen.arc(0.71, 0.5, 0.364, 0.364, 90, 270)


def _stick_figure(pen: Pen) -> None:
    pen.arc(0.5, 0.17, 0.13, 0.13)
    pen.line((0.5, 0.3), (0.5, 0.65))
    pen.line((0.25, 0.5), (0.5, 0.4), (0.75, 0.5))
    pen.line((0.3, 0.98), (0.5, 0.65), (0.7, 0.98))


def _cat_face(pen: Pen) -> None:
    pen.arc(0.5, 0.57, 0.36, 0.33)
    pen.line((0.17, 0.42), (0.16, 0.1), (0.36, 0.27))
    pen.line((0.83, 0.42), (0.84, 0.1), (0.64, 0.27))
    for x in (0.37, 0.63):
        pen.arc(x, 0.48, 0.04, 0.06)
    pen.line((0.46, 0.6), (0.54, 0.6), (0.5, 0.65), (0.46, 0.6))
    pen.arc(0.44, 0.66, 0.06, 0.06, 0, 180)
    pen.arc(0.56, 0.66, 0.06, 0.06, 0, 180)
    for y in (0.6, 0.66, 0.72):
        pen.line((0.3, 0.64), (0.02, y))
        pen.line((0.7, 0.64), (0.98, y))


def _car(pen: Pen) -> None:
    pen.line((0.1, 0.7), (0.02, 0.7), (0.02, 0.5), (0.2, 0.48), (0.32, 0.3), (0.68, 0.3), (0.82, 0.48), (0.98, 0.52))
    pen.line((0.98, 0.52), (0.98, 0.7), (0.9, 0.7))
    pen.line((0.36, 0.7), (0.64, 0.7))
    pen.line((0.25, 0.48), (0.78, 0.48))
    pen.line((0.5, 0.3), (0.5, 0.48))
    for x in (0.23, 0.77):
        pen.arc(x, 0.72, 0.11, 0.11)
        pen.arc(x, 0.72, 0.04, 0.04)


def _flower(pen: Pen) -> None:
    for i in range(6):
        a = i * math.pi / 3
        pen.arc(0.5 + 0.19 * math.cos(a), 0.3 + 0.19 * math.sin(a), 0.09, 0.09)
    pen.arc(0.5, 0.3, 0.1, 0.1)
    pen.line((0.5, 0.58), (0.5, 0.98))
    pen.arc(0.6, 0.78, 0.1, 0.05)
    pen.arc(0.4, 0.86, 0.1, 0.05)


def _boat(pen: Pen) -> None:
    pen.line((0.05, 0.68), (0.95, 0.68), (0.78, 0.88), (0.22, 0.88), (0.05, 0.68))
    pen.line((0.5, 0.68), (0.5, 0.06))
    pen.line((0.54, 0.1), (0.88, 0.6), (0.54, 0.6), (0.54, 0.1))
    pen.line((0.46, 0.18), (0.16, 0.6), (0.46, 0.6), (0.46, 0.18))
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        pen.arc(x, 0.96, 0.1, 0.04, 180, 360)


def _fish(pen: Pen) -> None:
    pen.arc(0.42, 0.5, 0.36, 0.22)
    pen.line((0.76, 0.5), (0.97, 0.3), (0.97, 0.7), (0.76, 0.5))
    pen.arc(0.2, 0.44, 0.03, 0.03)
    pen.arc(0.14, 0.52, 0.18, 0.2, -50, 50)
    pen.line((0.4, 0.28), (0.52, 0.14), (0.6, 0.31))


def _cup(pen: Pen) -> None:
    pen.line((0.15, 0.4), (0.2, 0.9), (0.62, 0.9), (0.67, 0.4))
    pen.arc(0.41, 0.4, 0.26, 0.06)
    pen.arc(0.68, 0.6, 0.16, 0.14, -90, 110)
    for x in (0.32, 0.48):
        pen.line((x, 0.28), (x + 0.04, 0.22), (x - 0.02, 0.15), (x + 0.03, 0.08))


def _heart(pen: Pen) -> None:
    angles = [math.pi * i / 30 for i in range(61)]
    pen.line(
        *[
            (
                0.5 + 0.44 * math.sin(a) ** 3,
                0.48 - 0.028 * (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)),
            )
            for a in angles
        ]
    )


def _mountain(pen: Pen) -> None:
    pen.line((0.02, 0.9), (0.36, 0.25), (0.6, 0.7), (0.72, 0.5), (0.98, 0.9), (0.02, 0.9))
    pen.line((0.26, 0.44), (0.33, 0.5), (0.37, 0.42), (0.41, 0.49), (0.46, 0.44))


SUBJECTS: dict[str, Callable[[Pen], None]] = {
    "house": _house,
    "tree": _tree,
    "sun": _sun,
    "moon": _moon,
    "stick figure": _stick_figure,
    "cat's face": _cat_face,
    "car": _car,
    "flower": _flower,
    "sailing boat": _boat,
    "fish": _fish,
    "steaming cup": _cup,
    "heart": _heart,
    "mountain": _mountain,
}
KINDS: dict[str, Callable[[Random], Drawn]] = {
    function.__name__: function
    for function in (
        blank, gradient, noise, blur, dark, overexposed, pattern, text_page, code_editor, terminal, chat, form, table,
        bar_chart, line_chart, pie_chart, drawing, drawing_pair, shapes, receipt, sign, square_code, street_map,
        empty_frame,
    )
}  # fmt: skip


def _size(rng: Random, *, screen: bool = False) -> tuple[int, int]:
    return rng.choice([size for size in SIZES if not screen or size[0] >= 320])


def _canvas(size: tuple[int, int], paper: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, paper)
    return image, ImageDraw.Draw(image)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _near(rng: Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, part + rng.randint(-8, 8))) for part in colour)
    return red, green, blue


def _two(rng: Random, names: list[str]) -> tuple[str, str]:
    first, second = rng.sample(names, 2)
    return first, second


def _contrasting(rng: Random) -> tuple[str, str]:
    """Two colours that are easily told apart, one of them deep and one pale, in either order."""
    pair = [rng.choice(DEEP), rng.choice(["white", "white", "yellow", "beige", "pink"])]
    rng.shuffle(pair)
    return pair[0], pair[1]


def _blobs(rng: Random, size: tuple[int, int], first: Colour, second: Colour) -> Image.Image:
    small = Image.new("RGB", (32, 32), first)
    draw = ImageDraw.Draw(small)
    for _ in range(rng.randint(2, 4)):
        draw.circle((rng.uniform(0, 32), rng.uniform(0, 32)), rng.uniform(5, 11), fill=second)
    return small.filter(ImageFilter.GaussianBlur(rng.uniform(3, 5))).resize(size, Image.Resampling.BICUBIC)


def _murk(rng: Random) -> Image.Image:
    """Blobs with grain over them: what is left of a photo that went wrong."""
    size = _size(rng)
    image = _blobs(rng, size, *(COLOURS[name] for name in _two(rng, list(COLOURS))))
    grain = Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).convert("RGB")
    return Image.blend(ImageOps.autocontrast(image), grain, rng.uniform(0, 0.3))


def _window_bar(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    draw.rectangle((0, 0, size[0], 26), fill=(206, 208, 214))
    for x, name in ((16, "red"), (34, "yellow"), (52, "green")):
        draw.circle((x, 13), 6, fill=COLOURS[name])
    title = " ".join(rng.sample(WORDS, 2))
    draw.text((size[0] / 2, 13), title, font=_font(13), fill=(60, 60, 60), anchor="mm")


def _paragraphs(
    rng: Random, draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], letter: int, ink: Colour
) -> None:
    """Words in lines as long as fit, from (x, y) of `box` = (x, y, width, bottom) down to its bottom."""
    x, y, width, bottom = box
    font, left_in_paragraph = _font(letter), rng.randint(3, 7)
    while y + letter * 1.3 <= bottom:
        words = [rng.choice(WORDS)]
        limit = width * (1 if left_in_paragraph else rng.uniform(0.3, 0.8))
        while font.getlength(" ".join([*words, "because"])) < limit:
            words.append(rng.choice(WORDS))
        draw.text((x, y), " ".join(words), font=font, fill=ink)
        y += letter * (1.4 if left_in_paragraph else 2.2)
        left_in_paragraph = left_in_paragraph - 1 if left_in_paragraph else rng.randint(3, 7)


def _monospace(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, letter: int, ink: Colour) -> None:
    for i, character in enumerate(text):
        draw.text((at[0] + i * letter * 0.62, at[1]), character, font=_font(letter), fill=ink)


def _axes(rng: Random) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[float, float, float, float]]:
    size = rng.choice([(320, 240), (480, 360), (400, 400), (640, 480)])
    image, draw = _canvas(size, (255, 255, 255))
    left, top, right, bottom = 44.0, 30.0, size[0] - 16.0, size[1] - 34.0
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        draw.line((left, y, right, y), fill=(215, 215, 215))
        draw.text((left - 6, y), str(i * 25), font=_font(11), fill=(70, 70, 70), anchor="rm")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(50, 50, 50), width=2)
    title = " ".join(rng.sample(WORDS, 3)).capitalize()
    draw.text((size[0] / 2, 14), title, font=_font(15), fill=(30, 30, 30), anchor="mm")
    return image, draw, (left, top, right, bottom)


def _sheet(rng: Random, size: tuple[int, int]) -> tuple[Pen, Facts]:
    ink, paper = rng.choice(
        [("black", "white"), ("black", "white"), ("black", "white"), ("blue", "white"), ("red", "white"),
         ("white", "black"), ("brown", "beige"), ("black", "yellow"), ("white", "green")]
    )  # fmt: skip
    return Pen(rng, size, COLOURS[ink], COLOURS[paper]), {"ink": ink, "paper": paper}
