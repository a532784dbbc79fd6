"""Line drawings as if by hand, and shapes."""

import math
from collections.abc import Callable
from random import Random

from PIL import Image

from recipes.drawings.canvas import (
    COLOURS,
    NUMBERS,
    Colour,
    Drawn,
    Facts,
    contrasting_pair,
    new_canvas,
    some_size,
    two_of,
)


def drawing(rng: Random) -> Drawn:
    name = rng.choice(list(SUBJECTS))
    pen, facts = _sheet(rng, some_size(rng))
    margin = rng.uniform(0.05, 0.2)
    side = min(pen.size) * (1 - 2 * margin)
    pen.place(((pen.size[0] - side) / 2, (pen.size[1] - side) / 2, side))
    SUBJECTS[name](pen)
    article = "the" if name in ("sun", "moon") else "a"
    return pen.finish(), facts | {"subject": f"{article} {name}", "noun": name}


def drawing_pair(rng: Random) -> Drawn:
    first, second = two_of(rng, [name for name in SUBJECTS if name not in ("sun", "moon")])
    pen, facts = _sheet(rng, rng.choice([(320, 240), (480, 360), (400, 400), (640, 480)]))
    side = pen.size[0] * 0.42
    for name, x in ((first, 0.04), (second, 0.54)):
        pen.place((pen.size[0] * x, (pen.size[1] - side) * rng.uniform(0.35, 0.65), side))
        SUBJECTS[name](pen)
    return pen.finish(), facts | {"first": first, "second": second}


def shapes(rng: Random) -> Drawn:
    ink, paper = contrasting_pair(rng)
    shape, count, filled = rng.choice(["circle", "square", "triangle", "star"]), rng.randint(1, 6), rng.random() < 0.6
    size = rng.choice([(320, 240), (480, 360), (400, 400), (640, 480)])
    image, draw = new_canvas((size[0] * 2, size[1] * 2), COLOURS[paper])
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


class Pen:
    """Draws in a unit square placed on the sheet, a little shakily as a hand does; at twice the size, to be smooth."""

    def __init__(self, rng: Random, size: tuple[int, int], ink: Colour, paper: Colour) -> None:
        self.rng, self.ink = rng, ink
        self.size = (size[0] * 2, size[1] * 2)
        self.image, self.canvas = new_canvas(self.size, paper)
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


def _sheet(rng: Random, size: tuple[int, int]) -> tuple[Pen, Facts]:
    ink, paper = rng.choice(
        [("black", "white"), ("black", "white"), ("black", "white"), ("blue", "white"), ("red", "white"),
         ("white", "black"), ("brown", "beige"), ("black", "yellow"), ("white", "green")]
    )  # fmt: skip
    return Pen(rng, size, COLOURS[ink], COLOURS[paper]), {"ink": ink, "paper": paper}
