"""Single bits turned over in finished runs, factors and evaluations: the same numbers to the bit, or one sentence."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import interference
from interference.errors import InterferenceError
from interference.factors import factors
from mixlora.evaluation import results
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.folder import Folder
from tests.attacks.commands import call
from tests.attacks.counts import Counts
from tests.attacks.places import Job, make

COUNT = 8000
"""Flips in all, besides edits of records by hand."""
SHARES = {"compute": 0.7, "factors": 0.2, "evaluate": 0.1}
"""{command: which share of them its result takes}."""


def attack(folder: Path, generator: random.Random, count: int, commands: tuple[str, ...] = tuple(SHARES)) -> Counts:
    """Flip bits of a run, of factors and of an evaluation, and edit their records by hand."""
    found, values = Counts(), _judged(make(folder / "inputs", "mixture"))
    for command in commands:
        record, names, read = _READ[command]
        job = Job(command, values[command], folder / command / "out")
        assert call(job).code == 0
        whole = {
            str(path.relative_to(job.out)): path.read_bytes()
            for name in names
            for path in job.out.glob(name)
            if path.is_file()
        }
        wanted, times = read(job.out), round(count * SHARES[command])
        edits = list(_edits(whole[record], record))
        for place, changed in (
            *_flips(whole, record, generator, times),
            *generator.sample(edits, min(times, len(edits))),
        ):
            name = place.partition(" ")[0]
            (job.out / name).write_bytes(changed)
            _judge(job.out, read, wanted, place, found)
            (job.out / name).write_bytes(whole[name])
        assert read(job.out) == wanted
    return found


def _judged(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The configurations, in which a judge scores one task of the evaluation."""
    own = values["evaluate"]
    judge = {"model": own["model"]["base"], "by": "generation", "device": "cpu"}
    tasks = {**own["tasks"], "red": {**own["tasks"]["red"], "score": "judge"}}
    return {**values, "evaluate": {**own, "judge": judge, "tasks": tasks}}


def _flips(
    whole: Mapping[str, bytes], record: str, generator: random.Random, count: int
) -> Iterator[tuple[str, bytes]]:
    """(file and place, its damaged bytes): half of the flips in the record, whose text no library checks."""
    for _ in range(count):
        name = record if generator.random() < 0.5 else generator.choice(sorted(whole))
        bit = generator.randrange(8 * len(whole[name]))
        changed = bytearray(whole[name])
        changed[bit // 8] ^= 1 << bit % 8
        yield f"{name} bit {bit}", bytes(changed)


def _edits(whole: bytes, record: str) -> Iterator[tuple[str, bytes]]:
    """Each key of a record gone, the seal among them, and each flip in the name of one."""
    meta = json.loads(whole)
    for key in meta:
        without = {name: value for name, value in meta.items() if name != key}
        yield f"{record} without {key}", json.dumps(without, indent=2).encode()
        for bit in range(8 * len(key)):
            name = bytearray(key.encode())
            name[bit // 8] ^= 1 << bit % 8
            text = whole.replace(f'\n  "{key}":'.encode(), b'\n  "' + bytes(name) + b'":', 1)
            yield f"{record} key {key} bit {bit}", text


def _judge(out: Path, read: Callable[[Path], Any], wanted: Any, place: str, found: Counts) -> None:
    found.add("tried")
    try:
        same = read(out) == wanted
    except InterferenceError as error:
        found.add("refused" if str(error).strip() and "\n" not in str(error) else "tracebacks", f"{place}: {error}")
    except Exception as error:
        found.add("tracebacks", f"{place}: {type(error).__name__}: {error}")
    else:
        found.add("expected" if same else "wrong", place)


def _of_run(out: Path) -> Any:
    """All that a run holds, as text and bytes that can be compared."""
    run = interference.load(out)
    grams = {name: run.grams([name])[0].tobytes() for name in run.blocks["name"]}
    tables = [table.to_json(double_precision=15) for table in (run.probes, run.blocks)]
    return grams, tables, {k: v.tobytes() for k, v in run.selections.items()}, json.dumps(run.meta, sort_keys=True)


def _of_factors(out: Path) -> Any:
    """All that factors hold."""
    held = factors.load(out)
    chosen = [each and {k: v.tobytes() for k, v in each.values.items()} for each in (held.selections, held.untrained)]
    return chosen, held.examples.to_json(), held.selections.blocks.to_json(), json.dumps(held.meta, sort_keys=True)


def _of_evaluation(out: Path) -> Any:
    """All scores, answers and verdicts of an evaluation, as reading, comparing and continuing it takes them."""
    scored = results.load(out)
    answers = {}
    for task, entry in scored.tasks.items():
        kept = Folder(out).complete(task, [f"r{k}" for k in range(entry["n"])])
        answers[task] = kept and [one.predict for one in kept]
    return json.dumps(asdict(scored), sort_keys=True), answers, repr(compare(out, out))


_READ: Mapping[str, tuple[str, tuple[str, ...], Callable[[Path], Any]]] = {
    "compute": ("run.json", ("*",), _of_run),
    "factors": ("factors.json", ("*",), _of_factors),
    "evaluate": ("results.json", ("results.json", "predictions/*", "judgements/*"), _of_evaluation),
}
"""{command: its record, its files, and what reads all of them}."""
