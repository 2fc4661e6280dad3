"""CONTRIBUTING's map: what it sends a reader to is there."""

import re

from tests.support.paths import ROOT

QUOTED = re.findall(r"`([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
FILES = sorted({text for text in QUOTED if re.fullmatch(r"[\w./-]+\.(py|js|css|html|md|toml)", text)})
NAMES = sorted({text for text in QUOTED if re.fullmatch(r"_?[A-Z][A-Z_]+|_[a-z_]+|[A-Z][a-z]+[A-Z]\w+", text)})


def test_every_file_that_is_named_stands():
    ends = [
        f"/{path.relative_to(ROOT).as_posix()}"
        for wing in ("interference", "mixlora", "tests", "reports")
        for path in (ROOT / wing).rglob("*")
    ]
    missing = [
        file for file in FILES if not (ROOT / file).exists() and not any(end.endswith(f"/{file}") for end in ends)
    ]
    assert len(FILES) > 20 and missing == []


def test_every_name_is_one_of_the_code():
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for wing in ("interference", "mixlora", "tests")
        for path in (ROOT / wing).rglob("*")
        if path.suffix in (".py", ".js") and path.name != "test_contributing.py"
    )
    words = set(re.findall(r"\w+", code))
    assert len(NAMES) > 10 and [name for name in NAMES if name not in words] == []
