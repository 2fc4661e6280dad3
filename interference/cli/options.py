"""Options of the command line: their names and help, and how their text becomes keys of a configuration."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from interference.errors import ConfigError
from mixlora.common.command import among, given, tasks
from mixlora.common.files import expanded, without_dots


class Metric(StrEnum):
    """Metrics that `show` and `compare` print."""

    INTERFERENCE = "interference"
    DELTA = "delta"
    COSINE = "cosine"
    PAIR_COSINE = "pair_cosine"
    CONFLICT_RATE = "conflict_rate"
    MAGNITUDE_SIMILARITY = "magnitude_similarity"
    CURVATURE = "curvature"


def at_home(path: Path | None) -> Path | None:
    """The path, the home directory in place of a ~ that begins it: no shell replaces one after --out=."""
    return None if path is None else without_dots(expanded(path))


RunPath = Annotated[Path, typer.Argument(help="Directory of a run.", show_default=False)]
ConfigPath = Annotated[
    Path | None, typer.Argument(help="YAML file, or a run's directory to rerun it.", show_default=False)
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: probe.samples=50.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Directory to write the run to.", show_default=False)]
FactorsOut = Annotated[
    Path | None,
    typer.Option("--out", help="Directory for selections and figures.", show_default=False, callback=at_home),
]
ReportOut = Annotated[
    Path, typer.Option("--out", help="Directory for report.html, figures/ and tables/.", callback=at_home)
]
FiguresOut = Annotated[Path, typer.Option("--out", help="Directory for the files.", callback=at_home)]
DemoOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Directory for the demo's checkpoints, runs and pictures.",
        show_default="reports/demo, or reports/demo-quick",
        callback=at_home,
    ),
]
Base = Annotated[str | None, typer.Option(help="Base model: path or hub id; 'mini' is the built-in one.")]
Adapter = Annotated[str | None, typer.Option(help="LoRA or MixLoRA adapter: path or hub id.")]
Task = Annotated[list[str] | None, typer.Option(help="NAME=FILE, once for each task.", show_default=False)]
Layers = Annotated[str | None, typer.Option(help="Layers from 0: 5,25 or 0-3.", show_default="all")]
Modules = Annotated[
    str | None,
    typer.Option(
        help="attention, mlp or names: q_proj,v_proj.", show_default="all", autocompletion=among("attention", "mlp")
    ),
]
Samples = Annotated[int | None, typer.Option(help="Examples of each task.", show_default="100")]
Seed = Annotated[int | None, typer.Option(help="Seed of sampling and bootstrap.", show_default="0")]
SpoolDir = Annotated[
    str | None, typer.Option(help="Directory where gradients wait on disk.", show_default="beside --out")
]
MemoryBudget = Annotated[str | None, typer.Option(help="Memory for gradients: 2GiB.", show_default="1GiB")]
MetricOption = Annotated[Metric, typer.Option(help="What to compute for each pair of tasks.")]
complete_side = among("A", "B", "router-A", "router-B", "router-AB")
Side = Annotated[
    str | None,
    typer.Option(help="A, B, router-A, router-B or router-AB.", show_default="all", autocompletion=complete_side),
]
Space = Annotated[
    str,
    typer.Option(
        help="parameters, adam (AdamW's step), or weight (independent of how BA is split).",
        autocompletion=among("parameters", "adam", "weight"),
    ),
]
PAIRS = "leave-one-out, uni-perceiver, all or same-example."
REDUCE = "ratio-of-means, mean-of-ratios (the paper's Eq. 3) or median-of-ratios."
RATIO_OF_MEANS = "ratio-of-means"  # as `statistics.estimand.REDUCE`, which would load numpy for every --help
complete_pairs = among("leave-one-out", "uni-perceiver", "all", "same-example")
complete_reduce = among(RATIO_OF_MEANS, "mean-of-ratios", "median-of-ratios")
Pairs = Annotated[str, typer.Option(help=PAIRS, autocompletion=complete_pairs)]
Reduce = Annotated[str, typer.Option(help=REDUCE, autocompletion=complete_reduce)]
Aggregate = Annotated[
    str, typer.Option(help="sum (one theta) or mean (of the blocks' values).", autocompletion=among("sum", "mean"))
]
FIGURES = ("blocks", "conditional", "selections", "pairs", "methods")
FigureName = Annotated[
    str,
    typer.Argument(
        help="Name of the figure, or its number in the paper.", show_default=False, autocompletion=among(*FIGURES)
    ),
]
Perplexity = Annotated[
    float | None, typer.Option(help="Perplexity of the t-SNE map.", show_default="30, less for few examples")
]
Unseen = Annotated[
    list[str] | None, typer.Option(help="A task that was not trained on; repeatable.", show_default=False)
]
Pair = Annotated[list[str] | None, typer.Option(help="SEEN=UNSEEN: two tasks to pair; repeatable.", show_default=False)]
Beside = Annotated[Path | None, typer.Option(help="A run of the same tasks, to compare with.", show_default=False)]
Label = Annotated[
    list[str] | None,
    typer.Option(help="Name of a run or directory, in their order; repeatable.", show_default="its own name"),
]
Pilot = Annotated[
    Path | None, typer.Option(help="A run from which to plan how many groups a verdict needs.", show_default=False)
]
Effect = Annotated[
    str | None, typer.Option(help="With --pilot: the interference to detect, or 'observed'.", show_default="-0.1")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show neither progress nor the next step.")]


def configuration(config: Path | None, settings: list[str] | None, options: dict[str, Any]) -> Any:
    """The configuration that a file, settings and options ask for."""
    from interference.config import load as read

    if config is None and not options:
        raise ConfigError("there is nothing to measure: name a YAML file, or give --base, --adapter and --task")
    return read(config, settings or (), options)


def given_options(
    base: str | None,
    adapter: str | None,
    task: list[str] | None,
    layers: str | None,
    modules: str | None,
    samples: int | None,
    seed: int | None,
    memory_budget: str | None,
    out: Path | None,
    spool_dir: str | None = None,
) -> dict[str, Any]:
    """Command-line options as the nested keys of a configuration; those not given are left out."""
    probe = {
        "layers": numbers(layers),
        "modules": names(modules),
        "samples": samples,
        "seed": seed,
        "memory_budget": memory_budget,
        "spool_dir": spool_dir,
    }
    return given(
        {
            "model": given({"base": base, "adapter": adapter}),
            "tasks": tasks(task or ()),
            "probe": given(probe),
            "out": None if out is None else str(out),
        }
    )


def matrix_options(layers: str | None, modules: str | None, side: str | None, **others: str | None) -> dict[str, Any]:
    """Command-line options as the arguments of `Run.table`, in their order: those of the scope, then the others."""
    return {"layers": numbers(layers), "modules": names(modules), "side": side, **others}


def check_perplexity(given: float | None, examples: int) -> None:
    """Refuse a perplexity of a map that no number of examples up to this one allows."""
    if given is not None and not 1 <= given < examples:
        raise ConfigError(f"--perplexity {given:g} must be at least 1 and below the number of examples, {examples}")


def effect_of(text: str | None, pilot: Path | None) -> float | None:
    """The interference that a plan wishes to find; None for the pilot's own."""
    from interference.run.planning import EFFECT

    if text is None:
        return EFFECT
    if pilot is None:
        raise ConfigError(f"--effect {text} is for a --pilot, which gives the variance; name a run")
    if text == "observed":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--effect {text!r} is not a number; write an interference such as -0.1, or observed"
        ) from None


def names(text: str | None) -> list[str] | None:
    """The names in "q_proj,v_proj"."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str | None) -> list[int] | None:
    """The numbers in "5,25" or "0-3,7"."""
    if text is None:
        return None
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and (not last.isdecimal() or int(last) < int(first))):
            raise ConfigError(f"--layers {text!r} is not a list of layers; write 5,25 or 0-3")
        found += range(int(first), int(last if dash else first) + 1)
    return found
