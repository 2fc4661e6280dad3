"""A run on disk and in a notebook: whole or absent, loaded without a model, damaged ones told from good ones."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from interference import compare, load
from interference.cli.printing import remarks
from interference.errors import ConfigError, MeasurementError, RunError, ScopeError
from interference.run import record
from interference.statistics import metrics
from tests.support.disks import no_room
from tests.support.runs import TASKS, made


def test_matrix_is_the_metric_of_the_gram():
    run = made()
    for metric in ("interference", "delta", "cosine", "conflict_rate", "magnitude_similarity", "curvature"):
        found = run.matrix(metric, layers=[3], side="B")
        assert list(found.index) == list(found.columns) == ["a", "b"]
        assert (found.index.name, found.columns.name) == ("affected", "stepped")
        own = getattr(metrics, metric)(run.gram(layers=[3], side="B"), TASKS)
        np.testing.assert_allclose(found.to_numpy(), own, rtol=1e-12)


def test_matrix_passes_options_on():
    run = made()
    options = {"pairs": "all", "reduce": "ratio-of-means"}
    np.testing.assert_allclose(run.matrix(**options), metrics.interference(run.gram(), TASKS, **options))
    mean = np.mean([metrics.interference(run.gram(layers=[k], side=s), TASKS) for k in (0, 3) for s in "AB"], axis=0)
    np.testing.assert_allclose(run.matrix(aggregate="mean"), mean)
    np.testing.assert_allclose(run.matrix("delta", step=0.1), 0.1 * run.matrix("delta"))


def test_table_has_the_promised_columns_and_the_matrix_values():
    run = made()
    table = run.table(replicates=50)
    assert {"affected", "stepped", "value", "low", "high", "verdict", "p", "nonpositive", "leverage", "at_odds"} <= set(
        table
    )
    assert table[["affected", "stepped"]].to_numpy().tolist() == [["a", "a"], ["a", "b"], ["b", "a"], ["b", "b"]]
    np.testing.assert_allclose(table["value"], run.matrix().to_numpy().ravel())
    assert table["verdict"].tolist()[0] == "self"
    lows = [run.table("delta", replicates=50, **seed)["low"][1] for seed in ({}, {"seed": 3}, {"seed": 4})]
    assert lows[0] == lows[1] != lows[2]


def test_signal_and_null_are_one_row_a_task():
    run = made(planted=1.0)
    signal = run.signal()
    assert signal["units"].tolist() == [3, 3] and signal["loss"].tolist() == [0.5, 2.0]
    gram = run.gram().astype(float)[:3, :3]
    apart = gram[~np.eye(3, dtype=bool)].mean()
    assert signal.loc["a", "squared_norm"] == pytest.approx(apart)
    saved = made()
    with pytest.raises(ScopeError, match="4"):
        saved.null()


def test_grams_are_a_sequence():
    run = made()
    grams = run.grams(["language.0.q_proj.A", "language.3.q_proj.B"])
    assert len(grams) == 2 and grams[1].shape == (6, 6)
    np.testing.assert_array_equal(grams[1], run.gram(layers=[3], side="B"))


def test_saved_and_loaded_is_the_same(tmp_path):
    run = made()
    run.save(tmp_path / "deep" / "run")
    loaded = load(tmp_path / "deep" / "run")
    pd.testing.assert_frame_equal(loaded.probes, run.probes)
    pd.testing.assert_frame_equal(loaded.blocks, run.blocks)
    assert np.array_equal(loaded.gram(), run.gram()) and loaded.meta == run.meta
    pd.testing.assert_frame_equal(loaded.table(replicates=50), run.table(replicates=50))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]


def test_files_can_be_read_by_whom_the_directory_lets_in(tmp_path):
    made().save(tmp_path / "run")
    modes = {path.stat().st_mode for path in (tmp_path / "run").iterdir()}
    (tmp_path / "ordinary").write_text("")
    assert modes == {(tmp_path / "ordinary").stat().st_mode}


def test_names_of_every_alphabet_survive(tmp_path):
    names = ("Fragen & Antworten/1", "質問 <b>\x1b[31m")
    made(names=names).save(tmp_path / "run")
    assert load(tmp_path / "run").tasks == list(names)


def test_an_empty_directory_is_taken_and_another_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    made().save(tmp_path / "empty")
    with pytest.raises(RunError, match="empty already holds a run; choose another --out or delete it first"):
        made().save(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file exists and is not a run; choose another --out"):
        made().save(tmp_path / "file")
    with pytest.raises(RunError, match=r"the run cannot be written to .*: Not a directory"):
        made().save(tmp_path / "file" / "run")


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("interference.run.storage.write_packed", no_room)
    with pytest.raises(RunError, match=r"the run cannot be written to .*: No space left on device"):
        made().save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_read_without_torch(tmp_path):
    made().save(tmp_path / "run")
    code = (
        "import sys, interference\n"
        f"run = interference.load({str(tmp_path / 'run')!r})\n"
        "print(repr(float(run.matrix('delta').iloc[0, 1])), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == [repr(float(made().matrix("delta").iloc[0, 1])), "False"]


def broken(tmp_path, change, selections=None):
    run = made()
    run.selections = selections or {}
    run.save(tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(RunError) as error:
        load(tmp_path / "run").matrix()
    return str(error.value).replace(str(tmp_path / "run"), "RUN")


def edit(**changes):
    """The run.json of someone who knows of the seal, and corrects it; None is a key that is gone."""

    def change(folder):
        file = folder / "run.json"
        meta = json.loads(file.read_text()) | changes | {"seal": None}
        record.write_meta(file, {key: value for key, value in meta.items() if value is not None})

    return change


def without_seal(folder):
    file = folder / "run.json"
    meta = json.loads(file.read_text())
    del meta["seal"]
    file.write_text(json.dumps(meta))


def corrected(change):
    """Another's change of files, with their checksums after it."""

    def whole(folder):
        change(folder)
        sums = {file.name: record.checksum(file) for file in folder.iterdir() if file.name != "run.json"}
        edit(checksums=sums)(folder)

    return whole


def drop_block(folder):
    grams = load_file(folder / "gram.safetensors")
    del grams["language.3.q_proj.A"]
    save_file(grams, folder / "gram.safetensors")


def shorten(folder):
    grams = load_file(folder / "gram.safetensors")
    save_file({name: packed[:15] for name, packed in grams.items()}, folder / "gram.safetensors")


def cut(name, size=40):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def half(name):
    return lambda folder: cut(name, (folder / name).stat().st_size // 2)(folder)


def flip(name):
    def change(folder):
        found = bytearray((folder / name).read_bytes())
        found[len(found) // 2] ^= 1
        (folder / name).write_bytes(found)

    return change


def of(table, **columns):
    """A table with other columns; None for one that is gone."""

    def change(folder):
        frame = pd.read_parquet(folder / f"{table}.parquet")
        gone = [column for column, values in columns.items() if values is None]
        frame = frame.drop(columns=gone).assign(**{k: v for k, v in columns.items() if v is not None})
        frame.to_parquet(folder / f"{table}.parquet")

    return change


SELECTED = {"unit": np.arange(6, dtype=np.int32), "language.0.q_proj.A": np.zeros((6, 2), np.int32)}
FILES = ["run.json", "probes.parquet", "blocks.parquet", "gram.safetensors", "selections.safetensors"]
DEEDS = {"empty": lambda name: cut(name, 0), "cut": cut, "half": half, "flipped": flip}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("deed", DEEDS)
def test_a_damaged_file_is_named_whether_checksums_tell_or_its_reader(tmp_path, name, deed):
    words = broken(tmp_path, DEEDS[deed](name), SELECTED)
    assert words.startswith(f"RUN/{name} is damaged")
    if deed != "flipped" and name != "run.json":
        shutil.rmtree(tmp_path / "run")
        words = broken(tmp_path, corrected(DEEDS[deed](name)), SELECTED)
        assert words.startswith(f"RUN/{name} is damaged and must be computed again: ")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_is_gone_is_named(tmp_path, name):
    words = broken(tmp_path, lambda folder: (folder / name).unlink(), SELECTED)
    wanted = f"RUN/{name} is missing; compute it again" if name == FILES[-1] else f"RUN is not a run: it has no {name}"
    assert words == wanted


def test_no_file_outside_is_looked_for(tmp_path):
    (tmp_path / "secret").write_text("x")
    sums = {"../secret": record.checksum(tmp_path / "secret")}
    assert broken(tmp_path, edit(checksums=sums)) == (
        "RUN is damaged: it lists the unknown file '../secret'; compute it again"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no run at RUN"),
        (lambda f: (f / "probes.parquet").unlink(), "RUN is not a run: it has no probes.parquet"),
        (lambda f: (f / "gram.safetensors").unlink(), "RUN is not a run: it has no gram.safetensors"),
        (lambda f: (f / "run.json").write_text("{"), "RUN/run.json is damaged; compute the run again"),
        (lambda f: (f / "run.json").write_text("[1]"), "RUN/run.json is damaged; compute the run again"),
        (lambda f: (f / "run.json").write_text("{}"), "RUN/run.json is damaged; compute the run again"),
        (
            lambda f: (f / "run.json").write_text('[["schema", 1], ["seed", 3]]'),
            "RUN/run.json is damaged; compute the run again",
        ),
        (edit(schema=3), "RUN has schema 3, but this version reads schema 2; update task-interference"),
        (edit(schema=0), "RUN has schema 0, but this version reads schema 2; update task-interference"),
        (corrected(drop_block), "RUN/gram.safetensors is damaged: it lacks block language.3.q_proj.A"),
        (corrected(shorten), "RUN/gram.safetensors is damaged: block language.0.q_proj.A does not have 6 units"),
        (corrected(of("probes", ids=None)), "RUN/probes.parquet is damaged: it lacks column ids"),
        (corrected(of("probes", ids=7)), "RUN/probes.parquet is damaged: its column ids has values of the wrong"),
        (corrected(of("probes", task=["a"] * 5 + [None])), "RUN/probes.parquet is damaged: a task is missing"),
        (corrected(of("blocks", name=[None, *"bcd"])), "RUN/blocks.parquet is damaged: a name is missing"),
        (
            corrected(of("blocks", name=list("abcc"))),
            "RUN/blocks.parquet is damaged: it lists a block twice, or an imp",
        ),
        (corrected(of("blocks", layer=0.5)), "RUN/blocks.parquet is damaged: it lists a block twice, or an impossible"),
    ],
)
def test_damage_is_told(tmp_path, change, message):
    assert broken(tmp_path, change).startswith(message)


WHOLE = {"config": {"out": None}, "unit": "example", "token_mean": False, "granularity": "module"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "its seed is -1"),
        ({"seed": 2**32}, "its seed is 4294967296"),
        ({"seed": True}, "its 'seed' is True"),
        ({"step": 10**30}, "its 'step' is 1000000000000000000000000000000"),
        ({"sketch": "64"}, "its 'sketch' is '64'"),
        ({"sketch": 64, "sketch_error": "x"}, "its 'sketch_error' is 'x'"),
        ({"not_probed": [1]}, "a part of its 'not_probed' is not text"),
        ({"fingerprints": []}, "its 'fingerprints' is []"),
        (WHOLE | {"unit": None}, "it lacks 'unit'"),
        (WHOLE | {"token_mean": None}, "it lacks 'token_mean'"),
        (WHOLE | {"token_mean": "no"}, "its 'token_mean' is 'no'"),
        (WHOLE | {"granularity": "tensor"}, "its 'granularity' is 'tensor'"),
    ],
)
def test_what_is_read_again_is_of_its_kind(tmp_path, changes, words):
    assert broken(tmp_path, edit(**changes)) == f"RUN/run.json is damaged: {words}; compute the run again"


def test_a_run_of_before_seals_and_checksums_is_read(tmp_path):
    made().save(tmp_path / "run")
    edit(checksums=None, schema=1)(tmp_path / "run")
    without_seal(tmp_path / "run")
    assert np.array_equal(load(tmp_path / "run").gram(), made().gram())


def test_a_run_of_this_version_without_its_seal_is_refused(tmp_path):
    assert broken(tmp_path, without_seal) == (
        "RUN/run.json is damaged: it lacks its own checksum (seal); compute the run again"
    )


def test_selections_beside_a_run_that_were_not_written_with_it_are_refused(tmp_path):
    def strange(folder):
        save_file(SELECTED, folder / "selections.safetensors")

    assert broken(tmp_path, strange) == (
        "RUN/selections.safetensors does not belong to RUN, which has no checksum for it; remove the file"
    )


def test_every_flip_in_the_name_of_the_seal_is_noticed(tmp_path):
    made().save(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    whole = file.read_bytes()
    at = whole.index(b'"seal"')
    for place, bit in itertools.product(range(at, at + 8), range(8)):  # the quotes and the colon, too
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            load(tmp_path / "run")


def test_a_sketch_is_told_with_and_without_its_error(tmp_path):
    made().save(tmp_path / "run")
    edit(sketch=64)(tmp_path / "run")
    run = load(tmp_path / "run")
    words = "gradients are sketches of 64 sums per block: an inner product errs, which intervals do not include"
    assert words in remarks(run, run.table(replicates=20), run.signal())
    run.meta["sketch_error"] = 0.1768
    words = words.replace("errs", "errs by up to 17.7% of the product of the norms (standard error)")
    assert words in remarks(run, run.table(replicates=20), run.signal())


def test_zero_blocks_add_nothing_and_are_named():
    run = made(zero_a=True)
    assert run.zero_blocks() == ["language.0.q_proj.A", "language.3.q_proj.A"]
    np.testing.assert_array_equal(run.gram(), run.gram(side="B"))
    assert np.isfinite(run.matrix().to_numpy()).all()
    with pytest.raises(MeasurementError, match="every Gram is zero throughout: no unit has a gradient in this scope"):
        run.table(side="A")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"metric": "hate"}, ConfigError, "metric is 'hate', but must be one of 'interference', 'delta', 'cosine'"),
        ({"pairs": "some"}, ConfigError, "pairs is 'some', but must be one of 'leave-one-out', 'uni-perceiver', 'all'"),
        ({"reduce": "max"}, ConfigError, "reduce is 'max', but must be one of 'ratio-of-means', 'mean-of-ratios'"),
        ({"aggregate": "max"}, ConfigError, "aggregate is 'max', but must be one of 'sum', 'mean'"),
        ({"norms": "l1"}, ConfigError, "norms is 'l1', but must be one of 'plain', 'unbiased'"),
        ({"side": "C"}, ScopeError, "side 'C' is not one of A, B"),
        ({"space": "time"}, ScopeError, "space 'time' is not one of parameters, weight, adam"),
        (
            {"space": "weight"},
            ScopeError,
            "this run has no weight-space Gram; compute it again with probe.weight_space: true",
        ),
        ({"layers": [1]}, ScopeError, r"layer 1 is not among the adapted layers: 0, 3 \(counted from 0\)"),
        ({"modules": ["v_proj"]}, ScopeError, "module 'v_proj' is not among those here: attention, language, q_proj"),
    ],
)
def test_wrong_options_are_told(options, kind, message):
    for ask in (made().matrix, made().table):
        with pytest.raises(kind, match=message):
            ask(**options)


def test_compare_subtracts_and_pairs_the_resamples():
    a, b = made(0, planted=1.0), made(1, planted=1.0)
    found = compare(a, b, "delta", layers=[0], replicates=200)
    wanted = b.matrix("delta", layers=[0]) - a.matrix("delta", layers=[0])
    np.testing.assert_allclose(found["difference"], wanted.to_numpy().ravel())
    np.testing.assert_allclose(found["b"] - found["a"], found["difference"])
    itself = compare(a, a, "delta", replicates=200)
    assert (itself["difference"] == 0).all() and (itself.loc[1:2, ["low", "high"]] == 0).all(axis=None)
    assert set(itself["verdict"]) == {"unclear"}


@pytest.mark.parametrize("other", [{"ids": list("uvwxyz")}, {"names": ("a", "c")}])
def test_runs_of_other_examples_are_not_compared(other):
    with pytest.raises(ScopeError, match="do not have the same examples in the same order; compute both with the same"):
        compare(made(), made(**other))


def with_content(run, content):
    run.probes = run.probes.assign(content=list(content))
    return run


def test_runs_of_the_same_names_and_other_content_are_not_compared():
    a, b = (with_content(made(seed), "uvwxyz") for seed in (0, 1))
    assert len(compare(a, b, replicates=50)) == 4
    with pytest.raises(ScopeError) as error:
        compare(a, with_content(made(1), "uvWXyz"), replicates=50)
    assert str(error.value) == (
        "2 of the runs' 6 units have the same names and other content, the first is r2 of task 'a': the examples "
        "changed in between; compute both on the same"
    )


def of_earlier_version(seed, data, length=None, base="base"):
    """A run that keeps no content of its units, but a fingerprint of all."""
    run = made(seed)
    template = {"text": "T", "training": True, "day": None, "source": f"file {seed}"}
    run.meta |= {
        "data": {"fingerprint": data, "template": template},
        "config": {"probe": {"max_length": length}},
        "fingerprints": {"base weights": base},
    }
    return run


def test_data_of_runs_without_content_are_compared_by_their_fingerprint():
    first = of_earlier_version(0, "one")
    for other in (of_earlier_version(1, "one"), with_content(of_earlier_version(1, "one"), "uvwxyz"), made(1)):
        assert len(compare(first, other, replicates=50)) == 4
    for other in (of_earlier_version(1, "two"), with_content(of_earlier_version(1, "two"), "uvwxyz")):
        with pytest.raises(ScopeError, match=r"the same names and other content \(another data fingerprint\): they"):
            compare(first, other, replicates=50)
    for other in (of_earlier_version(1, "two", length=9), of_earlier_version(1, "two", base="another")):
        assert len(compare(first, other, replicates=50)) == 4  # other tokens, perhaps of the same examples


@pytest.mark.parametrize("content", [[*"uvwxy", ""], [*"uvwxy", None], list(range(6))])
def test_content_that_is_no_digest_is_told(tmp_path, content):
    with_content(made(), content).save(tmp_path / "run")
    with pytest.raises(RunError, match=r"probes.parquet is damaged: a content is not a digest"):
        load(tmp_path / "run")


@pytest.mark.parametrize(("old", "new"), [('"seed": 0', '"seed": 7'), ('"loss": "mean', '"loss": "mead')])
def test_a_changed_run_json_is_told(tmp_path, old, new):
    run = made()
    run.meta |= {"seed": 0, "conventions": {"loss": "mean"}}
    run.save(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(RunError, match=r"run.json is damaged: its checksum differs from the recorded one; comp"):
        load(tmp_path / "run")
