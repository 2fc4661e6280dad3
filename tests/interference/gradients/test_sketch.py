"""Sketches: unbiased, and within their error bound."""

import numpy as np
import torch

from interference.gradients import sketch
from interference.statistics.layout import Layout, copies_of


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
