"""Sketches: unbiased, within their error bound, and a run made of them against the exact one."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interference.errors import ConfigError
from interference.gradients import sketch
from interference.measurement.compute import compute, compute_config
from interference.run import load
from interference.statistics.layout import Layout, copies_of
from interference.verification.verify import verify_config


def gradients(units=6, width=900, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, width, generator=generator)
    return torch.randn(units, width, generator=generator) + 0.5 * shared


def test_inner_products_are_right_on_average_and_scatter_within_the_bound():
    rows, size, seeds = gradients(), 64, 400
    exact = (rows @ rows.T).numpy()
    found = np.array(
        [(s @ s.T).numpy() for s in (sketch.sketched({"b": rows}, size, seed)["b"] for seed in range(seeds))]
    )
    norms = np.sqrt(np.diag(exact))
    bound = np.sqrt((np.outer(norms**2, norms**2) + exact**2) / size)
    assert (np.abs(found.mean(axis=0) - exact) <= 4 * bound / np.sqrt(seeds)).all()
    scatter = found.std(axis=0)
    assert (scatter <= 1.15 * bound).all() and (scatter >= 0.6 * bound).all()  # so the bound is no empty one
    assert (bound <= sketch.relative_error(size) * np.outer(norms, norms) * (1 + 1e-6)).all()


def test_long_rows_become_sketches_and_short_rows_stay():
    rows = {"long": gradients(width=900), "short": gradients(width=20).unflatten(1, (4, 5))}
    found = sketch.sketched(rows, 64, 0)
    assert found.keys() == rows.keys() and found["long"].shape == (6, 64)
    assert torch.equal(found["short"], rows["short"].flatten(1))


def test_shared_examples_are_found_among_sketches_and_no_others():
    tasks = ["one"] * 20 + ["other"] * 20
    for seed in range(5):
        rows = gradients(40, seed=seed) + 3 * gradients(1, seed=seed + 100)  # all alike: cosines of about 0.9
        rows[[20, 31]] = rows[[3, 7]]
        made = sketch.sketched({"b": rows}, 64, seed)["b"]
        found = copies_of((made @ made.T).double().numpy(), Layout.of(tasks))
        assert found[1, [3, 7]].tolist() == [20, 31] and found[0, [20, 31]].tolist() == [3, 7]
        assert (found >= 0).sum() == 4


def test_places_and_signs_are_the_blocks_own_and_the_seeds():
    rows = gradients()
    first = sketch.sketched({"a": rows, "b": rows}, 64, 0)
    assert torch.equal(first["a"], sketch.sketched({"a": rows[:]}, 64, 0)["a"])
    assert torch.equal(first["a"][2:4], sketch.sketched({"a": rows[2:4]}, 64, 0)["a"])  # whatever the batch
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], sketch.sketched({"a": rows}, 64, 1)["a"])


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
    with pytest.raises(ConfigError, match="seed is -1, but must be from 0 to 4294967295"):
        compute(torch.nn.Linear(1, 1), {}, seed=-1)


def test_a_run_of_sketches_says_so(interference, tiny, tmp_path):
    compute_config(tiny.config(tmp_path / "run", sketch=64))
    words = "gradients are sketches of 64 sums a block: an inner product errs by up to 17.7% of the product"
    assert words in " ".join(interference("show", tmp_path / "run").out.split())
    assert " ".join(interference("compare", tmp_path / "run", tmp_path / "run").out.split()).count(words) == 1
