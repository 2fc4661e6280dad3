"""The arrows between modules, read from the source, and what importing costs, measured in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("interference", "mixlora")
LAYERS = {  # a module of `interference` may import those listed, and nothing else of the two packages
    "errors": "",
    "blocks": "errors",
    "pairing": "errors",
    "measure": "errors pairing",
    "metrics": "errors pairing measure",
    "significance": "errors pairing",
    "resampling": "errors pairing measure metrics significance",
    "uncertainty": "errors pairing measure metrics resampling significance",
    "config": "errors blocks mixlora",
    "targets": "errors blocks mixlora",
    "gradients": "errors blocks targets mixlora",
    "reference": "errors blocks targets gradients mixlora",
    "packing": "",
    "packed": "packing",
    "sketch": "",
    "spool": "errors",
    "gram": "errors packing spool mixlora",
    "unfinished": "errors spool stored mixlora",
    "stored": "errors mixlora",
    "reading": "errors blocks packed stored",
    "run": "errors blocks measure metrics packed packing reading remarks stored uncertainty mixlora",
    "selections": "errors significance",
    "neighbours": "errors selections",
    "factors": "errors neighbours run selections stored",
    "checkpoint": "errors config mixlora",
    "probing": "errors blocks targets gradients gram sketch spool mixlora",
    "sampled": "errors config probing mixlora",
    "measuring": "errors blocks gram packing probing run spool targets mixlora",
    "computation": "errors blocks config measuring pairing targets gradients run checkpoint probing sampled sketch "
    "spool stored unfinished mixlora",
    "verification": "errors blocks config targets gradients reference run checkpoint probing sampled sketch "
    "computation mixlora",
    "callback": "errors measure significance run probing computation",
    "planning": "blocks config measuring targets gradients gram packing checkpoint probing sampled spool stored "
    "mixlora",
    "observation": "errors blocks config targets gradients checkpoint probing sampled spool factors selections stored "
    "unfinished mixlora",
    "affinity": "errors selections",
    "remarks": "",
    "canvas": "errors stored mixlora",
    "figures": "errors blocks canvas measure run mixlora",
    "factor_figures": "errors affinity blocks canvas factors neighbours selections mixlora",
    "score_figures": "errors canvas mixlora",
    "paper": "errors affinity blocks canvas factor_figures factors figures neighbours remarks run "
    "score_figures selections mixlora",
    "gallery": "errors canvas factors paper run",
    "printing": "errors reading remarks run mixlora",  # plans and verifications are given to it
    "demonstration": "errors config computation run figures printing writing mixlora",
    "options": "errors config neighbours mixlora",
    "cli": "errors config computation run verification planning printing demonstration factor_figures factors figures "
    "gallery neighbours observation options writing mixlora",
    "__init__": "",  # names are loaded when they are used
}
REPORT = {  # a module of `interference.report` likewise, with those beside it
    "phrases": "",
    "scopes": "errors blocks measure pairing run",
    "measured": "errors resampling significance uncertainty run scopes mixlora",
    "grouping": "significance phrases",
    "words": "significance remarks grouping measured phrases scopes",
    "changes": "errors remarks significance uncertainty depth measured phrases scopes",
    "depth": "significance run measured scopes",
    "drivers": "measure pairing significance run measured",
    "excerpts": "errors config run mixlora",
    "data": "errors remarks run changes depth drivers excerpts grouping measured phrases scopes words mixlora",
    "tables": "data scopes",
    "page": "",
    "writing": "errors canvas figures run stored data depth page tables mixlora",
    "__init__": "",
}
PURE = (
    "affinity",
    "blocks",
    "errors",
    "packing",
    "pairing",
    "measure",
    "metrics",
    "neighbours",
    "resampling",
    "selections",
    "significance",
    "uncertainty",
)
OWNERS = {  # libraries, and the only files that may import them
    "matplotlib": [
        "interference/canvas.py",
        "interference/factor_figures.py",
        "interference/figures.py",
        "interference/score_figures.py",
        "mixlora/data/mini/draw.py",  # the suite draws words in its font
    ],
    "seaborn": ["interference/figures.py"],
    "typer": ["interference/cli.py", "interference/options.py", "mixlora/cli.py"],
    "rich": ["interference/demonstration.py", "interference/printing.py", "mixlora/console.py"],
    "yaml": ["mixlora/settings.py"],
    "pydantic": [
        "interference/config.py",
        "mixlora/evaluation/config.py",
        "mixlora/sections.py",
        "mixlora/settings.py",
        "mixlora/training/config.py",
    ],
}


def files():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
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
            bare = node.module in (*PACKAGES, "interference.report") or node.module.endswith(".data")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if bare else {node.module}
    return found


def test_every_module_has_its_place_in_the_table():
    for folder, table in (("interference", LAYERS), ("interference/report", REPORT)):
        assert {path.stem for path in (ROOT / folder).glob("*.py")} == set(table)


def test_the_table_has_no_cycle():
    done, layers = set(), LAYERS | REPORT
    while len(done) < len(layers):
        ready = {name for name, below in layers.items() if set(below.split()) - {"mixlora"} <= done} - done
        assert ready, set(layers) - done
        done |= ready


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(f"interference/{name}.py", below) for name, below in LAYERS.items()]
    + [(f"interference/report/{name}.py", below) for name, below in REPORT.items()],
)
def test_interference_imports_point_one_way(path, allowed):
    own = {target for target in imported(ROOT / path) if target.split(".")[0] in PACKAGES}
    rooms = {target.removeprefix("interference.").removeprefix("report.").split(".")[0] for target in own}
    assert rooms <= set(allowed.split()), f"{path} imports {sorted(rooms - set(allowed.split()))}"


def test_mixlora_never_imports_interference():
    bad = {path for path in (ROOT / "mixlora").rglob("*.py") for name in imported(path) if "interference" in name}
    assert bad == set()


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_alone(library):
    users = [path for path in files() if any(name.split(".")[0] == library for name in imported(path))]
    assert sorted(str(path.relative_to(ROOT)) for path in users) == OWNERS[library]


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_no_model(name):
    known = {target.split(".")[0] for target in imported(ROOT / "interference" / f"{name}.py")}
    assert known & {"torch", "transformers", "peft", "safetensors", "typer", "rich"} == set()


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
    code = "from interference import compare, load, printing; load"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib", "typer") == []


def test_factors_are_read_and_counted_without_torch():
    assert loaded_after("from interference import factors", "torch", "transformers", "peft", "matplotlib") == []


def test_figures_are_drawn_without_torch():
    assert loaded_after("from interference import gallery", "torch", "transformers", "peft", "typer") == []


def test_a_report_is_computed_without_torch():
    code = "from interference.report import data, tables"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib", "typer") == []


def test_configurations_are_read_without_torch():
    assert loaded_after("from interference import config", "torch", "transformers", "peft") == []


def test_predictions_are_scored_and_put_into_tables_without_torch():
    code = "from mixlora.evaluation import config, mme, results, scoring, tables"
    assert loaded_after(code, "torch", "transformers", "peft", "matplotlib", "scipy", "pandas") == []


@pytest.mark.parametrize(
    ("room", "above"),
    [("data", ("training", "evaluation")), ("training", ("evaluation",))],
)
def test_rooms_of_mixlora_import_one_way(room, above):
    files = [
        path for path in (ROOT / "mixlora" / room).rglob("*.py") if path.name != "recipe.py"
    ]  # a script of its own
    bad = {path for path in files for name in imported(path) for other in above if f"mixlora.{other}" in name}
    assert files and bad == set()
