"""A release as a stranger has it: installed into a fresh environment outside the checkout, and used there."""

import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

from packaging.requirements import Requirement

from interference.run import load
from tests.release.built import PROJECT
from tests.support.checkpoints import write_adapter, write_base, write_task
from tests.support.paths import ROOT

CITATIONS = "cffconvert==2.0.0"
TYPED = """
import interference
from mixlora import MixLoraConfig

reveal_type(interference.load("run").tasks)
reveal_type(MixLoraConfig(r=4).num_factors)
interference.load(3)
"""
"""A stranger's module, in whose last line a type checker must find a mistake."""
REVEALED = (
    'note: Revealed type is "list[str]"',
    'note: Revealed type is "int"',
    'error: Argument 1 to "load" has incompatible type "int"',
)
QUICK = ("tests/test_release_files.py", "tests/interference/statistics/test_metrics.py", "tests/test_contributing.py")
"""Tests that are run from the unpacked sdist; of all others it is checked that they can be collected."""


class Environment:
    """A fresh virtual environment and a directory to work in, both outside the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        venv.create(folder / "venv", with_pip=True)
        self.bin = folder / "venv" / "bin"

    def run(self, command: str, *arguments: object, code: int = 0) -> str:
        """What a program of the environment prints in the directory; it must exit with that code."""
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        call = [str(self.bin / command), *map(str, arguments)]
        print("$", command, *arguments, flush=True)
        done = subprocess.run(call, cwd=self.work, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{call}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *what: object, constraints: Path | None = None) -> None:
        held = () if constraints is None else ("--constraint", constraints)
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *held, *what)


def lower_bounds(file: Path) -> Path:
    """Write constraints that name the oldest version of everything that is required."""
    extras = PROJECT["optional-dependencies"]["demo"]
    needed = [Requirement(text) for text in [*PROJECT["dependencies"], *extras]]
    bounds = {one.name: [part.version for part in one.specifier if part.operator == ">="] for one in needed}
    assert all(len(versions) == 1 for versions in bounds.values()), bounds
    file.write_text("".join(f"{name}=={versions[0]}\n" for name, versions in bounds.items()), encoding="utf-8")
    return file


def check_citation(folder: Path) -> None:
    """Validate CITATION.cff by its schema."""
    environment = Environment(folder)
    environment.install(CITATIONS)
    environment.run("cffconvert", "--validate", "-i", ROOT / "CITATION.cff")


def check_commands(environment: Environment) -> None:
    """Import the packages and start both commands."""
    where = "import interference, mixlora; print(interference.__file__, mixlora.__file__)"
    places = environment.run("python", "-c", where).split()
    assert all(Path(place).is_relative_to(environment.folder) for place in places), places
    for command in ("interference", "mixlora"):
        assert environment.run(command, "--version") == f"{PROJECT['version']}\n"
        assert f"Usage: {command}" in environment.run(command, "--help")
    found = {row["what"]: row for row in json.loads(environment.run("interference", "doctor", "--json"))}
    assert found[PROJECT["name"]]["found"] == PROJECT["version"] and found["torch"]["status"] == "ok"


def check_use(environment: Environment) -> None:
    """Measure a tiny checkpoint, print and report it, and run the quick demo."""
    work = environment.work
    tasks = [f"{name}={write_task(work / f'{name}.jsonl', seed=k)}" for k, name in enumerate(["red", "blue"])]
    model = ["--base", write_base(work / "base"), "--adapter", write_adapter(work / "adapter")]
    named = [part for task in tasks for part in ("--task", task)]
    environment.run("interference", "compute", *model, *named, "--samples", "6", "--out", "run")
    shown = json.loads(environment.run("interference", "show", "run", "--json"))
    expected = load(work / "run").table()
    assert [row["affected"] for row in shown] == expected["affected"].tolist() == ["red", "red", "blue", "blue"]
    assert [row["verdict"] for row in shown] == expected["verdict"].tolist()
    environment.run("interference", "report", "run", "--out", "page", "--detail", "small")
    assert "Content-Security-Policy" in (work / "page" / "report.html").read_text(encoding="utf-8")
    said = environment.run("interference", "demo", "--quick", "--out", "demo")
    assert "a quick demo: " in said and "The Stroop pair" in said
    assert (work / "demo" / "report" / "report.html").stat().st_size > 100_000


def check_types(environment: Environment) -> None:
    """Check a stranger's module by mypy: it must see the types of the installed packages."""
    file = environment.work / "stranger.py"
    file.write_text(TYPED, encoding="utf-8")
    call = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--python-executable",
        environment.bin / "python",
        file.name,
    ]
    done = subprocess.run(call, cwd=environment.work, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(file.name)]
    said = [line.split(": ", 1)[1] for line in lines]
    assert len(said) == len(REVEALED) and all(map(str.startswith, said, REVEALED)), done.stdout + done.stderr


def check_tests(sdist: Path, folder: Path) -> None:
    """Collect the tests of an unpacked sdist, and run a few."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for arguments in (["--collect-only", "tests"], QUICK):
        call = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        print("sdist:", done.stdout.splitlines()[-1], flush=True)
