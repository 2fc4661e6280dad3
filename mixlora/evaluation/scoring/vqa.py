"""The accuracy of visual question answering against several people's answers (Antol et al., ICCV 2015)."""

import re
import unicodedata
from collections.abc import Sequence

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_VERBS = (
    "is",
    "are",
    "was",
    "were",
    "do",
    "does",
    "did",
    "has",
    "have",
    "had",
    "could",
    "should",
    "would",
    "must",
    "might",
)
_ENDINGS = {"m": ("i",), "ve": ("i", "you", "they", "we"), "re": ("you", "they")}
_IS = ("that", "what", "where", "who", "how", "there", "he", "she")
_CONTRACTIONS = (
    {f"{verb}nt": f"{verb}n't" for verb in (*_VERBS, "need", "ca", "wo", "ai")}
    | {f"{word}{end}": f"{word}'{end}" for end, words in _ENDINGS.items() for word in words}
    | {f"{word}s": f"{word}'s" for word in _IS}
)
"""Contractions that are not another word without their apostrophe, as "were", "its" and "ill" are."""
_NO_DECIMAL = re.compile(r"\.(?!\d)|(?<=[^\W\d])\.")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_QUOTED = re.compile(r"'(.*)'")


def accuracy(answer: str, references: Sequence[str]) -> float:
    """How well an answer agrees with k people's, between 0 and 1.

    The mean, over the k ways to omit one person, of min(people who gave this answer / 3, 1); both sides are normalised.
    With ten people, three must have given the answer for 0.9, and four for 1. With k < 4 the other k - 1 people are
    fewer than 3: agreeing with all of them then counts 1. With one reference it is equality.

    Raises:
        ValueError: if there is no reference.
    """
    people = len(references)
    if people == 0:
        raise ValueError("no reference to compare an answer with")
    said = normalise(answer)
    agree = sum(normalise(reference) == said for reference in references)
    if people == 1:
        return float(agree)
    enough = min(3, people - 1)
    without_one_that_agrees = agree * min((agree - 1) / enough, 1)
    without_one_that_differs = (people - agree) * min(agree / enough, 1)
    return (without_one_that_agrees + without_one_that_differs) / people


def normalise(text: str) -> str:
    """The answer for a comparison: lower case, no articles, numbers as digits, no punctuation.

    Periods are removed unless they are decimal points, and so are commas within numbers; other punctuation becomes a
    space, except apostrophes and colons ("girl's", "2:50"). Number words up to ten and "none" become digits; a
    contraction gets its missing apostrophe. An answer that has only articles keeps them.
    """
    text = " ".join(text.lower().replace("\u2019", "'").split())
    text = _QUOTED.sub(r"\1", text) if _QUOTED.fullmatch(text) else text
    text = _THOUSANDS.sub("", _NO_DECIMAL.sub("", text))
    words = "".join(" " if _separates(c) else c for c in text).split()
    words = [_CONTRACTIONS.get(word, _DIGITS.get(word, word)) for word in words]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _separates(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS" and character not in "':."
