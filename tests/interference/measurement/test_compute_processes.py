"""Several processes measure what one does, share the parts, end together, and continue together."""

import json

import numpy as np
import pytest
import torch

from interference import config, load
from interference.measurement.compute import compute_config
from tests.support.checkpoints import data, tokenizer, write_adapter, write_base, write_task
from tests.support.launching import SETTINGS, launched, torchrun
from tests.support.mixtures import mixture
from tests.support.models import llama

KINDS = {"mixture": {"batch_size": 1}, "sketch": {"sketch": 16}, "weight": {"weight_space": True}}


def computed(settings, path, count, launch=launched):
    """How `interference compute` ends in so many processes."""
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    return launch(count, "-m", "interference.cli", "compute", path)


def same(found, expected, tolerance=1e-6):
    assert found.probes.drop(columns="loss").equals(expected.probes.drop(columns="loss"))
    np.testing.assert_allclose(found.probes["loss"], expected.probes["loss"], rtol=1e-6)
    assert found.blocks.equals(expected.blocks)
    for name in expected.blocks["name"]:
        left, right = found.grams([name])[0], expected.grams([name])[0]
        norms = np.sqrt(np.diag(right))
        assert (np.abs(left - right) <= tolerance * np.outer(norms, norms)).all()


@pytest.mark.slow
def test_a_run_of_three_processes_is_that_of_one(tiny, tmp_path):
    expected = compute_config(tiny.config(tmp_path / "one", **SETTINGS))
    settings = tiny.config(tmp_path / "run", **SETTINGS, spool_dir=str(tmp_path / "spools"))
    said = computed(settings, tmp_path / "c.yaml", 3, torchrun)
    assert said.returncode == 0, said.stderr
    same(load(tmp_path / "run"), expected)
    assert said.stderr.count("next: interference show") == 1 and said.stderr.count("gram: 28/28") == 1
    assert list((tmp_path / "spools").iterdir()) == [] and not (tmp_path / "run.partial").exists()


@pytest.mark.slow
def test_what_one_process_cannot_measure_ends_all_in_one_sentence(tmp_path):
    """One example alone has a token whose embedding is not a number."""
    model = llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer().convert_tokens_to_ids("w77")] = torch.nan
    own = write_task(tmp_path / "own.jsonl", 6, change=lambda k, v: v | ({"prompt": "w77"} if k == 4 else {}))
    other = write_task(tmp_path / "other.jsonl", 6, 1)
    base, adapter = write_base(tmp_path / "base", model), write_adapter(tmp_path / "adapter")
    settings = config.build(data(base, adapter, {"own": own, "other": other}, tmp_path / "run", batch_size=1), "test")
    ended = computed(settings, tmp_path / "c.yaml", 2)
    assert ended.returncode != 0
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "task 'own', example " in said and ":5: the loss is nan" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


# --- killed, and continued ---

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from interference import config
from interference.measurement.compute import compute_config

folder, last = Path(sys.argv[1]), int(sys.argv[2])
for values in json.loads((folder / "values.json").read_text()):
    out = Path(values["out"])

    def progress(stage, done, total):  # of the first process alone
        if stage == "gradients" and done == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if stage == "gram" and done == 1:
            parts = folder.glob(f"{out.name}.partial/part-*.safetensors")
            found = {path.name: path.stat().st_mtime_ns for path in parts}
            (folder / f"{out.name}.json").write_text(json.dumps(found))

    compute_config(config.build(values, "test"), progress)
"""


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """A folder of runs by two processes, the first of which ended by a kill at half; and the parts that this left."""
    folder = tmp_path_factory.mktemp("continued")
    tasks = {name: write_task(folder / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    base, adapters = write_base(folder / "base"), {"mixture": write_adapter(folder / "mixed", mixture())}
    plain = write_adapter(folder / "adapter")
    values = [data(base, adapters.get(kind, plain), tasks, folder / kind, **KINDS[kind]) for kind in KINDS]
    (folder / "values.json").write_text(json.dumps(values))
    (folder / "work.py").write_text(SCRIPT)
    killed = launched(2, folder / "work.py", folder, 6)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    assert not (folder / "mixture").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("mixture.partial/part-*.safetensors")}
    again = launched(2, folder / "work.py", folder, -1)
    assert again.returncode == 0, again.stderr
    for each in values:
        compute_config(config.build(each | {"out": f"{each['out']}-alone"}, "test"))
    return folder, kept


@pytest.mark.slow
def test_killed_processes_go_on_with_what_they_have_measured(continued):
    folder, kept = continued
    used = json.loads((folder / "mixture.json").read_text())
    assert {f"part-{part:06d}.safetensors" for part in (0, 2, 4)} <= kept.keys() and len(used) == 12
    assert kept.items() <= used.items()
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_run_of_one(continued, kind):
    found, expected = load(continued[0] / kind), load(continued[0] / f"{kind}-alone")
    same(found, expected)
    assert found.selections.keys() == expected.selections.keys()
    assert (len(found.selections) > 2) == (kind == "mixture")
    assert all((found.selections[name] == expected.selections[name]).all() for name in expected.selections)
    spaces = {row.side for row in found.blocks.itertuples()}
    assert ("W" in spaces) == (kind == "weight") and found.meta.get("sketch") == KINDS[kind].get("sketch")
