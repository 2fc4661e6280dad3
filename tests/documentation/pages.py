"""Run what README and docs/ show: Python, shell commands with their output, configurations.

A block runs unless a comment before it gives the reason why not: `<!-- skip: next "needs a GPU" -->` in README,
`% skip: next "needs a GPU"` in docs/. Notebooks, whose cells the site's build runs, are not run here.
"""

import doctest
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import yaml
from sybil import Example, Sybil
from sybil.parsers import markdown, myst

from interference.cli import main as interference
from interference.config import AnalysisConfig
from mixlora.cli import main as mixlora
from mixlora.evaluation.config import EvaluateConfig
from mixlora.training.config import TrainConfig
from tests.support.paths import ROOT

COMMANDS: dict[str, Callable[[], object]] = {"interference": interference, "mixlora": mixlora}
CHECKER = doctest.OutputChecker()
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NOT_HERE = ("_build", "_static", "cli-", "-config.md")
"""Parts of names of what is generated or is no page."""


def pages() -> list[Path]:
    """README and every page of docs/ that is neither generated nor a notebook."""
    found = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not any(part in str(page) for part in NOT_HERE)]
    return [ROOT / "README.md", *(page for page in found if "{code-cell}" not in page.read_text(encoding="utf-8"))]


def examples(page: Path) -> list[Example]:
    """The code blocks of a page, in order."""
    kind = markdown if page.name == "README.md" else myst
    languages = {"sh": shell, "console": console, "yaml": configuration}
    parsers = [kind.CodeBlockParser(language, run) for language, run in languages.items()]
    return list(Sybil([kind.PythonCodeBlockParser(), kind.SkipParser(), *parsers]).parse(page))


def shell(example: Example) -> None:
    """Run the commands of a block; each must succeed."""
    for line in _lines(example.parsed):
        run(line)


def console(example: Example) -> str | None:
    """Run the commands after `$`; what they print must be what stands below them, where anything does."""
    for line, wanted in _sessions(example.parsed):
        got = run(line)
        if wanted and not CHECKER.check_output(wanted, got, OPTIONS):
            return f"{line}\nprinted\n{got}\nand not\n{wanted}"
    return None


def configuration(example: Example) -> None:
    """Check a configuration's keys and values; its first line may name the file that it becomes, as `# mine.yaml`."""
    first = example.parsed.split("\n", 1)[0].removeprefix("#").strip()
    if first.endswith((".yaml", ".yml")):
        Path(first).write_text(example.parsed, encoding="utf-8")
    values = yaml.safe_load(example.parsed)
    whole = {"tasks": {"any": {"file": "any.jsonl"}}, **values}
    if "training" in values or "method" in values:
        TrainConfig.model_validate(whole)
    elif "generation" in values or any("score" in task for task in values.get("tasks", {}).values()):
        EvaluateConfig.model_validate(whole)
    else:
        AnalysisConfig.model_validate({"model": {"base": "any", "adapter": "any"}, **whole})


def run(line: str) -> str:
    """What a command prints on stdout; our own commands run in this process.

    Raises:
        AssertionError: it fails.
    """
    words = shlex.split(line, comments=True)
    if words[0] not in COMMANDS:
        done = subprocess.run(line, check=False, shell=True, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout
    said, told, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", words), redirect_stdout(said), redirect_stderr(told):
        try:
            COMMANDS[words[0]]()
        except SystemExit as ended:
            code = ended.code or 0
    assert code == 0, f"{line}\n{said.getvalue()}\n{told.getvalue()}"
    return said.getvalue()


def _lines(text: str) -> list[str]:
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]


def _sessions(text: str) -> list[tuple[str, str]]:
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif found:
            found[-1][1] += line + "\n"
    return [(command, wanted) for command, wanted in found]


def environment() -> dict[str, str]:
    """Of commands that run as users see them: a terminal of 110 columns without colours, no network."""
    return {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "PATH": (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )}  # fmt: skip
