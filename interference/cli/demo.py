"""The demo: a LoRA and a MixLoRA on the six tasks of the mini suite, measured along their training, and compared.

What is finished is kept in the output directory and reused by the next call.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from interference import run as runs
from interference.cli import printing
from interference.config import build, is_recorded
from interference.errors import InterferenceError, RunError
from interference.figures import matrices
from interference.figures.canvas import files
from interference.measurement.checkpoint import load_model, refuse_other
from interference.measurement.compute import compute_config
from interference.report import directory
from interference.run import Run
from interference.run.remarks import shown_verdicts
from mixlora.common import command, settings, terminal
from mixlora.common.outputs import OutputFolder
from mixlora.data import mini
from mixlora.evaluation import comparison, tables
from mixlora.evaluation import printing as scores
from mixlora.evaluation import run as evaluation
from mixlora.evaluation.config import EvaluateConfig
from mixlora.evaluation.results import Results
from mixlora.training import run as training
from mixlora.training.config import TrainConfig

METHODS = {"lora": "LoRA", "mixlora": "MixLoRA"}
STROOP = ("read_word", "name_ink")
SCORES = {"spatial": "vsr", "entailment": "entailment", "presence": "pope"}
TRAINING: dict[str, Any] = {
    "model": {"base": "mini"},
    "tasks": {task: {"mini": "train", "samples": 800} for task in mini.TASKS},
    "adapter": {"dropout": 0},
    "lora": {"r": 8, "alpha": 16},
    "mixlora": {"r": 8, "num_factors": 16, "alpha": 16},
    "training": {
        "steps": 100,
        "batch_size": 48,
        "learning_rate": 5e-3,
        "warmup": 10,
        "order": "shuffled",
        "seed": 0,
        "save_steps": 50,
        "snapshots": [0, 10, 12, 100],
    },
}
"""What both methods are trained by; analysis_configs/mini.yaml is the same."""


@dataclass(frozen=True)
class Size:
    """How much of the demo runs.

    Attributes:
        steps: Where each method is measured. The second is where both have about the same loss, so that like is
            compared with like; the last ends the training.
        trained: Examples of each task to train on.
        scored: Held-out examples of each task that are answered.
        probed: Examples of each task that are measured.
        unseen: Whether tasks that neither method was trained on are scored, too.
        remark: What the reader must know of the size.
    """

    steps: dict[str, tuple[int, ...]]
    trained: int
    scored: int
    probed: int
    unseen: bool = True
    remark: str = ""

    @property
    def training(self) -> dict[str, Any]:
        """The recipe of both methods. A shorter one has the learning rates of the whole one's first steps."""
        last = max(step for steps in self.steps.values() for step in steps)
        if last == TRAINING["training"]["steps"]:
            return TRAINING
        shorter = {"steps": last, "lr_scheduler_type": "constant_with_warmup", "snapshots": [0, 10, 12]}
        tasks = {task: {"mini": "train", "samples": self.trained} for task in mini.TASKS}
        return {**TRAINING, "tasks": tasks, "training": {**TRAINING["training"], **shorter}}


WHOLE = Size({"lora": (0, 10, 100), "mixlora": (0, 12, 100)}, trained=800, scored=200, probed=100)
QUICK = Size(
    {"lora": (0, 10), "mixlora": (0, 12)},
    trained=100,
    scored=20,
    probed=50,
    unseen=False,
    remark="a quick demo: 12 training steps instead of 100, 20 scored examples per task instead of 200, 50 measured "
    "ones instead of 100, no unseen tasks; intervals are wider and scores lower than in `interference demo`",
)


def demo(out: Path, console: Console, size: Size = WHOLE) -> None:
    """Train both methods, score and measure them, print and draw what is found; everything is under `out`.

    Args:
        out: directory of checkpoints, results, runs and pictures.
        console: where results go; progress goes to stderr.
        size: how much of it runs.

    Raises:
        RunError: its figures or its report would be written where files of the user's are.
    """
    pictures = OutputFolder(out / "figures", "interference demo")
    directory.check(out / "report")
    try:
        for method in METHODS:
            _train(out, method, size)
        results = [_score(out, method, label, size) for method, label in {"base": "base", **METHODS}.items()]
    except InterferenceError as error:
        raise type(error)(f"{error} (finished parts stay in {out})") from None
    measured = {
        (method, step): _measure(out, method, step, size) for method, steps in size.steps.items() for step in steps
    }
    if size.remark:
        console.print(size.remark)
    _tell_scores(out, results, console, size)
    early = {_title(method, size.steps[method][1]): measured[method, size.steps[method][1]] for method in METHODS}
    for title, run in early.items():
        console.print(f"\n=== {title} ===")
        printing.show(run, "interference", console)
    lora, mixlora = early.values()
    change = runs.compare(lora, mixlora, "interference")
    title = f"{list(early)[1]} minus {next(iter(early))}, at about the same loss; the same units resampled in both"
    printing.comparison(change, title, [lora, mixlora], console)
    for line in [*_along(measured), *_controls(measured)]:
        console.print(line)
    paths = _draw(measured, early, pictures, size)
    page = _report(out, size)
    console.print(f"\nopen in a browser: {page}")
    console.print(f"runs: {out}/METHOD/step-N; scores: {out}/results; pictures: {paths[0].parent}")
    lora_run, mixlora_run = (out / method / f"step-{steps[1]}" for method, steps in size.steps.items())
    command.next_steps(
        command.call("interference", "show", mixlora_run, "--layers", "2,3", "--modules", "mlp"),
        command.call("interference", "verify", lora_run),
    )


def _train(out: Path, method: str, size: Size) -> None:
    """The checkpoints of a method, trained if they are not there."""
    values = {**size.training, "method": method, "out": str(_checkpoints(out, method))}
    with terminal.progress(terminal.console(stderr=True)) as report:
        training.train(settings.build(TrainConfig, values, "the demo"), _named(METHODS[method], report))


def _score(out: Path, method: str, label: str, size: Size) -> Results:
    """The scores of a method on seen and unseen tasks, generated if they are not there."""
    tasks = {
        task: {"mini": "heldout", "samples": size.scored, "score": SCORES.get(task)}
        for task in [*mini.TASKS, *(mini.UNSEEN if size.unseen else ())]
    }
    adapter = None if method == "base" else str(_checkpoints(out, method))
    values = {
        "model": {"base": "mini", "adapter": adapter},
        "tasks": tasks,
        "generation": {"batch_size": 64, "max_new_tokens": 12},
        "label": label,
        "out": str(out / "results" / method),
    }
    with terminal.progress(terminal.console(stderr=True)) as report:
        config = settings.build(EvaluateConfig, values, "the demo")
        return evaluation.evaluate(config, _named(f"{label}, answers", report))


def _measure(out: Path, method: str, step: int, size: Size) -> Run:
    """The run of a checkpoint, computed if it is not there.

    Raises:
        RunError: something else is there.
    """
    folder, checkpoint = out / method / f"step-{step}", _checkpoints(out, method) / "snapshots" / f"step-{step}"
    config = build(
        {
            "model": {"base": "mini", "adapter": str(checkpoint)},
            "tasks": {name: {"mini": "heldout"} for name in mini.TASKS},
            "probe": {"samples": size.probed, "seed": 0, "batch_size": 32},
            "out": str(folder),
        },
        "the demo",
    )
    if folder.exists():
        found = runs.load(folder)
        if not is_recorded(found.meta.get("config"), config):
            raise RunError(f"{folder} is not what the demo computes; delete {out}, or choose another --out")
        try:
            refuse_other(load_model(config.model), found.meta, str(folder))
        except RunError as error:
            raise RunError(f"{error}: delete {folder}, and run the demo again") from None
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with terminal.progress(terminal.console(stderr=True)) as report:
        measured = compute_config(config, _named(_title(method, step), report))
    return runs.load(folder) if measured is None else measured  # None: another process has it


def _tell_scores(out: Path, results: list[Results], console: Console, size: Size) -> None:
    groups = {"trained on": mini.TASKS, "trained on by neither": mini.UNSEEN if size.unseen else {}}
    for title, group in ((title, list(tasks)) for title, tasks in groups.items() if tasks):
        console.print(f"\nPercent right on {size.scored} held-out examples a task, tasks {title}:")
        console.print(tables.table(results, [*group, tables.MEAN]).text())
    console.print("\nMixLoRA against LoRA on the same examples:")
    console.print(scores.differences(comparison.compare(out / "results" / "lora", out / "results" / "mixlora")))


def _along(measured: dict[tuple[str, int], Run]) -> Iterable[str]:
    """How matched the two are, and what both matrices say, at each step."""
    yield "\nAlong the training (loss: mean over the probed examples, nats per token):"
    for (method, step), run in measured.items():
        loss = printing.number(float(run.probes["loss"].mean()))
        counts = printing.headline(run.table()).partition(".")[0]
        yield f"  {_title(method, step)}: loss {loss}; {counts}"


def _controls(measured: dict[tuple[str, int], Run]) -> Iterable[str]:
    """What the positive control says at each checkpoint: the same pictures, two answers."""
    yield "\nThe Stroop pair (the same pictures; one task reads the word, the other names its ink):"
    for (method, step), run in measured.items():
        table = run.table("interference")
        table = table.assign(verdict=shown_verdicts(table))
        for affected, stepped in (STROOP, STROOP[::-1]):
            cell = table[(table["affected"] == affected) & (table["stepped"] == stepped)].iloc[0]
            interval = f"[{printing.number(cell['low'])}, {printing.number(cell['high'])}]"
            said = f"a step of {stepped} on {affected}: I = {printing.number(cell['value'])} {interval}"
            yield f"  {_title(method, step)}: {said}: {cell['verdict']}"


def _draw(measured: dict[tuple[str, int], Run], early: dict[str, Run], folder: OutputFolder, size: Size) -> list[Path]:
    drawn: dict[str, Any] = {"difference": matrices.difference(early)}
    for method, steps in size.steps.items():
        along = {_title(method, step): measured[method, step] for step in steps}
        drawn[f"{method}-series"] = matrices.series(along)
        drawn[f"{method}-layers"] = matrices.panels(measured[method, steps[1]])
    return folder.replace(files(drawn))


def _report(out: Path, size: Size) -> Path:
    """The page of both methods' runs at about the same loss."""
    folders = [out / method / f"step-{steps[1]}" for method, steps in size.steps.items()]
    labels = [_title(method, steps[1]) for method, steps in size.steps.items()]
    with terminal.progress(terminal.console(stderr=True)) as report:
        return directory.write(folders, labels, out / "report", "small", progress=_named("report", report))[0]


def _title(method: str, step: int) -> str:
    return f"{METHODS[method]}, step {step}"


def _checkpoints(out: Path, method: str) -> Path:
    return out / "checkpoints" / method


def _named(title: str, report: Any) -> Any:
    return lambda stage, done, total: report(f"{title}: {stage}", done, total)
