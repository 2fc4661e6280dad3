"""The command `interference`: a thin shell over the library. Exit codes: 0 done, 1 failed, 2 wrong input."""

from pathlib import Path
from typing import Annotated

import typer

from interference.cli.options import (
    PAIRS,
    RATIO_OF_MEANS,
    REDUCE,
    Adapter,
    Aggregate,
    Base,
    Beside,
    ConfigPath,
    DemoOut,
    Effect,
    FactorsOut,
    FiguresOut,
    Json,
    Label,
    Layers,
    MemoryBudget,
    Metric,
    Modules,
    Out,
    Pair,
    Pairs,
    Perplexity,
    Pilot,
    Quiet,
    Reduce,
    ReportOut,
    RunPath,
    Samples,
    Seed,
    Set,
    Side,
    Space,
    SpoolDir,
    Task,
    Unseen,
    configuration,
    effect_of,
    given_options,
    matrix_options,
    perplexity_for,
)
from interference.errors import ConfigError
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
    """Measure a checkpoint: per-example gradients of its LoRA factors become a run.

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
    typer.echo(plain(f"{run!r} in {resolved.out}; look at it: interference show {resolved.out}"))


@app.command()
def preview(
    config: ConfigPath = None,
    base: Base = None,
    adapter: Adapter = None,
    task: Task = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Examples of each task.")] = 3,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Show examples as they reach the model, supervised tokens marked. No weights are loaded.

    They are coloured on a terminal, in square brackets elsewhere; ↵ is a supervised line break. --json prints
    a line an example, with its tokens.

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


@app.command()
def show(
    run: RunPath,
    metric: Metric = Metric.INTERFERENCE,
    layers: Layers = None,
    modules: Modules = None,
    side: Side = None,
    space: Space = "parameters",
    pairs: Pairs = "leave-one-out",
    reduce: Reduce = RATIO_OF_MEANS,
    aggregate: Aggregate = "sum",
    as_json: Json = False,
) -> None:
    """Print a run's matrix with intervals and verdicts, the null, and each task's signal.

    Example: interference show reports/demo/lora/step-10 --layers 2,3 --modules mlp --side A
    """
    from interference.cli import printing
    from interference.run import load
    from mixlora.common import terminal

    options = matrix_options(layers, modules, side, space=space, pairs=pairs, reduce=reduce, aggregate=aggregate)
    loaded = load(run)
    if as_json:
        typer.echo(printing.to_json(loaded.table(metric.value, **options)))
    else:
        printing.show(loaded, metric.value, terminal.console(), **options)


@app.command()
def compare(
    first: RunPath,
    second: RunPath,
    metric: Metric = Metric.INTERFERENCE,
    layers: Layers = None,
    modules: Modules = None,
    side: Side = None,
    space: Space = "parameters",
    pairs: Pairs = "leave-one-out",
    reduce: Reduce = RATIO_OF_MEANS,
    aggregate: Aggregate = "sum",
    as_json: Json = False,
) -> None:
    """Print how a metric differs between two runs on the same examples, with paired intervals.

    Example: interference compare reports/demo/lora/step-10 reports/demo/mixlora/step-12 --metric delta
    """
    from interference.cli import printing
    from interference.run import Scope
    from interference.run import run as runs
    from mixlora.common import terminal

    options = matrix_options(layers, modules, side, space=space, pairs=pairs, reduce=reduce, aggregate=aggregate)
    pair = runs.load(first), runs.load(second)
    table = runs.compare(*pair, metric.value, **options)
    if as_json:
        typer.echo(printing.to_json(table))
    else:
        title = f"{metric.value}: {second} minus {first}, the same units resampled in both"
        printing.comparison(table, title, pair, terminal.console(), **Scope.split(options)[0].options)


@app.command()
def verify(
    run: RunPath,
    units: Annotated[int, typer.Option(min=1, help="Units of each task to derive again.")] = 2,
    trust: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the base model brings.")] = False,
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
) -> None:
    """Say what `compute` will cost before it is paid: units, blocks, memory and disk, and coarser choices.

    With --pilot also from how many groups (or units) a verdict has a power of 80%; --pilot alone says only that.

    Example: interference plan analysis_configs/paper_figure2.yaml --set probe.unit_size=10
    """
    from interference.cli import printing
    from interference.measurement import plan
    from mixlora.common import terminal

    given = given_options(base, adapter, task, layers, modules, samples, seed, memory_budget, None)
    wished = effect_of(effect, pilot)
    resolved = configuration(config, settings, given) if pilot is None or config or given or settings else None
    needs = None if pilot is None else plan.needed_by(pilot, resolved, wished)
    found = None if resolved is None else plan.plan(resolved, timed=time)
    if as_json:
        typer.echo(printing.plan_json(found, needs))
    else:
        printing.plan(found, terminal.console(), needs)


@app.command()
def factors(
    config: ConfigPath = None,
    base: Base = None,
    adapter: Adapter = None,
    task: Task = None,
    layers: Layers = None,
    modules: Modules = None,
    samples: Samples = None,
    seed: Seed = None,
    settings: Set = None,
    run: Beside = None,
    unseen: Unseen = None,
    perplexity: Perplexity = None,
    out: FactorsOut = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say which factors (MixLoRA) or directions (LoRA) examples use, by task: purity, usage, overlap, and a t-SNE map.

    Beside them is what the same adapter selects untrained (its snapshot of step 0, or drawn by its seed): a second
    forward over the prompts. Chance and intervals are of groups of examples, as those that share a picture.

    Example: interference factors analysis_configs/demo.yaml --out reports/factors --run reports/demo/mixlora/step-12
    """
    from interference.cli import printing
    from interference.factors import contrast, neighbours, observer
    from interference.factors import factors as library
    from interference.figures import factors
    from interference.figures.canvas import files
    from interference.run import load
    from mixlora.common import terminal
    from mixlora.common.outputs import OutputFolder

    given = given_options(base, adapter, task, layers, modules, samples, seed, None, None)
    resolved = configuration(config, settings, given)
    if out is None:
        raise ConfigError("there is no directory for the selections; give --out")
    perplexity = perplexity_for(perplexity, resolved.probe.samples * len(resolved.tasks))
    beside = load(run) if run else None
    with terminal.progress(terminal.console(stderr=True), quiet) as report:
        found = observer.kept_or_computed(resolved, out, report)
    embedded = neighbours.embed(found.selections, perplexity, seed=resolved.probe.seed)
    control = found.untrained
    untrained = None if control is None else contrast.contrast(found.selections, control, embedded)
    tables = library.tables(found, embedded, beside, untrained)
    drawn = {"embedding": factors.embedding(found, embedded, unseen or (), beside=untrained)}
    drawn["usage"] = factors.usage(found)
    OutputFolder(out / "figures", "interference factors").replace(files(drawn))
    for note in library.remarks(found):
        typer.echo(f"note: {plain(note)}", err=True)
    if as_json:
        typer.echo(printing.tables_json(tables))
    else:
        printing.tables(tables, terminal.console())
        typer.echo(plain(f"selections and figures: {out}"))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs; several are compared.", show_default=False)],
    out: ReportOut = Path("reports/report"),
    label: Label = None,
    detail: Annotated[str | None, typer.Option(help="small or full: how many scopes.", show_default="by size")] = None,
    examples: Annotated[bool, typer.Option(help="Show the examples that drive a cell.")] = True,
    quiet: Quiet = False,
) -> None:
    """Write runs as a page to read: which tasks conflict, where, is it real, what to do; with figures and tables.

    Example: interference report reports/demo/lora/step-10 reports/demo/mixlora/step-12 --out reports/demo/report
    """
    from interference.report import directory
    from mixlora.common import terminal

    with terminal.progress(terminal.console(stderr=True), quiet) as progress:
        paths = directory.write(runs, label, out, detail, examples, progress)
    for path in paths:
        typer.echo(plain(path))


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="Name of the figure, or its number in the paper.", show_default=False)],
    inputs: Annotated[list[Path], typer.Argument(help="Directories that it is drawn from.", show_default=False)],
    out: FiguresOut = Path("reports/figures"),
    label: Label = None,
    metric: Annotated[Metric | None, typer.Option(help="Of the matrices.", show_default="interference")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers from 0: 5,25 or 0-3.", show_default="by figure")] = None,
    modules: Modules = None,
    side: Side = None,
    pairs: Annotated[str | None, typer.Option(help=PAIRS, show_default="leave-one-out")] = None,
    reduce: Annotated[str | None, typer.Option(help=REDUCE, show_default="mean-of-ratios")] = None,
    unseen: Unseen = None,
    pair: Pair = None,
    perplexity: Perplexity = None,
) -> None:
    """Draw a figure of the paper from your runs, evaluations or factors: NAME.pdf, .svg, .png, and its data, .csv.

    blocks (2): a run. I in A and B of MLP and attention, by --layers (first and last): Eq. 3, below it ratio of means.

    conditional (4): evaluations, such as without and with conditional factor selection. Scores by task, --unseen apart.

    selections (5): factors. Map of what examples of the --unseen tasks select (all if none is named).

    pairs (6): factors. Map and overlap of each --pair SEEN=UNSEEN. Both beside the same adapter's untrained.

    methods (7): runs of LoRA and of MixLoRA. I averaged over layers (Eq. 3), below it ratio of means, and differences.

    Example: interference figure blocks reports/demo/lora/step-10 --layers 0,3 --out figures
    """
    from interference.figures import gallery

    of_matrix = {"metric": metric and metric.value, **matrix_options(layers, modules, side, pairs=pairs, reduce=reduce)}
    others = {"unseen": unseen, "pair": pair, "perplexity": perplexity, "label": label}
    paths, notes = gallery.write(name, inputs, out, {**of_matrix, **others})
    for note in notes:
        typer.echo(f"note: {plain(note)}", err=True)
    for path in paths:
        typer.echo(plain(path))


@app.command()
def demo(out: DemoOut = Path("reports/demo")) -> None:
    """Train a LoRA and a MixLoRA on six small tasks, score and measure them, and show where their matrices differ."""
    from interference.cli import demo
    from mixlora.common import terminal

    try:
        demo.demo(out, terminal.console())
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command continues with what is finished", err=True)
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point: errors become one sentence on stderr and an exit code."""
    command.run(app)


if __name__ == "__main__":
    main()
