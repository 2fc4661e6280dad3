"""Records written to files, and read back."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.common.sections import TaskGroupSection
from mixlora.common.settings import build
from mixlora.data.examples import Example, Turn, pictures_first
from mixlora.data.reading.tasks import read_task

QA = (Turn("user", "What?"), Turn("assistant", "Red"))
SHOWN = pictures_first(QA)
"""The same about a picture."""


def write(folder: Path, *records, name: str = "records.jsonl") -> Path:
    file = folder / name
    as_list = name.endswith(".json")
    file.write_text(json.dumps(list(records)) if as_list else "\n".join(map(json.dumps, records)), encoding="utf-8")
    return file


def save_picture(path: Path, size=(6, 4), color=(255, 0, 0), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def task_of(**keys) -> TaskGroupSection:
    """The section of a configuration that says these keys."""
    return build(TaskGroupSection, {k: str(v) if isinstance(v, Path) else v for k, v in keys.items()}, "task")


def read(file: Path, **keys) -> list[Example]:
    return read_task(task_of(file=file, **keys), "colors")


def refusal(file: Path, **keys) -> str:
    with pytest.raises(DataError) as error:
        read(file, **keys)
    return str(error.value)


def with_image(image) -> Example:
    return Example("1", "t", QA, (image,), "f.jsonl:1")
