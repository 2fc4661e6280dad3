"""Sketches: unbiased, within their error bound, and a run made of them against the exact one."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interference import sketch
from interference.computation import compute_config


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


def test_norms_are_exact_and_short_rows_stay():
    rows = {"long": gradients(width=900), "short": gradients(width=20).unflatten(1, (4, 5))}
    found = sketch.sketched(rows, 64, 0)
    assert found["long"].shape == (6, 64)
    assert torch.equal(found["short"], rows["short"].flatten(1))
    for name, tensor in rows.items():
        torch.testing.assert_close(found[sketch.norms_of(name)], tensor.flatten(1).square().sum(1, keepdim=True))


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
        np.testing.assert_allclose(np.diag(left), np.diag(right), rtol=1e-5)
        assert (np.abs(left - right) <= 5 * found.meta["sketch_error"] * np.outer(norms, norms) + 1e-9).all()
    whole, norms = exact.gram(), np.sqrt(np.diag(exact.gram()))
    errors = (found.gram() - whole) / np.outer(norms, norms)
    assert np.sqrt(np.mean(errors[np.triu_indices(len(whole), 1)] ** 2)) < found.meta["sketch_error"]


def test_a_run_of_sketches_says_so(interference, tiny, tmp_path):
    compute_config(tiny.config(tmp_path / "run", sketch=64))
    said = " ".join(interference("show", tmp_path / "run").out.split())
    assert "gradients are sketches of 64 sums a block: an inner product errs by up to 17.7% of the product" in said
