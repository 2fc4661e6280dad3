"""Paper: the figures of Shen et al. 2024 (arXiv 2402.15896), each drawn from runs, evaluations or selections of yours.

    interference.paper.blocks(run, layers=[0, 3])

`matrices`, `scores` and `factors` draw; this module chooses what the paper shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from interference.blocks import Side
from interference.errors import ScopeError
from interference.factors import affinity, neighbours
from interference.factors.contrast import Contrast, contrast
from interference.factors.factors import Factors
from interference.factors.neighbours import Embedding
from interference.factors.selections import check_tasks
from interference.figures import factors as maps
from interference.figures import matrices, scores
from interference.figures.canvas import Picture
from interference.figures.ways import published
from interference.run import Run
from interference.run.remarks import reduced_by
from interference.statistics.estimand import Reduce
from mixlora.evaluation import comparison, results

__all__ = ["blocks", "conditional", "methods", "pairs", "selections"]  # public as `interference.paper`

EQUATION_3 = {"reduce": Reduce.MEAN_OF_RATIOS.value}


def blocks(
    run: Run,
    layers: Sequence[int] | None = None,
    metric: str = "interference",
    modules: Sequence[str] | None = None,
    side: Side | str | None = None,
    **options: Any,
) -> Picture:
    """Figure 2: task interference in A and B of MLP and attention, one row per layer.

    The upper rows show the paper's Eq. 3, without verdicts. The rows below show the ratio of means, with verdicts.

    Args:
        run: A run.
        layers: Rows; None for the first and the last that were probed.
        metric: As in `Run.matrix`.
        modules: Columns: modules or groups of them; None for every group, MLP first.
        side: Side of the columns; None for A and B.
        **options: Options of `Run.table`; with `reduce="ratio-of-means"` there are no rows of Eq. 3.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If a layer, module or side is not there, or the run probed no layer.
        ConfigError: If an option has a value that is not allowed.

    Example:
        >>> import interference
        >>> figure = interference.paper.blocks(interference.load("reports/reference/lora"))
        >>> sorted(set(figure.data["layer"]))
        [0, 3]
    """
    there = sorted({int(layer) for layer in run.blocks["layer"].dropna()})
    if layers is None and there:
        layers = list(dict.fromkeys((there[0], there[-1])))
    if modules is None:
        modules = sorted(dict.fromkeys(run.scope(layers)["group"]), key=lambda group: group != "mlp")
    options = EQUATION_3 | options
    ways = published(metric, options)
    return _captioned(matrices.panels(run, metric, layers, modules, side, ways=ways), metric, options)


def conditional(
    evaluations: Sequence[Path | str], labels: Sequence[str] | None = None, unseen: Sequence[str] = ()
) -> Picture:
    """Figure 4: scores of two or more models by task, such as without and with conditional factor selection.

    For two models, a second panel shows how much the second differs on the same examples.

    Args:
        evaluations: Directories that `mixlora evaluate` wrote.
        labels: Names of the models; None for those in the evaluations.
        unseen: Tasks that the models were not trained on.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If there are not two, labels are more or fewer, two are the same, or an unseen task is not there.
        InterferenceError: If a directory has no results, or the two cannot be compared.
    """
    if len(evaluations) < 2:
        raise ScopeError(f"scores are compared, but {len(evaluations)} evaluation was given; give two or more")
    found = [results.load(path) for path in evaluations]
    if labels is not None and len(labels) != len(found):
        raise ScopeError(f"{len(labels)} labels are given for {len(found)} evaluations; give one for each, or none")
    if labels is not None:
        found = [replace(one, label=label) for one, label in zip(found, labels, strict=True)]
    names = [one.label for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ScopeError(f"two evaluations are called {twice!r}; give each a --label of its own")
    if len(found) > 2:
        return scores.scores(found, None, unseen)
    change = comparison.compare(Path(evaluations[0]), Path(evaluations[1]))
    return scores.scores(found, replace(change, first=names[0], second=names[1]), unseen)


def selections(factors: Factors, unseen: Sequence[str] = (), perplexity: float | None = None) -> Picture:
    """Figure 5: the map of what examples of unseen tasks select, and how pure their neighbourhoods are.

    Beside it is the map of the same adapter untrained, with the difference of purity and its 95% interval.

    Args:
        factors: What the examples select.
        unseen: The tasks to draw; all if there are none.
        perplexity: Perplexity of the t-SNE; None for 30, or less where there are few examples.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If a task is not there, there are not two, or the perplexity is too large.
        MeasurementError: If all examples selected the same.
    """
    names = factors.selections.names
    for task in unseen:
        if task not in names:
            raise ScopeError(f"unseen task {task!r} is not among the tasks: {', '.join(names)}")
    check_tasks(list(unseen) or names)
    chosen = _only(factors, list(unseen) or names)
    embedded = _embedded(chosen, perplexity)
    return maps.embedding(chosen, embedded, beside=_beside(chosen, embedded))


def pairs(factors: Factors, pairs: Sequence[tuple[str, str]], perplexity: float | None = None) -> Picture:
    """Figure 6: the map of seen tasks and the unseen ones paired with them, and how much each two of them share.

    Below is the same for the adapter untrained, with the difference of purity and its 95% interval.

    Args:
        factors: What the examples select.
        pairs: (seen, unseen); a task is in one pair at most, and those in none are left out.
        perplexity: Perplexity of the t-SNE; None for 30, or less where there are few examples.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If there is no pair, a task is not there or is in two, or the perplexity is too large.
        MeasurementError: If all examples selected the same.
    """
    affinity.check_pairs(pairs, factors.selections.names)
    chosen = _only(factors, [task for pair in pairs for task in pair])
    of = [one for one in (chosen.selections, chosen.untrained) if one is not None]
    pairing, *others = (affinity.paired(one, pairs, _seed(factors)) for one in of)
    embedded = _embedded(chosen, perplexity)
    return maps.pairs(chosen, embedded, pairing, _beside(chosen, embedded), *others)


def methods(runs: Mapping[str, Run], metric: str = "interference", **options: Any) -> Picture:
    """Figure 7: task interference averaged over layers, of two methods on the same examples, and how they differ.

    The upper row shows the paper's Eq. 3 averaged over blocks, without verdicts. The row below shows the ratio of means
    of all blocks as one, with verdicts.

    Args:
        runs: {title: run}, two of them, such as of LoRA and of MixLoRA.
        metric: As in `Run.matrix`.
        **options: Scope and options of `Run.table`.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If there are not two runs, they do not have the same units, or the scope is not there.
        ConfigError: If an option has a value that is not allowed.
        MeasurementError: If every gradient in the scope is zero.

    Example:
        >>> import interference
        >>> lora, mixlora = (interference.load(f"reports/reference/{name}") for name in ("lora", "mixlora"))
        >>> figure = interference.paper.methods({"LoRA": lora, "MixLoRA": mixlora}, layers=[3])
        >>> len(set(figure.data["estimator"]))
        2
    """
    options = EQUATION_3 | {"aggregate": "mean"} | options
    return _captioned(matrices.difference(runs, metric, published(metric, options), **options), metric, options)


def _captioned(picture: Picture, metric: str, options: Mapping[str, Any]) -> Picture:
    """The figure with what its frames mean and how its numbers are made."""
    how = f"; I: {reduced_by(options.get('reduce'))}" if metric == "interference" else ""
    averaged = ", averaged over blocks" if options.get("aggregate") == "mean" else ""
    lines, key = [line for line in picture.caption if line != matrices.KEY], f"{matrices.KEY}{how}{averaged}"
    if "estimator" in picture.data:
        key = f"below: {picture.data['estimator'].iloc[-1]}; {matrices.KEY}"
        picture.explain([lines[0], key, *lines[1:]])
    else:
        picture.explain([key, *lines])
    return picture


def _only(factors: Factors, tasks: Sequence[str]) -> Factors:
    """What the examples of some tasks select."""
    rows = np.flatnonzero(np.isin(factors.selections.tasks, tasks))
    untrained = None if factors.untrained is None else factors.untrained.of(rows)
    examples = factors.examples.iloc[rows].reset_index(drop=True)
    return Factors(factors.selections.of(rows), examples, factors.meta, untrained)


def _embedded(factors: Factors, perplexity: float | None) -> Embedding:
    return neighbours.embed(factors.selections, perplexity, seed=_seed(factors))


def _beside(factors: Factors, embedded: Embedding) -> Contrast | None:
    return None if factors.untrained is None else contrast(factors.selections, factors.untrained, embedded)


def _seed(factors: Factors) -> int:
    return int(factors.meta.get("seed", 0))
