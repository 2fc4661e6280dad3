"""Ten of the mini suite's tasks as files, all under one instruction.

Three tasks name the same digits, two the same colour words, two the same shapes: full conflicts. The other three have
pictures of their own.
"""

import json
from pathlib import Path
from typing import Any

from mixlora.data.mini import examples
from mixlora.data.mini.pictures import Split

TASKS = (
    *("next_number", "name_in_french", "digit"),
    *("name_shape", "shape_colour"),
    *("name_ink", "read_word"),
    *("font_style", "letter", "sign"),
)
PROMPT = "Answer."
COUNTS: dict[Split, int] = {"train": 600, "heldout": 260}


def write(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write every task's examples for training and for reading.

    Args:
        folder: of the study of this suite.

    Returns:
        {task: its source}, for training and for reading.
    """
    trained, read = ({task: {"file": str(_written(folder, task, split))} for task in TASKS} for split in COUNTS)
    return trained, read


def _written(folder: Path, task: str, split: Split) -> Path:
    """The file of a task's split, with its pictures beside it."""
    place = folder / "data" / split / f"{task}.jsonl"
    if place.exists():
        return place
    (place.parent / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for one in examples(task, split, COUNTS[split]):
        picture = f"images/{task}-{one.id}.png"
        one.images[0].save(place.parent / picture)
        rows.append({"id": one.id, "image": picture, "prompt": PROMPT, "response": one.turns[1].text})
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place
