"""What a unit looks like: prompt, answer and a small picture, read again from where the run's configuration says."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from interference.config import AnalysisConfig, build
from interference.errors import InterferenceError
from interference.run import Run
from mixlora.data.checking import fingerprint
from mixlora.data.draws import draw, packed, pool_of
from mixlora.data.examples import Example
from mixlora.data.groups import NONE, all_shared
from mixlora.data.images import open_image
from mixlora.data.sources import examples_of

TEXT = 300
"""Characters that are kept of a prompt and of an answer."""
EDGE = 96
"""The longer edge of a small picture, in pixels."""
BYTES = 12_000
"""A larger PNG is drawn again in 32 colours."""
NOTHING: dict[str, Any] = {"prompt": "", "answer": "", "thumbnail": None}


@dataclass(frozen=True)
class _Unit:
    """Examples of one unit."""

    examples: tuple[Example, ...]

    @property
    def names(self) -> tuple[str, str]:
        """Ids and sources as a run's probes name them."""
        return " + ".join(e.id for e in self.examples), " + ".join(e.source for e in self.examples)

    @property
    def content(self) -> str | None:
        """The digest of the examples as a run's probes have it; None where a picture can no longer be read."""
        try:
            return fingerprint(self.examples)
        except InterferenceError:
            return None


class Excerpts:
    """The examples behind the units of runs; every task's file is read once, when it is first asked for."""

    def __init__(self) -> None:
        self._read: dict[str, dict[tuple[str, str], _Unit]] = {}
        self._drawn: dict[str, dict[str, list[Example]]] = {}

    def of(self, run: Run, row: int) -> dict[str, Any]:
        """Prompt, answer and thumbnail (a PNG as data URI) of a unit; "" and None where they cannot be had.

        They cannot where the run names no data, the data are gone, or no unit there has this unit's ids, sources and,
        where the run tells it, content.
        """
        task, ids, source = (str(run.probes[name].iloc[row]) for name in ("task", "ids", "source"))
        unit = self._units(run, task).get((ids, source))
        if unit is None or ("content" in run.probes and unit.content != run.probes["content"].iloc[row]):
            return dict(NOTHING)
        example, more = unit.examples[0], len(unit.examples) - 1
        prompt = "\n".join(turn.text for turn in example.turns[:-1])
        also = f" (the first of {more + 1} examples)" if more else ""
        answer = shortened(example.turns[-1].text)
        return {"prompt": shortened(prompt) + also, "answer": answer, "thumbnail": thumbnail(example)}

    def _units(self, run: Run, task: str) -> dict[tuple[str, str], _Unit]:
        try:
            config = build(run.meta.get("config") or {}, "the run")
        except InterferenceError:
            return {}
        if task not in config.tasks:
            return {}
        probe = config.probe
        others = config.model_dump(include={"tasks", "probe"}) if probe.sample_groups else None
        key = repr((task, config.tasks[task].model_dump(), probe.samples, probe.seed, probe.unit_size, others))
        if key not in self._read:
            self._read[key] = _units_of(config, task, partial(self._examples, config, repr(others)))
        return self._read[key]

    def _examples(self, config: AnalysisConfig, key: str, task: str) -> list[Example]:
        """The sampled examples of a task. Where they depend on those of others, all are drawn, once for all tasks."""
        probe = config.probe
        if not probe.sample_groups:
            return examples_of(task, config.tasks[task], probe.samples, probe.seed)[task]
        if key not in self._drawn:
            pools = {name: pool_of(name, own, probe.samples, probe.seed) for name, own in config.tasks.items()}
            self._drawn[key] = draw(pools, config.kinds, probe.samples, probe.seed, config.pairing)
        return self._drawn[key][task]


def shortened(text: str, limit: int = TEXT) -> str:
    """The text, its end left out where it is long."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def thumbnail(example: Example) -> str | None:
    """The example's picture as a small PNG in a data URI; None where it has none that can be opened."""
    if not example.images:
        return None
    try:
        picture = open_image(example)
    except InterferenceError:
        return None
    picture.thumbnail((EDGE, EDGE))
    data = _png(picture)
    if len(data) > BYTES:
        data = _png(picture.quantize(32))
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _units_of(
    config: AnalysisConfig, task: str, sampled: Callable[[str], list[Example]]
) -> dict[tuple[str, str], _Unit]:
    """A task's units by their names, in groups of `unit_size` that all have a picture or all have none."""
    probe = config.probe
    units = []
    try:
        examples = sampled(task)
        group = config.tasks[task].group if probe.sample_groups else NONE
        shared = list(all_shared((each, group) for each in examples))
    except (InterferenceError, KeyError):
        return {}
    for kind in (True, False):
        chosen = [k for k, example in enumerate(examples) if example.has_image is kind]
        alike = [examples[k] for k in chosen]
        if probe.sample_groups:
            alike = packed(alike, (shared[k] for k in chosen), probe.unit_size)
        starts = range(0, len(alike) - probe.unit_size + 1, probe.unit_size)
        units += [_Unit(tuple(alike[start : start + probe.unit_size])) for start in starts]
    return {unit.names: unit for unit in units}


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
