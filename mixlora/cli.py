"""The command `mixlora`: a thin shell over the library. Exit codes: 0 done, 1 failed, 2 wrong input."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from mixlora.errors import MixLoraError

app = typer.Typer(
    name="mixlora",
    help="MixLoRA as a PEFT method: look into adapters, convert released checkpoints, and the mini suite of tasks.",
    epilog="Example: mixlora info adapters/e16-r4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("task-interference"))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def tasks() -> None:
    """List the tasks of the mini suite: six to train on, seven unseen ones.

    Example: mixlora tasks
    """
    from mixlora.data import mini

    for title, group in (("training", mini.TASKS), ("unseen", mini.UNSEEN)):
        for task in group.values():
            typer.echo(f"{title}  {task.name}  ({task.capability}; chance {task.chance:.2f})\n    {task.definition}")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="A new directory for suite.json and images/.", show_default=False)],
    split: Annotated[str, typer.Option(help="train or heldout.")] = "heldout",
    count: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the drawn pictures and their order.")] = 0,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.", show_default=False)] = None,
) -> None:
    """Write tasks of the mini suite as files: Vision-Flan's JSON and PNG pictures.

    Example: mixlora export suite --task read_word --task name_ink
    """
    from mixlora.data import mini
    from mixlora.data.writing import write

    names = task or [*mini.TASKS, *mini.UNSEEN]
    if split not in ("train", "heldout"):
        raise MixLoraError(f"--split {split!r} is neither train nor heldout")
    which = cast(Literal["train", "heldout"], split)
    examples = [example for name in names for example in mini.examples(name, which, count, seed)]
    write(examples, out)
    typer.echo(f"{len(examples)} examples of {len(names)} tasks in {out / 'suite.json'}")


@app.command("import-official")
def import_official(
    source: Annotated[
        Path,
        typer.Argument(help="A released MixLoRA directory, a LLaVA v1 LoRA, or mm_projector.bin.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="A new directory for the adapter and projector.", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="The Hugging Face LLaVA it belongs to, kept in the adapter.", show_default=False)
    ] = None,
) -> None:
    """Convert a released MixLoRA or LLaVA v1 checkpoint to an adapter of a Hugging Face LLaVA.

    Example: mixlora import-official MixLoRA_E16_r4 adapters/e16-r4 --base my-llava
    """
    from mixlora.official import CONVERTED, import_checkpoint

    done = import_checkpoint(source, out, base=base)
    if done.modules:
        typer.echo(f"{done.kind}: {done.parameters:,} parameters in {done.modules} modules, in {out}")
    if done.projector_hidden_act:
        needs = f"for a base with projector_hidden_act={done.projector_hidden_act}"
        typer.echo(f"projector: {out / CONVERTED}, {needs}; mixlora.official.load_projector puts it in")


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="An adapter, a released checkpoint or mm_projector.bin.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")] = False,
) -> None:
    """Say what an adapter or checkpoint holds: rank, scaling, routing, parameters, whether its routers were trained.

    Example: mixlora info adapters/e16-r4
    """
    from mixlora.inspection import describe

    found = describe(path)
    typer.echo(found.json() if as_json else str(found))


def main() -> None:
    """Entry point: errors become one sentence on stderr and an exit code."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it; its kernels are not our subject
    warnings.filterwarnings("ignore", category=FutureWarning)  # between PEFT and transformers
    try:
        app()
    except MixLoraError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
