"""`mixlora evaluate`, `compare` and `table`: exit codes, what stands on which stream, and that every form prints."""

import csv
import io
import json
import re

import pytest
import torch
import yaml

from mixlora.checkpoints import loading
from mixlora.evaluation import printing, results
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.generation import Generator
from tests.support.evaluations import FOLLOW, TEMPLATE, answer, files, follow_file, lines, saved, values

torch.set_num_threads(1)
EVIL = "a|b\x1b[31m<i>&%_\n$x"
SHOWN = "a|b\N{REPLACEMENT CHARACTER}[31m<i>&%_\N{REPLACEMENT CHARACTER}$x"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A configuration of two tasks, one with a name that is no name, and a LoRA."""
    folder = tmp_path_factory.mktemp("commands")
    follow_file(folder / "follow.jsonl")
    follow_file(folder / "yes.jsonl", [(str(k), "yes" if k % 2 else "no") for k in range(6)])
    tasks = {EVIL: {"file": str(folder / "follow.jsonl")}, "yes": {"file": str(folder / "yes.jsonl"), "score": "pope"}}
    given = values("", tasks)
    del given["out"]
    (folder / "c.yaml").write_text(yaml.safe_dump(given))
    saved(folder / "lora")
    return folder


@pytest.fixture
def two(place, mixlora):
    """Two evaluations of that."""
    for name, more in (("base", []), ("lora results", ["--adapter", place / "lora", "--label", "LoRA & co"])):
        if not (place / name / "results.json").exists():
            assert mixlora("evaluate", place / "c.yaml", "--out", place / name, "-q", *more)[0] == 0
    return place / "base", place / "lora results"


def refused(said):
    """The one sentence of a command that the user's input ended."""
    code, out, err = said
    assert (code, out) == (2, "") and err.endswith("\n")
    told = [line for line in err.splitlines() if not re.fullmatch(r"data: \d+/\d+", line)]
    assert len(told) == 1, err
    assert told[0].startswith("error: ")
    return told[0].removeprefix("error: ")


def test_scores_go_to_stdout_and_progress_to_stderr(place, mixlora, tmp_path):
    code, out, err = mixlora("evaluate", place / "c.yaml", "--out", tmp_path / "out")
    assert code == 0 and "data: 12/12" in err and "yes: 6/6" in err and "Loading" not in err
    assert f"\n{SHOWN}: 6/6\n" in err
    found = results.load(tmp_path / "out")
    assert out == printing.scores(found) + "\n" and found.label == "out"
    rows = out.splitlines()
    assert rows[0].split("  ")[0] == "task" and rows[2].startswith(f"{SHOWN}  exact accuracy")
    assert all(character.isprintable() or character == "\n" for character in out + err)
    before = files(tmp_path / "out")
    code, again, err = mixlora("evaluate", place / "c.yaml", "--out", tmp_path / "out", "--quiet", "--json")
    assert (code, err) == (0, TEMPLATE) and files(tmp_path / "out") == before
    assert json.loads(again) == {"label": "out", "tasks": json.loads(printing.to_json(found))["tasks"], "totals": {}}
    assert json.loads(again)["tasks"].keys() == {EVIL, "yes"}


def test_options_go_over_the_file(place, mixlora, tmp_path):
    arguments = ["--base", "mini", "--task", f"t={place / 'follow.jsonl'}", "--out", tmp_path / "out"]
    code, out, err = mixlora("evaluate", *arguments, "--set", "generation.max_new_tokens=2", "-q", "--label", "x")
    assert (code, err) == (0, TEMPLATE) and results.load(tmp_path / "out").label == "x" and "6" in out
    config = results.load(tmp_path / "out").meta["config"]
    assert (config["generation"]["max_new_tokens"], list(config["tasks"])) == (2, ["t"])
    code, again, _ = mixlora("evaluate", tmp_path / "out", "--out", tmp_path / "again", "-q")
    assert (code, again) == (0, out)
    names = "predictions/t.jsonl"
    assert files(tmp_path / "again")[names] == files(tmp_path / "out")[names]


def test_what_evaluate_cannot_use(place, mixlora, tmp_path):
    out = ["--out", tmp_path / "out"]
    for arguments, said in (
        ([], "there is nothing to evaluate: name a YAML file, or give --adapter or --base, and --task"),
        ([tmp_path / "no.yaml", *out], f"there is no configuration file {tmp_path / 'no.yaml'}"),
        ([place / "c.yaml"], "the configuration names no directory for predictions and scores; give out: or --out"),
        (["--base", "mini", "--task", "nofile", *out], "--task 'nofile' is not of the form NAME=FILE"),
        (["--task", f"a={place / 'follow.jsonl'}", *out], "the options: 'model' is missing"),
        (
            ["--base", "mini", "--task", "a=x", "--task", "b=x", "--task", "a=y", *out],
            "--task names 'a' twice; give every task a name of its own",
        ),
        ([place / "c.yaml", *out, "--set", "judge.modle=x"], "unknown key 'judge.modle'; did you mean 'model'?"),
        ([place / "c.yaml", *out, "--set", "tasks.yes.score=judge"], "task 'yes' has score: judge, but there is no"),
        ([place / "c.yaml", *out, "--set", "tasks.yes.score=f1"], "tasks.yes.score"),
        ([place / "c.yaml", *out, "--set", "tasks.yes.labels=[a]"], "labels are for score: classification, not pope"),
        (
            [place / "c.yaml", *out, "--set", "generation={do_sample: true, num_beams: 2}"],
            "do_sample draws one answer, and num_beams searches for the likeliest; choose one of them",
        ),
        ([place / "c.yaml", *out, "--adapter", tmp_path / "none"], f"there is no PEFT adapter at {tmp_path / 'none'}"),
        (
            ["--adapter", tmp_path, "--task", "a=b", *out],
            f"no base model is named in {tmp_path / 'adapter_config.json'}",
        ),
        ([place / "c.yaml", "--out", place], f"{place} exists, but is not an evaluation; choose another --out"),
        ([place / "c.yaml", *out, "--task", f"x={tmp_path / 'no.jsonl'}"], f"Task x: {tmp_path / 'no.jsonl'} does not"),
    ):
        assert said in refused(mixlora("evaluate", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_problems_of_data_are_a_line_each(mixlora, tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a"}\n{"prompt": "a", "target": ""}\n')
    code, out, err = mixlora("evaluate", "--base", "mini", "--task", f"t={file}", "--out", tmp_path / "out", "-q")
    assert (code, out) == (2, "") and err.count("\n") == 3
    assert err.startswith("error: 2 records cannot be used; correct or remove these:\n  t.jsonl:2: the record has an")


def test_an_interrupted_evaluation_continues(place, mixlora, tmp_path, monkeypatch):
    arguments = ["evaluate", place / "c.yaml", "--out", tmp_path / "out", "-q"]
    answers, calls = Generator.answers, []

    def second(self, examples):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answers(self, examples)

    monkeypatch.setattr(Generator, "answers", second)
    assert mixlora(*arguments) == (130, "", f"{TEMPLATE}interrupted: the same command continues\n")
    assert [len(lines(path)) for path in (tmp_path / "out" / "predictions").iterdir()] == [4]
    assert mixlora(*arguments)[0] == 0 and len(calls) == 2 + 3  # the rest of the first task, and the second
    code, out, err = mixlora("compare", tmp_path / "out", tmp_path / "out")
    assert (code, err.count("\n")) == (0, 1) and "6         0" in out


def test_memory_that_runs_out_ends_with_1(place, mixlora, tmp_path, monkeypatch):
    load = loading.load_base

    def small(section, device=None):
        model = load(section, device)

        def generate(**_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        model.generate = generate
        return model

    monkeypatch.setattr(loading, "load_base", small)
    code, out, err = mixlora("evaluate", place / "c.yaml", "--out", tmp_path / "out", "-q")
    assert (code, out) == (1, "") and err.count("\n") == 2
    assert err.startswith(f"{TEMPLATE}error: memory ran out with 4 prompts of ")
    assert "lower generation.batch_size, and the" in err
    monkeypatch.undo()
    code, _, err = mixlora(
        "evaluate", place / "c.yaml", "--out", tmp_path / "out", "-q", "--set", "generation.batch_size=1"
    )
    assert (code, err) == (0, TEMPLATE)


def test_compare_prints_and_parses(two, mixlora):
    found = compare(*two)
    code, out, err = mixlora("compare", *two)
    assert (code, out) == (0, printing.differences(found) + "\n")
    assert err == f"next: mixlora table {two[0]} '{two[1]}' --intervals\n"
    assert out.splitlines()[0].split("  ")[-1] == "differ" and "LoRA & co minus base" in out and SHOWN in out
    assert all(character.isprintable() or character == "\n" for character in out)
    code, out, err = mixlora("compare", *two, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "") and (told["first"], told["second"], told["left_out"]) == ("base", "LoRA & co", [])
    for task, own in found.differences.items():
        assert told["differences"][task]["n"] == 6 and told["differences"][task]["differing"] == own.differing
        assert told["differences"][task]["values"]["accuracy"]["value"] == own.values["accuracy"].value


def test_what_compare_cannot_use(two, mixlora, tmp_path):
    said = f"{tmp_path} has no results.json; give a directory that an evaluation wrote."
    assert refused(mixlora("compare", two[0], tmp_path)) == said
    code, out, err = mixlora("compare", two[0])
    assert (code, out) == (2, "") and "Missing argument" in err


def test_every_form_of_a_table_prints(two, mixlora):
    texts = {}
    for form in printing.FORMS:
        for more in ([], ["--intervals"]):
            code, out, err = mixlora("table", *two, "--format", form, *more)
            assert (code, err) == (0, "") and "\x1b" not in out and out.endswith("\n") and not out.endswith("\n\n")
            texts[form, bool(more)] = out
    assert texts["text", False] == mixlora("table", *two)[1]
    rows = list(csv.reader(io.StringIO(texts["csv", True])))
    assert [len(row) for row in rows] == [1 + 3 * 3] * 3 and [row[0] for row in rows] == ["Model", "base", "LoRA & co"]
    entry = results.load(two[0]).tasks["yes"]["scores"]["accuracy"]
    at = rows[0].index("yes")
    assert rows[1][at : at + 3] == [f"{100 * entry[end]:.4f}" for end in ("value", "low", "high")]
    header = texts["markdown", False].splitlines()[0]
    assert r"a\|b" in header and "<i>" not in header and "&lt;i>" in header
    assert r"LoRA \& co" in texts["latex", False] and r"\&\%\_" in texts["latex", False]


def test_what_table_cannot_use(two, mixlora, tmp_path):
    for arguments, said in (
        ([*two, "--format", "html"], "--format 'html' is not one of text, markdown, csv, latex"),
        ([two[0], two[0]], "Two of the results are called 'base'; evaluate one of them with another --label."),
        ([two[0], tmp_path], f"{tmp_path} has no results.json; give a directory that an evaluation wrote."),
    ):
        assert refused(mixlora("table", *arguments)) == said
    assert mixlora("table")[0] == 2


def test_points_of_mme_are_whole_numbers_not_powers(tmp_path):
    found = results.Results("m")
    low = {"value": 1543.2, "low": 1500.0, "high": 1580.04}
    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    scores = {"score": {"value": 178.33, "low": 150.0, "high": 190.0}, "accuracy": share}
    found.tasks["count"] = {"metric": "mme", "n": 60, "groups": 60, "unparsed": 0, "main": "score", "scores": scores}
    found.totals["perception"] = low
    rows = [line.split() for line in printing.scores(found).splitlines()[2:]]
    assert rows == [
        ["count", "mme", "score", "178.3", "[150.0,", "190.0]", "60"],
        ["accuracy", "50.0%", "[25.0,", "75.0]"],
        ["MME", "perception", "1543.2", "[1500.0,", "1580.0]"],
    ]


def test_answers_by_hand_change_what_is_printed(two, mixlora, tmp_path):
    code, _, _ = mixlora("evaluate", two[0], "--out", tmp_path / "out", "-q")
    name = next(path.stem for path in (tmp_path / "out" / "predictions").iterdir() if path.stem != "yes")
    answer(tmp_path / "out", name, [target for _, target in FOLLOW])
    code, out, _ = mixlora("evaluate", two[0], "--out", tmp_path / "out", "-q")
    assert code == 0 and re.search(r"exact accuracy +100\.0% +\[61\.0, 100\.0\] +6$", out, re.MULTILINE)


def test_a_task_with_the_name_of_the_mean_is_refused_before_it_is_asked(mixlora, tmp_path, no_model):
    (tmp_path / "t.jsonl").write_text('{"id": "1", "prompt": "a", "response": "b"}\n')
    code, _, err = mixlora(
        "evaluate", "--base", "mini", "--task", f"Mean={tmp_path / 't.jsonl'}", "--out", tmp_path / "o"
    )
    assert code == 2 and err.endswith(
        "error: tasks: a task is called 'Mean', which tables call their mean; rename it\n"
    )
