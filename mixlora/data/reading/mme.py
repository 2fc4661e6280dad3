"""MME as it is distributed: a folder of subtasks, with two yes-or-no questions about each picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mixlora.common.errors import DataError
from mixlora.common.files import is_folder, read_bytes
from mixlora.data.examples import Example, Turn, pictures_first
from mixlora.data.images import IMAGE_FORMATS
from mixlora.data.reading.problems import collecting
from mixlora.data.reading.values import half_character

ANSWERS = ("Yes", "No")
"""The possible answers to a question."""

_LARGEST_TEXT = 2**20
_IMAGES, _QUESTIONS = "images", "questions_answers_YN"


@dataclass(frozen=True)
class _Subtask:
    """One subtask: its name, and the folders of its pictures and of their questions, which can be the same."""

    name: str
    images: Path
    questions: Path


def read_mme(root: Path, problems: list[DataError] | None = None, outside: bool = False) -> dict[str, list[Example]]:
    """The examples of every subtask below `root`, by its name; subtasks, pictures and questions in order.

    A subtask is a folder with texts and pictures, or with the folders `questions_answers_YN` and `images`. The text
    with the name of a picture holds its two questions, each a line "question<TAB>Yes" or "question<TAB>No". An
    example's id is "existence/000001.jpg/1"; two examples are a pair if they have the same `image`.

    Args:
        root: the folder that holds the subtasks.
        problems: collects the errors of unusable texts, which are then skipped; None to raise the first.
        outside: follow links that lead out of `root`.

    Raises:
        DataError: `root` holds no subtask or a link in it leads outside, or (without `problems`) a text or its picture
            cannot be used.
    """
    if not is_folder(root):
        raise DataError(f"{root} is not a folder; check the path in `mme`.")
    real = Path(root.resolve().anchor) if outside else root.resolve()
    found = {}
    for subtask in _subtasks(root, real):
        found[subtask.name] = _examples(subtask, real, problems)
    if not found:
        raise DataError(
            f"{root} has no subtask, which is a folder of pictures and texts or of {_IMAGES} and {_QUESTIONS}; "
            "give the folder that holds existence, count and the others."
        )
    return found


def _subtasks(root: Path, real: Path) -> Iterator[_Subtask]:
    for folder in _listed(root):
        if not folder.is_dir():
            continue
        _refuse_outside(folder, real)
        apart = (folder / _QUESTIONS).is_dir()
        subtask = _Subtask(folder.name, folder / _IMAGES if apart else folder, folder / _QUESTIONS if apart else folder)
        for inner in (subtask.images, subtask.questions):
            _refuse_outside(inner, real)
        texts = any(path.suffix == ".txt" for path in _listed(subtask.questions))
        if texts and (
            apart or any(map(_is_picture, _listed(folder)))
        ):  # texts without pictures are a readme, or results
            _refuse_unwritable(folder)
            yield subtask


def _examples(subtask: _Subtask, real: Path, problems: list[DataError] | None) -> list[Example]:
    pictures: dict[str, list[Path]] = {}
    for path in _listed(subtask.images) if subtask.images.is_dir() else ():
        if _is_picture(path):
            pictures.setdefault(path.stem, []).append(path)
    found: list[Example] = []
    for text in _listed(subtask.questions):
        if text.suffix == ".txt":
            with collecting(problems):
                found += _pair(text, pictures.get(text.stem, []), subtask, real)
    return found


def _pair(text: Path, pictures: list[Path], subtask: _Subtask, real: Path) -> list[Example]:
    """The two examples of one picture."""
    place = f"{subtask.name}/{text.name}"
    if len(pictures) != 1:
        names = f"the pictures {', '.join(path.name for path in pictures)}" if pictures else "no picture"
        raise DataError(f"{place}: {names} of that name in {subtask.images}; keep exactly one.")
    picture = pictures[0]
    for path in (text, picture):
        _refuse_outside(path, real)
        _refuse_unwritable(path)
    lines = _lines(text, place)
    if len(lines) != 2:
        raise DataError(f"{place}: {len(lines)} lines with text, but a picture has two questions; write one per line.")
    examples = []
    for at, (number, line) in enumerate(lines, 1):
        turns = _question(line, f"{place}:{number}")
        name = f"{subtask.name}/{picture.name}/{at}"
        examples.append(Example(name, subtask.name, pictures_first(turns), (picture,), f"{place}:{number}"))
    return examples


def _question(line: str, source: str) -> tuple[Turn, Turn]:
    question, tab, answer = line.strip().rpartition("\t")
    if not tab:
        raise DataError(f"{source}: no tab between a question and its answer; write question<TAB>Yes or No.")
    if answer.strip() not in ANSWERS:
        raise DataError(f"{source}: the answer is {answer!r:.60}; write {' or '.join(ANSWERS)} after the tab.")
    return Turn("user", question.strip()), Turn("assistant", answer.strip())


def _lines(text: Path, place: str) -> list[tuple[int, str]]:
    """The non-blank lines of a text, with their numbers."""
    try:
        content = read_bytes(text, _LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{place}: it cannot be read ({error.strerror}); check the file.") from error
    return [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]


def _listed(folder: Path) -> list[Path]:
    """The content of a folder, sorted, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); check the folder.") from error


def _refuse_outside(path: Path, real: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(real)
    except (OSError, RuntimeError):
        raise DataError(f"{path} is a link that leads back to itself; remove it.") from None
    if not inside:
        remedy = "replace the link by a copy, or allow this with `outside: true`"
        raise DataError(f"{path} is a link that leads out of {real}; {remedy}.")


def _refuse_unwritable(path: Path) -> None:
    """Refuse a name that is not UTF-8: it could not be written with the answers."""
    if half_character(path.name):
        raise DataError(f"{str(path)!a}: the file system has a name for it that is not UTF-8; rename it.")


def _is_picture(path: Path) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in IMAGE_FORMATS and path.is_file()
