"""Evaluations where no file may grow beyond some bytes, as on a full disk: one sentence, nothing lost, and again."""

import json

import pytest
import torch

from mixlora.common.errors import BusyError, CheckpointError, TrainingError, WriteError
from mixlora.evaluation.folder import Folder
from mixlora.evaluation.run import evaluate
from tests.support import disks
from tests.support.evaluations import TEMPLATE, copied, files, follow_file, lines, made, ran, refusal, values
from tests.support.judging import judge_of, saved_judge, tasks_of
from tests.support.killing import files as placeless

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A judge, a task file, and an evaluation `whole` that it judged."""
    folder = tmp_path_factory.mktemp("full")
    saved_judge(folder / "judge")
    follow_file(folder / "follow.jsonl", references=["r" * 100])
    ran(folder / "whole", tasks_of(folder), judge=judge_of(folder), generation=HOW, label="x")
    return folder


HOW = {"batch_size": 2, "max_new_tokens": 6}


def sizes(place):
    return {name: len(data) for name, data in files(place / "whole").items()}


@pytest.mark.parametrize("full", ["evaluation.json", "predictions/follow.jsonl", "results.json"])
def test_it_is_told_in_a_sentence_and_the_same_command_ends_as_ever(place, tmp_path, full):
    out, given = tmp_path / "out", {"judge": judge_of(place), "generation": HOW, "label": "x"}
    kind, said = {
        "evaluation.json": (
            WriteError,
            f"{out} cannot be written: File too large; make room there, and the same command continues",
        ),
        "predictions/follow.jsonl": (
            TrainingError,
            f"answers cannot be written to {out / 'predictions' / 'follow.jsonl.partial'}: File too large; make room "
            "there, and the same command continues with those that are kept",
        ),
        "results.json": (
            TrainingError,
            f"the results cannot be written to {out}: File too large; make room there, and the same command continues",
        ),
    }[full]
    config = made(out, tasks_of(place), **given)
    with disks.full(sizes(place)[full] - 20), pytest.raises(kind) as told:
        evaluate(config)
    assert str(told.value) == said
    if full == "predictions/follow.jsonl":
        kept = (out / "predictions" / "follow.jsonl.partial").read_bytes()
        assert kept.count(b"\n") >= 4 and not (out / "predictions" / "follow.jsonl").exists()
    evaluate(config)
    assert placeless(out) == placeless(place / "whole")


def test_the_command_says_that_the_work_failed(place, tmp_path, mixlora):
    given = values(tmp_path / "out", tasks_of(place), judge=judge_of(place), generation=HOW, label="x")
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with disks.full(sizes(place)["results.json"] - 20):
        code, out, err = mixlora("evaluate", tmp_path / "c.yaml", "-q")
    assert (code, out) == (1, "")
    assert err.startswith(f"{TEMPLATE}error: the results cannot be written to {tmp_path / 'out'}: ")


def test_judgements_that_do_not_fit_are_asked_again(place, tmp_path):
    out = copied(place / "whole", tmp_path / "out")
    (out / "results.json").unlink()
    file = out / "judgements" / "follow.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    with disks.full(file.stat().st_size + 30):
        said = refusal(TrainingError, out, tasks_of(place), judge=judge_of(place), generation=HOW, label="x")
    assert said.startswith(f"answers cannot be written to {file}: File too large; make room there, and ")
    assert file.read_bytes()[-1:] != b"\n"  # torn
    ran(out, tasks_of(place), judge=judge_of(place), generation=HOW, label="x")
    found, expected = (lines(each) for each in (file, place / "whole" / "judgements" / "follow.jsonl"))
    assert found == expected  # to the bit


@pytest.mark.parametrize("name", ["predictions", "judgements"])
def test_a_file_in_the_place_of_a_folder(place, tmp_path, name):
    out, given = tmp_path / "out", {"judge": judge_of(place), "generation": HOW}
    out.mkdir()
    (out / "evaluation.json").write_bytes((place / "whole" / "evaluation.json").read_bytes())
    (out / name).touch()
    late = name == "judgements"
    said = refusal(TrainingError if late else CheckpointError, out, tasks_of(place), **given)
    assert said == (
        f"answers cannot be written to {out}: File exists; make it writable, and the same command continues with those "
        "that are kept, or choose another --out"
        if late
        else f"{out} cannot be written: File exists; choose another --out"
    )
    assert json.loads((out / "evaluation.json").read_text()) and not (out / ".lock").exists()


def test_a_second_evaluation_of_one_directory_is_refused(place, tmp_path):
    out = copied(place / "whole", tmp_path / "out")
    before = files(out)
    with Folder(out).alone():
        said = refusal(BusyError, out, tasks_of(place), judge=judge_of(place), generation=HOW)
    assert said == f"another process is evaluating {out}; wait for it, or choose another --out"
    assert files(out) == before


def test_what_a_kill_between_two_steps_leaves_is_removed(place, tmp_path, no_model):
    out = copied(place / "whole", tmp_path / "out")
    for name in (".evaluation.json.new", ".results.json.new", ".lock", "predictions/follow.jsonl.partial"):
        (out / name).write_text("half")
    ran(out, tasks_of(place), judge=judge_of(place), generation=HOW, label="x")
    assert files(out).keys() == files(place / "whole").keys()
