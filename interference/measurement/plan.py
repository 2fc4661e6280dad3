"""plan: what a configuration will cost. Disk space follows from shapes, memory and time from some examples."""

import itertools
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interference.blocks import Granularity, coarsen
from interference.config import AnalysisConfig
from interference.gradients.probe import Probe
from interference.measurement import checkpoint, sample
from interference.measurement.builder import RunBuilder
from interference.measurement.gram import gram
from interference.measurement.objective import of_work
from interference.measurement.optimizers import of_config
from interference.measurement.prober import Prober
from interference.measurement.spec import Spec
from interference.measurement.spool import DiskSpool, temporary
from interference.measurement.units import Part
from interference.run import load
from interference.run.grams import pack, packed_bytes, write_packed
from interference.run.planning import Needed, check_pilot, needed
from interference.run.record import checksum

_LOSES = {
    Granularity.MODULE: "nothing",
    Granularity.GROUP: "modules within attention and mlp",
    Granularity.LAYER: "attention against mlp",
}
_TIMED_PARTS = 5


@dataclass(frozen=True)
class Plan:
    """The cost of a configuration.

    Attributes:
        units: number of units that will be measured.
        blocks: blocks of each unit.
        width: gradient entries of a unit.
        spool: bytes that gradients take on disk while computing.
        choices: one row per granularity and unit size: blocks and size of the stored run, and what is lost.
        memory: peak bytes of the process, if it was measured.
        gpu_memory: peak bytes on the GPU (of several: the fullest), if it was measured there.
        seconds: to load the model, for the gradients and for the Gram matrices, if they were measured.
        groups: {task: its groups}; as many as it has units, where no two share one.
    """

    units: int
    blocks: int
    width: int
    spool: int
    choices: pd.DataFrame
    memory: int | None = None
    gpu_memory: int | None = None
    seconds: dict[str, float] | None = None
    groups: dict[str, int] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        """Bytes of the run's Gram matrices."""
        (chosen,) = self.choices[self.choices["this one"] == "yes"]["MiB"]
        return round(float(chosen) * 2**20)


def plan(config: AnalysisConfig, timed: bool = False) -> Plan:
    """The cost of a configuration. Data and shapes are read; weights are read only to measure time and memory.

    Raises:
        InterferenceError: as `compute_config`.
    """
    encoded = sample.encode(sample.read(config), sample.collator_of(config), config)
    start = time.perf_counter()
    model = checkpoint.load_model(config.model) if timed else _shapes(config)
    loaded = time.perf_counter() - start
    spec = Spec.of(config.probe)
    targets = spec.targets(model)
    builder = RunBuilder(spec, targets, moments=of_config(config, model, targets))
    units, blocks = sample.count(encoded), builder.blocks
    found = Plan(
        units,
        len(blocks),
        sum(block.size for block in blocks),
        builder.spool_bytes(units),
        _choices(builder, encoded, config),
        groups={task: len({unit.group for unit in encoded.units if unit.task == task}) for task in config.tasks},
    )
    return _measured(found, config, model, builder, encoded, loaded) if timed else found


def needed_by(pilot: Path, config: AnalysisConfig | None, effect: float | None) -> Needed:
    """What verdicts on the tasks and modules of a configuration need, by a pilot; on the pilot's own if there is none.

    Raises:
        RunError: if the pilot is not a run.
        ScopeError: if the pilot lacks some of them, or its units are of another size.
    """
    run = load(pilot)
    if config is None:
        return needed(run, effect)
    check_pilot(run, config.model_dump(mode="json"))
    return needed(run, effect, tasks=list(config.tasks), layers=config.probe.layers, modules=config.probe.modules)


def _shapes(config: AnalysisConfig) -> nn.Module:
    """The model without its weights."""
    with torch.device("meta"):
        return checkpoint.empty_adapted(config.model)


def _choices(builder: RunBuilder, encoded: sample.Sample, config: AnalysisConfig) -> pd.DataFrame:
    """A row for every granularity, with the units as they are and, where every task has enough, ten times as large."""
    rows, counts = [], Counter(unit.task for unit in encoded.units)
    factors = (1, 10) if min(counts.values()) >= 20 else (1,)
    for granularity, factor in itertools.product(Granularity, factors):
        stored = len({coarsen(block, granularity).name for block in builder.blocks})
        steps = len({coarsen(block, granularity).name for block in builder.blocks if builder.steps_of(block)})
        count = sum(units // factor for units in counts.values())
        chosen = granularity == config.probe.granularity and factor == 1
        rows.append(
            {
                "granularity": str(granularity),
                "unit_size": config.probe.unit_size * factor,
                "units": count,
                "blocks": stored,
                "MiB": packed_bytes(stored, count, steps) / 2**20,
                "loses": _LOSES[granularity] + (f"; single examples (units of {factor})" if factor > 1 else ""),
                "this one": "yes" if chosen else "",
            }
        )
    return pd.DataFrame(rows)


def _measured(
    found: Plan,
    config: AnalysisConfig,
    model: nn.Module,
    builder: RunBuilder,
    encoded: sample.Sample,
    loading: float,
) -> Plan:
    """The plan with memory and time, from parts of all lengths, including the longest, which needs most memory."""
    spool_dir, device = config.probe.spool_dir, next(model.parameters()).device
    work = sample.workload(encoded, config, device)
    objective, work = of_work(model, builder.targets[0].adapter, work)
    parts = list(work.parts)
    with ExitStack() as stack:
        spool = DiskSpool(Path(stack.enter_context(temporary(Path(spool_dir) if spool_dir else None))))
        probe = stack.enter_context(Probe(model, builder.targets, objective.loss))
        gradients = _probing_seconds(Prober(probe, spool, builder.spec), spool, parts)
        largest = max(len(part.units) for part in parts)
        gram_seconds = _gram_seconds(builder, spool, found.units, largest)
    seconds = {"load": loading, "gradients": gradients, "gram": gram_seconds}
    gpus = range(torch.cuda.device_count() if device.type == "cuda" else 0)
    on_gpu = max(map(torch.cuda.max_memory_allocated, gpus), default=None)
    return replace(found, memory=peak_memory(), gpu_memory=on_gpu, seconds=seconds)


def _probing_seconds(prober: Prober, spool: DiskSpool, parts: Sequence[Part]) -> float:
    """The time of all parts, sorted by length, from some of them; a part with the most units stays in the spool."""

    def measure(place: int) -> float:
        spool.path(0).unlink(missing_ok=True)  # or the part would not be measured again
        return _timed(partial(prober.run, [parts[place]]))

    measure(len(parts) - 1)  # the first forward of a process takes longer than any other
    sizes = [len(part.units) for part in parts]
    some = {*(round(place) for place in np.linspace(0, len(parts) - 1, _TIMED_PARTS)), sizes.index(max(sizes))}
    spent = {place: measure(place) for place in sorted(some, key=lambda place: (sizes[place], -place))}
    return float(np.interp(range(len(parts)), sorted(some), [spent[place] for place in sorted(some)]).sum())


def _gram_seconds(builder: RunBuilder, spool: DiskSpool, units: int, rows: int) -> float:
    """The time of all Gram matrices, from a few blocks of different sizes."""
    repeated, budget = _Repeated(spool), builder.spec.half_budget
    sizes = [rows] * math.ceil(units / rows)
    _, sums = builder.stored()
    entries = dict(member for members in sums.values() for member in members)
    ordered = sorted(entries, key=entries.__getitem__)
    some = list(dict.fromkeys(ordered[place] for place in (0, len(ordered) // 2, -1)))
    matrix = gram(repeated, sizes, some[0], entries[some[0]], budget)
    times = [_timed(partial(gram, repeated, sizes, name, entries[name], budget)) for name in some]
    known = [entries[name] for name in some]
    multiplied = float(np.interp(list(entries.values()), known, times).sum())
    kept = len(sums) * _timed(partial(_keep, matrix, spool.folder / "gram"))
    return (multiplied + kept) * (2 if builder.steps() else 1)


def _keep(matrix: NDArray[np.float32], path: Path) -> None:
    """Pack a Gram matrix, then write and read it twice, as for a run and its checksums."""
    packed = pack(matrix)
    for _ in range(2):
        write_packed(path, ["one"], len(matrix), [("one", packed)])
        checksum(path)


class _Repeated:
    """A spool that has the measured part at every number."""

    def __init__(self, spool: DiskSpool) -> None:
        self._spool = spool

    def read(self, part: int, block: str) -> Tensor:
        return self._spool.read(0, block)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory() -> int:
    """The largest number of bytes that this process has held in memory."""
    status = Path("/proc/self/status")  # getrusage may report the process that started this one
    lines = status.read_text().splitlines() if status.exists() else []
    if line := next((line for line in lines if line.startswith("VmHWM")), None):
        return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
