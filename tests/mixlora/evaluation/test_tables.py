"""Tables by hand, what is best, what is missing, and texts that no name can break."""

import csv
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlora.common.errors import DataError
from mixlora.evaluation.results import Results
from mixlora.evaluation.tables import table


def entry(value, half=0.1, metric="exact", n=100, unparsed=0):
    scores = {"accuracy": {"value": value, "low": value - half, "high": value + half}}
    return {"metric": metric, "n": n, "groups": n, "unparsed": unparsed, "main": "accuracy", "scores": scores}


def results(label, totals=None, /, **tasks):
    tasks = {name: task if isinstance(task, dict) else entry(task) for name, task in tasks.items()}
    return Results(
        label, tasks=tasks, totals={k: {"value": v, "low": v - 9, "high": v} for k, v in (totals or {}).items()}
    )


LORA = results("LoRA", {"perception": 1200.04}, VSR=0.5, MNIST=0.9)
MIXLORA = results("MixLoRA", {"perception": 1300}, VSR=0.6, MNIST=0.80)


def test_as_the_paper_lays_it_out():
    assert table([LORA, MIXLORA]).text() == (
        "Model    MME perception    VSR  MNIST   Mean\n"
        "--------------------------------------------\n"
        "LoRA             1200.0   50.0  90.0*  70.0*\n"
        "MixLoRA         1300.0*  60.0*   80.0  70.0*\n"
        "Mean leaves out scores in points: MME perception"
    )


def test_markdown_and_latex():
    assert table([LORA, MIXLORA], columns=["VSR"]).markdown() == (
        "| Model | VSR |\n| --- | ---: |\n| LoRA | 50.0 |\n| MixLoRA | **60.0** |"
    )
    assert table([LORA, MIXLORA], columns=["VSR"]).latex().splitlines() == [
        "% needs \\usepackage{booktabs}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Model & VSR \\",
        r"\midrule",
        r"LoRA & 50.0 \\",
        r"MixLoRA & \textbf{60.0} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_mean_takes_tasks_that_share_pictures_as_dependent():
    """Half widths of 10 points: sqrt(3) * 10 / 3 of independent tasks; 10 of dependent ones."""
    found = results("m", a=0.5, b=0.6, c=0.7)
    for sets, half in (([], 3**0.5 * 10 / 3), ([["a", "b", "c"]], 10), ([["a", "c"]], 5**0.5 * 10 / 3)):
        found.dependent = sets
        mean = table([found]).cells[0][-1].estimate
        assert (mean.value, mean.low, mean.high) == pytest.approx((60, 60 - half, 60 + half))
    found = results("m", pope_rand=0.5, pope_adv=0.5, pope_pop=0.5, b=0.6)
    found.dependent = [["pope_adv", "b"]]
    mean = table([found], merge_pope=True).cells[0][-1].estimate
    assert mean.high - mean.low == pytest.approx(20)


def test_intervals():
    made = table([LORA], columns=["MME perception", "VSR", "Mean"])
    assert made.text(intervals=True).splitlines()[2].split(maxsplit=1)[1].split("  ") == [
        "1200.0 [1191.0, 1200.0]",
        "50.0 [40.0, 60.0]",
        "50.0 [40.0, 60.0]",
    ]
    assert list(csv.reader(io.StringIO(made.csv(intervals=True))))[:2] == [
        ["Model", *(f"{name}{end}" for name in ("MME perception", "VSR", "Mean") for end in ("", " low", " high"))],
        [
            "LoRA",
            "1200.0400",
            "1191.0400",
            "1200.0400",
            "50.0000",
            "40.0000",
            "60.0000",
            "50.0000",
            "40.0000",
            "60.0000",
        ],
    ]


def test_a_mean_of_independent_tasks():
    mean = table([results("a", x=entry(0.3, 0.03), y=entry(0.5, 0.04))]).cells[0][-1].estimate
    assert (mean.value, mean.low, mean.high) == pytest.approx((40, 37.5, 42.5))  # hypot(3, 4) / 2


def test_ties_are_all_best_and_one_model_is_not():
    made = table([results("a", x=0.71241), results("b", x=0.71212), results("c", x=0.711)], columns=["x"])
    assert [row[0].best for row in made.cells] == [True, True, False]
    assert not any(cell.best for cell in table([LORA]).cells[0])
    assert not table([LORA, results("b", y=1.0)], columns=["y"]).cells[1][0].best


def test_no_mean_over_other_tasks():
    made = table([LORA, results("b", VSR=0.7), results("c", VSR=0.1, MNIST=float("nan"))])
    assert [row[-1].text() for row in made.cells] == ["70.0", "-", "-"]
    assert [cell.text() for cell in made.cells[1]] == ["-", "70.0", "-", "-"]
    assert made.notes == (
        "b has no mean, which would leave out MNIST",
        "c has no mean, which would leave out MNIST",
        "Mean leaves out scores in points: MME perception",
    )
    assert made.text().endswith("\n" + "\n".join(made.notes))
    assert table([LORA, results("b", VSR=0.7)], columns=["VSR"]).notes == ()


def test_mme_is_its_totals_alone():
    both = {"perception (1 of 10 subtasks)": 150, "cognition": 300}
    made = table([results("a", both, OCR=entry(150, metric="mme")), LORA])
    assert made.columns == (
        "MME perception (1 of 10 subtasks)",
        "MME cognition",
        "MME perception",
        "VSR",
        "MNIST",
        "Mean",
    )
    assert [cell.text() for cell in made.cells[0]] == ["150.0", "300.0", "-", "-", "-", "-"]
    assert (
        table([results("a", both, OCR=entry(150, metric="mme"))]).columns[-1] == "MME cognition"
    )  # no mean of nothing


def test_what_was_judged_otherwise_is_not_compared():
    made = table([LORA, results("b", VSR=entry(0.9, metric="contained"), MNIST=entry(0.8, n=50)), MIXLORA])
    assert made.notes == (
        "VSR cannot be compared: exact, 100 examples (LoRA, MixLoRA); contained, 100 examples (b)",
        "MNIST cannot be compared: exact, 100 examples (LoRA, MixLoRA); exact, 50 examples (b)",
        "Mean leaves out scores in points: MME perception",
    )
    assert [[cell.best for cell in row] for row in made.cells] == [[False] * 4, [False] * 4, [True] + [False] * 3]


def test_what_was_not_understood_is_told():
    made = table([results("a", x=entry(0.5, unparsed=3), y=0.5, z=entry(0.5, n=7, unparsed=1))])
    assert made.notes == ("Answers of a that were not understood and count as wrong: x 3 of 100, z 1 of 7",)


def test_pope_as_one_column():
    splits = {"pope_rand": entry(0.9, 0.02), "pope_adv": entry(0.6, 0.04), "pope_pop": entry(0.6, 0.03, n=50)}
    made = table([results("a", x=0.5, **splits, y=0.3)], merge_pope=True)
    assert made.columns == ("x", "POPE", "y", "Mean")
    estimate = made.cells[0][1].estimate
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((70, 67, 73))
    assert made.cells[0][-1].estimate.value == pytest.approx(50)  # POPE counts once
    lacking = table([results("a", **splits), results("b", pope_rand=0.9)], merge_pope=True)
    assert [row[0].text() for row in lacking.cells] == ["70.0", "-"]
    assert table([results("a", **splits)]).columns == (*splits, "Mean")
    assert table([results("a", x=0.1)], merge_pope=True).columns == ("x", "Mean")


def test_columns_that_are_asked_for():
    assert table([LORA, MIXLORA], columns=["MNIST", "VSR"]).columns == ("MNIST", "VSR")
    assert table([LORA], columns=["Mean", "MNIST"]).columns == ("MNIST", "Mean")
    with pytest.raises(
        DataError, match="No results have the column 'x'; the columns are MME perception, VSR, MNIST, Mean"
    ):
        table([LORA], columns=["x"])
    with pytest.raises(DataError, match="A task is called 'Mean', which is another column's name; rename the task"):
        table([results("a", Mean=0.5)])
    with pytest.raises(DataError, match="A task is called 'POPE'"):
        table([results("a", POPE=0.5, pope_adv=0.5)], merge_pope=True)
    with pytest.raises(DataError, match="There are no results to tabulate"):
        table([])


def test_names_are_escaped():
    made = table([results("[a]_b & 50% #1 \\ {x} ~^<|>", **{"t_1|\x1b[31m": 0.5})])
    assert r"{[}a{]}\_b \& 50\% \#1 \textbackslash{} \{x\} \textasciitilde{}\textasciicircum{}" in made.latex()
    assert r"\textless{}\textbar{}\textgreater{} & 50.0" in made.latex()
    assert r"t\_1\textbar{}?{[}31m" in made.latex()
    assert r"| \[a\]\_b &amp; 50% #1 \\ {x} ~^&lt;\|> | 50.0 |" in made.markdown()
    assert "\x1b" not in made.text() + made.markdown() + made.csv() + made.latex()


def test_a_spreadsheet_takes_no_name_for_a_formula_and_numbers_for_numbers():
    made = table([results("=LoRA", **{"@a": -0.5, "+b": 0.25})])
    assert list(csv.reader(io.StringIO(made.csv()))) == [
        ["Model", "'@a", "'+b", "Mean"],
        ["'=LoRA", "-50.0000", "25.0000", "-12.5000"],
    ]
    assert made.columns == ("@a", "+b", "Mean") and made.models == ("=LoRA",)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=3), st.lists(st.text(max_size=8), min_size=1, unique=True))
def test_no_name_breaks_a_row(labels, tasks):
    made = table([results(label, **dict.fromkeys(tasks, 0.5)) for label in labels])
    rows, width = len(labels) + 1, len(made.columns) + 1
    assert len(made.text().splitlines()) == rows + 1
    for line in made.markdown().splitlines():
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == width + 1
    assert [len(row) for row in csv.reader(io.StringIO(made.csv(intervals=True)))] == [3 * width - 2] * rows
    body = [line for line in made.latex().splitlines() if line.endswith(r"\\")]
    assert len(body) == rows
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == width - 1
        assert not re.search(r"(?<!\\)[%#$_~^]", line)
        plain = re.sub(r"\\[{}]", "", line)
        assert plain.count("{") == plain.count("}")
