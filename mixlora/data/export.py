"""Examples to files: the JSON of LLaVA and Vision-Flan, and pictures. `reading` reads them back."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mixlora.common.directories import is_occupied
from mixlora.common.errors import DataError, unwritable
from mixlora.common.writing import whole_directory, write_json
from mixlora.data.examples import Example

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def write(examples: Sequence[Example], out: Path) -> None:
    """Write `suite.json` and `images/` to a new directory; a picture that several examples share is written once.

    Raises:
        DataError: the directory is not empty or cannot be written; a failed export leaves nothing.
        WriteError: the disk is full.
    """
    if is_occupied(out):
        raise DataError(f"{out} is not empty; name a new directory.")
    try:
        with whole_directory(out.resolve()) as folder:
            (folder / "images").mkdir()
            write_json(folder / "suite.json", [_record(example, folder / "images") for example in examples])
    except OSError as error:
        raise unwritable(f"{out} cannot be written", error, DataError, "directory", "start again") from None


def _record(example: Example, images: Path) -> dict[str, object]:
    turns = [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in example.turns]
    record: dict[str, object] = {"id": f"{example.task}/{example.id}", "task_name": example.task}
    (image, *more) = example.images or (None,)
    if more:
        raise DataError(
            f"{example.source}: the record has several pictures, but LLaVA's JSON takes one per record; leave it out."
        )
    if isinstance(image, Image.Image):
        path = images / (example.id.replace("/", "-") + ".png")
        if not path.exists():
            image.save(path)
        record["image"] = f"images/{path.name}"
    elif image is not None:
        record["image"] = str(image)
    return record | {"conversations": turns}
