"""Screenshots of web sites and programs: pages, dashboards, galleries, lists, and one picture with a form beside it.

They are drawn at twice the size they are kept in, so that letters are as small as in a screenshot that was shrunk.
"""

from random import Random

from PIL import Image, ImageFilter

from recipes.drawings.canvas import COLOURS, NUMBERS, VIVID, WORDS, Colour, Drawn, font_of, new_canvas

DESKTOPS = [(1280, 800), (1280, 800), (1200, 900), (1024, 768), (1280, 720)]
PHONES = [(640, 1280), (720, 1280)]

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Screen:
    """A window in light or dark colours, with one colour for what stands out."""

    def __init__(self, rng: Random, sizes: list[tuple[int, int]]) -> None:
        self.rng = rng
        self.night = rng.random() < 0.3
        self.name = rng.choice(VIVID)
        self.accent = COLOURS[self.name]
        self.paper, self.card, self.ink, self.faint, self.line = rng.choice(_NIGHTS if self.night else _DAYS)
        self.size = rng.choice(sizes)
        self.image, self.draw = new_canvas(self.size, self.paper)
        self.links = False  # in the bar; a narrow one has no room for them

    def some_mode(self) -> str:
        """A word for how light it is."""
        return "dark" if self.night else self.rng.choice(["white", "light", "bright"])

    def words(self, count: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=count)).capitalize()

    def text(self, at: tuple[float, float], text: str, letter: int, ink: Colour | None = None) -> None:
        self.draw.text(at, text, font=font_of(letter), fill=ink or self.ink)

    def lines(self, box: Box, letter: int, ink: Colour | None = None) -> float:
        """Lines of words that fill `box`; returns where the next one would begin."""
        left, y, right, bottom = box
        font = font_of(letter)
        while y + letter * 1.3 <= bottom:
            line, limit = [self.rng.choice(WORDS)], (right - left) * self.rng.choice([1, 1, 1, 0.6])
            while font.getlength(" ".join([*line, "because"])) < limit:
                line.append(self.rng.choice(WORDS))
            self.draw.text((left, y), " ".join(line), font=font, fill=ink or self.ink)
            y += letter * 1.5
        return y

    def bar(self) -> float:
        """The head of the site, with its name and links; returns its height."""
        width, height = self.size[0], self.rng.choice([48, 56, 72])
        full = self.rng.random() < 0.4
        self.draw.rectangle((0, 0, width, height), fill=self.accent if full else self.card)
        self.draw.line((0, height, width, height), fill=self.line)
        ink = _ink_on(self.name) if full else self.ink
        self.draw.circle((34, height / 2), 12, fill=ink if full else self.accent)
        self.text((58, height / 2 - 12), self.words(self.rng.choice([1, 2])), 22, ink)
        x: float = width - self.rng.choice([420, 520, 300])
        self.links = x > 260
        while 260 < x < width - 90:
            link = self.words(1)
            self.text((x, height / 2 - 9), link, 17, ink)
            x += font_of(17).getlength(link) + 26
        return float(height)

    def menu(self, top: float) -> float:
        """Links at the left; returns their width."""
        width = self.rng.choice([180, 220, 250])
        self.draw.rectangle((0, top, width, self.size[1]), fill=self.card)
        self.draw.line((width, top, width, self.size[1]), fill=self.line)
        chosen = self.rng.randint(0, 5)
        for i, y in enumerate(range(round(top) + 20, self.size[1] - 30, self.rng.choice([30, 36, 44]))):
            if i == chosen:
                self.draw.rounded_rectangle((10, y - 6, width - 10, y + 24), 6, fill=self.accent)
            self.text((22, y), self.words(2)[:18], 16, _ink_on(self.name) if i == chosen else self.ink)
        return float(width)

    def button(self, left: float, top: float, *, plain: bool = False) -> float:
        """Returns its right end."""
        label = self.words(1)
        right = left + font_of(17).getlength(label) + 32
        fill, ink = (self.card, self.ink) if plain else (self.accent, _ink_on(self.name))
        self.draw.rounded_rectangle((left, top, right, top + 36), 6, fill=fill, outline=self.line)
        self.text((left + 16, top + 8), label, 17, ink)
        return right

    def field(self, left: float, top: float, right: float, *, height: float = 36) -> None:
        self.draw.rounded_rectangle((left, top, right, top + height), 6, fill=self.card, outline=self.faint)
        self.text((left + 12, top + 9), self.words(2), 16, self.faint)

    def panel(self, box: Box) -> None:
        self.draw.rounded_rectangle(box, self.rng.choice([4, 10]), fill=self.card, outline=self.line)

    def picture(self, box: Box) -> None:
        """A small picture: hills, a house, balls or stripes."""
        left, top, right, bottom = (round(side) for side in box)
        width, height = right - left, bottom - top
        sky, ground = self.rng.sample([COLOURS[n] for n in ("turquoise", "blue", "beige", "pink", "orange", "navy")], 2)
        small, draw = new_canvas((width, height), sky)
        sort = self.rng.choice(["hills", "balls", "stripes", "house"])
        if sort in ("hills", "house"):
            for shade in (0.7, 1.0):
                x, y, r = width * self.rng.random(), height * (0.9 + shade / 2), height * self.rng.uniform(0.7, 1.0)
                draw.ellipse((x - 2 * r, y - r, x + 2 * r, y + r), fill=_shade(COLOURS["green"], shade))
            draw.circle((width * self.rng.random(), height * 0.2), height * 0.1, fill=COLOURS["yellow"])
        if sort == "house":
            x, y, side = width * self.rng.uniform(0.2, 0.6), height * 0.55, height * 0.28
            draw.rectangle((x, y, x + side, y + side), fill=COLOURS[self.rng.choice(VIVID)])
            draw.polygon([(x - 6, y), (x + side + 6, y), (x + side / 2, y - side * 0.6)], fill=COLOURS["brown"])
        for i in range(self.rng.randint(2, 5)):
            x, y, r = (
                width * self.rng.random(),
                height * self.rng.uniform(0.4, 0.9),
                height * self.rng.uniform(0.08, 0.3),
            )
            if sort == "balls":
                draw.circle((x, y), r, fill=COLOURS[self.rng.choice(VIVID)])
            elif sort == "stripes":
                draw.rectangle((width * i / 5, 0, width * i / 5 + width / 10, height), fill=ground)
        if self.rng.random() < 0.5:
            small = small.filter(ImageFilter.GaussianBlur(self.rng.uniform(1, height / 12)))
        self.image.paste(small, (left, top))

    def chart(self, box: Box) -> None:
        """Bars, or a line, over a faint grid."""
        left, top, right, bottom = box
        for i in range(4):
            y = top + (bottom - top) * i / 3
            self.draw.line((left, y, right, y), fill=self.line)
        count = self.rng.randint(7, 24)
        step = (right - left) / count
        heights = [(bottom - top) * self.rng.uniform(0.1, 0.95) for _ in range(count)]
        if self.rng.random() < 0.5:
            for i, height in enumerate(heights):
                self.draw.rectangle(
                    (left + step * i, bottom - height, left + step * (i + 0.7), bottom), fill=self.accent
                )
        else:
            points = [(left + step * (i + 0.5), bottom - height) for i, height in enumerate(heights)]
            self.draw.line(points, fill=self.accent, width=4, joint="curve")

    def table(self, box: Box) -> None:
        left, top, right, bottom = box
        columns, high = self.rng.randint(3, 6), self.rng.choice([30, 38, 46])
        self.draw.rectangle((left, top, right, top + high), fill=self.line)
        y = top
        while y + high <= bottom:
            for i in range(columns):
                x = left + 10 + (right - left) * i / columns
                cell = self.words(self.rng.choice([1, 2])) if i == 0 or y == top else f"{self.rng.randint(0, 9999)}"
                state = i == columns - 1 and y > top and self.rng.random() < 0.6
                if state:
                    fill = COLOURS[self.rng.choice(["green", "green", "orange", "red"])]
                    self.draw.rounded_rectangle((x - 6, y + 5, x + 70, y + high - 5), 8, fill=fill)
                self.text((x, y + high / 2 - 9), cell[:14], 16, (255, 255, 255) if state else None)
            y += high
            self.draw.line((left, y, right, y), fill=self.line)

    def kept(self) -> Image.Image:
        """The picture at half the size it was drawn in."""
        return self.image.resize((self.size[0] // 2, self.size[1] // 2), Image.Resampling.LANCZOS)


# Of the paper, of cards on it, of ink, of faint ink and of lines.
_DAYS: list[tuple[Colour, Colour, Colour, Colour, Colour]] = [
    ((255, 255, 255), (246, 247, 249), (24, 26, 30), (130, 136, 146), (222, 225, 230)),
    ((242, 244, 247), (255, 255, 255), (30, 34, 42), (120, 126, 138), (214, 218, 226)),
    ((250, 248, 243), (255, 255, 255), (44, 36, 28), (140, 130, 118), (228, 222, 210)),
]
_NIGHTS: list[tuple[Colour, Colour, Colour, Colour, Colour]] = [
    ((18, 20, 24), (32, 35, 42), (226, 228, 232), (140, 146, 156), (58, 62, 70)),
    ((13, 17, 28), (24, 30, 48), (214, 222, 240), (122, 134, 160), (46, 56, 82)),
]


def web_page(rng: Random) -> Drawn:
    screen = Screen(rng, [*DESKTOPS, *PHONES])
    width, height = screen.size
    top = screen.bar()
    left = screen.menu(top) if width > 1000 and rng.random() < 0.6 else 0.0
    right = width - (rng.choice([0, 240]) if width > 1000 else 0)
    margin = left + rng.choice([30, 50])
    y = top + 30
    screen.text((margin, y), screen.words(rng.randint(2, 4))[:24], rng.choice([34, 42, 52]))
    y += 74
    blocks = ["code", "list", "picture"] if rng.random() < 0.7 else []
    shown = []
    while y < height - 40:
        y = screen.lines((margin, y, right - 40, min(height - 20, y + rng.choice([90, 140, 200]))), 18) + 14
        block = rng.choice(blocks) if blocks else ""
        if block == "code":
            screen.panel((margin, y, right - 40, y + 110))
            screen.lines((margin + 16, y + 12, (margin + right) / 2, y + 104), 16, screen.accent)
            y += 130
            shown.append("boxes of code")
        elif block == "list":
            for _ in range(4):
                screen.draw.circle((margin + 8, y + 10), 4, fill=screen.ink)
                screen.text((margin + 24, y), screen.words(rng.randint(2, 6)), 18, screen.accent)
                y += 30
            shown.append(f"{screen.name} links")
        elif block == "picture":
            screen.picture((margin, y, min(right - 40, margin + 420), y + 220))
            y += 240
            shown.append("a picture")
        screen.text((margin, y), screen.words(2), 26)
        y += 46
    part = shown[0] if shown else "headings"
    side = "a menu at left" if left else "links on top" if screen.links else "a bar on top"
    return screen.kept(), {"mode": screen.some_mode(), "part": part, "side": side, "colour": screen.name}


def dashboard(rng: Random) -> Drawn:
    screen = Screen(rng, DESKTOPS)
    width, height = screen.size
    top = screen.bar()
    left = (screen.menu(top) if rng.random() < 0.6 else 0.0) + 30
    screen.text((left, top + 20), screen.words(2), 32)
    screen.button(width - 150, top + 20)
    count, y = rng.randint(3, 5), top + 76
    step = (width - 30 - left) / count
    for i in range(count):
        box = (left + step * i, y, left + step * (i + 1) - 16, y + 112)
        screen.panel(box)
        screen.text((box[0] + 16, y + 14), screen.words(2)[:14], 16, screen.faint)
        ink = rng.choice([None, None, screen.accent])
        screen.text(
            (box[0] + 16, y + 42), rng.choice([f"{rng.randint(0, 9999):,}", f"{rng.uniform(0, 99):.1f} %"]), 42, ink
        )
    y += 136
    below = rng.choice(["a chart", "a table", "a chart and table", "charts"])
    boxes = [(left, y, width - 46.0, height - 24.0)]
    if below in ("a chart and table", "charts"):
        middle = (left + width - 46) / 2
        boxes = [(left, y, middle - 8, height - 24.0), (middle + 8, y, width - 46.0, height - 24.0)]
    for i, box in enumerate(boxes):
        screen.panel(box)
        inner = (box[0] + 20, box[1] + 50, box[2] - 20, box[3] - 20)
        screen.text((box[0] + 20, box[1] + 14), screen.words(2), 20)
        if below == "a table" or (below == "a chart and table" and i):
            screen.table(inner)
        else:
            screen.chart(inner)
    return screen.kept(), {
        "mode": screen.some_mode(), "below": below, "count": NUMBERS[count], "colour": screen.name
    }  # fmt: skip


def picture_grid(rng: Random) -> Drawn:
    screen = Screen(rng, [*DESKTOPS, *PHONES])
    width, height = screen.size
    top = screen.bar() + 20
    columns = rng.randint(3, 5) if width > 1000 else 2
    screen.field(30, top, width * 0.6)
    screen.button(width * 0.6 + 20, top)
    step, y = (width - 40) / columns, top + 60
    side = step * 0.75
    boxes, label = rng.random() < 0.4, rng.random() < 0.8
    while y < height:
        for i in range(columns):
            x = 20 + step * i
            screen.panel((x + 6, y, x + step - 6, y + side + (64 if label else 0)))
            screen.picture((x + 12, y + 6, x + step - 12, y + side))
            if label:
                screen.lines((x + 16, y + side + 8, x + step - 20, y + side + 58), 15)
            if boxes:
                screen.draw.rectangle((x + 18, y + 12, x + 38, y + 32), fill=screen.card, outline=screen.ink, width=2)
        y += side + (84 if label else 20)
    under = "short texts under them" if label else "checkboxes in their corners" if boxes else "a search field above"
    return screen.kept(), {"mode": screen.some_mode(), "under": under, "count": NUMBERS[columns], "colour": screen.name}


def item_list(rng: Random) -> Drawn:
    screen = Screen(rng, [*DESKTOPS, *PHONES])
    width, height = screen.size
    top = screen.bar()
    left = screen.menu(top) if width > 1000 and rng.random() < 0.5 else 0.0
    sort = rng.choice(["round icons", "small pictures", "checkboxes"])
    high = rng.choice([64, 80, 100])
    screen.field(left + 24, top + 16, width - 180)
    screen.button(width - 150, top + 16)
    y = top + 70
    while y < height:
        screen.draw.line((left, y, width, y), fill=screen.line)
        x = left + 24
        if sort == "round icons":
            screen.draw.circle((x + 22, y + high / 2), 20, fill=COLOURS[rng.choice(VIVID)])
        elif sort == "small pictures":
            screen.picture((x, y + 6, x + high, y + high - 6))
        else:
            screen.draw.rectangle((x, y + high / 2 - 10, x + 20, y + high / 2 + 10), outline=screen.ink, width=2)
        x += high + 12 if sort == "small pictures" else 60
        screen.text((x, y + 10), screen.words(rng.randint(2, 4))[:30], 19)
        screen.text((x, y + 36), screen.words(rng.randint(3, 7))[: 60 if width > 1000 else 32], 15, screen.faint)
        if width > 1000:
            screen.text((width - 110, y + 12), f"{rng.randint(1, 28)} {rng.choice(['May', 'June', 'Oct'])}", 15)
        y += high
    return screen.kept(), {"mode": screen.some_mode(), "sort": sort, "colour": screen.name}


def picture_page(rng: Random) -> Drawn:
    screen = Screen(rng, [*DESKTOPS, *PHONES])
    width = screen.size[0]
    top = screen.bar()
    wide = width > 1000
    right = width * 0.55 if wide else width - 24.0
    bottom = top + 24 + (right - 24) * rng.uniform(0.6, 0.75)
    screen.picture((24, top + 24, right, bottom))
    x, y = (right + 24, top + 24) if wide else (24.0, bottom + 20)
    screen.text((x, y), screen.words(2)[:16], 30)
    y += 54
    fields = rng.random() < 0.5
    for _ in range(rng.randint(2, 4)):
        screen.text((x, y), screen.words(1), 16, screen.faint)
        if fields:
            screen.field(x, y + 24, width - 24, height=48)
        else:
            screen.lines((x, y + 24, width - 24, y + 76), 18)
        y += 92
    screen.button(screen.button(x, y) + 12, y, plain=True)
    place = "beside it" if wide else "below it"
    what = "empty fields" if fields else "lines of text"
    return screen.kept(), {"mode": screen.some_mode(), "what": what, "place": place, "colour": screen.name}


def _ink_on(name: str) -> Colour:
    return (20, 20, 20) if name in ("yellow", "pink", "orange") else (255, 255, 255)


def _shade(colour: Colour, share: float) -> Colour:
    red, green, blue = (round(part * share) for part in colour)
    return red, green, blue
