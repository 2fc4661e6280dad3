"""The house: which wing may import which, read from the source, and what importing costs, in a fresh interpreter."""

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("interference", "mixlora")
WINGS = {  # a wing, or a module at the top of a package, may import those listed and nothing else of its package
    "interference.errors": "",
    "interference.blocks": "errors",
    "interference.config": "errors blocks",
    "interference.statistics": "errors",
    "interference.run": "errors blocks statistics",
    "interference.gradients": "errors blocks",
    "interference.measurement": "errors blocks run gradients config",
    "interference.verification": "errors blocks run gradients config measurement",
    "interference.factors": "errors blocks statistics run gradients config measurement",
    "interference.branching": "errors gradients config measurement",
    "interference.prediction": "errors blocks statistics run gradients config measurement branching",
    "interference.advice": "errors blocks statistics run gradients config measurement branching prediction",
    "interference.callback": "errors config statistics run measurement branching prediction figures",
    "interference.figures": "errors blocks statistics run factors prediction",
    "interference.report": "errors blocks statistics run config prediction advice figures",
    "interference.cli": "errors statistics run config measurement verification factors prediction advice "
    "figures report",
    "mixlora.common": "",
    "mixlora.tuner": "common",
    "mixlora.data": "common",
    "mixlora.checkpoints": "common tuner data",
    "mixlora.training": "common tuner data checkpoints",
    "mixlora.evaluation": "common tuner data checkpoints",
    "mixlora.pretraining": "common data evaluation",
    "mixlora.cli": "common data checkpoints training evaluation",
}
ENTRIES = {"interference": 17, "mixlora": 11}
FLOORS = {"interference": 9, "mixlora": 6}
PURE = (
    "interference.blocks",
    "interference.errors",
    "interference.factors.affinity",
    "interference.factors.contrast",
    "interference.factors.neighbours",
    "interference.factors.selections",
    "interference.factors.shuffles",
    "interference.statistics",
    "mixlora.evaluation.scoring",
)
OWNERS = {  # libraries, and the only files that may import them
    "matplotlib": [
        "interference/figures/canvas.py",
        "interference/figures/cells.py",
        "interference/figures/factors.py",
        "interference/figures/predictions.py",
        "interference/figures/scores.py",
        "mixlora/data/mini/draw.py",  # the suite draws words in its font
    ],
    "seaborn": ["interference/figures/cells.py"],
    "typer": [
        "interference/cli/advising.py",
        "interference/cli/commands.py",
        "interference/cli/drawing.py",
        "interference/cli/options.py",
        "interference/cli/predicting.py",
        "mixlora/cli.py",
    ],
    "rich": [
        "interference/cli/demo.py",
        "interference/cli/horizons.py",
        "interference/cli/plans.py",
        "interference/cli/printing.py",
        "interference/cli/trials.py",
        "interference/cli/validations.py",
        "mixlora/common/terminal.py",
    ],
    "filelock": ["mixlora/common/locks.py"],
    "yaml": ["mixlora/common/settings.py"],
    "pydantic": [
        "interference/config/analysis.py",
        "interference/config/steps.py",
        "mixlora/common/sections.py",
        "mixlora/common/settings.py",
        "mixlora/evaluation/config.py",
        "mixlora/training/config.py",
    ],
}


def named(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {named(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def wing(module: str) -> str:
    """The wing that a module belongs to: "interference.run" of "interference.run.grams"."""
    return ".".join(module.split(".")[:2])


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names of every module that a file imports, wherever in it, except for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and isinstance(guard.test, ast.Name) and guard.test.id == "TYPE_CHECKING"
        for child in guard.body
        for node in ast.walk(child)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in whole}
    return frozenset(found)


def loops(arrows: dict[str, set[str]]) -> set[str]:
    """The names that lie on, or depend on, a cycle of arrows."""
    left = dict(arrows)
    while ready := [name for name, below in left.items() if not below & set(left)]:
        for name in ready:
            del left[name]
    return set(left)


def below(row: str) -> set[str]:
    """The wings that a row of the table allows."""
    return {f"{row.split('.', maxsplit=1)[0]}.{name}" for name in WINGS[row].split()}


def height(row: str) -> int:
    """Wings on the longest way down from one, itself included."""
    return 1 + max((height(other) for other in below(row)), default=0)


def test_every_wing_has_its_row():
    assert {wing(name) for name in MODULES} - set(PACKAGES) == set(WINGS)


@pytest.mark.parametrize("package", PACKAGES)
def test_wings_are_few_and_stand_on_few_floors(package):
    there = [path for path in (ROOT / package).iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(there) <= ENTRIES[package], sorted(path.name for path in there)
    rows = [row for row in WINGS if row.startswith(package)]
    assert loops({row: below(row) for row in rows}) == set()
    assert max(map(height, rows)) <= FLOORS[package]


@pytest.mark.parametrize("row", WINGS)
def test_wings_import_one_way(row):
    package = row.split(".")[0]
    used = {
        wing(target): path
        for name, path in MODULES.items()
        if wing(name) == row
        for target in imported(path)
        if target.startswith(f"{package}.")
    }
    unexpected = {target: str(path) for target, path in used.items() if target not in below(row) | {row}}
    assert unexpected == {}
    assert below(row) <= set(used), "the table allows more than there is"


def test_no_module_imports_itself_in_a_circle():
    arrows = {name: {target for target in imported(path) if target in MODULES} for name, path in MODULES.items()}
    assert loops({name: targets - {name} for name, targets in arrows.items()}) == set()


def test_mixlora_never_imports_interference():
    bad = {
        name
        for name, path in MODULES.items()
        if name.startswith("mixlora") and any("interference" in target for target in imported(path))
    }
    assert bad == set()


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_alone(library):
    users = [path for path in MODULES.values() if any(name.split(".")[0] == library for name in imported(path))]
    assert sorted(str(path.relative_to(ROOT)) for path in users) == OWNERS[library]


@pytest.mark.parametrize("pure", PURE)
def test_pure_modules_know_no_model(pure):
    paths = [path for name, path in MODULES.items() if name == pure or name.startswith(f"{pure}.")]
    known = {target.split(".")[0] for path in paths for target in imported(path)}
    assert paths and known & {"torch", "transformers", "peft", "safetensors", "typer", "rich"} == set()


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_every_folder_says_what_lives_there(name):
    assert len(ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or "") > 60


@pytest.mark.parametrize("name", ["metrics", "uncertainty", "reference", "paper", "observation", "figures", "factors"])
def test_public_modules_are_found_under_their_public_names(name):
    package = importlib.import_module("interference")
    assert importlib.import_module(f"interference.{name}") is getattr(package, name)
    assert getattr(package, name).__spec__.name == getattr(package, name).__name__


def test_the_published_layout_is_found_under_its_public_name():
    official = importlib.import_module("mixlora.official")
    assert official is importlib.import_module("mixlora").official and official.load_projector


def loaded_after(code: str, *names: str) -> list[str]:
    """Which of the modules a fresh interpreter has after running the code."""
    ask = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint([n for n in {names} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    return ast.literal_eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import interference",
        "import mixlora",
        "import mixlora.data.mini",
        "sys.argv = ['interference', '--help']; from interference.cli import main; main()",
        "sys.argv = ['interference', 'compute', '--help']; from interference.cli import main; main()",
        "sys.argv = ['interference', 'figure', '--help']; from interference.cli import main; main()",
        "sys.argv = ['mixlora', '--help']; from mixlora.cli import main; main()",
        "sys.argv = ['mixlora', 'train', '--help']; from mixlora.cli import main; main()",
        "from mixlora.training import config",
    ],
)
def test_nothing_heavy_is_imported(code):
    assert loaded_after(code, "torch", "transformers", "peft", "pandas", "scipy", "matplotlib") == []


def test_pure_numbers_need_neither_torch_nor_transformers():
    code = "from interference import blocks, metrics, uncertainty"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib", "scipy") == ["scipy"]


def test_a_run_is_read_and_printed_without_torch():
    code = "from interference import compare, load; from interference.cli import printing; load"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib") == []


def test_factors_are_read_and_counted_without_torch():
    code = "from interference import factors; factors.load"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib") == []


def test_a_lookahead_is_read_and_put_into_tables_without_torch():
    code = "from interference import prediction; prediction.load"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib") == []


def test_figures_are_drawn_without_torch():
    assert loaded_after("from interference.figures import gallery", "torch", "transformers", "peft", "typer") == []


def test_a_report_is_computed_without_torch():
    code = "from interference.report import data, tables"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib", "typer") == []


def test_configurations_are_read_without_torch():
    assert loaded_after("from interference import config", "torch", "transformers", "peft") == []


def test_predictions_are_scored_and_put_into_tables_without_torch():
    code = "from mixlora.evaluation import config, results, tables; from mixlora.evaluation.scoring import metrics, mme"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib", "scipy", "pandas") == []
