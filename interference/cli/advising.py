"""The command that says what to do, and tries it, in the `app` of `commands`."""

from pathlib import Path
from typing import Annotated

import typer

from interference.cli.commands import app
from interference.cli.options import Json, Quiet, Set, at_home
from interference.errors import ConfigError
from mixlora.common import command
from mixlora.common.errors import plain


@app.command()
def advise(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Directories of runs: checkpoints along one training, or one of them.", show_default=False),
    ],
    train: Annotated[
        Path | None,
        typer.Option("--train", help="YAML file of a trial: try the advice by training.", callback=at_home),
    ] = None,
    settings: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory of the advice.", show_default="the first run's, with -advice", callback=at_home
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what to do about interference: which tasks to train together, or that nothing is supported.

    It writes the configurations that follow. With --train, new adapters are trained on all tasks together, on the
    advised groups, on random groups of the same sizes and on single tasks, and as a MixLoRA, all with as many steps and
    examples. The page of the run then shows what came of it. A killed call continues.

    Example: interference advise reports/demo/lora/step-10
    """
    from interference.advice import job, tried
    from interference.cli import trials
    from mixlora.common import terminal

    if settings and train is None:
        raise ConfigError("--set changes the configuration of a trial, but there is none; add --train, or drop --set")
    place = job.place_of([path.absolute() for path in runs], out)
    try:
        with terminal.progress(terminal.console(stderr=True), quiet) as report:
            found = job.advise(runs, train, out, settings or (), report)
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: finished trainings are kept beside {tried.place_of(place)}; the same command continues",
            err=True,
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(trials.to_json(found))
        return
    trials.show(found, place, terminal.console())
    typer.echo(plain(f"{found!r} in {place}"))
    command.next_steps(_next(runs[0], place, found.configurations, train), quiet=quiet)


def _next(run: Path, place: Path, configurations: list[str], train: Path | None) -> str:
    """What to do after an advice, or after its trial."""
    if train is not None:
        return f"{command.call('interference', 'report', run)} shows the trial on the page of the run"
    if configurations:
        first = command.call("mixlora", "train", place / configurations[0])
        return f"{first} follows the first of these configurations; --train tries first whether the advice helps"
    return command.call("interference", "report", run)
