"""Runs of sketches where they meet other options: the weight-space view, means of examples, a report."""

import numpy as np
import pytest

from interference import load
from interference.measurement.compute import compute_config

SIZE = 64


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
    assert f"radients are sketches of {SIZE} sums a block" in page
    assert load(tmp_path / "run").meta["sketch"] == SIZE
