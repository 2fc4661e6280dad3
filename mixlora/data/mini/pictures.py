"""The sources of the suite's pictures, each picture with its facts.

A source yields the pictures of one split. Train and heldout never share one: digits are split by their index, easy-vqa
has its own split, and the hash of a drawn picture's pixels decides its split.

Not here: the questions about pictures (`tasks`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data.mini import draw

Split = Literal["train", "heldout"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    *("cat", "dog", "sun", "map", "box", "key", "jam", "fox", "hat", "pen", "cup", "bus", "zoo", "ice"),
    *("tree", "fish", "lamp", "moon", "bird", "milk", "road", "wolf", "quiz", "gate", "yard", "vase"),
    *("house", "river", "bread", "queen", "juice", "knife", "plant", "music", "horse", "cloud"),
    *("window", "garden", "bridge", "flower", "pocket", "jungle"),
)
"""Words other than colours, which the base learns to read; every letter occurs."""
SIGNS = ("stop", "exit", "open", "sale", "push", "pull", "taxi", "shop", "cafe", "bank")
SHORT_WORDS = tuple(text for text in WORDS if len(text) <= 4)

EASY_VQA_COLOURS: dict[str, draw.Colour] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}
"""The colours of easy-vqa's shapes."""


@dataclass(frozen=True)
class Picture:
    """A picture and its facts, such as {"word": "red", "ink": "blue", "style": "bold"}."""

    id: str
    image: Image.Image
    facts: Mapping[str, str]


def _split_of(image: Image.Image) -> Split:
    """The split of a drawn picture: heldout for one in four."""
    return "heldout" if sha256(image.tobytes()).digest()[0] < 64 else "train"


def _drawn(name: str, sketch: Callable[[Random], tuple[Image.Image, dict[str, str]]]) -> "Source":
    """An endless source of pictures that `sketch` draws."""

    def pictures(split: Split, seed: int) -> Iterator[Picture]:
        index, attempt = 0, 0
        while True:
            image, facts = sketch(Random(f"{name}/{split}/{seed}/{attempt}"))
            attempt += 1
            if _split_of(image) == split:
                yield Picture(f"{name}-{split}-{seed}-{index}", image, facts)
                index += 1

    return pictures


def _sketch_stroop(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    text, ink = rng.sample(tuple(draw.INKS), 2)
    style = rng.choice(tuple(draw.FONTS))
    picture = draw.word(rng, text, draw.INKS[ink], rng.choice(draw.FONTS[style]))
    return picture, {"word": text, "ink": ink, "style": style}


def _sketch_style(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    style, text = rng.choice(tuple(draw.FONTS)), rng.choice(SHORT_WORDS)
    ink = rng.choice(tuple(draw.PLAIN_INKS))
    picture = draw.word(rng, text, draw.PLAIN_INKS[ink], rng.choice(draw.FONTS[style]))
    return picture, {"word": text, "ink": ink, "style": style}


def _sketch_sign(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    """A word in black between two coloured bars."""
    text, colour, page = rng.choice(SIGNS), rng.choice(tuple(draw.INKS)), draw.paper(rng)
    for top in (1, draw.SIZE - 5):
        draw.shape(page, "rectangle", draw.shade(rng, draw.INKS[colour]), (1, top, draw.SIZE - 2, top + 3))
    picture = draw.word(rng, text, (10, 10, 10), rng.choice(draw.FONTS["sans"] + draw.FONTS["bold"]), page)
    return picture, {"word": text, "bars": colour}


def _sketch_letter(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    letter, style, ink = rng.choice(LETTERS), rng.choice(tuple(draw.FONTS)), rng.choice(tuple(draw.INKS))
    picture = draw.word(rng, letter, draw.INKS[ink], rng.choice(draw.FONTS[style]))
    return picture, {"letter": letter, "ink": ink, "style": style}


def _sketch_pair(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    """Two different shapes in two colours, side by side or one above the other."""
    page, (first, second) = draw.paper(rng), rng.sample(draw.SHAPES, 2)
    inks = rng.sample(("red", "green", "blue", "yellow"), 2)
    level, half = rng.random() < 0.5, draw.SIZE // 2
    for place, (kind, ink) in enumerate(zip((first, second), inks, strict=True)):
        side = rng.randint(13, 19)
        along, across = place * half + rng.randint(1, half - side - 1), rng.randint(4, draw.SIZE - side - 4)
        left, top = (along, across) if level else (across, along)
        draw.shape(page, kind, draw.shade(rng, draw.INKS[ink]), (left, top, left + side, top + side))
    facts = {"first": first, "second": second, "first_ink": inks[0], "second_ink": inks[1]}
    return draw.grain(rng, page), {**facts, "relation": "left" if level else "above"}


def _sketch_reading(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    """A word to learn reading on: colour words only in plain inks, so that no Stroop picture is among them."""
    style, lot = rng.choice(tuple(draw.FONTS)), rng.random()
    face = rng.choice(draw.FONTS[style])
    if lot < 0.15:
        text, board = rng.choice(WORDS), rng.choice(tuple(draw.INKS))
        page = Image.new("RGB", (draw.SIZE, draw.SIZE), draw.shade(rng, draw.INKS[board]))
        return draw.word(rng, text, (245, 245, 245), face, page), {"word": text, "board": board, "style": style}
    inks = draw.PLAIN_INKS if lot < 0.45 else {**draw.INKS, **draw.PLAIN_INKS}
    text = rng.choice(tuple(draw.INKS) if lot < 0.45 else WORDS + SIGNS)
    ink = rng.choice(tuple(inks))
    return draw.word(rng, text, inks[ink], face), {"word": text, "ink": ink, "style": style}


def _sketch_single(rng: Random) -> tuple[Image.Image, dict[str, str]]:
    """One shape anywhere on the page, as in easy-vqa."""
    kind, colour = rng.choice(draw.SHAPES), rng.choice(tuple(EASY_VQA_COLOURS))
    page, width = draw.paper(rng), rng.randint(6, 24)
    height = rng.randint(6, 24) if kind == "rectangle" else width
    left, top = rng.randint(0, draw.SIZE - width - 1), rng.randint(0, draw.SIZE - height - 1)
    draw.shape(page, kind, EASY_VQA_COLOURS[colour], (left, top, left + width, top + height))
    return draw.grain(rng, page, 1.0), {"shape": kind, "colour": colour}


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's handwritten digits: strokes [1797, 8, 8] from 0 to 16, and labels [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def digit_pictures(split: Split, seed: int) -> Iterator[Picture]:
    """The handwritten digits of a split, each once, in a seeded order; one in four is held out."""
    strokes, labels = _digits()
    order = [index for index in range(len(labels)) if (index % 4 == 0) == (split == "heldout")]
    Random(f"digit/{split}/{seed}").shuffle(order)
    for index in order:
        picture = draw.digit(Random(f"digit/{index}"), strokes[index])
        yield Picture(f"digit-{index}", picture, {"digit": DIGITS[labels[index]]})


def redrawn_digits(split: Split, seed: int) -> Iterator[Picture]:
    """The digits of a split, endlessly, each time drawn with another size, angle and place."""
    strokes, labels = _digits()
    own = [index for index in range(len(labels)) if (index % 4 == 0) == (split == "heldout")]
    rng = Random(f"redrawn/{split}/{seed}")
    while True:
        index = rng.choice(own)
        yield Picture(f"redrawn-{index}", draw.digit(rng, strokes[index], 8.0), {"digit": DIGITS[labels[index]]})


def easy_vqa_folder(split: Split) -> Path:
    """The folder of a split in the easy-vqa distribution.

    Raises:
        DataError: easy-vqa is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise DataError(
            "The mini suite's shapes come from the package easy-vqa, which is not installed: "
            "pip install 'task-interference[demo]'."
        ) from error
    return Path(easy_vqa.__file__).parent / "data" / ("train" if split == "train" else "test")


@lru_cache(maxsize=2)
def _easy_vqa_facts(split: Split) -> dict[int, dict[str, str]]:
    """{number of a picture: its shape and colour}, as the distribution's questions and answers reveal them."""
    facts: dict[int, dict[str, str]] = {}
    for question, answer, number in json.loads((easy_vqa_folder(split) / "questions.json").read_text()):
        words = question.rstrip("?").split()
        known = facts.setdefault(number, {})
        denied = answer == "yes" if {"not", "no"} & set(words) else answer == "no"
        for told in [answer] if denied else [answer, *words]:
            if told in draw.SHAPES:
                known["shape"] = told
            elif told in EASY_VQA_COLOURS:
                known["colour"] = told
    return {number: known for number, known in sorted(facts.items()) if len(known) == 2}


def shape_pictures(split: Split, seed: int) -> Iterator[Picture]:
    """The easy-vqa pictures of a split whose shape and colour are known, in a seeded order."""
    facts = _easy_vqa_facts(split)
    order = list(facts)
    Random(f"shape/{split}/{seed}").shuffle(order)
    for number in order:
        with Image.open(easy_vqa_folder(split) / "images" / f"{number}.png") as image:
            picture = image.convert("RGB").resize((draw.SIZE, draw.SIZE), Image.Resampling.BOX)
        yield Picture(f"shape-{split}-{number}", picture, facts[number])


Source = Callable[[Split, int], Iterator[Picture]]

SOURCES: dict[str, Source] = {
    "digit": digit_pictures,
    "redrawn": redrawn_digits,
    "shape": shape_pictures,
    "stroop": _drawn("stroop", _sketch_stroop),
    "style": _drawn("style", _sketch_style),
    "sign": _drawn("sign", _sketch_sign),
    "letter": _drawn("letter", _sketch_letter),
    "pair": _drawn("pair", _sketch_pair),
    "reading": _drawn("reading", _sketch_reading),
    "single": _drawn("single", _sketch_single),
}
"""{name: source}; a source yields the pictures of a split in a seeded order, endlessly if they are drawn."""
