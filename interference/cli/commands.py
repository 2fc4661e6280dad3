"""The command `interference`: a thin shell over the library. Exit codes: 0 done, 1 failed, 2 wrong input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interference.cli.options import (
    RATIO_OF_MEANS,
    Adapter,
    Aggregate,
    Base,
    ConfigPath,
    Effect,
    Json,
    Layers,
    MemoryBudget,
    Metric,
    MetricOption,
    Modules,
    Out,
    Pairs,
    Pilot,
    Quiet,
    Reduce,
    RunPath,
    Samples,
    Seed,
    Set,
    Side,
    Space,
    SpoolDir,
    Task,
    configuration,
    effect_of,
    given_options,
    matrix_options,
)
from mixlora.common import command
from mixlora.common.errors import plain

app = typer.Typer(
    name="interference",
    help="Which fine-tuning tasks hurt which, in which layers, and is it real?",
    epilog="Example: interference compute --base BASE --adapter LORA --task a=a.json --task b=b.json --out reports/ab",
    **command.SETTINGS,
)


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=command.print_version)
    ] = False,
) -> None:
    pass  # --debug is read in `command.run`, which also has to know it where this is not reached


@app.command()
def compute(
    config: ConfigPath = None,
    base: Base = None,
    adapter: Adapter = None,
    task: Task = None,
    layers: Layers = None,
    modules: Modules = None,
    samples: Samples = None,
    seed: Seed = None,
    memory_budget: MemoryBudget = None,
    spool_dir: SpoolDir = None,
    settings: Set = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint: compute per-example gradients of its LoRA factors and write a run.

    Example: interference compute analysis_configs/demo.yaml --set probe.samples=50 --out reports/small
    """
    from interference.cli import printing
    from interference.measurement import compute
    from mixlora.common import terminal

    given = given_options(base, adapter, task, layers, modules, samples, seed, memory_budget, out, spool_dir)
    resolved = configuration(config, settings, given)
    try:
        with terminal.progress(terminal.console(stderr=True), quiet) as report:
            run = compute.compute_config(resolved, report)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: nothing was written to {resolved.out}; the same command continues", err=True)
        raise typer.Exit(130) from None
    if run is None:
        return  # the first of several processes tells it
    for note in printing.notes(run, resolved, config):
        typer.echo(f"note: {plain(note)}", err=True)
    typer.echo(plain(f"{run!r} in {resolved.out}"))
    command.next_steps(command.call("interference", "show", resolved.out), quiet=quiet)


@app.command()
def preview(
    config: ConfigPath = None,
    base: Base = None,
    adapter: Adapter = None,
    task: Task = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Examples of each task.")] = 3,
    settings: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show examples as they reach the model, with supervised tokens marked. This loads no weights.

    Supervised tokens are coloured on a terminal and in square brackets elsewhere; ↵ is a supervised line break.

    --json prints one line per example, with its tokens.

    Example: interference preview analysis_configs/demo.yaml -n 1
    """
    from interference.measurement import checkpoint, sample
    from mixlora.common import terminal
    from mixlora.data import preview

    given = given_options(base, adapter, task, None, None, None, None, None, None)
    resolved = configuration(config, settings, given)
    checkpoint.adapter_config(resolved.model)
    found, notes = sample.previewed(resolved, count)
    for note in notes:
        typer.echo(f"note: {plain(note)}", err=True)
    preview.show(found, typer.echo, preview.wants_colour(terminal.console().is_terminal), as_json)
    command.next_steps(_same("plan", config, given, settings), quiet=quiet or as_json)


@app.command()
def show(
    run: RunPath,
    metric: MetricOption = Metric.INTERFERENCE,
    layers: Layers = None,
    modules: Modules = None,
    side: Side = None,
    space: Space = "parameters",
    pairs: Pairs = "leave-one-out",
    reduce: Reduce = RATIO_OF_MEANS,
    aggregate: Aggregate = "sum",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print a run's matrix with intervals and verdicts, the split-half null, and each task's signal.

    Example: interference show reports/demo/lora/step-10 --layers 2,3 --modules mlp --side A
    """
    from interference.advice import tried
    from interference.cli import printing
    from interference.prediction import holding
    from interference.run import load
    from mixlora.common import terminal

    options = matrix_options(layers, modules, side, space=space, pairs=pairs, reduce=reduce, aggregate=aggregate)
    loaded = load(run)
    if as_json:
        typer.echo(printing.to_json(loaded.table(metric.value, **options)))
    else:
        printing.show(loaded, metric.value, terminal.console(), **options)
        for line in [*holding.words(run, loaded), *tried.words(run, loaded)]:
            typer.echo(plain(f"note: {line}"))
        command.next_steps(command.call("interference", "report", run), quiet=quiet)


@app.command()
def compare(
    first: RunPath,
    second: RunPath,
    metric: MetricOption = Metric.INTERFERENCE,
    layers: Layers = None,
    modules: Modules = None,
    side: Side = None,
    space: Space = "parameters",
    pairs: Pairs = "leave-one-out",
    reduce: Reduce = RATIO_OF_MEANS,
    aggregate: Aggregate = "sum",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print how a metric differs between two runs on the same examples, with paired intervals.

    Example: interference compare reports/demo/lora/step-10 reports/demo/mixlora/step-12 --metric delta
    """
    from interference import run as runs
    from interference.cli import printing
    from interference.run import Scope
    from mixlora.common import terminal

    options = matrix_options(layers, modules, side, space=space, pairs=pairs, reduce=reduce, aggregate=aggregate)
    pair = runs.load(first), runs.load(second)
    table = runs.compare(*pair, metric.value, **options)
    if as_json:
        typer.echo(printing.to_json(table))
    else:
        title = f"{metric.value}: {second} minus {first}, the same units resampled in both"
        printing.comparison(table, title, pair, terminal.console(), **Scope.split(options)[0].options)
        command.next_steps(command.call("interference", "report", first, second), quiet=quiet)


@app.command()
def verify(
    run: RunPath,
    units: Annotated[int, typer.Option(min=1, help="Units of each task to recompute.")] = 2,
    trust: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the base model.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a run: gradients against batch-1 autograd, Delta against real steps. Exits 1 if they differ.

    Example: interference verify reports/demo/lora/step-10
    """
    from interference.cli import printing
    from interference.run import load
    from interference.verification.verify import verify_config
    from mixlora.common import terminal

    with terminal.progress(terminal.console(stderr=True), quiet) as report:
        found = verify_config(load(run), units, report, trust)
    if as_json:
        typer.echo(printing.to_json(found.summary()))
    else:
        printing.verification(found, terminal.console())
    if not found.passed:
        raise typer.Exit(1)
    command.next_steps(command.call("interference", "report", run), quiet=quiet or as_json)


@app.command()
def plan(
    config: ConfigPath = None,
    base: Base = None,
    adapter: Adapter = None,
    task: Task = None,
    layers: Layers = None,
    modules: Modules = None,
    samples: Samples = None,
    seed: Seed = None,
    memory_budget: MemoryBudget = None,
    settings: Set = None,
    pilot: Pilot = None,
    effect: Effect = None,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Load the model; measure time and memory.")] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Estimate what `compute` will cost: units, blocks, memory, disk and time, and cheaper choices.

    With --pilot, also say how many groups (or units) a verdict needs for a power of 80%. --pilot alone says only that.
    If the configuration has a lookahead, a validation or a trial, also estimate what that will cost.

    Example: interference plan analysis_configs/paper_figure2.yaml --set probe.unit_size=10
    """
    from interference.advice.cost import of_trial
    from interference.cli import horizons, plans, trials, validations
    from interference.measurement import plan
    from interference.prediction import cost
    from mixlora.common import terminal

    given = given_options(base, adapter, task, layers, modules, samples, seed, memory_budget, None)
    wished = effect_of(effect, pilot)
    resolved = configuration(config, settings, given) if pilot is None or config or given or settings else None
    needs = None if pilot is None else plan.needed_by(pilot, resolved, wished)
    found = None if resolved is None else plan.plan(resolved, timed=time)
    ahead = None if resolved is None or resolved.lookahead is None else cost.cost(resolved, timed=time)
    tested = None if resolved is None or resolved.validation is None else cost.of_validation(resolved, timed=time)
    tried = None if resolved is None or resolved.trial is None else of_trial(resolved, timed=time)
    if as_json:
        typer.echo(plans.plan_json(found, needs, ahead, tested, tried))
    else:
        plans.plan(found, terminal.console(), needs)
        if ahead is not None:
            horizons.cost(ahead, terminal.console())
        if tested is not None:
            validations.cost(tested, terminal.console())
        if tried is not None:
            trials.cost(tried, terminal.console())
    first = "compute" if tested is None else "validate"  # which computes the runs itself
    after = "interference compute, with as many samples" if found is None else _same(first, config, given, settings)
    command.next_steps(after, quiet=quiet or as_json)


@app.command()
def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """Say what can and cannot run on this machine: versions, devices, memory, disks, fonts, optional packages.

    Each line says what does not work without a part. Exits 1 if something required is broken.

    Example: interference doctor
    """
    from interference.cli import doctor

    found = []
    for finding in doctor.look():
        found.append(finding)
        if not as_json:
            typer.echo(plain(str(finding)))
    typer.echo(doctor.to_json(found) if as_json else doctor.verdict(found))
    if any(finding.status == doctor.Status.BROKEN for finding in found):
        raise typer.Exit(1)
    command.next_steps("interference demo --quick", quiet=quiet or as_json)


def _same(name: str, config: Path | None, given: Mapping[str, Any], settings: Sequence[str] | None) -> str:
    """Another command on what this one was given."""
    if config is None or given or settings:
        return f"interference {name}, with the same options"
    return command.call("interference", name, config)


def main() -> None:
    """Entry point: errors become one sentence on stderr and an exit code."""
    command.run(app, alone={"factors", "report", "figure", "demo", "verify", "lookahead", "validate", "advise"})
