"""Several processes measure what one does, share the parts, end together, and continue together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from checkpoints import data, tokenizer, write_adapter, write_base, write_task
from mixtures import mixture
from models import llama

from interference import config, load
from interference.computation import compute_config

SETTINGS = {"layers": [0, 2], "batch_size": 2, "memory_budget": 20_000}  # several tiles a block


def start(arguments, count, **environment):
    """`interference` in `count` processes that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(port)]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "interference.cli", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def arguments(settings, path):
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    return ["compute", path]


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
    process = start(arguments(settings, tmp_path / "c.yaml"), 3)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    same(load(tmp_path / "run"), expected)
    assert out.count("look at it: interference show") == 1 and err.count("gram: 28/28") == 1
    assert list((tmp_path / "spools").iterdir()) == [] and not (tmp_path / "run.partial").exists()


@pytest.mark.slow
def test_selections_of_a_mixture_come_together(tmp_path):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", mixture())
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    values = data(base, adapter, tasks, batch_size=2)
    settings = config.build(values | {"out": str(tmp_path / "run")}, "test")
    expected = compute_config(config.build(values | {"out": str(tmp_path / "one")}, "test"))
    process = start(arguments(settings, tmp_path / "c.yaml"), 2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = load(tmp_path / "run")
    same(found, expected)
    assert found.selections.keys() == expected.selections.keys() and len(found.selections) > 2
    assert all((found.selections[name] == expected.selections[name]).all() for name in expected.selections)


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
    process = start(arguments(settings, tmp_path / "c.yaml"), 2)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "task 'own', example " in said and ":5: the loss is nan" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


@pytest.mark.slow
def test_killed_processes_continue(tiny, tmp_path):
    settings = tiny.config(tmp_path / "run", **SETTINGS | {"batch_size": 1})
    process = start(arguments(settings, tmp_path / "c.yaml"), 2)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run.partial/part-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    psutil.Process(process.pid).children()[-1].send_signal(signal.SIGKILL)  # torchrun ends the other
    process.communicate(timeout=120)
    assert process.returncode != 0 and not (tmp_path / "run").exists()
    assert list(tmp_path.glob("run.partial/part-*.safetensors"))
    again = start(arguments(settings, tmp_path / "c.yaml"), 2)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "gradients: 12/12" in err
    same(load(tmp_path / "run"), compute_config(tiny.config(tmp_path / "one", **SETTINGS | {"batch_size": 1})))
