"""Parsing free text: labels and phrases as whole words, yes or no, entailment.

Not here: the soft match of VQA (`vqa`).
"""

import re
from collections.abc import Iterable, Mapping

_TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.\d+|[^\W_]+|[^\w\s]")
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc`", "''''")
_NEGATED = re.compile(r"\b(?:(can)(?:'t|t|not)|(is|are|was|were|do|does|did|has|have)nt|(\w+?)n't)\b")
_JOINED = re.compile(r"(?<=\w)-(?=\w)")
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "`": "`"}


def tidy(text: str) -> str:
    """The text in lower case, inner whitespace as one space, without one final period and one pair of quotes."""
    text = " ".join(text.casefold().split())
    ended = text.endswith(".")
    text = text[:-1].rstrip() if ended else text
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
        text = text[:-1].rstrip() if text.endswith(".") and not ended else text
    return text


def spaced(text: str) -> str:
    """The words, numbers and punctuation marks of the text, in lower case, each between single spaces.

    A contracted "not" is a separate word ("isn't" is "is not", "can't" is "can not"); hyphens and underscores separate
    words; 3.5 and 1,000 are one word each.
    """
    text = text.casefold().translate(_APOSTROPHES)
    text = _JOINED.sub(" ", _NEGATED.sub(lambda found: f"{found[found.lastindex or 0]} not", text))
    return f" {' '.join(_TOKEN.findall(text))} "


def mentions(text: str, phrase: str) -> bool:
    """Whether the phrase occurs in the text as whole words."""
    return spaced(phrase) in spaced(text)


class Finder:
    """Finds which of some phrases a text mentions first.

    Of phrases that begin at the same place the longest counts: "can not tell" rather than "can". A phrase that means
    None is skipped together with its words.
    """

    def __init__(self, meanings: Mapping[str, str | None]) -> None:
        self._meanings = {spaced(phrase).strip(): meaning for phrase, meaning in meanings.items()}
        longest_first = sorted(self._meanings, key=len, reverse=True)
        self._pattern = re.compile(f"(?<= )(?:{'|'.join(map(re.escape, longest_first))})(?= )")

    def find(self, text: str) -> str | None:
        """The meaning of the first phrase in the text; None if there is none."""
        found = (self._meanings[match.group()] for match in self._pattern.finditer(spaced(text)))
        return next((meaning for meaning in found if meaning is not None), None)


def as_label(text: str) -> str:
    """The text as a label: case, hyphens, underscores and a final period do not distinguish labels."""
    return spaced(tidy(text)).strip()


_TELL = ("tell", "say", "determine")
_UNDECIDED = (
    *("not sure", "not certain", "not clear", "unsure", "uncertain", "unclear", "unknown", "no idea"),
    *("can not be determined", "can not be said", "not enough information"),
    *(f"{cannot} {tell}" for cannot in ("can not", "not possible to", "impossible to", "no way to") for tell in _TELL),
)


def _each(phrases: Iterable[str], meaning: str | None) -> dict[str, str | None]:
    return dict.fromkeys(phrases, meaning)


YES_NO = Finder({"yes": "yes", "no": "no", "not": "no"} | _each(_UNDECIDED, None))
"""Yes or no: the first of the words yes, no and not (also contracted); "not sure" and the like are no answer."""

TRUE_FALSE = Finder(
    _each(("true", "yes", "correct", "not false", "not wrong", "not incorrect"), "true")
    | _each(("false", "no", "not", "wrong", "incorrect"), "false")
    | _each(_UNDECIDED, None)
)
"""True or false, also as yes or no, correct or wrong; "right" is a place, not an answer."""

_ENTAILED = ("entailment", "entail", "entails", "entailed")
_CONTRADICTED = ("contradiction", "contradict", "contradicts", "contradicted", "contradictory")
ENTAILMENT = Finder(
    _each((*_ENTAILED, "yes", "true"), "entailment")
    | _each((*_CONTRADICTED, "no", "false", "not true"), "contradiction")
    | _each((*_UNDECIDED, "undetermined", "not determined", "undecided", "indeterminate", "inconclusive"), "neutral")
    | _each(("neutral", "maybe", "perhaps", "possibly", "neither", "not necessarily"), "neutral")
    | _each((f"{no} {word}" for no in ("not", "not an", "no", "non") for word in _ENTAILED), None)
    | _each((f"{no} {word}" for no in ("not", "not a", "no", "non") for word in _CONTRADICTED), None)
    | _each(("not neutral", "not false"), None)
)
"""Entailment, neutral or contradiction and their synonyms; "does not entail" can mean two of them: no answer."""
