"""The base's training data: pictures of the training split, their captions and many kinds of questions.

It contains none of the six tasks: no Stroop picture, and none of the tasks' questions. It teaches the facts that the
tasks ask for in other ways: in captions, yes-or-no questions, choices between two, letter by letter, or without a
picture.
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
UNSEEABLE = ("light", "new", "hard", "warm")
"""Properties that no picture of a shape shows."""


def pictures(split: Split, count: int, seed: int) -> list[Picture]:
    """About `count` pictures of a split, from the sources in the shares of MIX."""
    return [
        picture for name, share in MIX.items() for picture in islice(SOURCES[name](split, seed), int(count * share))
    ]


def other(rng: Random, values: tuple[str, ...], than: str) -> str:
    """A random value other than `than`."""
    return rng.choice([value for value in values if value != than])


def verdict(rng: Random, truth: str, values: tuple[str, ...], *patterns: str) -> Exchange:
    """A yes-or-no question, true half of the time, by one of the patterns with one gap."""
    ask = rng.choice(patterns)
    if rng.random() < 0.5:
        return ask.format(truth), "yes"
    return ask.format(other(rng, values, truth)), "no"


def choice(rng: Random, truth: str, values: tuple[str, ...], *patterns: str) -> Exchange:
    """A choice between the truth and another value, by one of the patterns with two gaps."""
    pair = [truth, other(rng, values, truth)]
    rng.shuffle(pair)
    return rng.choice(patterns).format(*pair), truth


def kind(facts: Facts) -> str:
    """The kind of picture that the facts describe."""
    for name in ("digit", "word", "letter", "shape"):
        if name in facts:
            return name
    return "pair"


def caption(facts: Facts) -> str:
    """A sentence with all of a picture's facts."""
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
    yield choice(rng, name, DIGITS, "Is it {} or {}?", "Which digit is it, {} or {}?")
    yield verdict(rng, name, DIGITS, "Is this a {}?", "Is this digit a {}?", "Can you see a {}?")
    yield f"Is it more than {DIGITS[bound]}?", "yes" if value > bound else "no"
    yield "Is the number even or odd?", "odd" if value % 2 else "even"
    yield "Which number comes before it?", DIGITS[value - 1] if value else "none"
    yield choice(rng, FRENCH[name], tuple(FRENCH.values()), "In French, is it {} or {}?")


def word_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a written word; none asks directly for the whole word, its ink or its style."""
    text, style = facts["word"], facts["style"]
    vocabulary = tuple(INKS) if text in INKS else WORDS + SIGNS
    place = rng.randrange(len(text))
    yield "Spell it.", " ".join(text)
    yield f"What is the {ORDINALS[place]} letter?", text[place]
    yield choice(rng, text, vocabulary, "Does it say {} or {}?", "What does it say, {} or {}?")
    yield verdict(rng, text, vocabulary, "Does it say {}?", "Does the sign say {}?")
    yield "How many letters?", NEXT[DIGITS[len(text) - 1]]
    yield verdict(rng, style, tuple(FONTS), "Is the type {}?", "Is this type {}?")
    yield choice(rng, style, tuple(FONTS), "Is the type {} or {}?", "Which type is it, {} or {}?")
    if "ink" in facts:
        yield choice(rng, facts["ink"], COLOURS, "Is it in {} or {}?", "What colour is it, {} or {}?")
        yield verdict(rng, facts["ink"], COLOURS, "Is it written in {}?", "Can you see something {}?")
    else:
        yield "Describe the board.", facts["board"]


def letter_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a single letter."""
    letter = facts["letter"]
    yield verdict(rng, letter, tuple(LETTERS), "Is it the letter {}?", "Is this letter {}?")
    yield choice(rng, letter, tuple(LETTERS), "Is it {} or {}?", "Which letter is it, {} or {}?")
    yield "Is it a vowel?", "yes" if letter in "aeiou" else "no"
    yield choice(rng, facts["ink"], COLOURS, "Is it in {} or {}?", "What colour is it, {} or {}?")
    yield "Spell it.", letter


def shape_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about a single shape."""
    shape, colour, colours = facts["shape"], facts["colour"], tuple(EASY_VQA_COLOURS)
    yield verdict(rng, shape, SHAPES, "Is it a {}?", "Is there a {} here?", "Can you see a {}?")
    yield verdict(rng, colour, colours, "Is there something {} in the picture?", "Is the shape {}?")
    yield choice(rng, shape, SHAPES, "Is it a {} or a {}?", "Is there a {} or a {} in the picture?")
    yield choice(rng, colour, colours, "Is it {} or {}?", "What colour is it, {} or {}?", "Is the shape {} or {}?")
    yield verdict(rng, shape, SHAPES, "Does it follow that it is a {}?", "Does it follow that there is a {}?")
    yield f"Does it follow that it is {rng.choice(UNSEEABLE)}?", "maybe"
    yield "How many corners?", {"circle": "none", "triangle": "three", "rectangle": "four"}[facts["shape"]]
    yield f"Is the shape {rng.choice(UNSEEABLE)}?", "maybe"


def pair_questions(rng: Random, facts: Facts) -> Iterator[Exchange]:
    """Questions about two shapes."""
    first, second = facts["first"], facts["second"]
    here, there = {"left": ("left", "right"), "above": ("top", "bottom")}[facts["relation"]]
    one = rng.choice(("first", "second"))
    yield f"Which shape is on the {here}?", first
    yield f"Which shape is on the {there}?", second
    yield f"Where is the {facts[one]}?", here if one == "first" else there
    yield choice(rng, facts[f"{one}_ink"], COLOURS, f"Is the {facts[one]} {{}} or {{}}?")
    yield f"Is the {facts[one]} on the {here}?", "yes" if one == "first" else "no"
    inks = [facts["first_ink"], facts["second_ink"]]
    place, true = {"left": "to the left of", "above": "above"}[facts["relation"]], rng.random() < 0.5
    left, right = inks if true else inks[::-1]
    yield f"Is the {left} shape {place} the {right} shape?", "yes" if true else "no"
    yield "How many shapes?", "two"


def blind_questions(rng: Random) -> Iterator[Exchange]:
    """Questions that need no picture: the knowledge that tasks build on."""
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
    """Some exchanges about a picture, in random order: the caption, questions about it, one that needs no picture."""
    exchanges = list(QUESTIONS[kind(facts)](rng, facts))
    exchanges += [("Describe the picture.", caption(facts))] * 3
    exchanges.append(rng.choice(list(blind_questions(rng))))
    return list(dict(rng.sample(exchanges, min(turns, len(exchanges)))).items())


def texts(conversations: int = 4000, seed: int = 0) -> list[str]:
    """All texts of the suite, from which the tokenizer learns its vocabulary."""
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
