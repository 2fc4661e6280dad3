"""Runs of sketches: against the exact ones, verified, and where they meet other options."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interference import load
from interference.errors import ConfigError
from interference.measurement.compute import compute, compute_config
from interference.verification.verify import verify_config

SIZE = 64


def test_a_run_of_sketches_is_the_exact_one_within_the_bound(tiny, tmp_path):
    exact = compute_config(tiny.config(tmp_path / "exact"))
    spooled = []

    def note(stage, done, total):
        parts = sorted(tmp_path.glob("run.partial/part-*"))
        if stage == "gradients" and done == total:
            with safe_open(parts[0], framework="np") as file:
                names = file.keys()
                spooled.extend(file.get_slice(name).get_shape() for name in names)

    found = compute_config(tiny.config(tmp_path / "run", sketch=64), note)
    assert max(shape[1] for shape in spooled) == 64
    assert found.meta["sketch"] == 64 and found.meta["sketch_error"] == pytest.approx((2 / 64) ** 0.5)
    assert "sketch" not in exact.meta
    assert found.blocks.equals(exact.blocks)  # sizes are those of the gradients
    for name in exact.blocks["name"]:
        left, right = found.grams([name])[0], exact.grams([name])[0]
        norms = np.sqrt(np.diag(right))
        assert np.linalg.eigvalsh(left.astype(np.float64)).min() > -1e-6 * np.trace(left)
        assert (np.abs(left - right) <= 5 * found.meta["sketch_error"] * np.outer(norms, norms) + 1e-9).all()
    whole, norms = exact.gram(), np.sqrt(np.diag(exact.gram()))
    errors = (found.gram() - whole) / np.outer(norms, norms)
    assert np.sqrt(np.mean(errors[np.triu_indices(len(whole), 1)] ** 2)) < found.meta["sketch_error"]


def test_a_run_of_sketches_is_verified_by_sketches(tiny, tmp_path):
    compute_config(tiny.config(tmp_path / "run", sketch=64))
    found = verify_config(load(tmp_path / "run"))
    assert found.passed and found.gram_error < 1e-4


def test_a_sketch_of_too_few_sums_is_refused_at_once():
    with pytest.raises(ConfigError, match="sketch is 8, but must be at least 16"):
        compute(torch.nn.Linear(1, 1), {}, sketch=8)
    with pytest.raises(ConfigError, match="seed is -1, but must be a whole number from 0 to 4294967295"):
        compute(torch.nn.Linear(1, 1), {}, seed=-1)


def test_a_run_of_sketches_says_so(interference, tiny, tmp_path):
    compute_config(tiny.config(tmp_path / "run", sketch=64))
    words = "gradients are sketches of 64 sums per block: an inner product errs by up to 17.7% of the product"
    assert words in " ".join(interference("show", tmp_path / "run").out.split())
    assert " ".join(interference("compare", tmp_path / "run", tmp_path / "run").out.split()).count(words) == 1


@pytest.mark.parametrize("options", [{"weight_space": True}, {"unit_size": 2}, {"granularity": "group"}])
def test_they_are_the_exact_ones_within_the_bound(tiny, tmp_path, options):
    settings = {"layers": [0, 2], "samples": 8} | options
    exact = compute_config(tiny.config(tmp_path / "exact", **settings))
    found = compute_config(tiny.config(tmp_path / "run", sketch=SIZE, **settings))
    assert found.blocks.equals(exact.blocks)
    spaces = ["parameters", *(["weight"] if "weight_space" in options else [])]
    for space in spaces:
        norms = np.sqrt(np.diag(exact.gram(space=space)))
        errors = (found.gram(space=space) - exact.gram(space=space)) / np.outer(norms, norms)
        errors = errors[np.triu_indices(len(norms), 1)]
        assert 0 < np.sqrt(np.mean(errors**2)) < found.meta["sketch_error"]


def test_a_report_says_so(interference, tiny, tmp_path):
    compute_config(tiny.config(tmp_path / "run", sketch=SIZE))
    said = interference("report", tmp_path / "run", "--detail", "small", "--out", tmp_path / "report", "--quiet")
    assert said.code == 0, said.err
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert f"radients are sketches of {SIZE} sums per block" in page
    assert load(tmp_path / "run").meta["sketch"] == SIZE
