"""Directories from strangers: a run, factors and an evaluation's results are loaded whole, or refused in a sentence."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import interference
from interference import blocks
from interference.factors import Factors, factors
from interference.factors.selections import Selections
from interference.run import Run
from interference.run.grams import pack
from interference.run.record import checksum, write_meta
from mixlora.evaluation import predictions, results
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.intervals import Estimate
from tests.support.mutations import attempt, changed, damaged, fuzz, put, values, written

TASKS = ["red"] * 3 + ["blue"] * 3
META = {
    "seed": 3,
    "config": {"model": {"base": "mini", "adapter": "x"}, "tasks": {"red": {"mini": "heldout"}}},
    "unit": "example",
    "token_mean": False,
    "granularity": "module",
    "conventions": {"loss": "mean"},
    "not_probed": ["the projector"],
    "fingerprints": {"model": "5f"},
    "versions": {"torch": "2"},
    "data": {"fingerprint": "46"},
    "step": 12,
    "seconds": 4.24,
}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory):
    rng, places = np.random.default_rng(0), [(layer, side) for layer in (0, 3) for side in blocks.Side]
    frame = blocks.to_frame(
        blocks.Block(blocks.Component.LANGUAGE, k, "q_proj", "attention", side, 5) for k, side in places
    )
    rows = {name: rng.normal(size=(6, 5)) for name in frame["name"]}
    grams = {name: pack((own @ own.T).astype(np.float32)) for name, own in rows.items()}
    text = {column: [f"r{k}" for k in range(6)] for column in ("ids", "source")}
    probes = pd.DataFrame({"task": TASKS, "loss": np.arange(6) / 2, "tokens": np.arange(6) + 1, **text})
    chosen = {"unit": np.arange(6, dtype=np.int32), "language.0.q_proj.A": np.zeros((6, 2), np.int32)}
    out = tmp_path_factory.mktemp("run") / "whole"
    Run(probes, frame, grams, META, chosen).save(out)
    return files(out)


@pytest.fixture(scope="module")
def factor_files(tmp_path_factory):
    columns = ["name", "component", "layer", "module", "group", "side", "factors"]
    frame = pd.DataFrame([["language.0.q_proj.A", "language", 0, "q_proj", "attention", "A", 4]], columns=columns)
    chosen = Selections(TASKS, frame, {"language.0.q_proj.A": np.tile(np.array([[0, 3]], np.int32), (6, 1))}, True)
    examples = {"task": TASKS, "id": list("abcdef"), "source": list("abcdef"), "group": [0, 0, 1, 2, 3, 4]}
    told = {**META, "adapter_kind": "MIXLORA", "untrained": {"text": "untrained"}, "copies": 1}
    Factors(chosen, pd.DataFrame(examples), told, chosen).save(out := tmp_path_factory.mktemp("factors") / "whole")
    return files(out)


def broken(whole, record):
    """One file damaged, changed, taken for another or gone; with checksums that fit as often as not."""

    @st.composite
    def draw_files(draw):
        found, name = dict(whole), draw(st.sampled_from(sorted(whole)))
        deed = draw(st.sampled_from(["damage", "damage", "record", "record", "swap", "remove", "value"]))
        if deed == "damage":
            found[name] = draw(damaged(whole[name]))
        elif deed == "record":
            found[record] = written(draw(changed(json.loads(whole[record]))))
        elif deed == "swap":
            found[name] = whole[draw(st.sampled_from(sorted(whole)))]
        elif deed == "remove":
            del found[name]
        else:
            found[record] = written(draw(values))
        return found, draw(st.booleans())

    return draw_files()


def with_checksums(folder, record):
    """Whoever changes a file may correct its checksum too."""
    try:
        meta = json.loads((folder / record).read_bytes())
        meta.pop("seal", None)
        for name in meta["checksums"]:
            meta["checksums"][name] = checksum(folder / name)
        write_meta(folder / record, meta)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return


def must_be_told(found, whole, record):
    """Whether files are others than were written, unless the record says the same in other words."""
    if any(found.get(name) != whole[name] for name in whole if name != record):
        return True
    try:
        meta = json.loads(found[record])
    except (LookupError, ValueError, RecursionError):
        return True
    return meta != json.loads(whole[record])


def use_run(folder):
    run = interference.load(folder)
    assert repr(run) and run._repr_html_() and run.tasks and run.seed >= 0
    assert run.gram().shape == (len(run.probes), len(run.probes))


def use_factors(folder):
    found = factors.load(folder)
    assert repr(found) and isinstance(factors.remarks(found), list) and factors.origin(found)


def test_the_whole_ones_load(tmp_path, run_files, factor_files):
    assert attempt(lambda: use_run(put(tmp_path / "run", run_files))) is None
    assert attempt(lambda: use_factors(put(tmp_path / "factors", factor_files))) is None


@fuzz(500)
@given(st.data())
def test_broken_runs(tmp_path_factory, run_files, data):
    found, corrected = data.draw(broken(run_files, "run.json"))
    folder = put(tmp_path_factory.getbasetemp() / "broken-run", found)
    if corrected:
        with_checksums(folder, "run.json")
    told = attempt(lambda: use_run(folder))
    assert told or corrected or not must_be_told(found, run_files, "run.json")


@fuzz(400)
@given(st.data())
def test_broken_factors(tmp_path_factory, factor_files, data):
    found, corrected = data.draw(broken(factor_files, "factors.json"))
    folder = put(tmp_path_factory.getbasetemp() / "broken-factors", found)
    if corrected:
        with_checksums(folder, "factors.json")
    told = attempt(lambda: use_factors(folder))
    assert told or corrected or not must_be_told(found, factor_files, "factors.json")


@pytest.fixture(scope="module")
def result_files(tmp_path_factory):
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    task = {"metric": "vqa", "n": 3, "unparsed": 0, "main": "accuracy", "scores": {"accuracy": score}}
    found = Results("a", {"base": "mini"}, {"red": task}, {}, {"config": META["config"]})
    found.add_totals({"perception": Estimate(1.0, 0.5, 1.5)})
    out = tmp_path_factory.mktemp("results") / "whole"
    found.save(out)
    line = {
        "question_id": "1",
        "prompt": "What?",
        "predict": "Red",
        "target": "Red",
        "task": "red",
        "references": ["Red"],
    }
    return files(out) | {"red.jsonl": written(line) + b"\n"}


def use_results(folder):
    results.load(folder)


@fuzz(300)
@given(st.data())
def test_broken_results(tmp_path_factory, result_files, data):
    found, _ = data.draw(broken(result_files, "results.json"))
    folder = put(tmp_path_factory.getbasetemp() / "broken-results", found)
    attempt(lambda: use_results(folder))
    attempt(lambda: predictions.read(folder / "red.jsonl"))
