"""Drawn scenes of colored shapes: which one stands at each place of a split, its pixels, and what is said of it.

All is a function of (split, index): the same in every process and on every machine, as far as Pillow allows.
Truth is decided by a coin before the words are chosen, among words that allow both, and all colors, shapes and
sizes are treated alike: a text alone tells nothing, or as little as said below, of its answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from operator import eq, gt, lt
from typing import ClassVar, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pixlex.data.decoding import ImageRecord

Split = Literal["train", "test"]
SceneTask = Literal["vqa", "nlvr2", "entailment"]
Purpose = Literal["scene", "captions", "question", "pair", "statement", "entailment"]
Level = tuple[str, ...]  # which of an object's qualities a noun names, in the order in which it names them
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
COLORS = {
    "red": (214, 32, 38), "orange": (250, 138, 22), "yellow": (250, 224, 54), "green": (30, 152, 62),
    "blue": (34, 74, 214), "purple": (134, 42, 172), "black": (16, 16, 18), "white": (250, 250, 250),
}  # fmt: skip
BACKGROUNDS = {
    "gray": (150, 150, 154), "beige": (198, 182, 150), "teal": (96, 146, 146), "pink": (206, 152, 168),
    "brown": (134, 110, 94),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered")
GRID, MAX_OBJECTS = 3, 4
SIDE = 96  # of an image, in pixels
SCENES_VERSION = 1  # a change of what is drawn or said makes it another set
NUM_SCENES = {"train": 20_000, "test": 1_000}

_TEST_ONE_IN = 5  # of so many descriptions one belongs to the test split, whatever the index
# A single object leaves little to say, and only 576 of them differ in more than size.
_NUMBERS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
# Rate at which an object takes the shape, and apart from it the color, of an earlier one: without it few
# scenes would have two circles to count, or a red circle beside a blue one to mix up.
_REPEAT_RATE = 0.25
_MAX_SHIFT = 0.06  # of an object from the center of its cell, as a fraction of the cell's side
_NUM_DRAWS = 40  # enough for a scene: 3, and for each object 1 cell, 2 x 2 kinds, 1 size, 2 shifts
_OVERSAMPLING = 4  # drawn so many times larger and averaged, which makes smooth edges
_RADII = {"small": 0.25, "large": 0.43}  # half the height of an object, as a fraction of its cell
_RING_WIDTH = 0.4  # of the radius
_TEXTURE_LEVELS, _TEXTURE_PERIODS = 9, 12  # of 255 between the two tones, and across the image
_POLYGONS = {
    "square": ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)),
    "triangle": ((0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)),
    "diamond": ((0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)),
    "cross": (
        (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
        (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
    ),
    "star": tuple(
        (far * math.sin(turn), 0.08 - far * math.cos(turn))
        for turn, far in ((number * math.pi / 5, 0.45 if number % 2 else 1.05) for number in range(10))
    ),
    # The curve of a common textbook, 16 sin^3 t across and four cosines upward.
    "heart": tuple(
        (math.sin(t) ** 3,
         -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 15.5)
        for t in (2 * math.pi * number / 48 for number in range(48))
    ),
}  # fmt: skip

LEVELS: tuple[Level, ...] = (("color",), ("shape",), ("color", "shape"), ("size", "shape"))
KINDS = ("existence", "color", "shape", "count", "relation", "comparison")
NUMBER_WORDS = ("no", "one", "two", "three", "four")
ROWS, COLUMNS = ("top", "center", "bottom"), ("left", "center", "right")
# A relation -> what a text calls it, and where an object lies as seen from another one.
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_SEEN_FROM = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
ANSWERS = ("yes", "no", *COLORS, *SHAPES, *map(str, range(MAX_OBJECTS + 1)), *RELATIONS)

_QUALITIES = {"size": SIZES, "color": tuple(COLORS), "shape": SHAPES}
_NUM_MIXED = 4  # nouns of qualities of several objects, beside those of the objects
_NUM_PARTNERS = 4  # of so many scenes the first that shares a colored shape is put on the right
_OPENINGS = ("{}", "{}", "there is {}", "the picture shows {}", "a picture of {}", "one can see {}")
_COUNTED_OPENINGS = ("{}", "{}", "the picture shows {}", "a picture of {}", "one can see {}")
_COMPARISONS = (("more {} than {}", gt), ("fewer {} than {}", lt), ("as many {} as {}", eq))
_OPEN = (  # what no picture of shapes can tell
    "a child drew the picture", "a school has hung up the picture", "somebody painted the picture yesterday",
    "an artist made the picture in the morning", "a museum has bought the picture", "someone likes the picture",
    "nobody has seen the picture before", "a secret is hidden behind the picture",
    "an old man has sold the picture", "people in a village dream of the picture",
)  # fmt: skip


@dataclass(frozen=True)
class SceneObject:
    """A shape in a cell, counted from the top left."""

    shape: str
    color: str
    size: str
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """One to four objects on a 3 x 3 grid, in reading order, before a background of `BACKGROUNDS` and `TEXTURES`.

    Each is shifted right and down from the center of its cell, by -0.06 to 0.06 cells.
    """

    objects: tuple[SceneObject, ...]
    background: str
    texture: str
    shifts: tuple[tuple[float, float], ...]


@lru_cache(maxsize=256)
def make_scene(split: Split, index: int) -> Scene:
    """Return the scene at a place, 0 or more, of a split: drawn until one belongs to it (see `split_of`)."""
    generator = generator_for("scene", split, index)
    while split_of(scene := _draw_scene(generator)) != split:
        pass
    return scene


def split_of(scene: Scene) -> Split:
    """Return the only split in which these shapes and colors may occur in these cells, whatever else differs."""
    placed = sorted((thing.row, thing.column, thing.shape, thing.color) for thing in scene.objects)
    digest = hashlib.blake2b(repr(placed).encode(), digest_size=4).hexdigest()
    return "test" if int(digest, 16) % _TEST_ONE_IN == 0 else "train"


def generator_for(purpose: Purpose, split: Split, index: int, turn: int = 0) -> np.random.Generator:
    """Return the generator of one choice about one scene, made `turn` times before; no two share a stream."""
    places = get_args(Purpose).index(purpose), get_args(Split).index(split)
    return np.random.default_rng((*places, index, turn))  # to NumPy (a, b, c) and (a, b, c, 0) are one seed


def pick(generator: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, each as likely; six times as fast as `Generator.choice`."""
    return options[int(generator.random() * len(options))]


def shuffled(generator: np.random.Generator, options: Sequence[T]) -> list[T]:
    """Return the options in random order."""
    return [options[place] for place in generator.random(len(options)).argsort().tolist()]


def _draw_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene of either split; one call of the generator makes it fast."""
    draws = iter(generator.random(_NUM_DRAWS).tolist())
    cells = list(range(GRID * GRID))
    shapes, colors, placed = list[str](), list[str](), []
    for _ in range(_one_of(draws, _NUMBERS)):
        row, column = divmod(cells.pop(int(next(draws) * len(cells))), GRID)
        for earlier, options in ((shapes, SHAPES), (colors, tuple(COLORS))):
            earlier.append(_one_of(draws, earlier if next(draws) < _REPEAT_RATE and earlier else options))
        shift = ((2 * next(draws) - 1) * _MAX_SHIFT, (2 * next(draws) - 1) * _MAX_SHIFT)
        placed.append((SceneObject(shapes[-1], colors[-1], _one_of(draws, SIZES), row, column), shift))
    placed.sort(key=lambda pair: (pair[0].row, pair[0].column))
    objects, shifts = zip(*placed, strict=True)
    return Scene(objects, _one_of(draws, tuple(BACKGROUNDS)), _one_of(draws, TEXTURES), shifts)


def _one_of(draws: Iterator[float], options: Sequence[T]) -> T:
    return options[int(next(draws) * len(options))]


def draw(scene: Scene, side: int = SIDE) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of a scene; a side, in pixels, of 24 or more shows its shapes."""
    image = _background(scene.background, scene.texture, side * _OVERSAMPLING).copy()
    canvas = ImageDraw.Draw(image)
    cell = image.width / GRID
    for thing, (right, down) in zip(scene.objects, scene.shifts, strict=True):
        across, below = (thing.column + 0.5 + right) * cell, (thing.row + 0.5 + down) * cell
        color, radius = COLORS[thing.color], _RADII[thing.size] * cell
        # Corners are whole pixels of the large canvas: the last digits of a cosine may differ between machines.
        box = [round(across - radius), round(below - radius), round(across + radius), round(below + radius)]
        if thing.shape == "circle":
            canvas.ellipse(box, fill=color)
        elif thing.shape == "ring":
            canvas.ellipse(box, outline=color, width=round(_RING_WIDTH * radius))
        else:
            corners = _POLYGONS[thing.shape]
            points = [(round(across + radius * x), round(below + radius * y)) for x, y in corners]
            canvas.polygon(points, fill=color)
    return np.asarray(image.reduce(_OVERSAMPLING))


@lru_cache(maxsize=32)
def _background(name: str, texture: str, side: int) -> Image.Image:
    """Return the canvas before anything lies on it."""
    down, across = np.indices((side, side)) * _TEXTURE_PERIODS / side
    lighter = {
        "plain": down < 0,
        "striped": (down + across) % 1.0 < 0.5,
        "dotted": (down % 1.0 - 0.5) ** 2 + (across % 1.0 - 0.5) ** 2 < 0.09,
        "checkered": (down.astype(int) + across.astype(int)) % 2 == 0,
    }[texture]
    tones = np.array(BACKGROUNDS[name]) + lighter[..., None] * _TEXTURE_LEVELS
    return Image.fromarray(tones.astype(np.uint8))


@dataclass(frozen=True)
class ScenesSource:
    """Drawn scenes of colored shapes, 96 x 96 pixels; the class is the number of objects.

    Image k is the same whatever the size of the source; no scene of one split occurs in the other. Mirroring or
    cropping makes captions of sides or places untrue: train with `horizontal_flip=False` and `augment="resize"`.
    """

    class_names: ClassVar[tuple[str, ...]] = tuple(str(number + 1) for number in range(MAX_OBJECTS))
    split: Split
    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def name(self) -> str:
        """The description that opens the source."""
        count = "" if self.size == NUM_SCENES[self.split] else f":{self.size}"
        return f"embedded:scenes:{self.split}{count}"

    @property
    def identity(self) -> str:
        """A fingerprint of what the source is made from: version, split and size."""
        return hashlib.sha256(f"scenes {SCENES_VERSION} {self.split} {self.size}".encode()).hexdigest()

    def key(self, index: int) -> str:
        """Return split and number of a scene, such as "scenes/train-000017"."""
        if not 0 <= index < self.size:  # scenes have no end: nothing else would stop a loop that runs past it
            raise IndexError(f"{self.name} has the images 0 to {self.size - 1}, got {index}")
        return f"scenes/{self.split}-{index:06d}"

    def read(self, index: int) -> ImageRecord:
        """Return the pixels of a scene."""
        key, scene = self.key(index), make_scene(self.split, index)
        return ImageRecord(draw(scene), len(scene.objects) - 1, key)


def noun_of(thing: SceneObject, level: Level = ("color", "shape")) -> str:
    """Name these qualities of an object, such as "large circle" or "red object"."""
    return _noun(level, [getattr(thing, quality) for quality in level])


def _noun(level: Level, words: Sequence[str]) -> str:
    return " ".join(words if "shape" in level else (*words, "object"))


def _one(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _many(noun: str) -> str:
    return f"{noun}{'es' if noun.endswith('cross') else 's'}"


def _named(scene: Scene, noun: str) -> list[SceneObject]:
    """Return the objects that may be called so: their qualities are all that it says."""
    words = set(noun.split())
    return [thing for thing in scene.objects if words <= {thing.size, thing.color, thing.shape, "object"}]


def _nouns(level: Level, generator: np.random.Generator, *scenes: Scene) -> dict[str, list[int]]:
    """Return nouns worth asking about, and how many objects of each scene may be called so.

    Beside those of the objects, some made to be mistaken for them take each quality from an object of its own
    ("blue circle" beside a red circle and a blue square); one is drawn until it is new, unless all are there.
    """
    things = [thing for scene in scenes for thing in scene.objects]
    nouns = dict.fromkeys(noun_of(thing, level) for thing in things)
    possible = math.prod(len(_QUALITIES[quality]) for quality in level)
    absent: list[str] = []
    while len(nouns) < possible and (not absent or absent[0] in nouns):
        absent = [_noun(level, [pick(generator, _QUALITIES[quality]) for quality in level])]
    for _ in range(_NUM_MIXED):
        nouns[_noun(level, [getattr(pick(generator, things), quality) for quality in level])] = None
    return {noun: [len(_named(scene, noun)) for scene in scenes] for noun in (*nouns, *absent)}


def _by_truth(options: Iterable[tuple[T, bool]]) -> dict[bool, list[T]]:
    found: dict[bool, list[T]] = {True: [], False: []}
    for option, truth in options:
        found[truth].append(option)
    return found


def _relations(first: SceneObject, second: SceneObject) -> list[str]:
    """Return the one or two relations in which two objects stand: their cells decide, not the shift inside."""
    right, down = second.column - first.column, second.row - first.row
    signs = {"left": right, "right": -right, "above": down, "below": -down}
    return [relation for relation, distance in signs.items() if distance > 0]


def _place(thing: SceneObject) -> str:
    """Return where an object lies, such as "at the top left", "at the bottom center" or "in the center"."""
    row, column = ROWS[thing.row], COLUMNS[thing.column]
    return "in the center" if row == column == "center" else f"at the {row} {column}"


def _relation_claims(scene: Scene, generator: np.random.Generator) -> dict[bool, str]:
    """Return a true and a false sentence of how one object lies to another, or none of both.

    Their names differ in every quality but size. Half of the false ones are objects the wrong way around.
    """
    relation, level = pick(generator, tuple(RELATIONS)), pick(generator, LEVELS)
    present = [noun_of(thing, level) for thing in scene.objects]
    mixed = list(_nouns(level, generator, scene))

    def said(firsts: Sequence[str], seconds: Sequence[str]) -> dict[bool, list[str]]:
        found: dict[bool, list[str]] = {True: [], False: []}
        for first, second in product(firsts, seconds):
            if set(first.split()) & set(second.split()) <= {"object", *SIZES}:
                pairs = product(_named(scene, first), _named(scene, second))
                truth = any(relation in _relations(*pair) for pair in pairs)
                found[truth].append(f"{_one(first)} is {RELATIONS[relation]} {_one(second)}")
        return found

    own, strange = said(present, present), said(mixed, present)[False] + said(present, mixed)[False]
    false = own[False] if own[False] and (not strange or generator.random() < 0.5) else strange
    return {True: pick(generator, own[True]), False: pick(generator, false)} if own[True] and false else {}


def _claim(scene: Scene, truth: bool, generator: np.random.Generator) -> str:
    """Return a true or a false claim; its frame (kind, number, place, qualities named) allows both."""
    for kind in shuffled(generator, ("existence", "count", "place", "relation")):
        form: Callable[[str], str] = _one
        if kind == "relation":
            if claims := _relation_claims(scene, generator):
                return claims[truth]
            continue
        nouns = _nouns(pick(generator, LEVELS), generator, scene)
        if kind == "existence":
            frames = ["there is {}", "the picture shows {}", "one can see {}"]
            names = _by_truth((noun, number > 0) for noun, (number,) in nouns.items())
        elif kind == "count":
            wanted = pick(generator, sorted({number for (number,) in nouns.values()} - {0}))
            form, verb = (str, "is") if wanted == 1 else (_many, "are")
            counted = f"exactly {NUMBER_WORDS[wanted]} {{}}"
            frames = [f"there {verb} {counted}", f"the picture shows {counted}"]
            names = _by_truth((noun, number == wanted) for noun, (number,) in nouns.items())
        else:
            placed = pick(generator, scene.objects)
            frames = [f"{{}} is {_place(placed)}"]
            names = _by_truth((noun, placed in _named(scene, noun)) for noun in nouns)
        if names[True] and names[False]:
            chosen = {wanted: pick(generator, names[wanted]) for wanted in (True, False)}
            frame = frames[0] if len(frames) == 1 else pick(generator, frames)
            return frame.format(form(chosen[truth]))
    raise AssertionError("four objects lack some color: a claim of existence can always be false")


def captions(scene: Scene, generator: np.random.Generator) -> tuple[str, ...]:
    """Return five true captions.

    Every object with color, shape and place; every object and how it lies to one of them; colors and shapes alone,
    equal ones counted; all objects counted by shape or by color; one object or one relation. Sizes are named in
    half of the first two, the background in a quarter of the first and the third.
    """
    level = ("size", "color", "shape") if generator.random() < 0.5 else ("color", "shape")
    quality: Level = ("shape",) if generator.random() < 0.5 else ("color",)
    background = f" on a {scene.background} background"
    parts = [f"{_one(noun_of(thing, level))} {_place(thing)}" for thing in scene.objects]
    placed = pick(generator, _OPENINGS).format(_listed(parts))
    placed += background if generator.random() < 0.25 else ""
    beside = _caption_beside(scene, level, generator)
    colored = pick(generator, _COUNTED_OPENINGS).format(_counted(scene, ("color", "shape")))
    colored += background if generator.random() < 0.25 else ""
    counted = pick(generator, _COUNTED_OPENINGS).format(_counted(scene, quality))
    return placed, beside, colored, counted, _partial_caption(scene, generator)


def _caption_beside(scene: Scene, level: Level, generator: np.random.Generator) -> str:
    """Tell every object by how it lies to one of them."""
    anchor = pick(generator, scene.objects)
    name = _one(noun_of(anchor, level))
    others = [thing for thing in scene.objects if thing is not anchor]
    if not others:
        return pick(generator, ("{} and nothing else", "only {}", "{} alone")).format(name)
    sides = [_SEEN_FROM[pick(generator, _relations(other, anchor))] for other in others]
    parts = [f"{_one(noun_of(other, level))} {side}" for other, side in zip(others, sides, strict=True)]
    return pick(generator, _OPENINGS).format(f"{name} with {_listed(parts)}")


def _partial_caption(scene: Scene, generator: np.random.Generator) -> str:
    """Tell one object and its row or column, or how one object lies to another."""
    thing = pick(generator, scene.objects)
    name = _one(noun_of(thing))
    others = [other for other in scene.objects if other is not thing]
    if others and generator.random() < 0.5:
        other = pick(generator, others)
        return f"{name} {RELATIONS[pick(generator, _relations(thing, other))]} {_one(noun_of(other))}"
    stretch = f"{ROWS[thing.row]} row" if generator.random() < 0.5 else f"{COLUMNS[thing.column]} column"
    return pick(generator, _OPENINGS).format(f"{name} in the {stretch}")


def _counted(scene: Scene, level: Level) -> str:
    """Return the objects as a list, equal names counted: "two red circles and a blue star"."""
    nouns = [noun_of(thing, level) for thing in scene.objects]
    counts = {noun: nouns.count(noun) for noun in nouns}.items()
    return _listed([_one(noun) if of == 1 else f"{NUMBER_WORDS[of]} {_many(noun)}" for noun, of in counts])


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def question(scene: Scene, generator: np.random.Generator) -> tuple[str, str, str]:
    """Return a question that the scene answers without doubt, its answer of `ANSWERS`, its kind of `KINDS`.

    Kinds are equally likely where the scene allows them, and so are yes and no, left and right, above and below,
    colors, shapes. A count is drawn from those that the scene offers, so small numbers prevail. Colors, shapes and
    relations are asked only of objects that the question's own words single out.
    """
    for kind in shuffled(generator, KINDS):
        if found := _ask(kind, scene, generator):
            return *found, kind
    raise AssertionError("whether some shape exists can always be asked")


def _ask(kind: str, scene: Scene, generator: np.random.Generator) -> tuple[str, str] | None:
    """Return a question of a kind with its answer; None where the scene does not allow one."""
    if kind == "existence":
        nouns = _nouns(pick(generator, LEVELS), generator, scene)
        wanted = generator.random() < 0.5
        noun = pick(generator, [noun for noun, (number,) in nouns.items() if (number > 0) == wanted])
        frame = pick(generator, ("is there {}?", "does the picture show {}?", "can one see {}?"))
        return frame.format(_one(noun)), "yes" if wanted else "no"
    if kind == "count":
        nouns = {"object": [len(scene.objects)]}
        for level in LEVELS:
            nouns |= _nouns(level, generator, scene)
        number = pick(generator, sorted({number for (number,) in nouns.values()}))
        noun = pick(generator, [noun for noun, of in nouns.items() if of == [number]])
        frame = pick(generator, ("how many {} are there?", "how many {} does the picture show?"))
        return frame.format(_many(noun)), str(number)
    if kind in ("color", "shape"):
        other = "shape" if kind == "color" else "color"
        thing = pick(generator, scene.objects)
        names = [*_single_names(thing, ((other,), ("size", other)), scene), f"object {_place(thing)}"]
        frame = pick(generator, ("what {} is the {}?", "which {} does the {} have?"))
        return frame.format(kind, pick(generator, names)), str(getattr(thing, kind))
    return _ask_relation(scene, generator) if kind == "relation" else _ask_comparison(scene, generator)


def _ask_relation(scene: Scene, generator: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.objects) < 2:
        return None
    first, second = shuffled(generator, scene.objects)[:2]
    sides = pick(generator, (("left", "right"), ("above", "below")))
    answer = next((side for side in sides if side in _relations(first, second)), None)
    names = [_single_names(thing, LEVELS, scene) for thing in (first, second)]
    if answer is None or not all(names):
        return None
    one, other = (pick(generator, nouns) for nouns in names)
    return f"is the {one} {sides[0]} or {RELATIONS[sides[1]]} the {other}?", answer


def _ask_comparison(scene: Scene, generator: np.random.Generator) -> tuple[str, str] | None:
    nouns = _nouns(pick(generator, LEVELS[:3]), generator, scene)
    words, compare = pick(generator, _COMPARISONS)
    pairs = _by_truth(
        (pair, compare(*(nouns[noun][0] for noun in pair)))
        for pair in permutations(nouns, 2)
        if any(nouns[noun][0] for noun in pair)
    )
    if not (pairs[True] and pairs[False]):
        return None
    wanted = generator.random() < 0.5
    return (
        f"are there {words.format(*map(_many, pick(generator, pairs[wanted])))}?",
        "yes" if wanted else "no",
    )


def _single_names(thing: SceneObject, levels: tuple[Level, ...], scene: Scene) -> list[str]:
    """Return the names of an object that fit no other one."""
    return [noun for noun in (noun_of(thing, level) for level in levels) if len(_named(scene, noun)) == 1]


# A sentence, the form of the name in it, and whether it holds, from how many objects of that name the left and the
# right scene have. "As many stars" of none sounds wrong: frames that compare are said of names that fit.
_FRAMES: tuple[tuple[tuple[str, Callable[[str], str], Callable[[int, int], bool]], ...], ...] = (
    (("both images contain {}", _one, lambda left, right: left > 0 < right),
     ("there is {} in each image", _one, lambda left, right: left > 0 < right)),
    (("exactly one image shows {}", _one, lambda left, right: (left > 0) != (right > 0)),
     ("only one of the images contains {}", _one, lambda left, right: (left > 0) != (right > 0))),
    (("at least one image contains {}", _one, lambda left, right: left + right > 0),
     ("neither image shows {}", _one, lambda left, right: left + right == 0)),
    (("{} is in the left image but not in the right one", _one, lambda left, right: left > 0 == right),
     ("{} is in the right image but not in the left one", _one, lambda left, right: right > 0 == left)),
    (("the left image has more {} than the right one", _many, gt),
     ("the right image has more {} than the left one", _many, lt),
     ("the left image has fewer {} than the right one", _many, lt),
     ("the right image has fewer {} than the left one", _many, gt)),
    (("both images have the same number of {}", _many, eq),),
    (("the two images show exactly one {} in total", str, lambda left, right: left + right == 1),
     ("the two images show exactly two {} in total", _many, lambda left, right: left + right == 2),
     ("the two images show exactly three {} in total", _many, lambda left, right: left + right == 3),
     ("the two images show exactly four {} in total", _many, lambda left, right: left + right == 4)),
)  # fmt: skip
_COMPARING = _FRAMES[4:6]


def statement(left: Scene, right: Scene, generator: np.random.Generator) -> tuple[str, bool]:
    """Return a sentence about two scenes side by side, and whether it is true: as often as not (NLVR2's form).

    The frame (the sentence but for its colors, shapes and sizes) is chosen among those that can be filled to
    a true and to a false sentence about these two scenes.
    """
    for group in shuffled(generator, (*_FRAMES, None)):
        label = generator.random() < 0.5
        if group is None:
            side, scene = pick(generator, (("left", left), ("right", right)))
            if claims := _relation_claims(scene, generator):
                return f"in the {side} image {claims[label]}", label
            continue
        for level in shuffled(generator, LEVELS):
            nouns = _nouns(level, generator, left, right).items()
            fitting = [one for one in nouns if group not in _COMPARING or any(one[1])]
            for frame, form, truth in shuffled(generator, group):
                names = _by_truth((noun, truth(*counts)) for noun, counts in fitting)
                if names[True] and names[False]:
                    return frame.format(form(pick(generator, names[label]))), label
    raise AssertionError("of the 64 colored shapes some are in neither scene, and some in one of them")


def entailment(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """Return a hypothesis and its label, entailment, neutral or contradiction, equally likely (SNLI-VE's form).

    Of claims D and E that the picture decides, and U that it cannot, such as who drew it: "D" is entailed or
    contradicted, "D and U" neutral or contradicted, "D or U" entailed or neutral, "D, and it is true that E or U"
    contradicted without D, entailed with both, neutral with D alone. The last form is half of all: from the
    sentence alone the best guess is right in 5 of 12 cases.
    """
    form = pick(generator, ("plain", "and", "or", "nested", "nested", "nested"))
    if form == "nested":
        label = pick(generator, ("entailment", "neutral", "contradiction"))
        # In a contradiction E is true in half of the cases, as it is in the other two labels together.
        second = label == "entailment" or (label == "contradiction" and generator.random() < 0.5)
        first = _claim(scene, label != "contradiction", generator)
        other = _claim(scene, second, generator)
        return f"{first}, and it is true that {other} or that {pick(generator, _OPEN)}", label
    truth = generator.random() < 0.5
    claim = _claim(scene, truth, generator)
    if form == "plain":
        return claim, "entailment" if truth else "contradiction"
    labels = ("neutral", "contradiction") if form == "and" else ("entailment", "neutral")
    return f"{claim} {form} {pick(generator, _OPEN)}", labels[0 if truth else 1]


def scene_captions(source: ScenesSource, index: int) -> tuple[str, ...]:
    """Return the five captions of a scene (see `captions`); the first two are complete."""
    return captions(make_scene(source.split, index), generator_for("captions", source.split, index))


class SceneItem(NamedTuple):
    """A question (of a kind), statement or hypothesis about images, places in their source; its answer."""

    images: tuple[int, ...]
    text: str
    answer: str
    kind: str = ""


def scene_items(task: SceneTask, source: ScenesSource, texts: int = 1) -> list[SceneItem]:
    """Return so many items of each (left) image, in their order; pairs of fewer than two raise `ValueError`."""
    if task == "nlvr2" and source.size < 2:
        raise ValueError(f"size must be 2 or more for pairs of images, got {source.size}")
    return [_item(task, source, index, turn) for index in range(source.size) for turn in range(texts)]


def _item(task: SceneTask, source: ScenesSource, index: int, turn: int) -> SceneItem:
    split, scene = source.split, make_scene(source.split, index)
    if task == "vqa":
        return SceneItem((index,), *question(scene, generator_for("question", split, index, turn)))
    if task == "entailment":
        return SceneItem((index,), *entailment(scene, generator_for("entailment", split, index, turn)))
    # Two scenes that share nothing leave little to say.
    generator = generator_for("pair", split, index)
    colored = {noun_of(thing) for thing in scene.objects}
    for _ in range(_NUM_PARTNERS):
        partner = (index + 1 + int(generator.random() * (source.size - 1))) % source.size
        right = make_scene(split, partner)
        if any(noun_of(thing) in colored for thing in right.objects):
            break
    text, truth = statement(scene, right, generator_for("statement", split, index, turn))
    return SceneItem((index, partner), text, "true" if truth else "false")
