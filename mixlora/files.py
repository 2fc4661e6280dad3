"""Files that are whole or absent, and names of tasks that are safe as names of files."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file so that a reader finds the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_name(task: str) -> str:
    """A task's name as one component of a path, different for different names: "a/b" becomes "a%2Fb"."""
    name = quote(task, safe=" +=,()")
    return name.replace(".", "%2E") if not task.strip(".") else name
