"""Gram matrices from spooled gradients, their packing, and the weight-space view."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from interference.gradients.weight_space import weight_rows
from interference.measurement import gram
from interference.measurement.spool import DiskSpool, MemorySpool
from interference.run.grams import pack, unpack, write_packed


def spool_of(kind, parts, tmp_path):
    spool = DiskSpool(tmp_path) if kind == "disk" else MemorySpool(10**6 if kind == "memory" else 100)
    for number, rows in enumerate(parts):
        spool.write(number, {"b": rows, "c": 2 * rows})
    return spool


@pytest.mark.parametrize("kind", ["memory", "disk", "spilling"])
@pytest.mark.parametrize("budget", [1, 500, 10**9])
def test_tiles_make_no_difference(kind, budget, tmp_path):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, 7, generator=generator) for n in (4, 1, 5, 2)]
    spool = spool_of(kind, parts, tmp_path)
    whole = torch.cat(parts).flatten(1).double()
    found = gram.gram(spool, [4, 1, 5, 2], "b", 21, budget)
    np.testing.assert_allclose(found, (whole @ whole.T).numpy(), rtol=1e-5, atol=1e-5)
    assert (found == found.T).all()


def test_sums_of_blocks(tmp_path):
    parts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])]
    stored = dict(gram.grams(spool_of("disk", parts, tmp_path), [1, 1], {"layer": [("b", 2), ("c", 2)]}, 100))
    assert stored["layer"].tolist() == [[25.0, 15.0], [15.0, 45.0]]


@given(st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_unpack_undoes_pack(units, seed):
    rows = np.random.default_rng(seed).normal(size=(units, 3)).astype(np.float32)
    matrix = rows @ rows.T
    matrix = (matrix + matrix.T) / 2
    order = np.random.default_rng(seed).permutation(units)
    assert (unpack(pack(matrix, order), units) == matrix[np.ix_(order, order)]).all()
    packed = pack(matrix)
    assert packed.shape == (units * (units + 1) // 2,)
    assert (unpack(packed, units) == matrix).all()


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matrices_written_one_by_one_are_read_by_safetensors(tmp_path, units, count, seed):
    values = np.random.default_rng(seed).normal(size=(count, units * (units + 1) // 2)).astype(np.float32)
    named = {f"layer {k}, Größe": value for k, value in enumerate(values)}
    write_packed(tmp_path / "gram.safetensors", list(named), units, named.items())
    found = load_file(tmp_path / "gram.safetensors")
    assert found.keys() == named.keys() and all((found[name] == named[name]).all() for name in named)


def low_rank(seed=0, zero_b=False):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(6, 2, generator=generator, dtype=torch.float64) * (0 if zero_b else 1)
    weight_gradients = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    return a, b, weight_gradients


def rows_of(a, b, weight_gradients, scaling=1.7):
    return weight_rows(scaling * b.T @ weight_gradients, scaling * weight_gradients @ a.T, a, b, scaling)


def test_weight_space_is_the_gradients_projection_on_the_tangent_space():
    a, b, g = low_rank()
    on_rows, on_columns = torch.linalg.pinv(a) @ a, b @ torch.linalg.pinv(b)
    tangent = (on_columns @ g + (torch.eye(6, dtype=g.dtype) - on_columns) @ g @ on_rows).flatten(1)
    rows = rows_of(a, b, g)
    torch.testing.assert_close(rows @ rows.T, tangent @ tangent.T)
    torch.testing.assert_close(rows @ rows.T, g.flatten(1) @ tangent.T)  # what a step along it does to the loss


def test_weight_space_does_not_depend_on_the_split_but_the_factors_do():
    a, b, g = low_rank()
    between = torch.tensor([[2.0, 1.0], [0.0, -3.0]], dtype=g.dtype)
    rows, other = rows_of(a, b, g), rows_of(between @ a, b @ torch.linalg.inv(between), g)
    torch.testing.assert_close(rows @ rows.T, other @ other.T)
    plain, changed = ((b.T @ g).flatten(1), (torch.linalg.inv(between).T @ b.T @ g).flatten(1))
    assert not torch.allclose(plain @ plain.T, changed @ changed.T)


def test_weight_space_at_b_zero_follows_b_alone():
    a, b, g = low_rank(zero_b=True)
    expected = (g @ (torch.linalg.pinv(a) @ a)).flatten(1)
    rows = rows_of(a, b, g)
    torch.testing.assert_close(rows @ rows.T, expected @ expected.T)
