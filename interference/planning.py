"""plan: what a configuration will cost before it is paid, from shapes alone (or from its first batches)."""

import itertools
import math
import time
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from interference import checkpoint, sampled
from interference.blocks import Block, Granularity, coarsen
from interference.config import AnalysisConfig
from interference.gradients import Probe
from interference.targets import Target, find_targets, probed_adapter

_LOSES = {
    Granularity.MODULE: "nothing",
    Granularity.GROUP: "modules within attention and mlp",
    Granularity.LAYER: "attention against mlp",
}
_TIMED_PARTS = 4


@dataclass(frozen=True)
class Plan:
    """The cost of a configuration.

    Attributes:
        units: that will be measured.
        blocks: that each has.
        width: gradient entries of a unit.
        spool: bytes that gradients take on disk while computing.
        choices: one row a granularity and unit size: blocks and bytes of the run that is stored, and what is lost.
        seconds: for the gradients, if it was timed.
    """

    units: int
    blocks: int
    width: int
    spool: int
    choices: pd.DataFrame
    seconds: float | None


def plan(config: AnalysisConfig, timed: bool = False) -> Plan:
    """The cost of a configuration. Data and shapes are read; weights only if it is timed.

    Raises:
        InterferenceError: as `compute_config`.
    """
    probe = config.probe
    encoded = sampled.encode(sampled.read(config), checkpoint.load_processor(config.model), config)
    model = checkpoint.load_model(config.model) if timed else _shapes(config)
    targets = find_targets(
        model, probed_adapter(model, None), probe.layers, probe.modules, probe.components, probe.routers
    )
    blocks = [block for target in targets for block in target.blocks]
    units, width = len(encoded.units), sum(block.size for block in blocks) * (2 if probe.weight_space else 1)
    choices = _choices(blocks, units, config)
    seconds = _seconds(model, targets, encoded, config) if timed else None
    return Plan(units, len(blocks), width, units * width * 4, choices, seconds)


def _shapes(config: AnalysisConfig) -> nn.Module:
    """The model without its weights."""
    with torch.device("meta"):
        return checkpoint.empty_adapted(config.model)


def _choices(blocks: list[Block], units: int, config: AnalysisConfig) -> pd.DataFrame:
    rows = []
    for granularity, factor in itertools.product(Granularity, (1, 10)):
        stored = len({coarsen(block, granularity).name for block in blocks})
        stored = stored * 3 // 2 if config.probe.weight_space else stored
        count = math.ceil(units / factor)
        chosen = granularity == config.probe.granularity and factor == 1
        rows.append(
            {
                "granularity": str(granularity),
                "unit_size": config.probe.unit_size * factor,
                "units": count,
                "blocks": stored,
                "MiB": stored * count * (count + 1) * 2 / 2**20,
                "loses": _LOSES[granularity] + (f"; single examples (units of {factor})" if factor > 1 else ""),
                "this one": "yes" if chosen else "",
            }
        )
    return pd.DataFrame(rows)


def _seconds(model: nn.Module, targets: list[Target], encoded: sampled.Sample, config: AnalysisConfig) -> float:
    """The time of all parts, from some of them spread over all lengths; the first is only a warm-up."""
    made, _ = sampled.parts(encoded, config, next(model.parameters()).device)
    parts = list(made)
    chosen = [parts[0], *parts[:: math.ceil(len(parts) / _TIMED_PARTS)]]
    spent, units = [], []
    with Probe(model, targets) as probe:
        for part in chosen:
            start = time.perf_counter()
            for batch, _ in part.batches:
                probe.gradients(batch)
            spent.append(time.perf_counter() - start)
            units.append(len(part.units))
    return sum(spent[1:]) / sum(units[1:]) * len(encoded.units)
