"""The command `mixlora`: a thin shell over the library. Exit codes: 0 done, 1 failed, 2 wrong input."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, cast

import typer

from mixlora.common import command
from mixlora.common.command import among, given
from mixlora.common.errors import ConfigError, plain

if TYPE_CHECKING:
    from mixlora.training.config import TrainConfig

app = typer.Typer(
    name="mixlora",
    help="Train, evaluate and compare MixLoRA, a PEFT method, with LoRA, specialists and full fine-tuning.",
    epilog="Example: mixlora train analysis_configs/mini.yaml --method mixlora --out runs/mixlora",
    **command.SETTINGS,
)


_PREVIEWED = 3
"""Examples of a task that --preview shows."""

ConfigPath = Annotated[
    Path | None, typer.Argument(help="A YAML file, or a finished directory to rerun elsewhere.", show_default=False)
]
Set = Annotated[list[str] | None, typer.Option("--set", help="key.subkey=value; repeatable.", show_default=False)]
Base = Annotated[str | None, typer.Option(help="Base model: path or hub id.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Directory for the results.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show neither progress nor the next step.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")]
ResultsPath = Annotated[Path, typer.Argument(help="A directory that evaluate wrote.", show_default=False)]
ResultsPaths = Annotated[list[Path], typer.Argument(help="Directories that evaluate wrote.", show_default=False)]


def _mini_tasks(incomplete: str) -> list[str]:
    """The tasks of the mini suite that begin so."""
    from mixlora.data import mini

    return among(*mini.TASKS, *mini.UNSEEN)(incomplete)


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=command.print_version)
    ] = False,
) -> None:
    pass  # --debug is read in `command.run`, which also has to know it where this is not reached


@app.command()
def train(
    config: ConfigPath = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="lora, mixlora, specialist or full.",
            show_default=False,
            autocompletion=among("lora", "mixlora", "specialist", "full"),
        ),
    ] = None,
    base: Base = None,
    settings: Set = None,
    out: Out = None,
    show: Annotated[
        bool, typer.Option("--preview", help="Show examples as they reach the model; no training.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a LoRA, a MixLoRA, a LoRA for each task, or the whole model. Run it again to continue.

    Example: mixlora train analysis_configs/mini.yaml --method mixlora --out runs/mixlora
    """
    from mixlora.common import terminal
    from mixlora.training import config as configs

    options = given({"method": method, "model": given({"base": base}), "out": None if out is None else str(out)})
    if config is None:
        raise ConfigError("there is nothing to train: name a YAML file, such as analysis_configs/mini.yaml")
    resolved = configs.load(config, settings or (), options)
    if show:
        _preview(resolved)
        return
    from mixlora.training.run import train as run_training

    console = terminal.console(stderr=True)
    try:
        with terminal.progress(console, quiet) as report:
            paths = run_training(
                resolved, report, tell=lambda clause: console.print(f"note: {plain(clause)}", soft_wrap=True)
            )
    except KeyboardInterrupt:
        _interrupted()
    from mixlora.training.folder import record_summary

    for path in paths if command.speaks() else ():  # one of several processes tells it
        typer.echo(plain(record_summary(path)))
    command.next_steps(*_after_training(resolved), quiet=quiet)


@app.command()
def evaluate(
    config: ConfigPath = None,
    base: Base = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter: path or hub id.", show_default=False)] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, added to the file's tasks; repeatable.", show_default=False)
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Name of the model in tables.", show_default="name of --out")
    ] = None,
    settings: Set = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate a model's answers to tasks and score them, with intervals. Run it again to continue.

    Example: mixlora evaluate analysis_configs/mini_evaluation.yaml --adapter runs/mixlora --out results/mixlora
    """
    from mixlora.common import terminal
    from mixlora.evaluation import config as configs

    options = given(
        {
            "model": given({"base": base, "adapter": adapter}),
            "tasks": command.tasks(task or ()),
            "label": label,
            "out": None if out is None else str(out),
        }
    )
    if config is None and "tasks" not in options and not settings:
        raise ConfigError("there is nothing to evaluate: name a YAML file, or give --adapter or --base, and --task")
    resolved = configs.load(config, settings or (), options)
    from mixlora.evaluation.run import evaluate as run_evaluation

    console = terminal.console(stderr=True)
    try:
        with terminal.progress(console, quiet) as report:
            results = run_evaluation(
                resolved, report, tell=lambda clause: console.print(f"note: {plain(clause)}", soft_wrap=True)
            )
    except KeyboardInterrupt:
        _interrupted()
    from mixlora.evaluation import printing

    typer.echo(printing.to_json(results) if as_json else printing.scores(results))
    after = command.call("mixlora", "compare", resolved.out, "OTHER"), command.call("mixlora", "table", resolved.out)
    command.next_steps(*after, quiet=quiet or as_json)


@app.command()
def compare(first: ResultsPath, second: ResultsPath, as_json: Json = False, quiet: Quiet = False) -> None:
    """Print the difference of two evaluations on the same examples, task by task, with paired intervals.

    Example: mixlora compare results/lora results/mixlora
    """
    from mixlora.evaluation import comparison, printing

    found = comparison.compare(first, second)
    typer.echo(printing.differences_json(found) if as_json else printing.differences(found))
    command.next_steps(command.call("mixlora", "table", first, second, "--intervals"), quiet=quiet or as_json)


@app.command()
def table(
    results: ResultsPaths,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, markdown, csv or latex.",
            autocompletion=among("text", "markdown", "csv", "latex"),
        ),
    ] = "text",
    intervals: Annotated[bool, typer.Option("--intervals", help="Also print 95% intervals.")] = False,
    columns: Annotated[
        str | None, typer.Option(help='Columns in order: a,"b, c",Mean (of those shown).', show_default="all")
    ] = None,
    pope: Annotated[bool, typer.Option("--merge-pope", help="One column for POPE's three splits.")] = False,
) -> None:
    """Print evaluations as in the paper's tables: models by tasks, with means, the best in bold.

    Example: mixlora table results/lora results/mixlora --format latex
    """
    from mixlora.evaluation import printing

    names = None if columns is None else [name.strip() for name in next(csv.reader([columns]))]
    typer.echo(printing.table(results, form, intervals, names, pope))


@app.command()
def tasks(quiet: Quiet = False) -> None:
    """List the tasks of the mini suite: six to train on, seven unseen ones.

    Example: mixlora tasks
    """
    from mixlora.data import mini

    for title, group in (("training", mini.TASKS), ("unseen", mini.UNSEEN)):
        for task in group.values():
            typer.echo(f"{title}  {task.name}  ({task.capability}; chance {task.chance:.2f})\n    {task.definition}")
    command.next_steps("mixlora export suite --task read_word --task name_ink", quiet=quiet)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="A new directory for suite.json and images/.", show_default=False)],
    split: Annotated[str, typer.Option(help="train or heldout.", autocompletion=among("train", "heldout"))] = "heldout",
    count: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the drawn pictures and their order.")] = 0,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Only this task; repeatable.", show_default=False, autocompletion=_mini_tasks),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write tasks of the mini suite as files: Vision-Flan's JSON and PNG pictures.

    Example: mixlora export suite --task read_word --task name_ink
    """
    from mixlora.common import settings
    from mixlora.data import mini
    from mixlora.data.export import write

    names = task or [*mini.TASKS, *mini.UNSEEN]
    if split not in ("train", "heldout"):
        raise ConfigError(f"--split {split!r} is neither train nor heldout")
    which = cast(Literal["train", "heldout"], split)
    examples = [example for name in names for example in mini.examples(name, which, count, seed)]
    write(examples, out)
    typer.echo(f"{len(examples)} examples of {len(names)} tasks in {out / 'suite.json'}")
    task_of = {"file": str(out / "suite.json"), "images": str(out), "where": {"task_name": names[0]}}
    command.next_steps(f"in the tasks of a configuration, {names[0]}: {settings.line(task_of)}", quiet=quiet)


@app.command("import-official")
def import_official(
    source: Annotated[
        Path,
        typer.Argument(help="A released MixLoRA directory, a LLaVA v1 LoRA, or mm_projector.bin.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="A new directory for the adapter and projector.", show_default=False)],
    base: Annotated[
        str | None,
        typer.Option(help="The Hugging Face LLaVA it belongs to, recorded in the adapter.", show_default=False),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Convert a released MixLoRA or LLaVA v1 checkpoint to an adapter of a Hugging Face LLaVA.

    Example: mixlora import-official MixLoRA_E16_r4 adapters/e16-r4 --base my-llava
    """
    from mixlora.checkpoints.conversion import import_checkpoint
    from mixlora.checkpoints.formats import CONVERTED

    done = import_checkpoint(source, out, base=base)
    if done.modules:
        typer.echo(f"{done.kind}: {done.parameters:,} parameters in {done.modules} modules, in {out}")
    if done.projector_hidden_act:
        needs = f"for a base with projector_hidden_act={done.projector_hidden_act}"
        typer.echo(f"projector: {out / CONVERTED}, {needs}; load it with mixlora.official.load_projector")
    if done.modules:
        command.next_steps(command.call("mixlora", "info", out), quiet=quiet)


@app.command()
def assemble(
    language: Annotated[str, typer.Argument(help="A LLaMA-type language model: path or hub id.", show_default=False)],
    vision: Annotated[str, typer.Argument(help="A CLIP model: path or hub id.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A new directory for the base.", show_default=False)],
    projector: Annotated[
        Path | None, typer.Option(help="mm_projector.bin, or what import-official wrote.", show_default="new weights")
    ] = None,
    feature_layer: Annotated[int, typer.Option(help="Layer of the vision tower whose patches are used.")] = -2,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of a new projector.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Combine a language model, a vision tower and a projector into one Hugging Face LLaVA, a base to train on.

    Example: mixlora assemble lmsys/vicuna-7b-v1.3 openai/clip-vit-large-patch14 bases/vicuna
    """
    from mixlora.checkpoints.assembly import assemble as put_together

    made = put_together(language, vision, out, projector, feature_layer=feature_layer, dtype=dtype, seed=seed)
    typer.echo(f"base: {plain(made)}")
    command.next_steps(command.call("mixlora", "train", "CONFIG.yaml", "--base", out), quiet=quiet)


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="An adapter, a released checkpoint or mm_projector.bin.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")] = False,
) -> None:
    """Say what an adapter or checkpoint contains: rank, scaling, routing, parameters, whether its routers were trained.

    Example: mixlora info adapters/e16-r4
    """
    from mixlora.checkpoints.inspection import describe

    found = describe(path)
    typer.echo(found.json() if as_json else str(found))


def main() -> None:
    """Entry point: errors become one sentence on stderr and an exit code."""
    command.run(app, alone={"evaluate", "table", "export", "import-official", "assemble"})


def _preview(config: "TrainConfig") -> None:
    from mixlora.checkpoints.prompting import load_collator
    from mixlora.common import terminal
    from mixlora.data import preview

    tasks = {name: (section, section.samples) for name, section in config.tasks.items()}
    collator = load_collator(config.model, max_length=config.training.max_length)
    found, notes = preview.previews(tasks, collator, config.training.seed, _PREVIEWED)
    for note in notes:
        typer.echo(f"note: {plain(note)}", err=True)
    preview.show(found, typer.echo, preview.wants_colour(terminal.console().is_terminal))


def _after_training(config: "TrainConfig") -> list[str]:
    """The commands that measure and score what was trained."""
    from mixlora.training.config import Method

    rest, base = ["--task", "NAME=FILE", "--out", "DIRECTORY"], ["--base", config.model.base]
    if config.method == Method.FULL:
        return [command.call("mixlora", "evaluate", "--base", config.out, *rest)]
    each = f"{config.out}/{{task}}" if config.method == Method.SPECIALIST else config.out
    score = command.call("mixlora", "evaluate", *base, "--adapter", each, *rest)
    if config.method == Method.SPECIALIST:  # each is of one task, which has no other to compare with
        return [score]
    return [command.call("interference", "compute", *base, "--adapter", config.out, *rest), score]


def _interrupted() -> NoReturn:
    typer.echo("interrupted: the same command continues", err=True)
    raise typer.Exit(130)


if __name__ == "__main__":
    main()
