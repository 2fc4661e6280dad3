"""The suite's tasks: six to train on, one for each capability of the paper, and seven unseen ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from mixlora.data.mini.draw import FONTS, INKS, SHAPES
from mixlora.data.mini.pictures import DIGITS, EASY_VQA_COLOURS, LETTERS, SIGNS

Facts = Mapping[str, str]
Ask = Callable[[Random, Facts], tuple[str, str]]

FRENCH = dict(
    zip(DIGITS, ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"), strict=True)
)
NEXT = dict(zip(DIGITS, (*DIGITS[1:], "ten"), strict=True))
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Task:
    """A task of the suite.

    Attributes:
        name: what `examples` calls it.
        capability: the paper's capability, or evaluation set, that it represents.
        definition: the instruction in one sentence.
        answers: every possible answer.
        source: the source of its pictures (a key of `pictures.SOURCES`).
        ask: makes a question and its answer from the facts of a picture.
        options: the number of answers that a question offers; None if it offers none.
    """

    name: str
    capability: str
    definition: str
    answers: tuple[str, ...]
    source: str
    ask: Ask = field(repr=False, compare=False)
    options: int | None = None

    @property
    def chance(self) -> float:
        """The accuracy of guessing among a question's possible answers, which are about equally frequent."""
        return 1 / (self.options or len(self.answers))


def _phrased(questions: tuple[str, ...], answer: Callable[[Facts], str]) -> Ask:
    """Ask one of several wordings of the same question."""
    return lambda rng, facts: (rng.choice(questions), answer(facts))


def _between(question: str, fact: str, answers: tuple[str, ...]) -> Ask:
    """Ask to choose between the true answer and another, in random order; `question` is a pattern with two gaps."""

    def ask(rng: Random, facts: Facts) -> tuple[str, str]:
        options = [facts[fact], rng.choice([answer for answer in answers if answer != facts[fact]])]
        rng.shuffle(options)
        return question.format(*options), facts[fact]

    return ask


def _ask_presence(rng: Random, facts: Facts) -> tuple[str, str]:
    present = rng.random() < 0.5
    kind = facts["shape"] if present else rng.choice([kind for kind in SHAPES if kind != facts["shape"]])
    return f"Can you see a {kind}?", "yes" if present else "no"


def _ask_spatial(rng: Random, facts: Facts) -> tuple[str, str]:
    true = rng.random() < 0.5
    first, second = (facts["first"], facts["second"]) if true else (facts["second"], facts["first"])
    place = {"left": "to the left of", "above": "above"}[facts["relation"]]
    return f"Is the {first} {place} the {second}?", "yes" if true else "no"


def _ask_entailment(rng: Random, facts: Facts) -> tuple[str, str]:
    verdict = rng.choice(("yes", "no", "maybe"))
    colour = facts["colour"]
    if verdict == "no":
        colour = rng.choice([other for other in EASY_VQA_COLOURS if other != colour])
    claim = rng.choice(("heavy", "old", "soft")) if verdict == "maybe" else colour
    return f"Does it follow that it is {claim}?", verdict


_TRAINING = (
    Task(
        "next_number",
        "complex reasoning",
        "Look at the handwritten digit and answer with the number that comes after it, as an English word.",
        tuple(NEXT.values()),
        "digit",
        _phrased(("What is this digit plus one?", "Add one to this digit."), lambda facts: NEXT[facts["digit"]]),
    ),
    Task(
        "name_shape",
        "coarse perception",
        "Tell which geometric shape is drawn in the picture: a circle, a rectangle or a triangle.",
        SHAPES,
        "shape",
        _phrased(("Which shape is drawn here?", "What shape do you see?"), lambda facts: facts["shape"]),
    ),
    Task(
        "name_ink",
        "fine-grained perception",
        "A colour word is written in ink of another colour; name the colour of the ink and ignore the word.",
        tuple(INKS),
        "stroop",
        _phrased(("What colour is the ink?", "Name the colour of the ink."), lambda facts: facts["ink"]),
    ),
    Task(
        "name_in_french",
        "knowledge",
        "Look at the handwritten digit and name it in French.",
        tuple(FRENCH.values()),
        "digit",
        _phrased(
            ("What is this digit called in French?", "Name this digit in French."),
            lambda facts: FRENCH[facts["digit"]],
        ),
    ),
    Task(
        "read_word",
        "OCR",
        "A colour word is written in ink of another colour; read the word and ignore the colour of the ink.",
        tuple(INKS),
        "stroop",
        _phrased(("Which word is written?", "Read the word."), lambda facts: facts["word"]),
    ),
    Task(
        "font_style",
        "domain",
        "Tell in which style of type the word is set: sans, serif, mono, bold or italic.",
        tuple(FONTS),
        "style",
        _phrased(("In which style is the word set?", "What is the style of the font?"), lambda facts: facts["style"]),
    ),
)

_UNSEEN = (
    Task(
        "sign",
        "text VQA",
        "Read the word on the coloured sign.",
        SIGNS,
        "sign",
        _between("What does it say, {} or {}?", "word", SIGNS),
        options=2,
    ),
    Task(
        "spatial",
        "spatial reasoning",
        "Two shapes are drawn; answer yes or no to whether the first one named stands left of, or above, the other.",
        YES_NO,
        "pair",
        _ask_spatial,
    ),
    Task(
        "entailment",
        "visual entailment",
        "Tell whether a sentence follows from the picture: yes, no, or maybe when the picture cannot tell.",
        ("yes", "no", "maybe"),
        "shape",
        _ask_entailment,
    ),
    Task(
        "shape_colour",
        "image classification, few classes",
        "Name the colour of the geometric shape.",
        tuple(EASY_VQA_COLOURS),
        "shape",
        _between("What colour is it, {} or {}?", "colour", tuple(EASY_VQA_COLOURS)),
        options=2,
    ),
    Task(
        "letter",
        "image classification, many classes",
        "Tell which letter of the alphabet is drawn.",
        tuple(LETTERS),
        "letter",
        _between("Which letter is it, {} or {}?", "letter", tuple(LETTERS)),
        options=2,
    ),
    Task(
        "digit",
        "handwritten digits",
        "Name the handwritten digit in English.",
        DIGITS,
        "digit",
        _between("Which digit is it, {} or {}?", "digit", DIGITS),
        options=2,
    ),
    Task(
        "presence",
        "object presence",
        "Answer yes or no to whether the shape asked for is in the picture.",
        YES_NO,
        "shape",
        _ask_presence,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TRAINING}
UNSEEN: dict[str, Task] = {task.name: task for task in _UNSEEN}
