"""Objects that captions name, and whether they are there: hallucination in the sense of CHAIR (arXiv 1809.02156).

The objects are the 80 categories of COCO. A caption names one by any of the words below, in singular or plural; longer
names win over shorter ones, so that a hot dog is not a dog and a train track no train. What is there is what the other
captions of the photo name. (The paper also asks COCO's outlines, which photos of one's own do not have.) The names and
rules are this project's own, so figures are near those of the paper's list but not the same.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from clipcap.evaluation.ptb_tokenizer import ptb_tokenize

# What each category is called, in the singular; the plurals are added below.
_NAMES = {
    "person": (
        "person, human, human being, individual, someone, somebody, man, woman, lady, gentleman, guy, dude, fellow, "
        "male, female, adult, grown up, senior, youth, teen, teenager, boy, girl, child, kid, youngster, toddler, "
        "infant, baby, newborn, couple, family, crowd, audience, team, folk, husband, wife, bride, groom, "
        "bridesmaid, groomsman, mother, mom, mommy, mama, father, dad, daddy, parent, son, daughter, brother, "
        "sister, grandmother, grandma, grandfather, grandpa, friend, classmate, teammate, player, athlete, batter, "
        "hitter, catcher, pitcher, umpire, referee, baseman, shortstop, outfielder, infielder, goalie, goalkeeper, "
        "quarterback, opponent, competitor, contestant, racer, runner, jogger, walker, hiker, climber, swimmer, "
        "diver, skydiver, surfer, windsurfer, kitesurfer, wakeboarder, bodyboarder, boarder, paddler, kayaker, "
        "rower, sailor, skier, snowboarder, skater, skateboarder, golfer, gymnast, wrestler, bowler, cheerleader, "
        "dancer, ballerina, acrobat, performer, entertainer, singer, musician, guitarist, drummer, artist, actor, "
        "actress, photographer, cameraman, clown, magician, rider, jockey, cowboy, cowgirl, biker, cyclist, "
        "bicyclist, motorcyclist, driver, passenger, commuter, traveler, traveller, tourist, visitor, pedestrian, "
        "passerby, bystander, onlooker, spectator, protester, patron, customer, shopper, vendor, seller, waiter, "
        "waitress, bartender, barista, chef, baker, worker, workman, employee, businessman, businesswoman, farmer, "
        "fisherman, shepherd, gardener, mechanic, carpenter, engineer, conductor, pilot, attendant, policeman, "
        "policewoman, police, cop, officer, soldier, fireman, firefighter, lifeguard, security guard, doctor, "
        "nurse, dentist, patient, student, pupil, teacher, instructor, priest, monk, nun, santa, santa claus, "
        "owner, trainer"
    ),
    "bicycle": "bicycle, bike, tandem",
    "car": "car, automobile, van, minivan, sedan, suv, jeep, taxi, cab, limo, limousine, hatchback, convertible",
    "motorcycle": "motorcycle, motorbike, motor cycle, motor bike, dirt bike, moped, scooter, vespa, harley",
    "airplane": (
        "airplane, aeroplane, air plane, plane, biplane, seaplane, jet, airliner, jetliner, aircraft, air craft"
    ),
    "bus": "bus, busses, minibus, double decker",
    "train": (
        "train, train car, locomotive, tram, streetcar, street car, trolley, trolley car, rail car, railroad car, "
        "subway car, train engine, steam engine, caboose"
    ),
    "truck": "truck, pickup, lorry, semi, firetruck, fire engine, tractor trailer, truck bed, dump truck",
    "boat": (
        "boat, ship, canoe, kayak, sailboat, rowboat, motorboat, speedboat, tugboat, houseboat, lifeboat, yacht, "
        "ferry, barge, vessel, dinghy, catamaran, schooner, raft, gondola, watercraft"
    ),
    "traffic light": "traffic light, traffic signal, stop light, stoplight, traffic lamp",
    "fire hydrant": "fire hydrant, hydrant",
    "stop sign": "stop sign, stopsign",
    "parking meter": "parking meter",
    "bench": "bench, pew",
    "bird": (
        "bird, duck, duckling, goose, gosling, swan, seagull, gull, pigeon, dove, parrot, parakeet, cockatoo, "
        "cockatiel, macaw, toucan, budgie, eagle, hawk, falcon, owl, vulture, ostrich, emu, peacock, pelican, "
        "penguin, puffin, flamingo, stork, heron, egret, rooster, hen, chick, crow, raven, sparrow, finch, robin, "
        "hummingbird, woodpecker, kingfisher, blue jay, waterfowl, songbird"
    ),
    "cat": "cat, kitten, kitty, feline, tabby",
    "dog": (
        "dog, puppy, pup, canine, hound, mutt, poodle, labrador, retriever, terrier, bulldog, dachshund, chihuahua, "
        "pug, beagle, collie, husky, german shepherd, sheepdog, corgi, dalmatian, schnauzer, spaniel, greyhound, "
        "rottweiler, pitbull, pit bull, doberman"
    ),
    "horse": "horse, pony, foal, colt, mare, stallion, horseback",
    "sheep": "sheep, lamb, ewe",
    "cow": "cow, cattle, calf, bull, ox, steer, heifer, bovine, longhorn",
    "elephant": "elephant, elephant calf",
    "bear": "bear, cub, panda, grizzly",
    "zebra": "zebra",
    "giraffe": "giraffe, giraffe calf",
    "backpack": "backpack, back pack, knapsack, rucksack, book bag, bookbag",
    "umbrella": "umbrella, parasol",
    "handbag": "handbag, hand bag, purse, pocketbook, shoulder bag, tote, tote bag",
    "tie": "tie, necktie, neck tie, bow tie, bowtie",
    "suitcase": "suitcase, suit case, luggage, baggage, briefcase",
    "frisbee": "frisbee, flying disc, flying disk, disc, disk",
    "skis": "skis",
    "snowboard": "snowboard, snow board",
    "sports ball": "ball, soccer ball, tennis ball",
    "kite": "kite",
    "baseball bat": "bat, baseball bat",
    "baseball glove": "baseball glove, baseball mitt, catcher 's mitt, catchers mitt, mitt",
    "skateboard": "skateboard, skate board, longboard",
    "surfboard": "surfboard, surf board, surfing board, paddleboard, paddle board, boogie board, body board",
    "tennis racket": "tennis racket, tennis racquet, racket, racquet",
    "bottle": "bottle",
    "wine glass": (
        "wine glass, wineglass, goblet, champagne glass, champagne flute, glass of wine, glasses of wine, "
        "glass of red wine, glasses of red wine, glass of white wine, glasses of white wine"
    ),
    "cup": "cup, mug, teacup, glass of water, glass of milk, glass of beer, glass of juice, glass of orange juice",
    "fork": "fork",
    "knife": "knife",
    "spoon": "spoon",
    "bowl": "bowl",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich, burger, hamburger, cheeseburger, panini, sub sandwich",
    "orange": "tangerine, clementine",
    "broccoli": "broccoli",
    "carrot": "carrot",
    "hot dog": "hot dog, hotdog, corn dog, chili dog",
    "pizza": "pizza",
    "donut": "donut, doughnut, bagel",
    "cake": "cake, cupcake, cup cake, cheesecake",
    "chair": "chair, armchair, arm chair, stool, recliner, seat",
    "couch": "couch, sofa, loveseat, love seat, settee, futon",
    "potted plant": (
        "potted plant, pot plant, house plant, houseplant, potted flower, potted tree, plant in a pot, plants in pots"
    ),
    "bed": "bed, bunk, mattress, crib, daybed",
    "dining table": "table, tabletop, desk, nightstand, night stand",
    "toilet": "toilet, toilet seat, toilet bowl, toilet lid, toilet tank, urinal, commode, potty",
    "tv": "tv, television, tv screen, television screen, computer screen, flat screen, flatscreen, monitor, tv set",
    "laptop": "laptop, computer, netbook, macbook, notebook computer",
    "mouse": "mouse",
    "remote": "remote control, remote controller, wii remote, wiimote, wii controller, game controller, controller",
    "keyboard": "keyboard",
    "cell phone": "cell phone, cellphone, cell, mobile phone, smartphone, smart phone, phone, telephone, iphone",
    "microwave": "microwave, microwave oven",
    "oven": "oven, stove, stovetop, stove top",
    "toaster": "toaster, toaster oven",
    "sink": "sink, basin, washbasin",
    "refrigerator": "refrigerator, fridge, freezer, refridgerator",
    "book": "book, novel, textbook",
    "clock": "clock",
    "vase": "vase",
    "scissors": "scissors, shears",
    "teddy bear": (
        "teddy bear, teddy, stuffed animal, stuffed toy, stuffed bear, toy bear, plush bear, plush toy, care bear"
    ),
    "hair drier": "hair drier, hair dryer, hairdryer, blow dryer, blow drier",
    "toothbrush": "toothbrush, tooth brush",
}
CATEGORIES = tuple(_NAMES)

# Longer names that contain one of those above but are something else, or no thing at all.
_SOMETHING_ELSE = (
    "train track, train station, train platform, train yard, train depot, train rail, train set, train stop, "
    "bus stop, bus station, bus terminal, bus depot, bus shelter, bus lane, car seat, car park, truck stop, "
    "boat house, boat dock, boat ramp, jet ski, jet engine, bike rack, bike lane, bike path, bike seat, "
    "bicycle rack, bicycle lane, bicycle path, bicycle seat, motorcycle seat, back seat, driver 's seat, "
    "police station, phone booth, phone line, telephone booth, telephone pole, telephone line, telephone wire, "
    "head phone, dog house, dog food, dog toy, dog park, prairie dog, cat food, cat tail, bird house, "
    "bird feeder, bird bath, bird cage, bird 's eye, rubber duck, rubber ducky, saw horse, sea horse, "
    "rocking horse, lion cub, tiger cub, koala bear, gummy bear, zebra crossing, zebra print, lady bug, "
    "snow man, man made, man hole, gingerbread man, baby carriage, baby stroller, baby buggy, baby blue, "
    "baby grand, family of, family room, couple of, team of, pitcher of, cab of, bed of, flower bed, river bed, "
    "cowboy hat, cowboy boot, santa hat, men 's room, men 's restroom, men 's bathroom, women 's room, "
    "women 's restroom, women 's bathroom, child 's room, child 's bedroom, child 's toy, children 's room, "
    "children 's bedroom, children 's toy, children 's book, chair lift, table cloth, table lamp, table tennis, "
    "toilet paper, toilet brush, toilet roll, toilet tissue, home plate, ball game, ball field, ball player, "
    "ball park, ball gown, ball cap, disco ball, tie dye, railroad tie, disc golf, disc jockey, disc brake, "
    "disk drive, oven mitt, fork lift, apple pie, apple tree, apple logo, apple juice, banana bread, "
    "banana tree, pizza box, pizza cutter, pizza shop, pizza parlor, pizza restaurant, pizza place, pizza pan, "
    "crab cake, mickey mouse, mouse pad, book shelf, book case, book store, skate park, cell tower, at bat"
)


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Names only where a noun ends with them: "an orange on a plate", but not "an orange shirt" or "playing baseball".
_NAMES_AT_THE_END = {
    "orange": "orange",
    "baseball": "sports ball",
    "softball": "sports ball",
    "football": "sports ball",
    "basketball": "sports ball",
    "volleyball": "sports ball",
    "soccer": "sports ball",
    "ski": "skis",
    "remote": "remote",
    "cook": "person",
    "coach": "person",
    "guard": "person",
}
_DETERMINERS = _words("a an the one two three four another his her its their this that some any each every")
_AFTER_A_NOUN = _words(
    "is are was in on at by near with to from for of under over above behind beside between against inside into "
    "through off up down next that which who while as or sits lies stands"
)
# After a person these say what is done: "a man skis", "a boy ties his shoe".
_ALSO_VERBS = _words("bats bears boats bowls cooks ducks seats skis ties trains")
_PRONOUNS = _words("he she who it")

# Words for people that go for animals too: "a mother and baby elephant", "a zebra with its baby".
_KIN = "(?:adult|bab(?:y|ies)|mother|mom|mama|father|dad|daddy|parents?|males?|females?)"
_KIN_AND_KIN = re.compile(rf"\b{_KIN} (?=(?:and|with|or) (?:(?:an?|its|her|his|the|their|two) )?{_KIN} (\w+))")
_ITS_KIN = re.compile(rf"\b(?:its|her|his|their) {_KIN}\b")
_ANIMALS = frozenset({"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"})

_IRREGULAR_PLURALS = {
    "child": "children", "person": "people", "human": "humans", "knife": "knives", "calf": "calves", "mouse": "mice",
    "goose": "geese", "ox": "oxen", "passerby": "passersby",
}  # fmt: skip


def _plural(name: str) -> str:
    *first, last = name.split()
    if last in _IRREGULAR_PLURALS:
        last = _IRREGULAR_PLURALS[last]
    elif last.endswith("man"):
        last = last.removesuffix("man") + "men"
    elif re.search("[^aeiou]y$", last):
        last = last.removesuffix("y") + "ies"
    else:
        last += "es" if re.search("(s|x|z|ch|sh)$", last) else "s"
    return " ".join([*first, last])


@dataclass(frozen=True)
class _ObjectName:
    """category: what it names, None if nothing; singular: whether it can qualify the noun behind it ("pizza oven")."""

    category: str | None
    singular: bool


def _names() -> dict[tuple[str, ...], _ObjectName]:
    names = {}
    for category, listed in [*_NAMES.items(), (None, _SOMETHING_ELSE)]:
        for name in (n.strip() for n in listed.split(",")):
            names[tuple(_plural(name).split())] = _ObjectName(category, singular=False)
            names[tuple(name.split())] = _ObjectName(category, singular=True)
    for name, category in _NAMES_AT_THE_END.items():
        names[(_plural(name),)] = _ObjectName(category, singular=False)
    return names


_BY_WORDS = _names()
_LONGEST = max(map(len, _BY_WORDS))


@lru_cache(maxsize=100_000)  # references are judged again with every caption of their photo
def objects_named(caption: str) -> frozenset[str]:
    """The categories of COCO that the caption names: "A man feeds the baby elephant." → {"person", "elephant"}.

    A noun that qualifies another is not named, unless the other is a person: a pizza oven is an oven, but a bus driver
    is a person and has a bus. Words that are also colours, games or verbs count where they stand as nouns.
    """
    found: set[str] = set()
    for part in re.split("[,.;:!?]", caption):  # the tokenizer drops what separates "banana, apple"
        found |= _named_in(ptb_tokenize(part).replace("-", " "))
    return frozenset(found)


def _named_in(text: str) -> set[str]:
    text = _KIN_AND_KIN.sub(lambda kin: "" if _animal(kin[1]) else kin[0], text)
    found = _names_in_order(text.split())
    if found & _ANIMALS and _ITS_KIN.search(text):
        found = _names_in_order(_ITS_KIN.sub("", text).split())
    return found


def _animal(word: str) -> bool:
    name = _BY_WORDS.get((word,))
    return name is not None and name.category in _ANIMALS


def _names_in_order(words: list[str]) -> set[str]:
    found = set()
    before: _ObjectName | None = None  # the name that ends right before the current word
    position = 0
    while position < len(words):
        name, length = _name_at(words, position, before)
        if before is not None and before.category is not None:
            qualifies = before.singular and name is not None and name.category not in (None, "person")
            if not qualifies:
                found.add(before.category)
        before = name
        position += length
    if before is not None and before.category is not None:
        found.add(before.category)
    return found


def _name_at(words: list[str], position: int, before: _ObjectName | None) -> tuple[_ObjectName | None, int]:
    """The longest name that begins there, and how many words it or what stands in its place has."""
    for length in range(min(_LONGEST, len(words) - position), 0, -1):
        if (name := _BY_WORDS.get(tuple(words[position : position + length]))) is not None:
            break
    else:
        category = _NAMES_AT_THE_END.get(words[position])
        if category is not None and _ends_a_noun(words, position, before):
            return _ObjectName(category, singular=True), 1
        return None, 1
    is_verb = words[position] in _ALSO_VERBS and (
        (before is not None and before.category == "person")
        or not _PRONOUNS.isdisjoint(words[max(0, position - 1) : position])
    )
    return (None if is_verb else name), length


def _ends_a_noun(words: list[str], position: int, before: _ObjectName | None) -> bool:
    determined = before is None and any(w in _DETERMINERS for w in words[max(0, position - 2) : position])
    after, then = [*words[position + 1 : position + 3], "", ""][:2]
    ended = (
        not after
        or after in _AFTER_A_NOUN
        or after.endswith("ing")
        or (after in ("and", "or") and then in _DETERMINERS)
    )
    return determined and ended


def is_right(caption: str, references: Sequence[str]) -> bool:
    """Whether the caption names no object that no reference names: what a confidence is the probability of.

    A caption that names none of the 80 objects is right. What it says of other things, and of colours, numbers and
    deeds, is not judged.
    """
    return objects_named(caption) <= _union(references)


@dataclass(frozen=True)
class ObjectFigures:
    """How well captions name what is there, each from 0 to 1.

    captions_wrong: the share of captions that name an object no reference names (CHAIRs of the paper).
    objects_wrong: of all objects that captions name, the share that no reference names (CHAIRi); 0 if none is named.
    recall: of all objects that at least two references of a photo name, the share that its caption names too; with a
        single reference, of all that it names. 1 if there are none. What one of several people mentions is a matter of
        taste: counted in full, it would be recalled by people themselves in 70 % rather than 83 %.
    """

    captions_wrong: float
    objects_wrong: float
    recall: float


def object_figures(captions: Sequence[str], references: Sequence[Sequence[str]]) -> ObjectFigures:
    """Compare the objects of each caption with those of the references of its photo.

    Raises:
        ValueError: there are no captions, or not as many lists of references.
    """
    if not captions or len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions and {len(references)} lists of references: give one list for each")
    named = [objects_named(caption) for caption in captions]
    wrong = [n - _union(r) for n, r in zip(named, references, strict=True)]
    agreed = [_agreed(r) for r in references]
    recalled, there = sum(len(n & a) for n, a in zip(named, agreed, strict=True)), sum(map(len, agreed))
    return ObjectFigures(
        captions_wrong=sum(map(bool, wrong)) / len(captions),
        objects_wrong=sum(map(len, wrong)) / (sum(map(len, named)) or 1),
        recall=recalled / there if there else 1.0,
    )


def _union(references: Sequence[str]) -> frozenset[str]:
    return frozenset().union(*map(objects_named, references))


def _agreed(references: Sequence[str]) -> frozenset[str]:
    naming = Counter(chain.from_iterable(map(objects_named, references)))
    return frozenset(o for o, count in naming.items() if count >= min(2, len(references)))
