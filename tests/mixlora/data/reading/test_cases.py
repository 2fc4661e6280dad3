"""Small files in the shapes that people bring (`tests/cases`): one row a file, and what comes out of each."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mixlora.common.errors import DataError
from mixlora.data.checking import as_error
from mixlora.data.examples import Example, Form
from mixlora.data.images import image_size, open_image
from mixlora.data.reading.problems import Noted
from mixlora.data.sources import examples_of
from tests.support.paths import ROOT
from tests.support.records import refusal, task_of, with_image

CASES = ROOT / "tests" / "cases"
DATA, IMAGES = CASES / "data", CASES / "images"
QA, ASKED = ("user: Q 0", "assistant: A 0"), ("user: Q 0", "assistant: A")
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
PIXEL = (1, 1)
SQUARE = (60, 50)
M, Q, P = Form.MESSAGES, Form.QUESTION, Form.PLAIN


@dataclass(frozen=True)
class Case:
    """What the first example of a file is; the others differ from it by a number.

    Attributes:
        turns: role and text of each.
        count: how many examples the file has.
        form: how a trainer writes it.
        places: where in each turn pictures stand, if any do.
        sizes: of its pictures.
        context: the turns that are not supervised.
        tools: names of functions that it may call.
        more: what the turns have besides, {turn: {key: value}}.
        prompt_turns: how many turns are the prompt.
    """

    turns: tuple[str, ...]
    count: int = 4
    form: Form = M
    places: tuple[tuple[int, ...], ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    context: tuple[int, ...] = ()
    tools: tuple[str, ...] = ()
    more: dict[int, dict] = field(default_factory=dict)
    prompt_turns: int = 0


def pictured(turns: tuple[str, ...] = QA, at: tuple[int, ...] = (0,), sizes=(SQUARE,), **more) -> Case:
    return Case(turns, places=(at, ()), sizes=sizes, **more)


SALUTED = ("user: hello", "assistant: salut")
READ = {
    "alpaca.jsonl": Case(
        ("system: You translate.", *SALUTED, "user: Translate to French.\nword number 0", "assistant: mot 0")
    ),
    "axolotl-train-false.jsonl": Case(
        ("user: Q 0", "assistant: WRONG ANSWER", "user: Again.", "assistant: A 0"), context=(1,)
    ),
    "conv-rolecontent.jsonl": Case(QA),
    "conversation-key.jsonl": Case(QA),
    "images-list-of-one.json": pictured(),
    "images-string.json": pictured(ASKED),
    "img-base64.json": pictured(sizes=(PIXEL,)),
    "img-several.json": pictured(at=(0, 0), sizes=(SQUARE, SQUARE)),
    "mc.jsonl": Case(("user: Pick 0", "assistant: a"), 8, Q),
    "messages-as-string.jsonl": Case(QA),
    "messages-fromvalue.jsonl": Case(QA),
    "mixed-null.json": pictured(),
    "multi.jsonl": Case(("user: Q 0", "assistant: First 0", "user: More", "assistant: Second 0")),
    "multihi.jsonl": Case(("user: Q 0", "assistant: hi", "user: More", "assistant: Second 0")),
    "num.jsonl": Case(("user: 1+0", "assistant: 1"), form=Q),
    "openai-toolcontent.jsonl": Case(
        ("user: Q 0", "assistant: Let me look."), tools=("f",), more={1: {"tool_calls": [CALL]}}
    ),
    "part-base64.json": pictured(sizes=(PIXEL,)),
    "part-image.json": pictured(),
    "placeholder-missing.json": pictured(("user: What?", "assistant: A")),
    "plain.jsonl": Case(("user: Say 0.", "assistant: It is 0."), 6, Q),
    "prompt-system.jsonl": Case(("system: Answer in capitals.", *QA)),
    "role-Human.jsonl": Case(QA),
    "role-model.jsonl": Case(QA),
    "role-tool.jsonl": Case((*QA, "tool: 42", "assistant: done")),
    "sharegpt-system.json": Case(("system: You are terse.", *QA), tools=("f",)),
    "special.jsonl": Case(("user: Strike it", "assistant: <s>old</s> new 0"), form=Q),
    "sysmid.jsonl": Case(("user: Q", "assistant: A", "system: now terse", "user: Q2", "assistant: B"), 3),
    "text-before-image.json": pictured(("user: Look here:  and say 0", "assistant: A 0"), (11,)),
    "trl-pc.jsonl": Case(("user: 2+0=", "assistant:  2"), form=P),
    "trl-pc-conv.jsonl": Case(QA, form=Form.COMPLETION, prompt_turns=1),
    "trl-text.jsonl": Case(("assistant: ### Q 0 ### A 0",), form=Form.TEXT),
    "two-users.jsonl": Case(("user: Q 0", "user: and?", "assistant: A", "assistant: B")),
    "wrapped.json": Case(QA, 6, Q),
    "x.csv": Case(QA, 6, Q),
    "x.jsonl.gz": Case(QA, 6, Q),
}
BEGINS = "the conversation does not begin with a user turn; add the question."
EMPTY = "an answer is empty, so there is nothing to learn; fill it or drop the record."
WEB = "the image 'https://example.org/a.png' is on the web; nothing is downloaded: save it, and name the file."
REFUSED = {  # {file: (place of the first, what is said of it, how many are refused, how many are not)}
    "empty-mid.jsonl": ("empty-mid.jsonl:1", EMPTY, 4, 0),
    "ends-user.jsonl": (
        "ends-user.jsonl:1",
        "the conversation ends with a user turn; end it with the assistant's answer.",
        4,
        0,
    ),
    "img-url.json": ("img-url.json[0]", WEB, 4, 0),
    "nan.parquet": ("nan.parquet[1]", "response is missing (None); fill it or drop the record.", 1, 3),
    "part-url.json": ("part-url.json[0]", WEB, 4, 0),
    "starts-gpt.jsonl": ("starts-gpt.jsonl:1", BEGINS, 4, 0),
    "thirty-bad.jsonl": ("thirty-bad.jsonl:1", EMPTY, 30, 60),
    "video.json": ("video.json[0]", "video is 'v.mp4'; videos and sounds are not read: drop the record.", 4, 0),
}


def keys(name: str, **more) -> dict:
    return {"file": DATA / name, "images": IMAGES, **more}


def read(name: str, **more) -> tuple[list[Example], Noted]:
    noted = Noted()
    return examples_of("t", task_of(**keys(name, **more)), None, 0, None, noted)["t"], noted


def test_every_file_has_a_row():
    assert {path.name for path in DATA.iterdir()} == {*READ, *REFUSED, "a.png"}


@pytest.mark.parametrize("name", READ)
def test_files_that_are_read(name):
    case, (examples, noted) = READ[name], read(name)
    first = examples[0]
    assert tuple(f"{turn.role}: {turn.text}" for turn in first.turns) == case.turns
    assert (len(examples), first.form, first.prompt_turns) == (case.count, case.form, case.prompt_turns)
    assert tuple(turn.places for turn in first.turns) == (case.places or ((),) * len(case.turns))
    assert tuple(image_size(first, number) for number in range(len(first.images))) == case.sizes
    assert tuple(at for at, turn in enumerate(first.turns) if not turn.supervised) == case.context
    assert tuple(tool.get("function", tool)["name"] for tool in first.tools) == case.tools
    assert {at: turn.more for at, turn in enumerate(first.turns) if turn.more} == case.more
    assert noted.json() == {"skipped": {}, "unread_keys": []}


def test_nulls_are_no_pictures():
    examples, _ = read("mixed-null.json")
    assert [len(example.images) for example in examples] == [1, 0, 1, 0]
    assert [Path(example.images[0]).name for example in examples if example.images] == ["a.png", "b.png"]


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused_or_skipped(name):
    place, said, bad, good = REFUSED[name]
    assert refusal(**keys(name)) == f"{place}: {said}"
    problems: list[DataError] = []
    examples_of("t", task_of(**keys(name)), None, 0, problems)
    told = str(as_error(problems)).split("\n")
    if bad == 1:
        assert told == [f"{place}: {said}"]
    else:
        assert told[0].startswith(f"{bad} records cannot be used;") and told[1].startswith(f"  {place}: {said}")
        file = re.split(r"[:\[]", place)[0]
        assert sum(line.count(f"{file}{place[len(file)]}") for line in told) == min(bad, 20)
        assert bad <= 20 or told[-1] == f"  and {bad - 20} more"
    examples, noted = read(name, on_error="skip")
    assert (len(examples), noted.skipped.total(), len(noted.skipped)) == (good, bad, 1)
    (reason,) = noted.skipped
    assert next(iter(noted.sentences("t"))) == f"task 't': {bad} records were skipped ({bad} x {reason})"
    assert place not in reason


def test_a_video_that_is_ignored_still_stands_in_the_text():
    assert refusal(**keys("video.json", ignore=["video"])) == (
        "video.json[0]: the text has <video>, which is not supported; remove it or drop the record."
    )


def ramp(data: np.ndarray) -> bool:
    return bool((np.diff(data[0, :, 0].astype(int)) >= 0).all() or (np.diff(data[:, 0, 0].astype(int)) >= 0).all())


@pytest.mark.parametrize(
    ("name", "size", "corners"),
    [
        ("a.png", (60, 50), ((200, 30, 30), (200, 30, 30))),
        ("anim.gif", (60, 50), ((200, 30, 30), (200, 30, 30))),
        ("b.png", (60, 50), ((0, 0, 200), (0, 0, 200))),
        ("cmyk.jpg", (60, 50), ((255, 0, 0), (255, 0, 0))),
        ("exif.jpg", (40, 80), ((254, 0, 0), (0, 0, 0))),
        ("f32.tif", (60, 50), ((0, 0, 0), (255, 255, 255))),
        ("i16.png", (60, 50), ((0, 0, 0), (255, 255, 255))),
        ("la.png", (60, 50), ((128, 128, 128), (128, 128, 128))),
    ],
)
def test_pictures_of_every_kind(name, size, corners):
    example = with_image(IMAGES / name)
    opened = open_image(example)
    assert (opened.mode, opened.size, image_size(example)) == ("RGB", size, size)
    assert (opened.getpixel((0, 0)), opened.getpixel((size[0] - 1, size[1] - 1))) == corners
    if name in ("f32.tif", "i16.png"):  # a ramp from black to white, neither cut nor saturated
        data = np.asarray(opened)
        assert ramp(data) and abs(data.mean() - 127.5) < 1 and len(np.unique(data)) > 40
