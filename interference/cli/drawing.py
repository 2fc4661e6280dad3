"""Commands that draw: factors, reports, figures and the demonstration, in the `app` of `commands`."""

from pathlib import Path
from typing import Annotated

import typer

from interference.cli.commands import app
from interference.cli.options import (
    PAIRS,
    REDUCE,
    Adapter,
    Base,
    Beside,
    ConfigPath,
    DemoOut,
    FactorsOut,
    FigureName,
    FiguresOut,
    Json,
    Label,
    Layers,
    Metric,
    Modules,
    Pair,
    Perplexity,
    Quiet,
    ReportOut,
    Samples,
    Seed,
    Set,
    Side,
    Task,
    Unseen,
    check_perplexity,
    complete_pairs,
    complete_reduce,
    configuration,
    given_options,
    matrix_options,
)
from interference.errors import ConfigError
from mixlora.common import command
from mixlora.common.errors import plain


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

    A second forward pass runs the same adapter untrained (its snapshot of step 0, or drawn with its seed).

    Chance and intervals are based on groups of examples, such as those that share a picture.

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
        raise ConfigError("no directory is given for the selections; give --out")
    check_perplexity(perplexity, resolved.probe.samples * len(resolved.tasks))
    folder, beside = OutputFolder(out / "figures", "interference factors"), load(run) if run else None
    with terminal.progress(terminal.console(stderr=True), quiet) as report:
        found = observer.kept_or_computed(resolved, out, report)
    embedded = neighbours.embed(found.selections, perplexity, seed=resolved.probe.seed)
    control = found.untrained
    untrained = None if control is None else contrast.contrast(found.selections, control, embedded)
    tables = library.tables(found, embedded, beside, untrained)
    drawn = {"embedding": factors.embedding(found, embedded, unseen or (), beside=untrained)}
    drawn["usage"] = factors.usage(found)
    folder.replace(files(drawn))
    for note in library.remarks(found):
        typer.echo(f"note: {plain(note)}", err=True)
    if as_json:
        typer.echo(printing.tables_json(tables))
    else:
        printing.tables(tables, terminal.console())
        typer.echo(plain(f"selections and figures: {out}"))
    page = () if run is None else (command.call("interference", "report", run),)
    command.next_steps(command.call("interference", "figure", "selections", out), *page, quiet=quiet or as_json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs; several are compared.", show_default=False)],
    out: ReportOut = Path("reports/report"),
    label: Label = None,
    detail: Annotated[
        str | None,
        typer.Option(
            help="How many scopes to measure: small or full.",
            show_default="by size",
            autocompletion=command.among("small", "full"),
        ),
    ] = None,
    examples: Annotated[bool, typer.Option(help="Show the examples that drive a cell.")] = True,
    quiet: Quiet = False,
) -> None:
    """Write a page about runs: which tasks conflict, where, whether it is real and what to do; with figures and tables.

    Example: interference report reports/demo/lora/step-10 reports/demo/mixlora/step-12 --out reports/demo/report
    """
    from interference.report import directory
    from mixlora.common import terminal

    with terminal.progress(terminal.console(stderr=True), quiet) as progress:
        paths = directory.write(runs, label, out, detail, examples, progress)
    for path in paths:
        typer.echo(plain(path))
    command.next_steps(f"open {paths[0]} in a browser", quiet=quiet)


@app.command()
def figure(
    name: FigureName,
    inputs: Annotated[list[Path], typer.Argument(help="Directories to draw from.", show_default=False)],
    out: FiguresOut = Path("reports/figures"),
    label: Label = None,
    metric: Annotated[Metric | None, typer.Option(help="Metric of the matrices.", show_default="interference")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers from 0: 5,25 or 0-3.", show_default="by figure")] = None,
    modules: Modules = None,
    side: Side = None,
    pairs: Annotated[
        str | None, typer.Option(help=PAIRS, show_default="leave-one-out", autocompletion=complete_pairs)
    ] = None,
    reduce: Annotated[
        str | None, typer.Option(help=REDUCE, show_default="mean-of-ratios", autocompletion=complete_reduce)
    ] = None,
    unseen: Unseen = None,
    pair: Pair = None,
    perplexity: Perplexity = None,
    quiet: Quiet = False,
) -> None:
    """Draw a figure of the paper from your runs, evaluations or factors: NAME.pdf, .svg, .png, and its data, .csv.

    blocks (2) takes a run: I in A and B of MLP and attention by --layers (first and last). Eq. 3, then ratio of means.

    conditional (4) takes evaluations, such as without and with conditional factor selection: scores, --unseen apart.

    selections (5) takes factors: a map of what examples of the --unseen tasks select (all if none is named).

    pairs (6) takes factors: map and overlap of each --pair SEEN=UNSEEN. 5 and 6 show the untrained adapter beside it.

    methods (7) takes runs of LoRA and MixLoRA: I averaged over layers (Eq. 3), ratio of means below, and differences.

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
    command.next_steps(f"open {paths[0]}; its numbers are in {paths[-1]}", quiet=quiet)


@app.command()
def demo(
    out: DemoOut = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run fewer steps and examples, in another directory.")] = False,
) -> None:
    """Train a LoRA and a MixLoRA on six small tasks, score and measure them, and show where their matrices differ.

    Example: interference demo --quick
    """
    from interference.cli import demo
    from mixlora.common import terminal

    try:
        if quick:
            demo.demo(out or Path("reports/demo-quick"), terminal.console(), demo.QUICK)
        else:
            demo.demo(out or Path("reports/demo"), terminal.console())
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command continues from what is finished", err=True)
        raise typer.Exit(130) from None
