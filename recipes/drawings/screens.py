"""Pages of text and screenshots."""

from random import Random

from PIL import ImageDraw

from recipes.drawings.canvas import COLOURS, VIVID, WORDS, Colour, Drawn, font_of, new_canvas, some_size


def text_page(rng: Random) -> Drawn:
    size = some_size(rng, screen=True)
    ink, paper, theme = rng.choice(
        [
            ((16, 16, 16), (255, 255, 255), "black letters on white"),
            ((16, 16, 16), (255, 255, 255), "black letters on white"),
            ((220, 220, 220), (28, 28, 32), "pale letters on a dark background"),
            ((60, 44, 30), (244, 234, 212), "brown letters on a cream page"),
        ]
    )
    image, draw = new_canvas(size, paper)
    letter, top, margin = rng.choice([11, 12, 14, 16, 20]), 16, rng.choice([14, 24, 40])
    if rng.random() < 0.4:
        _window_bar(rng, draw, size)
        top = 40
    if rng.random() < 0.6:
        title = " ".join(rng.sample(WORDS, 3)).capitalize()
        draw.text((margin, top), title, font=font_of(letter * 2), fill=ink)
        top += letter * 3
    columns = rng.choice([1, 1, 2]) if size[0] >= 400 else 1
    width = (size[0] - margin * (columns + 1)) // columns
    for column in range(columns):
        _paragraphs(rng, draw, (margin + column * (width + margin), top, width, size[1] - 12), letter, ink)
    layout = "in two columns" if columns == 2 else "in one column"
    return image, {"theme": theme, "layout": layout}


def code_editor(rng: Random) -> Drawn:
    size = some_size(rng, screen=True)
    night = rng.random() < 0.7
    paper, plain, mode = ((30, 30, 40), (212, 212, 220), "dark") if night else ((252, 252, 252), (40, 40, 40), "white")
    image, draw = new_canvas(size, paper)
    inks = [COLOURS[name] for name in ("orange", "turquoise", "pink", "yellow")] if night else []
    inks = [*(inks or [COLOURS[name] for name in ("blue", "purple", "green", "red")]), plain, plain]
    left, letter, number, indent = 8, rng.choice([11, 12, 14, 16]), 1, 0
    if rng.random() < 0.4 and size[0] >= 400:
        left = 110
        draw.rectangle((0, 0, 100, size[1]), fill=(44, 44, 56) if night else (236, 236, 236))
        for y in range(14, size[1], letter * 2):
            draw.text((10, y), f"{rng.choice(WORDS)}.py", font=font_of(letter), fill=plain)
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
    size = some_size(rng, screen=True)
    name = rng.choice(["green", "white", "white", "orange"])
    ink = {"green": (60, 230, 90), "white": (230, 230, 230), "orange": (255, 170, 50)}[name]
    image, draw = new_canvas(size, (8, 8, 10))
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
    image, draw = new_canvas(size, (24, 26, 30) if night else (250, 250, 250))
    draw.rectangle((0, 0, size[0], 40), fill=(44, 48, 54) if night else (232, 234, 238))
    draw.circle((22, 20), 13, fill=COLOURS[rng.choice(VIVID)])
    face = (240, 240, 240) if night else (20, 20, 20)
    draw.text((44, 12), rng.choice(["Sam", "Alex", "Mum", "Team", "Kim"]), font=font_of(15), fill=face)
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
    size = some_size(rng, screen=True)
    night = rng.random() < 0.25
    ink = (235, 235, 235) if night else (30, 30, 30)
    image, draw = new_canvas(size, (36, 38, 44) if night else (247, 247, 249))
    name, sort = rng.choice(VIVID), rng.choice(["switches", "empty fields", "checkboxes", "sliders"])
    draw.text(
        (18, 12), rng.choice(["Settings", "Options", "Account", "Profile", "Details"]), font=font_of(22), fill=ink
    )
    step = 58 if sort == "empty fields" else 40
    for y in range(54, size[1] - 60, step):
        label = " ".join(rng.sample(WORDS, 2)).capitalize()
        draw.text((18, y), label, font=font_of(14), fill=ink)
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
    draw.text((size[0] - 70, size[1] - 29), "Save", font=font_of(15), fill=button, anchor="mm")
    return image, {"sort": sort, "colour": name}


def table(rng: Random) -> Drawn:
    size = some_size(rng, screen=True)
    image, draw = new_canvas(size, (255, 255, 255))
    name, wide, high = rng.choice(["grey", "blue", "green", "orange", "teal"]), rng.choice([64, 80, 100]), 24
    draw.rectangle((0, 0, size[0], high), fill=COLOURS[name])
    pale = name in ("orange", "grey")
    for row, y in enumerate(range(0, size[1], high)):
        draw.line((0, y, size[0], y), fill=(190, 190, 190))
        for x in range(0, size[0], wide):
            draw.line((x, 0, x, size[1]), fill=(190, 190, 190))
            cell = rng.choice(WORDS) if row == 0 or x == 0 else rng.choice([f"{rng.uniform(0, 999):.1f}"] * 4 + [""])
            ink = (255, 255, 255) if row == 0 and not pale else (20, 20, 20)
            draw.text((x + 5, y + 5), cell.capitalize(), font=font_of(13), fill=ink)
    return image, {"colour": name}


def _window_bar(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    draw.rectangle((0, 0, size[0], 26), fill=(206, 208, 214))
    for x, name in ((16, "red"), (34, "yellow"), (52, "green")):
        draw.circle((x, 13), 6, fill=COLOURS[name])
    title = " ".join(rng.sample(WORDS, 2))
    draw.text((size[0] / 2, 13), title, font=font_of(13), fill=(60, 60, 60), anchor="mm")


def _paragraphs(
    rng: Random, draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], letter: int, ink: Colour
) -> None:
    """Words in lines as long as fit, from (x, y) of `box` = (x, y, width, bottom) down to its bottom."""
    x, y, width, bottom = box
    font, left_in_paragraph = font_of(letter), rng.randint(3, 7)
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
        draw.text((at[0] + i * letter * 0.62, at[1]), character, font=font_of(letter), fill=ink)
