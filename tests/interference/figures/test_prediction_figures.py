"""The figure of a validation, compared by the data it shows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from interference import figures, prediction
from tests.support import validated
from tests.support.figures import texts  # noqa: F401  its matplotlib settings
from tests.support.reported import axis, made

MEANS = {
    "a": axis(1, 2), "b": axis(1, 2, 3), "c": axis(1, 4, 5), "d": axis(-1, 4), "e": axis(-1, 2, 6), "f": axis(-1, -2),
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = made(MEANS)
    truth = run.matrix("interference").to_numpy()
    place = tmp_path_factory.mktemp("drawn") / "v"
    return prediction.load_validation(validated.write(place, run, {10: truth, 40: -truth}, (10, 20)))


def test_it_shows_the_scores(found):
    figure = figures.validation(found)
    first, second, *rest = figure.axes
    assert [axes.get_title() for axes in (first, second)] == [
        "checkpoint at step 10 (pairs)", "checkpoint at step 20 (pairs)",
    ]  # fmt: skip
    assert not any(axes.get_visible() for axes in rest)
    lines = {line.get_label(): line for line in first.get_lines()}
    assert {"ceiling", "interference", "cosine", "progress", "smallness"} <= set(lines)
    table = found.table().query("step == 10 and prediction == 'interference'").set_index("horizon")
    shown = [line.get_ydata() for line in first.get_lines() if len(line.get_ydata()) == 2]
    assert any(np.allclose(values, table["value"]) for values in shown)
    marks = first.collections[1]  # the band comes first
    filled = [tuple(colour[:3]) != (1, 1, 1) for colour in marks.get_facecolors()]
    assert filled == list(table["low"] > 0) == [True, False]
    assert [label.get_text() for label in first.get_xticklabels()] == ["10", "40"]


def test_its_data_are_those_of_the_table(found):
    data = figures.validation(found).data
    own = data[(data["prediction"] == "cosine") & (data["step"] == 20) & (data["horizon"] == 40)]
    table = found.table().query("prediction == 'cosine' and step == 20 and horizon == 40")
    assert own["value"].tolist() == table["value"].tolist()
    assert set(data["prediction"]) >= {"ceiling", "delta"} and not data["prediction"].str.contains(" in layer ").any()


def test_a_prediction_of_one_checkpoint_alone_has_no_marks_at_the_others(found):
    cells = found.predictions
    once = cells[(cells["prediction"] == "cosine") & (cells["step"] == 20)].assign(
        prediction="lookahead interference, 5 steps"
    )
    figure = figures.validation(replace(found, predictions=pd.concat([cells, once], ignore_index=True)))
    shown = [axes.collections[-1].get_offsets()[:, 1] for axes in figure.axes[:2]]
    assert np.ma.getmaskarray(shown[0]).all() and np.isfinite(shown[1]).all()
