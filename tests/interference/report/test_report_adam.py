"""AdamW's step on the page: a matrix over all layers, its difference between runs, and a note."""

import numpy as np
import pytest

from interference import compare
from interference.report.data import report
from interference.run import Run
from interference.run.grams import adam, pack
from tests.support.reported import TWO_GROUPS, made

B = 30
BASE = "interference/leave-one-out/ratio-of-means"
META = {"source": "lora/optimizer.pt", "step": 7, "cold": 0.2}


def stepped(means, seed=0, **options):
    """A run of known gradients, and the same as P^(1/2) g with drawn lengths of P g."""
    plain, rng = made(means, seed=seed, **options), np.random.default_rng(seed)
    units, packed = len(plain.probes), dict(plain._grams)
    for name in plain.blocks["name"]:
        gram = plain.grams([name])[0]
        scale = rng.uniform(0.5, 2, units)
        packed[adam(name)] = np.concatenate([pack(gram), scale * np.diagonal(gram)]).astype(np.float32)
    return Run(plain.probes, plain.blocks, packed, {**plain.meta, "adam": META})


@pytest.fixture(scope="module")
def run():
    return stepped(TWO_GROUPS, noise=0.6)


@pytest.fixture(scope="module")
def page(run):
    return report({"r": run}, replicates=B)


def test_the_page_has_the_matrix_of_the_step_over_all_layers(run, page):
    assert {"key": "all/all/adam", "layers": "all", "modules": "all", "side": "adam"} in page.scopes
    cells = page.runs[0]["cells"]["all/all/adam"]
    assert set(cells) >= {BASE, "delta", "cosine"}
    for key, metric in ((BASE, "interference"), ("delta", "delta")):
        wanted = run.table(metric, space="adam", replicates=B)
        for name in ("value", "low", "high"):
            np.testing.assert_allclose(np.array(cells[key][name], float), wanted[name], rtol=1e-9)
        assert cells[key]["verdict"] == wanted["verdict"].tolist()
    assert cells["delta"]["value"] != page.runs[0]["cells"]["all/all/both"]["delta"]["value"]


def test_a_note_says_what_the_step_divides_by_and_leaves_out(page):
    notes = " ".join(page.runs[0]["notes"])
    assert "the second moments in lora/optimizer.pt after 7 steps; momentum, weight decay and clipping are" in notes
    assert "20% of the squared length of AdamW's steps lies in entries that have hardly been trained" in notes


def test_a_difference_is_of_the_steps_of_both_runs(run):
    other = stepped(TWO_GROUPS, noise=0.6, seed=1)
    page = report({"a": run, "b": other}, detail="small", replicates=B)
    (found,) = page.differences
    wanted = compare(run, other, space="adam", replicates=B)
    np.testing.assert_allclose(found["cells"]["all/all/adam"][BASE]["value"], wanted["difference"], rtol=1e-9)


def test_a_run_without_the_step_has_no_such_matrix():
    page = report({"r": made(TWO_GROUPS, noise=0.6)}, detail="small", replicates=B)
    assert all(scope["side"] != "adam" for scope in page.scopes)
    assert "AdamW" not in " ".join(page.runs[0]["notes"])
