"""Which units make a cell: shares that sum to 1 and are their terms, and the examples behind them."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from interference.report.data import report
from interference.report.findings import excerpts
from interference.report.findings.drivers import CELLS, Contributions, clearest
from interference.report.findings.excerpts import NOTHING, Excerpts, shortened, thumbnail
from interference.statistics import metrics
from mixlora.data.examples import Example, Turn
from tests.support.reported import TWO_GROUPS, made


@pytest.mark.parametrize(("i", "j"), [("a", "c"), ("d", "b")])
def test_shares_are_the_terms_of_delta(i, j):
    run = made(TWO_GROUPS, noise=1.0, units=7)
    gram, tasks = run.gram().astype(float), np.array(run.probes["task"])
    falls = gram[np.ix_(tasks == j, tasks == i)] / np.sqrt(np.diagonal(gram)[tasks == j])[:, None]
    delta = run.matrix("delta").loc[i, j]
    parts = Contributions(run)
    affected, stepped = parts.affected(i, j), parts.stepped(i, j)
    np.testing.assert_allclose(affected, falls.mean(axis=0) / 7 / delta, rtol=1e-6)
    np.testing.assert_allclose(stepped, falls.mean(axis=1) / 7 / delta, rtol=1e-6)
    assert affected.sum() == pytest.approx(1) and stepped.sum() == pytest.approx(1)
    assert list(affected.index) == list(np.flatnonzero(tasks == i))
    assert list(stepped.index) == list(np.flatnonzero(tasks == j))


def test_without_a_unit_delta_changes_by_its_share():
    run = made(TWO_GROUPS, noise=1.0, units=7)
    share = Contributions(run).affected("a", "c")
    keep = np.arange(len(run.probes)) != 2
    before = run.matrix("delta").loc["a", "c"]
    after = metrics.delta(run.gram()[np.ix_(keep, keep)], list(run.probes["task"][keep]))[0, 2]
    assert after * 6 == pytest.approx(before * 7 * (1 - share[2]))


def test_units_mixed_among_tasks_keep_their_rows():
    run, order = made(TWO_GROUPS, noise=1.0, units=5), np.random.default_rng(0).permutation(20)
    mixed = made(TWO_GROUPS, units=5)
    mixed.probes = run.probes.iloc[order].reset_index(drop=True)
    mixed.gram = lambda: run.gram()[np.ix_(order, order)]
    found, wanted = Contributions(mixed).stepped("a", "c"), Contributions(run).stepped("a", "c")
    np.testing.assert_allclose([found[np.flatnonzero(order == row)[0]] for row in wanted.index], wanted)


def test_the_clearest_cells_begin_with_both_ends():
    pairs = pd.DataFrame({
        "value": [-0.1, -5.0, 0.2, 3.0, 9.0, -9.0],
        "q": [0.0, 0.04, 0.001, 0.03, 0.0, 0.0],
        "verdict": ["conflict", "conflict", "synergy", "synergy", "unclear", "no-signal"],
    })  # fmt: skip
    assert clearest(pairs)["value"].tolist() == [-5.0, 3.0, -0.1, 0.2]
    assert clearest(pairs, 3)["value"].tolist() == [-5.0, 3.0, -0.1]
    assert clearest(pairs.iloc[4:]).empty


def written(folder, tasks, units=6, wrong_ids=False, size=(300, 200), text="What is it?"):
    """Files of tasks with pictures, and the configuration that names them."""
    rng = np.random.default_rng(0)
    for task in tasks:
        rows = []
        for k in range(units):
            picture = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
            picture.save(folder / f"{task}{k}.png")
            row = {"id": f"{'x' if wrong_ids else 'r'}{k}", "prompt": f"{text} {task}", "response": f"{task} no {k}"}
            rows.append(row | {"image": f"{task}{k}.png"})
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": {"base": "some/base", "adapter": "some/adapter"},
        "tasks": {task: {"file": str(folder / f"{task}.jsonl")} for task in tasks},
        "probe": {"samples": units},
    }


def with_data(folder, **changes):
    config = written(folder, list(TWO_GROUPS), **changes)
    run = made(TWO_GROUPS, units=6, meta={"config": config})
    run.probes["source"] = [f"{task}.jsonl:{k % 6 + 1}" for k, task in enumerate(run.probes["task"])]
    return run


def test_examples_are_read_again(tmp_path):
    run = with_data(tmp_path)
    shown = report({"r": run}, "small", replicates=50)
    drivers = shown.runs[0]["drivers"]
    assert len(drivers) == CELLS and not any("texts and pictures" in sentence for sentence in shown.left_out)
    example = drivers[0]["examples"][0]
    row = run.probes[run.probes["source"] == example["source"]].iloc[0]
    assert example["prompt"] == f"What is it? {row['task']}"
    assert example["answer"] == f"{row['task']} no {row['ids'][1:]}"
    data = base64.b64decode(example["thumbnail"].removeprefix("data:image/png;base64,"))
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG" and picture.size == (96, 64) and len(data) <= 20_000
    sides = [found["side"] for found in drivers[0]["examples"]]
    assert sides == ["affected"] * 3 + ["stepped"] * 3
    shares = [found["share"] for found in drivers[0]["examples"][:3]]
    wanted = Contributions(run).affected(drivers[0]["affected"], drivers[0]["stepped"]).nlargest(3)
    assert shares == pytest.approx(wanted.tolist())


@pytest.mark.parametrize("how", ["gone", "other ids", "no config", "a config of another version"])
def test_data_that_cannot_be_had_are_told(tmp_path, how):
    run = with_data(tmp_path, wrong_ids=how == "other ids")
    if how == "gone":
        for file in tmp_path.glob("*.jsonl"):
            file.unlink()
    if how == "no config":
        run.meta["config"] = None
    if how == "a config of another version":
        run.meta["config"] |= {"future": 1}
    shown = report({"r": run}, "small", replicates=50)
    assert (
        "The texts and pictures of 36 of 36 examples behind the clearest cells: their data are not where the run says, "
        "or have changed since." in shown.left_out
    )
    example = shown.runs[0]["drivers"][0]["examples"][0]
    assert (example["prompt"], example["answer"], example["thumbnail"]) == ("", "", None)
    assert example["source"] in set(run.probes["source"])


@pytest.mark.parametrize("change", [{"text": "What was it?"}, {"size": (301, 200)}, {}])
def test_texts_and_pictures_that_have_changed_are_not_shown(tmp_path, change):
    run = with_data(tmp_path)
    names = run.probes[["task", "ids", "source"]].itertuples(index=False)
    run.probes["content"] = [Excerpts()._units(run, task)[ids, source].content for task, ids, source in names]
    assert run.probes["content"].nunique() == len(run.probes)
    written(tmp_path, run.tasks, **change)
    shown = Excerpts().of(run, 0)
    assert shown == NOTHING if change else shown["prompt"] == "What is it? a"


def test_examples_stay_unread_if_asked(tmp_path, monkeypatch):
    run = with_data(tmp_path)
    monkeypatch.setattr(excerpts, "examples_of", lambda *_: pytest.fail("read"))
    shown = report({"r": run}, "small", replicates=50, examples=False)
    assert "The texts and pictures of 36 examples behind the clearest cells, as requested." in shown.left_out


def test_texts_are_bounded(tmp_path):
    assert shortened("x" * 300) == "x" * 300 and shortened("x" * 301) == "x" * 299 + "…"
    run = with_data(tmp_path, text="long " * 1000)
    shown = report({"r": run}, "small", replicates=50)
    assert all(len(found["prompt"]) <= 340 for driver in shown.runs[0]["drivers"] for found in driver["examples"])


def example(*images):
    return Example("r", "t", (Turn("user", "?"), Turn("assistant", "!")), images, "s")


def test_a_broken_picture_is_none(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert thumbnail(example(tmp_path / "bad.png")) is None and thumbnail(example()) is None
    assert thumbnail(example(Image.new("RGB", (5, 3)))).startswith("data:image/png;base64,")


def test_units_of_several_examples_are_found(tmp_path):
    config = written(tmp_path, ["a"], units=6)
    config["probe"]["unit_size"] = 2
    run = made({"a": TWO_GROUPS["a"]}, units=3, meta={"config": config})
    units = list(Excerpts()._units(run, "a").values())
    assert len(units) == 3 and all(len(unit.examples) == 2 for unit in units)
    run.probes["ids"], run.probes["source"] = zip(*(unit.names for unit in units), strict=True)
    assert " + " in run.probes["ids"][0]
    assert Excerpts().of(run, 0)["prompt"] == "What is it? a (the first of 2 examples)"
