"""What all drawings share: colours, words, sizes, fonts."""

from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

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


def some_size(rng: Random, *, screen: bool = False) -> tuple[int, int]:
    return rng.choice([size for size in SIZES if not screen or size[0] >= 320])


def new_canvas(size: tuple[int, int], paper: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, paper)
    return image, ImageDraw.Draw(image)


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def near_colour(rng: Random, colour: Colour) -> Colour:
    red, green, blue = (min(255, max(0, part + rng.randint(-8, 8))) for part in colour)
    return red, green, blue


def two_of(rng: Random, names: list[str]) -> tuple[str, str]:
    first, second = rng.sample(names, 2)
    return first, second


def contrasting_pair(rng: Random) -> tuple[str, str]:
    """Two colours that are easily told apart, one of them deep and one pale, in either order."""
    pair = [rng.choice(DEEP), rng.choice(["white", "white", "yellow", "beige", "pink"])]
    rng.shuffle(pair)
    return pair[0], pair[1]
