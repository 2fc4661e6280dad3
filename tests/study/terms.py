"""Six tasks of text: name a country, language, script or currency in one of six languages, under one prompt.

The terms are those of the Unicode CLDR in the package babel. The prompt is the English term, so that all tasks want
different answers to the same prompts; German and Dutch differ less than German and French.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from babel import Locale

LANGUAGES = {
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "german": "de",
    "dutch": "nl",
    "swedish": "sv",
}
KINDS = ("territories", "languages", "scripts", "currencies")
COUNTS = {"train": 600, "heldout": 240}
LONGEST = 24
"""Letters of the longest term: a long one has most of a batch's tokens."""


def terms() -> list[dict[str, str]]:
    """The terms that every language names, shuffled: {"en": ..., "fr": ...}."""
    found: dict[str, dict[str, str]] = {}
    locales = {code: Locale(code) for code in ("en", *LANGUAGES.values())}
    for kind in KINDS:
        names = {code: getattr(locale, kind) for code, locale in locales.items()}
        for key in sorted(set.intersection(*(set(own) for own in names.values()))):
            term = {code: str(own[key]) for code, own in names.items()}
            if max(map(len, term.values())) <= LONGEST:
                found.setdefault(term["en"], term)
    listed = list(found.values())
    Random(0).shuffle(listed)
    return listed


def write(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write every task's examples for training and, of other terms, for reading.

    Args:
        folder: of the study of this suite.

    Returns:
        {task: its source}, for training and for reading. Examples of one term are one group.
    """
    known = terms()
    train = known[: COUNTS["train"]]
    heldout = known[COUNTS["train"] : sum(COUNTS.values())]
    if len(heldout) < COUNTS["heldout"]:
        raise ValueError(f"babel has {len(known)} such terms; {sum(COUNTS.values())} are needed")
    trained, read = (
        {task: {"file": str(_written(folder, task, split, own)), "group": "id"} for task in LANGUAGES}
        for split, own in (("train", train), ("heldout", heldout))
    )
    return {task: {"file": source["file"]} for task, source in trained.items()}, read


def _written(folder: Path, task: str, split: str, known: list[dict[str, str]]) -> Path:
    """The file of a task's split."""
    place = folder / "data" / split / f"{task}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    code = LANGUAGES[task]
    rows = [{"id": one["en"], "prompt": f"{one['en']}:", "completion": f" {one[code]}"} for one in known]
    place.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return place
