"""Single bits turned over in finished runs, factors and evaluations: the same numbers to the bit, or one sentence."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import interference
from interference.errors import InterferenceError
from interference.factors import factors
from tests.attacks.commands import call
from tests.attacks.counts import Counts
from tests.attacks.places import Job, make
from tests.support.killing import files

COUNT = 8000
"""Flips in all; three quarters of them in a run."""


def attack(folder: Path, generator: random.Random, count: int) -> Counts:
    """Flip bits of a run, then of factors, and edit their records by hand."""
    found, values = Counts(), make(folder / "inputs", "mixture")
    for command, record, read, share in (
        ("compute", "run.json", _of_run, 0.75),
        ("factors", "factors.json", _of_factors, 0.25),
    ):
        job = Job(command, values[command], folder / command / "out")
        assert call(job).code == 0
        whole = {path.name: path.read_bytes() for path in job.out.iterdir() if path.is_file()}
        wanted = read(job.out)
        for place, changed in _damages(whole, record, generator, round(count * share)):
            name = place.partition(" ")[0]
            (job.out / name).write_bytes(changed)
            _judge(job.out, read, wanted, place, found)
            (job.out / name).write_bytes(whole[name])
        assert files(job.out) and read(job.out) == wanted
    return found


def _damages(whole: Mapping[str, bytes], record: str, generator: random.Random, count: int):
    """(file and place, its damaged bytes): half of the flips in the record, whose text no library checks."""
    for _ in range(count):
        name = record if generator.random() < 0.5 else generator.choice(sorted(whole))
        bit = generator.randrange(8 * len(whole[name]))
        changed = bytearray(whole[name])
        changed[bit // 8] ^= 1 << bit % 8
        yield f"{name} bit {bit}", bytes(changed)
    meta = json.loads(whole[record])
    yield f"{record} without its seal", _written({key: value for key, value in meta.items() if key != "seal"})
    for key in meta:
        yield f"{record} without {key}", _written({name: value for name, value in meta.items() if name != key})
        for bit in range(0, 8 * len(key)):
            name = bytearray(key.encode())
            name[bit // 8] ^= 1 << bit % 8
            text = whole[record].replace(f'\n  "{key}":'.encode(), b'\n  "' + bytes(name) + b'":', 1)
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


def _written(meta: Mapping[str, Any]) -> bytes:
    return json.dumps(meta, indent=2).encode()
