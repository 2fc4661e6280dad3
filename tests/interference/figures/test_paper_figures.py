"""The figures of the paper, compared by the data they show: with the run's, the evaluations' and the maps' own."""

import io
import itertools
import math
import warnings
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

import interference
from interference.errors import RunError, ScopeError, WriteError
from interference.factors import Factors, affinity, neighbours, selections
from interference.factors.contrast import contrast
from interference.figures import canvas, matrices, paper, scores
from interference.run import Run, compare
from mixlora.evaluation import comparison, results, tables
from mixlora.evaluation.scoring.intervals import Estimate
from tests.support.answers import FIRST, SECOND, evaluation
from tests.support.disks import no_room
from tests.support.figures import EVIL, QUICK, labels, mesh, texts
from tests.support.runs import contradicted, grouped
from tests.support.selections import activated, chosen, factors, random_mixture


def points(axes):
    """{label: points} of every scatter."""
    found = [child for child in axes.get_children() if isinstance(child, PathCollection)]
    return {one.get_label(): np.asarray(one.get_offsets()) for one in found}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations")
    return [evaluation(folder / "one", "IFS", FIRST), evaluation(folder / "two", "IFS + CFS", SECOND)]


@pytest.fixture(scope="module")
def mixture():
    return factors(random_mixture(examples=(12, 12, 12), planted=0.5))


@pytest.fixture(scope="module")
def couples():
    """Tasks p, q, r, s, u, v: of each of (p, s), (q, u), (r, v) both use the same two factors, mostly."""
    random, tasks = np.random.default_rng(0), [task for task in "pqrsuv" for _ in range(8)]
    blocks = [[np.roll(range(6), 2 * ("pqrsuv".index(task) % 3) + (random.random() < 0.2))[:2] for task in tasks]
              for _ in range(4)]  # fmt: skip
    return factors(chosen(tasks, *blocks, factors=6))


COUPLES = [("p", "s"), ("q", "u"), ("r", "v")]


def test_blocks_are_the_tables_of_the_first_and_last_layer_and_say_what_is_not_there(monkeypatch):
    shown, plain_table = grouped(), Run.table
    clear = ["self", "conflict", "synergy", "self"]
    monkeypatch.setattr(Run, "table", lambda self, *a, **k: plain_table(self, *a, **k).assign(verdict=clear))
    figure = paper.blocks(shown, reduce="ratio-of-means", **QUICK)
    panels, wanted = figure.axes[:8], [(k, g, s) for k in (0, 5) for g in ("mlp", "attention") for s in "AB"]
    assert [axes.get_title() for axes in panels] == [f"layer {k}, {group}, {side}" for k, group, side in wanted]
    assert len(figure.axes) == 8 + 1  # a second row is for the published estimator alone
    for axes, (layer, group, side) in zip(panels, wanted, strict=True):
        if (layer, group) == (5, "mlp"):
            assert texts(axes) == ["not probed"]
            continue
        table = shown.table(layers=[layer], modules=[group], side=side, **QUICK)
        np.testing.assert_allclose(np.asarray(mesh(axes).get_array()).ravel(), table["value"])
        assert texts(axes) == [f"{value:+.2f}" for value in table["value"]]
        assert table["verdict"].tolist() == ["self", "conflict", "synergy", "self"]
        frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [patch.get_xy() for patch in frames] == [(1.04, 0.04), (0.04, 1.04)]
        assert [patch.get_linestyle() for patch in frames] == ["-", (0, (3, 2))]
    assert len({mesh(axes).get_clim() for axes in panels if axes.collections}) == 1
    assert list(figure.data.columns[:6]) == ["layer", "modules", "side", "affected", "stepped", "value"]
    part = figure.data.query("layer == 5 and modules == 'attention' and side == 'B'")["value"]
    np.testing.assert_allclose(part, shown.matrix(layers=[5], modules=["attention"], side="B").to_numpy().ravel())
    assert len(figure.data) == 6 * 4 and figure.get_supxlabel() == f"{matrices.KEY}; I: ratio-of-means"


def test_blocks_can_be_chosen():
    shown = grouped((0, 2, 5))
    figure = paper.blocks(shown, [2], "delta", ["q_proj"], "B", **QUICK)
    (panel,) = figure.axes[:-1]
    assert panel.get_title() == "layer 2, q_proj, B"
    values = shown.matrix("delta", layers=[2], modules=["q_proj"], side="B")
    np.testing.assert_allclose(np.asarray(mesh(panel).get_array()), values)
    with pytest.raises(ScopeError, match="layer 7 is not among the adapted layers"):
        paper.blocks(shown, [7])


def test_a_run_without_layers_has_no_panels():
    shown = grouped((0, 2))
    shown.blocks = shown.blocks.assign(layer=pd.array([None] * len(shown.blocks), dtype="Int64"))
    words = "no block in this scope belongs to a layer; name modules of layers, or a run that probes layers"
    for draw in (paper.blocks, matrices.panels):
        with pytest.raises(ScopeError, match=words):
            draw(shown)


def test_methods_average_over_layers_and_show_the_paired_difference():
    runs = {"LoRA": grouped(), "MixLoRA $": grouped(seed=6)}
    figure = paper.methods(runs, **QUICK)
    ways = [{"reduce": "mean-of-ratios", "aggregate": "mean"}, {"reduce": "ratio-of-means", "aggregate": "sum"}]
    for row, way in zip((figure.axes[:3], figure.axes[3:6]), ways, strict=True):
        for axes, one in zip(row, runs.values(), strict=False):
            np.testing.assert_allclose(np.asarray(mesh(axes).get_array()), one.matrix(**way))
        table = compare(*runs.values(), **way, **QUICK)
        np.testing.assert_allclose(np.asarray(mesh(row[2]).get_array()).ravel(), table["difference"])
        assert row[2].get_title().endswith("\nMixLoRA $ minus LoRA")
        assert mesh(row[0]).get_clim() == mesh(row[1]).get_clim() == mesh(row[2]).get_clim()
    assert figure.data["estimator"].unique().tolist() == [
        "mean of ratios (Eq. 3), averaged over blocks", "ratio of means, all blocks as one",
    ]  # fmt: skip
    assert list(dict.fromkeys(figure.data["run"])) == ["LoRA", "MixLoRA $", "MixLoRA $ minus LoRA"]
    ends = paper.methods(runs, "delta", **QUICK).data[["low", "high"]].to_numpy()
    wanted = compare(*runs.values(), "delta", aggregate="mean", **QUICK)[["low", "high"]]
    assert np.isfinite(ends[-3:-1]).all()
    np.testing.assert_allclose(ends[-4:], wanted)
    with pytest.raises(ScopeError, match="between two runs, but 1 were given"):
        paper.methods({"one": runs["LoRA"]})


def test_scores_are_those_of_the_table_and_differences_those_of_the_comparison(both):
    figure = paper.conditional(both, unseen=["b"])
    seen, seen_change, unseen, unseen_change = figure.axes
    found = [results.load(path) for path in both]
    for axes, names in ((seen, ["a", "c"]), (unseen, ["b"])):
        table = tables.table(found, [*names, tables.MEAN])
        assert labels(axes.yaxis) == [*names, "Mean"]
        for label, cells in zip(table.models, table.cells, strict=True):
            drawn = points(axes)[label]
            np.testing.assert_allclose(drawn[:, 0], [cell.estimate.value for cell in cells])
            assert np.round(drawn[:, 1]).tolist() == list(range(len(cells)))
    assert (seen.get_ylabel(), unseen.get_ylabel()) == ("seen in training", "unseen")
    change = comparison.compare(*both).differences
    own = {task: 100 * change[task].values["accuracy"].value for task in "abc"}
    assert points(seen_change)["IFS + CFS minus IFS"][:, 0] == pytest.approx(
        [own["a"], own["c"], (own["a"] + own["c"]) / 2]
    )
    assert points(unseen_change)["IFS + CFS minus IFS"][:, 0] == pytest.approx([own["b"]] * 2)
    assert seen_change.get_title() == "IFS + CFS minus IFS"
    data = figure.data.set_index(["panel", "task", "model"])
    row = data.loc[[("difference", "a", "IFS + CFS minus IFS")]].iloc[0]
    assert [row["low"], row["high"]] == pytest.approx(
        [100 * change["a"].values["accuracy"].low, 100 * change["a"].values["accuracy"].high]
    )
    (bars, *_) = [child for child in seen_change.collections if not isinstance(child, PathCollection)]
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends[0] == pytest.approx([row["low"], row["high"]])


def test_no_value_lies_outside_its_panel(tmp_path):
    """Scores of trained tasks are near 1, those of the others near 0: one scale holds both."""
    high = evaluation(tmp_path / "high", "high", {"a": "12345678", "b": "xxxxxxxx", "c": "1xxxxxxx"})
    low = evaluation(tmp_path / "low", "low", {"a": "1234567x", "b": "12345678", "c": "xxxxxxxx"})
    figure = paper.conditional([high, low], unseen=["b", "c"])
    data = figure.data.set_index(["panel", "group"])
    for axes, key in zip(
        figure.axes, itertools.product(("seen in training", "unseen"), ("score", "difference")), strict=True
    ):
        shown = data.loc[key[::-1], ["value", "low", "high"]].to_numpy()
        left, right = axes.get_xlim()
        assert left < shown.min() and shown.max() < right
    assert figure.axes[0].get_xlim() == figure.axes[2].get_xlim()


def framed(axes):
    """(row, column) of the cells that have a frame."""
    found = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(int(y), int(x)) for x, y in found]


def test_methods_frame_no_cell_of_the_published_estimator():
    """I of b on a is +3 by Eq. 3, deep red, while b hurts a: the verdict stands in the row below alone."""
    runs = {"one": contradicted(), "two": contradicted(seed=1)}
    figure = paper.methods(runs, **QUICK)
    above, below = figure.axes[:3], figure.axes[3:6]
    assert all(axes.get_title().startswith("mean of ratios (Eq. 3), averaged over blocks\n") for axes in above)
    assert np.asarray(mesh(above[0]).get_array())[0, 1] > 3 and [framed(axes) for axes in above] == [[], [], []]
    assert not any(word in text for axes in above for text in texts(axes) for word in ("conflict", "lower", "higher"))
    assert framed(below[0]) == framed(below[1]) == [(0, 1), (1, 0)]
    assert np.asarray(mesh(below[0]).get_array())[0, 1] < -0.7 and texts(below[0])[1].endswith("conflict")
    said = "its interval contains 0 in 1 of 2 cells (one), 1 of 2 cells (two), 2 of 2 cells (two minus one); "
    assert f"{said}its sign contradicts the verdict below in 1 (one), 1 (two), 0 (two minus one)" in figure.notes[0]
    assert figure.caption == [figure.notes[0], f"below: ratio of means, all blocks as one; {matrices.KEY}"]
    assert " ".join(figure.get_supxlabel().split()) == " ".join(" ".join(figure.caption).split())
    odds = figure.data.query("run == 'one' and affected == 'a' and stepped == 'b'").set_index("estimator")
    assert odds["at_odds"].tolist() == ["sign", ""] and odds["verdict"].tolist() == ["conflict"] * 2


def test_blocks_have_the_published_estimator_above_and_count_its_cells():
    shown = contradicted()
    figure = paper.blocks(shown, **QUICK)
    above, below = figure.axes[:4], figure.axes[4:8]
    titles = [f"layer {layer}, attention, {side}" for layer in (0, 3) for side in "AB"]
    assert [axes.get_title() for axes in above] == [f"mean of ratios (Eq. 3)\n{title}" for title in titles]
    assert [axes.get_title() for axes in below] == [f"ratio of means\n{title}" for title in titles]
    assert [framed(axes) for axes in above] == [[]] * 4 and [framed(axes) for axes in below] == [[(0, 1), (1, 0)]] * 4
    for axes, (layer, side) in zip(above, itertools.product((0, 3), "AB"), strict=True):
        matrix = shown.matrix(layers=[layer], side=side, reduce="mean-of-ratios")
        np.testing.assert_allclose(np.asarray(mesh(axes).get_array()), matrix)
    published = figure.data[figure.data["estimator"] == "mean of ratios (Eq. 3)"].query("affected != stepped")
    across = int(((published["low"] <= 0) & (published["high"] >= 0)).sum())
    assert figure.caption[0] == (
        f"above: mean of ratios (Eq. 3), as published, without verdicts; its interval contains 0 in {across} of 8 "
        "cells; its sign contradicts the verdict below in 4"
    )
    assert published["at_odds"].tolist() == ["sign", ""] * 4


def test_a_figure_without_a_second_row_leaves_the_contradicted_cell_unframed_and_says_so():
    figure = matrices.heatmap(contradicted(), reduce="mean-of-ratios", **QUICK)
    assert framed(figure.axes[0]) == [(1, 0)] and "conflict" not in texts(figure.axes[0])[1]
    why = "units whose own Delta is near 0 dominate a mean of ratios; read the ratio of means"
    said = "in 1 cell I has the other sign than Delta: no verdict is shown there, because verdicts are about Delta"
    assert figure.notes == figure.caption == [f"{said}; {why}"]


def test_a_difference_beyond_noise_is_filled_and_others_hollow(both, tmp_path):
    loud = evaluation(tmp_path / "loud", "loud", {"a": "xxxxxxxx", "b": "12345678"})
    quiet = evaluation(tmp_path / "quiet", "quiet", {"a": "12345678", "b": "12345678"})
    change = paper.conditional([loud, quiet]).axes[1]
    (dots,) = [child for child in change.collections if isinstance(child, PathCollection)]
    assert dots.get_facecolor()[:2, :3].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_the_mean_difference_takes_tasks_that_share_pictures_as_dependent():
    parts = [(2.0, 1.0, 5.0), (4.0, 1.0, 8.0)]
    assert scores._mean(parts, ["a", "b"], [["b", "a"]]) == pytest.approx((3, 3 - (1 + 3) / 2, 3 + (3 + 4) / 2))
    found = scores._mean(parts, ["a", "b"], [["a", "c"]])
    assert found == pytest.approx((3, 3 - math.hypot(1, 3) / 2, 3 + math.hypot(3, 4) / 2))


def test_three_evaluations_have_scores_alone_and_totals_have_a_scale_of_their_own(both, tmp_path):
    third = evaluation(tmp_path / "third", "third", {"a": FIRST["a"]}, {"perception": Estimate(900.0, 800.0, 1000.0)})
    figure = paper.conditional([*both, third], labels=["x", "y", "z"])
    percent, points_ = figure.axes
    assert set(points(percent)) == {"x", "y", "z"} and labels(points_.yaxis) == ["MME perception"]
    assert points(points_)["z"][:, 0].tolist() == [900]
    assert points_.get_xlabel() == "points, 95% interval"
    assert any("z has no mean, which would leave out b, c" in note for note in figure.notes)
    shapes = {one.get_paths()[0].vertices.tobytes() for one in percent.collections if isinstance(one, PathCollection)}
    assert len(shapes) == 3


def test_what_the_two_do_not_share_has_no_difference(both, tmp_path):
    other = evaluation(tmp_path / "other", "other", {"a": FIRST["a"], "d": FIRST["b"]})
    figure = paper.conditional([both[0], other])
    assert texts(figure.axes[1]) == ["none"] * 4 and labels(figure.axes[0].yaxis) == ["a", "b", "c", "d", "Mean"]


def test_which_evaluations_are_refused(both, tmp_path):
    with pytest.raises(ScopeError, match="but 1 evaluation was given; give two or more"):
        paper.conditional(both[:1])
    with pytest.raises(ScopeError, match="two evaluations are called 'IFS'; give each a --label of its own"):
        paper.conditional([both[0], both[0]])
    for given in (["x"], ["x", "y", "z"]):
        with pytest.raises(ScopeError, match=f"{len(given)} labels are given for 2 evaluations; give one for each"):
            paper.conditional(both, given)
    with pytest.raises(ScopeError, match="unseen task 'z' is not among the tasks: a, b, c"):
        paper.conditional(both, unseen=["z"])


def test_selections_are_the_map_of_the_unseen_tasks_alone(mixture):
    figure = paper.selections(mixture, ["c", "a"], perplexity=6)
    rows = [row for row, task in enumerate(mixture.selections.tasks) if task in "ac"]
    alone = Factors(
        selections.Selections(
            [mixture.selections.tasks[row] for row in rows],
            mixture.selections.blocks,
            {name: value[rows] for name, value in mixture.selections.values.items()},
            True,
        ),
        mixture.examples.iloc[rows],
        mixture.meta,
    )
    embedded = neighbours.embed(alone.selections, 6, seed=3)
    (axes,) = figure.axes
    assert list(points(axes)) == ["a", "c"]
    np.testing.assert_allclose(np.concatenate(list(points(axes).values())), embedded.points)
    purity = embedded.purity
    assert f"{purity.value:.0%} (chance {purity.chance:.0%}" in axes.get_title(loc="left")
    assert "perplexity 6, seed 3" in axes.get_xlabel()
    assert figure.data["id"].tolist() == [f"e{row}" for row in rows]
    np.testing.assert_allclose(figure.data[["x", "y"]], embedded.points)


def test_selections_of_all_tasks_are_all_examples(mixture):
    assert len(paper.selections(mixture, perplexity=6).data) == 36


def test_which_maps_are_refused(mixture):
    with pytest.raises(ScopeError, match="unseen task 'z' is not among the tasks: a, b, c"):
        paper.selections(mixture, ["z"])
    with pytest.raises(ScopeError, match="there is only task 'b'; give at least 2 tasks"):
        paper.selections(mixture, ["b"], perplexity=5)
    with pytest.raises(ScopeError, match="perplexity is 50, but must be above 0 and below the number of examples, 36"):
        paper.selections(mixture, perplexity=50)


def test_few_examples_have_fewer_neighbours():
    few = factors(random_mixture(examples=(3, 3), planted=1.0))
    assert "\nsame task among 5 nearest on this map" in paper.selections(few, perplexity=2).axes[0].get_title(
        loc="left"
    )


def test_pairs_share_a_colour_and_are_filled_and_hollow(couples):
    figure = paper.pairs(couples, COUPLES[::-1], perplexity=6)
    axes, beside = figure.axes
    drawn = {one.get_label(): one for one in axes.collections}
    colours = [tuple(drawn[task].get_edgecolor()[0, :3]) for task in "svu"]
    for place, (seen, unseen) in enumerate(COUPLES[::-1]):
        wanted = mpl.colors.to_rgb(canvas.COLOURS[place])
        assert tuple(drawn[seen].get_facecolor()[0, :3]) == tuple(drawn[unseen].get_edgecolor()[0, :3]) == wanted
        assert len(drawn[unseen].get_facecolor()) == 0
        assert drawn[seen].get_paths()[0] is not None
        np.testing.assert_array_equal(drawn[seen].get_paths()[0].vertices, drawn[unseen].get_paths()[0].vertices)
    assert len(set(colours)) == 3
    np.testing.assert_allclose(
        np.concatenate([points(axes)[task] for task in "pqrsuv"]),
        neighbours.embed(couples.selections, 6, seed=3).points,
    )
    (legend,) = figure.legends
    assert legend._ncols == 4
    assert [text.get_text() for text in legend.get_texts()] == ["seen:", "unseen:", "r", "v", "q", "u", "p", "s"]
    (image,) = [child for child in beside.get_children() if isinstance(child, AxesImage)]
    np.testing.assert_allclose(image.get_array(), selections.overlap(couples.selections).loc[list("rqp"), list("vus")])
    assert (labels(beside.yaxis), labels(beside.xaxis)) == (list("rqp"), list("vus"))
    found = affinity.paired(couples.selections, COUPLES)
    title = axes.get_title(loc="left")
    assert f"{found.mean:.2f} within pairs, {found.others:.2f} between other tasks\n1 of all 6 ways" in title
    assert title.endswith("(p = 0.17)")
    shown = figure.data[figure.data["panel"] == "map"]
    assert len(shown) == 48 and set(shown[shown["unseen"].astype(bool)]["task"]) == set("suv")
    assert figure.data.query("panel == 'overlap' and task == 'p' and other == 's'")["overlap"].item() == pytest.approx(
        selections.overlap(couples.selections).loc["p", "s"]
    )


def beside(given, seed=4):
    """The same factors with an untrained adapter that chose at random."""
    random = random_mixture(seed, examples=(len(given.examples),), blocks=len(given.selections.values), factors=6)
    untrained = replace(given.selections, values=random.values)
    meta = {**given.meta, "untrained": {"text": "untrained: drawn again with the training's seed 5"}}
    return replace(given, untrained=untrained, meta=meta)


def heading(figure):
    return figure.get_suptitle()


def test_the_untrained_map_is_beside_the_trained_one_with_the_difference(couples):
    given = beside(couples)
    figure = paper.selections(given, perplexity=6)
    trained, untrained = figure.axes
    embedded = neighbours.embed(given.selections, 6, seed=3)
    control = contrast(given.selections, given.untrained, embedded)
    for axes, one, title in (
        (trained, embedded, "the trained adapter\n"),
        (untrained, control.embedding, "untrained: drawn again with the training's seed 5\n"),
    ):
        np.testing.assert_allclose(np.concatenate(list(points(axes).values())), one.points)
        assert axes.get_title(loc="left").startswith(title)
        assert f"same task among 10 nearest by selections: {one.purity.value:.0%}\n(chance" in axes.get_title(
            loc="left"
        )
    assert figure.data["adapter"].tolist() == ["trained"] * 48 + ["untrained"] * 48
    np.testing.assert_allclose(figure.data[["x", "y"]][48:], control.embedding.points)
    purities = f"trained {embedded.purity.value:.1%}, untrained {control.embedding.purity.value:.1%}"
    assert heading(figure) == (
        f"purity by selections: {purities}, difference {100 * control.difference:+.1f} points\n"
        "no interval: 48 examples are too few for 10 neighbours; 60 are needed"
    )


def test_the_interval_of_the_difference_is_written_where_there_is_one():
    given = beside(factors(random_mixture(examples=(24, 24, 24), planted=0.5, blocks=2, factors=6)))
    figure = paper.selections(given, perplexity=6)
    control = contrast(given.selections, given.untrained, neighbours.embed(given.selections, 6, seed=3))
    assert 0 < control.low < control.difference < control.high
    assert heading(figure).endswith(
        f"difference {100 * control.difference:+.1f} points [{100 * control.low:+.1f}, {100 * control.high:+.1f}] "
        "(95%, 72 groups of examples)\ntraining made neighbourhoods purer"
    )


def test_pairs_have_a_row_of_the_untrained_adapter(couples):
    given = beside(couples)
    figure = paper.pairs(given, COUPLES, perplexity=6)
    assert len(figure.axes) == 4
    images = [child for axes in figure.axes for child in axes.get_children() if isinstance(child, AxesImage)]
    for image, one in zip(images, (given.selections, given.untrained), strict=True):
        np.testing.assert_allclose(image.get_array(), selections.overlap(one).loc[list("pqr"), list("suv")])
    assert images[0].get_clim() == images[1].get_clim()  # one scale for both
    titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
    assert titles[0].startswith("the trained adapter\n") and titles[1].startswith("untrained: drawn again with")
    shown = figure.data.query("adapter == 'untrained' and panel == 'overlap' and task == 'p' and other == 's'")
    assert shown["overlap"].item() == pytest.approx(selections.overlap(given.untrained).loc["p", "s"])
    assert heading(figure).startswith("purity by selections: trained ")


def test_a_map_without_its_control_says_so(mixture):
    figure = paper.selections(mixture, perplexity=6)
    said = heading(figure).replace("\n", " ")
    assert said.startswith("these factors have no groups, so their examples were treated as independent")
    assert said.endswith("to add it, run `interference factors` again with another --out")
    assert len(figure.notes) == 2 and figure.data["adapter"].unique() == ["trained"]
    why = replace(mixture, meta={**mixture.meta, "untrained": {"missing": "because the model is not a PeftModel"}})
    assert "there is no untrained adapter beside it, because the model is not a PeftModel" in heading(
        paper.selections(why, perplexity=6)
    ).replace("\n", " ")


def test_tasks_in_no_pair_are_not_drawn(couples):
    figure = paper.pairs(couples, COUPLES[:1], perplexity=4)
    assert list(points(figure.axes[0])) == ["p", "s"]
    assert "one pair has nothing to be compared with" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("pairs", [[], [("p", "z")], [("p", "s"), ("p", "u")], [("p", "p")]])
def test_which_pairs_are_refused(couples, pairs):
    words = {0: "there is no pair", 1: "task 'z' of a pair is not among the tasks: p, q, r, s, u, v"}
    words = words[0] if not pairs else words[1] if "z" in pairs[0] else "task 'p' is paired twice"
    with pytest.raises(ScopeError, match=words):
        paper.pairs(couples, pairs)


def test_a_lora_has_maps_too():
    random = np.random.default_rng(0)
    tasks = [task for task in "abcd" for _ in range(6)]
    given = factors(activated(tasks, random.normal(size=(24, 3)), random.normal(size=(24, 2))))
    figure = paper.pairs(given, [("a", "c"), ("b", "d")], perplexity=5)
    (image,) = [child for child in figure.axes[1].get_children() if isinstance(child, AxesImage)]
    low, high = image.get_clim()
    assert low == -high  # cosines have a sign
    assert len(paper.selections(given, perplexity=5).data) == 24


@pytest.fixture(scope="module")
def every(both, couples):
    """One of each figure, of tasks with names that are no one's friends."""
    names = dict(zip("pqrsuv", [*EVIL, "x" * 70, "שלום (RTL)", "a=b", "<i>é</i>"], strict=True))
    kept = selections.Selections([names[task] for task in couples.selections.tasks], couples.selections.blocks,
                                 couples.selections.values, True)  # fmt: skip
    evil, shown = beside(factors(kept)), grouped(names=EVIL)
    return {
        "blocks": paper.blocks(shown, **QUICK),
        "conditional": paper.conditional(both, ["$a", "<b>"], ["c"]),
        "selections": paper.selections(evil, perplexity=6),
        "pairs": paper.pairs(evil, [(names[a], names[b]) for a, b in COUPLES], perplexity=6),
        "methods": paper.methods({"$x_1$": shown, "<&>": shown}, **QUICK),
    }


@pytest.mark.parametrize("name", ["blocks", "conditional", "selections", "pairs", "methods"])
def test_figures_show_themselves_in_a_notebook_and_leave_pyplot_alone(every, name):
    from matplotlib import pyplot

    figure, before = every[name], dict(mpl.rcParams)
    assert isinstance(figure, Figure)
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert picture.size == pytest.approx(figure.get_size_inches() * figure.dpi, abs=1)
    assert pyplot.get_fignums() == [] and dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", ["blocks", "conditional", "selections", "pairs", "methods"])
def test_names_are_no_formulas_and_nothing_lies_beyond_the_edge(every, name):
    figure = every[name]
    figure.draw_without_rendering()
    for text in figure.findobj(mpl.text.Text):
        assert not ("$" in text.get_text() and text.get_parse_math()), text
    edge, renderer = figure.bbox, figure.canvas.get_renderer()
    title = [figure._suptitle] if figure._suptitle else []
    for part in [*figure.axes, *figure.legends, *title]:
        box = part.get_tightbbox(renderer)
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < edge.x1 + 2 and box.y1 < edge.y1 + 2, part


def test_fonts_are_embedded_and_the_same_data_give_the_same_bytes(every, couples, tmp_path):
    paths = canvas.save(every["pairs"], tmp_path, "one", ("pdf", "svg", "png", "csv"))
    assert [path.name for path in paths] == ["one.pdf", "one.svg", "one.png", "one.csv"]
    document, drawing = paths[0].read_bytes(), paths[1].read_text()
    assert document.startswith(b"%PDF") and b"/FontFile2" in document and b"/Type3" not in document
    assert b"CreationDate" not in document and "<text" not in drawing and "<dc:date>" not in drawing
    again = [paper.pairs(couples, COUPLES, perplexity=6) for _ in range(2)]
    for kind in ("pdf", "svg", "png", "csv"):
        one, two = (canvas.save(figure, tmp_path / str(k), "x", (kind,))[0] for k, figure in enumerate(again))
        assert one.read_bytes() == two.read_bytes(), kind
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "0" / "x.csv"), again[0].data, check_dtype=False)


def test_saving_touches_its_own_files_alone(every, tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "blocks.png").write_text("old")
    canvas.save(every["blocks"], tmp_path, "blocks")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png", "blocks.png", "blocks.svg"}
    assert (tmp_path / "mine.png").read_text() == "mine" and (tmp_path / "blocks.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(RunError, match=r"cannot be written to .*mine\.png: "):
        canvas.save(every["blocks"], tmp_path / "mine.png", "blocks")


def test_a_disk_that_fills_leaves_the_files_of_before(every, tmp_path, monkeypatch):
    paths = canvas.save(every["blocks"], tmp_path, "one", ("svg", "csv"))
    before = [path.read_bytes() for path in paths]

    monkeypatch.setattr("mixlora.common.writing.os.fsync", no_room)
    with pytest.raises(WriteError, match=r"the figure cannot be written to .*: No space left on device"):
        canvas.save(every["methods"], tmp_path, "one", ("svg", "csv"))
    assert [path.read_bytes() for path in paths] == before and len(list(tmp_path.iterdir())) == 2


def test_a_picture_too_large_to_be_opened_has_fewer_dots_an_inch(monkeypatch):
    picture = canvas.Picture((4, 2))
    sizes = []
    for most in (canvas.PIXELS, 20_000):
        monkeypatch.setattr(canvas, "PIXELS", most)
        with Image.open(io.BytesIO(canvas.rendered(picture, "png"))) as drawn:
            sizes.append(drawn.size)
    assert sizes == [(600, 300), (200, 100)]


def test_names_are_loaded_when_they_are_asked_for():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert interference.paper.blocks is paper.blocks and interference.factors.load and interference.figures.save
    assert {"factors", "figures", "observation", "paper"} <= set(dir(interference))
