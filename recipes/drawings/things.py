"""Flat things: receipts, signs, codes, maps and empty frames."""

from random import Random

from recipes.drawings.canvas import COLOURS, WORDS, Drawn, font_of, near_colour, new_canvas, some_size


def receipt(rng: Random) -> Drawn:
    width, height = rng.choice([(320, 480), (360, 540), (400, 400), (480, 640)])
    name = rng.choice(["grey", "brown", "black", "blue", "beige", "teal"])
    table_top = near_colour(rng, COLOURS[name])
    image, draw = new_canvas((width, height), table_top)
    left, right = width * 0.2, width * 0.8
    draw.rectangle((left, 12, right, height - 12), fill=(252, 252, 248))
    ink = (30, 30, 30)
    draw.text((width / 2, 36), rng.choice(["SHOP", "MARKET", "CAFE", "STORE"]), font=font_of(24), fill=ink, anchor="mm")
    y, total = 66, 0.0
    while y < height - 90:
        price = rng.uniform(0.5, 40)
        draw.text((left + 12, y), rng.choice(WORDS).capitalize(), font=font_of(14), fill=ink)
        draw.text((right - 12, y), f"{price:.2f}", font=font_of(14), fill=ink, anchor="ra")
        y, total = y + 22, total + price
    draw.line((left + 12, y + 4, right - 12, y + 4), fill=ink)
    draw.text((left + 12, y + 14), "TOTAL", font=font_of(18), fill=ink)
    draw.text((right - 12, y + 14), f"{total:.2f}", font=font_of(18), fill=ink, anchor="ra")
    return image.rotate(rng.uniform(-4, 4), fillcolor=table_top), {"colour": name}


def sign(rng: Random) -> Drawn:
    board, letters = rng.choice(
        [("red", "white"), ("blue", "white"), ("green", "white"), ("yellow", "black"), ("white", "red"),
         ("black", "white"), ("orange", "black"), ("white", "black"), ("white", "blue"), ("black", "yellow")]
    )  # fmt: skip
    size = some_size(rng)
    image, draw = new_canvas(size, near_colour(rng, COLOURS[rng.choice(["grey", "beige", "turquoise"])]))
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
        draw.text(at, line, font=font_of(round(letter)), fill=COLOURS[letters], anchor="mm")
    return image, {"board": board, "letters": letters}


def square_code(rng: Random) -> Drawn:
    count, cell = rng.choice([21, 25, 29]), rng.choice([8, 10, 12])
    side = (count + 8) * cell
    image, draw = new_canvas((side, side), (255, 255, 255))
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
    width, height = some_size(rng)
    image, draw = new_canvas((width, height), (236, 230, 218))
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
    size = some_size(rng)
    frame, wall = rng.choice(["black", "brown", "red", "navy", "teal"]), rng.choice(["grey", "beige", "white", "pink"])
    image, draw = new_canvas(size, near_colour(rng, COLOURS[wall]))
    x, y, thick = size[0] * 0.15, size[1] * 0.15, min(size) * rng.uniform(0.04, 0.08)
    right, bottom = size[0] - x, size[1] - y
    draw.rectangle((x + 6, y + 6, right + 6, bottom + 6), fill=(100, 100, 100))
    draw.rectangle((x, y, right, bottom), fill=COLOURS[frame])
    draw.rectangle((x + thick, y + thick, right - thick, bottom - thick), fill=(250, 250, 248))
    return image, {"frame": frame, "wall": wall}
