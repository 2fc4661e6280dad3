"""Commands that train to find out what training does, in the `app` of `commands`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interference.cli.commands import app
from interference.cli.options import Json, Quiet, Set, at_home
from interference.errors import ConfigError
from mixlora.common import command
from mixlora.common.errors import plain
from mixlora.common.files import is_file, is_folder

MARKER = "lookahead.json"  # as `prediction.horizons.MARKER`, which would load pandas for every --help
VALIDATION = "validation.json"  # as `prediction.validation.MARKER`

_Config = Annotated[
    Path,
    typer.Argument(help="YAML file, a run's directory, or a lookahead's to print it again.", show_default=False),
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", help="Directory of the result.", show_default="the run's, with -lookahead", callback=at_home),
]


@app.command()
def lookahead(
    config: _Config, settings: Set = None, out: _Out = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Train along every task for some real steps from a checkpoint, and print what each does to all tasks' losses.

    The steps are those of the training that made the adapter, or of lookahead.training or lookahead.recipe. The
    checkpoint is not changed. A killed call continues.

    Example: interference lookahead analysis_configs/demo.yaml --set lookahead.steps=[1,5,20]
    """
    from interference.cli import horizons
    from interference.prediction import load
    from mixlora.common import terminal

    place = config if is_file(config / MARKER) else _computed(config, settings or (), out, quiet)
    found = load(place)
    if as_json:
        typer.echo(horizons.to_json(found))
        return
    horizons.show(found, terminal.console())
    typer.echo(plain(f"{found!r} in {place}"))
    run = place.with_name(place.name.removesuffix("-lookahead"))
    if run != place and is_file(run / "run.json"):
        command.next_steps(command.call("interference", "report", run), quiet=quiet)
    else:
        again = command.call("interference", "lookahead", place, "--json")
        command.next_steps(f"{again} prints every cell, for a script", quiet=quiet)


@app.command()
def validate(
    config: Annotated[
        Path,
        typer.Argument(help="YAML file, a run's directory, or a validation's to print it again.", show_default=False),
    ],
    settings: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory of the result.", show_default="the run's, with -validation", callback=at_home
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on single tasks, pairs or all but one, and score how well the matrix ranks which task hurts which.

    The adapter is that of a `mixlora train` with training.snapshots: each snapshot is measured, and what it predicts is
    compared with what new trainings by the same recipe do. If the file has a validation section, `interference plan`
    says first what that takes. A killed call continues.

    Example: interference validate validation.yaml --set validation.horizons=[10,20,40]
    """
    from interference.cli import validations
    from interference.figures import save
    from interference.figures import validation as drawn
    from interference.prediction import load_validation
    from mixlora.common import terminal

    finished = is_file(config / VALIDATION)
    if finished and (settings or out):
        raise ConfigError(f"{config} is a finished validation, which is printed as it is; drop --set and --out")
    place = config if finished else _validated(config, settings or (), out, quiet)
    found = load_validation(place)
    if not finished:
        save(drawn(found), place / "figures", "validation", ("pdf", "svg", "png", "csv"))
    if as_json:
        typer.echo(validations.to_json(found))
        return
    validations.show(found, terminal.console())
    shown = f", drawn in {place / 'figures'}" if is_folder(place / "figures") else ""
    typer.echo(plain(f"{found!r} in {place}{shown}"))
    again = command.call("interference", "validate", place, "--json")
    command.next_steps(f"{again} prints every score with its interval, for a script", quiet=quiet)


def _validated(config: Path, settings: Sequence[str], out: Path | None, quiet: bool) -> Path:
    """Where the validation of a configuration is, which is computed now."""
    from interference.config import load
    from interference.prediction import validate
    from mixlora.common import terminal

    resolved = load(config, settings)
    place = validate.place_of(resolved, out)
    try:
        with terminal.progress(terminal.console(stderr=True), quiet) as report:
            validate.compute(resolved, place, {}, report)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: what is finished is kept in {place}; the same command continues", err=True)
        raise typer.Exit(130) from None
    return place


def _computed(config: Path, settings: Sequence[str], out: Path | None, quiet: bool) -> Path:
    """Where the lookahead of a configuration is, which is computed now."""
    from interference.config import load
    from interference.prediction import lookahead
    from mixlora.common import terminal

    resolved = load(config, settings)
    place = lookahead.place_of(resolved, out)
    try:
        with terminal.progress(terminal.console(stderr=True), quiet) as report:
            lookahead.compute(resolved, place, report)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: finished branches are kept beside {place}; the same command continues", err=True)
        raise typer.Exit(130) from None
    return place
