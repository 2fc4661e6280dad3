"""What the base is brought up on: pictures of the training split, captions of them and questions of many kinds.

None of it is one of the six tasks: no Stroop picture, and none of the tasks' questions. Facts that the tasks ask for
are told in other ways: in captions, in yes-or-no questions, in choices between two, letter by letter, or without a
picture being needed.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from random import Random

from mixlora.data.mini.draw import FONTS, INKS, PLAIN_INKS, SHAPES
from mixlora.data.mini.pictures import DIGITS, EASY_VQA_COLOURS, LETTERS, SIGNS, SOURCES, WORDS, Picture, Split
from mixlora.data.mini.tasks import FRENCH, NEXT, TASKS, UNSEEN

Facts = Mapping[str, str]
Exchange = tuple[str, str]
"""A question and its answer."""

MIX = {"reading": 0.42, "letter": 0.06, "redrawn": 0.17, "shape": 0.08, "single": 0.15, "pair": 0.12}
"""Shares of the sources in the diet."""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
COLOURS = (*INKS, *PLAIN_INKS)


def pictures(split: Split, count: int, seed: int) -> list[Picture]:
    """About `count` pictures of a split, the sources mixed as in MIX."""
    return [
        picture for name, share in MIX.items() for picture in islice(SOURCES[name](split, seed), int(count * share))
    ]


def other(rng: Random, values: tuple[str, ...], than: str) -> str:
    """One of the values, not that one."""
    return rng.choice([value for value in values if value != than])


def verdict(rng: Random, ask: str, truth: str, values: tuple[str, ...]) -> Exchange:
    """A yes-or-no question, true half of the time, from a pattern with one gap."""
    if rng.random() < 0.5:
        return ask.format(truth), "yes"
    return ask.format(other(rng, values, truth)), "no"


def choice(rng: Random, ask: str, truth: str, values: tuple[str, ...]) -> Exchange:
    """A question between the truth and something else, from a pattern with two gaps."""
    pair = [truth, other(rng, values, truth)]
    rng.shuffle(pair)
    return ask.format(*pair), truth


def kind(facts: Facts) -> str:
    """What sort of picture it is."""
    for name in ("digit", "word", "letter", "shape"):
        if name in facts:
            return name
    return "pair"


def caption(facts: Facts) -> str:
    """A sentence that tells all of a picture's facts."""
    match kind(facts):
        case "digit":
            return f"a handwritten {facts['digit']}"
        case "shape":
            return f"a {facts['colour']} {facts['shape']}"
        case "pair":
            place = {"left": "left of", "above": "above"}[facts["relation"]]
            return f"a {facts['first_ink']} {facts['first']} {place} a {facts['second_ink']} {facts['second']}"
        case "word" if "board" in facts:
            return f"the {facts['style']} word {facts['word']} in white on a {facts['board']} board"
        case thing:
            return f"the {facts['style']} {thing} {facts[thing]} in {facts['ink']}"


def digit_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a handwritten digit."""
    name = facts["digit"]
    value = DIGITS.index(name)
    bound = rng.randrange(10)
    yield choice(rng, "Is it {} or {}?", name, DIGITS)
    yield verdict(rng, "Is this a {}?", name, DIGITS)
    yield f"Is it more than {DIGITS[bound]}?", "yes" if value > bound else "no"
    yield "Is the number even or odd?", "odd" if value % 2 else "even"
    yield "Which number comes before it?", DIGITS[value - 1] if value else "none"
    yield choice(rng, "In French, is it {} or {}?", FRENCH[name], tuple(FRENCH.values()))


def word_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a written word; none asks for the whole word, its ink or its style outright."""
    text, style = facts["word"], facts["style"]
    vocabulary = tuple(INKS) if text in INKS else WORDS + SIGNS
    place = rng.randrange(len(text))
    yield "Spell it.", " ".join(text)
    yield f"What is the {ORDINALS[place]} letter?", text[place]
    yield choice(rng, "Does it say {} or {}?", text, vocabulary)
    yield verdict(rng, "Does it say {}?", text, vocabulary)
    yield "How many letters?", NEXT[DIGITS[len(text) - 1]]
    yield verdict(rng, "Is the type {}?", style, tuple(FONTS))
    yield choice(rng, "Is the type {} or {}?", style, tuple(FONTS))
    if "ink" in facts:
        yield choice(rng, "Is it in {} or {}?", facts["ink"], COLOURS)
        yield verdict(rng, "Is it written in {}?", facts["ink"], COLOURS)
    else:
        yield "Describe the board.", facts["board"]


def letter_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a single letter."""
    letter = facts["letter"]
    yield verdict(rng, "Is it the letter {}?", letter, tuple(LETTERS))
    yield choice(rng, "Is it {} or {}?", letter, tuple(LETTERS))
    yield "Is it a vowel?", "yes" if letter in "aeiou" else "no"
    yield choice(rng, "Is it in {} or {}?", facts["ink"], COLOURS)
    yield "Spell it.", letter


def shape_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a single shape."""
    colours = tuple(EASY_VQA_COLOURS)
    yield verdict(rng, "Is it a {}?", facts["shape"], SHAPES)
    yield choice(rng, "Is it a {} or a {}?", facts["shape"], SHAPES)
    yield verdict(rng, "Is the shape {}?", facts["colour"], colours)
    yield choice(rng, "Is it {} or {}?", facts["colour"], colours)
    yield "How many corners?", {"circle": "none", "triangle": "three", "rectangle": "four"}[facts["shape"]]
    yield "Is it heavy?", "maybe"


def pair_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about two shapes."""
    first, second = facts["first"], facts["second"]
    here, there = {"left": ("left", "right"), "above": ("top", "bottom")}[facts["relation"]]
    one = rng.choice(("first", "second"))
    yield f"Which shape is on the {here}?", first
    yield f"Which shape is on the {there}?", second
    yield f"Where is the {facts[one]}?", here if one == "first" else there
    yield choice(rng, f"Is the {facts[one]} {{}} or {{}}?", facts[f"{one}_ink"], COLOURS)
    yield "How many shapes?", "two"


def blind_questions(rng: Random) -> Iterator[Exchange]:
    """Questions that no picture is needed for: the knowledge that tasks build on."""
    number, letter = rng.choice(DIGITS), rng.randrange(25)
    yield f"Which number follows {number}?", NEXT[number]
    yield f"How do the French say {number}?", FRENCH[number]
    yield f"Which letter follows {LETTERS[letter]}?", LETTERS[letter + 1]


QUESTIONS: dict[str, Callable[[Random, Facts], Iterator[Exchange]]] = {
    "digit": digit_questions,
    "word": word_questions,
    "letter": letter_questions,
    "shape": shape_questions,
    "pair": pair_questions,
}


def conversation(rng: Random, facts: Facts, turns: int) -> list[Exchange]:
    """Some exchanges about a picture, in any order: the caption, questions about it, one that needs no picture."""
    exchanges = list(QUESTIONS[kind(facts)](rng, facts))
    exchanges += [("Describe the picture.", caption(facts))] * 3
    exchanges.append(rng.choice(list(blind_questions(rng))))
    return list(dict(rng.sample(exchanges, min(turns, len(exchanges)))).items())


def texts(conversations: int = 4000, seed: int = 0) -> list[str]:
    """All that the suite says, for the tokenizer to learn its vocabulary from."""
    said = [task.definition for task in (*TASKS.values(), *UNSEEN.values())]
    for name, task in {**TASKS, **UNSEEN}.items():
        shown = list(islice(SOURCES[task.source]("train", seed), 60))
        rng = Random(name)
        said += [text for picture in shown for text in task.ask(rng, picture.facts)]
        said += task.answers
    rng = Random(seed)
    for picture in pictures("train", conversations, seed):
        said += [text for exchange in conversation(rng, picture.facts, 20) for text in exchange]
    return said
