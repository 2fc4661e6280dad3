"""Directories of evaluations from strangers: read within bounds, never waited for, never changed by reading."""

import json
import os

import pytest
import torch

from mixlora.common.errors import CheckpointError, ConfigError, DataError, RunError
from mixlora.common.sealed import sealed
from mixlora.evaluation import config
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.folder import Folder
from mixlora.evaluation.judging.verdicts import question_key, verdicts
from mixlora.evaluation.lines import cut, whole_lines
from mixlora.evaluation.predictions import read
from mixlora.evaluation.run import evaluate
from tests.support.evaluations import copied, files, follow_file, made, put, ran, refusal

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A task file and an evaluation `whole`."""
    folder = tmp_path_factory.mktemp("strange")
    follow_file(folder / "follow.jsonl")
    ran(folder / "whole", tasks_of(folder))
    return folder


def tasks_of(folder):
    return {"follow": {"file": str(folder / "follow.jsonl")}}


def with_meta(place, out, **meta):
    """The evaluation, as if it had been made otherwise."""
    path = copied(place / "whole", out) / "results.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(record | {"meta": record["meta"] | meta})))
    return out


def as_judged(path):
    """The results, as if a judge had scored them."""
    text = path.read_text().replace('"metric": "exact"', '"metric": "judge"')
    path.write_text(json.dumps(sealed(json.loads(text))))


def told(kind, call, *arguments):
    with pytest.raises(kind) as error:
        call(*arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"labels": [1]}, "labels: it must be a section of keys and values (it is [1])"),
        ({"labels": {"follow": "red"}}, "labels.follow: Input should be a valid list (it is 'red')"),
        ({"config": "abc"}, "config: it must be a section of keys and values (it is 'abc')"),
        ({"config": {"draws": "x"}}, "config.draws: Input should be a valid integer"),
        ({"config": {"draws": 10**15}}, "config.draws: Input should be less than or equal to 1000000"),
        ({"config": {"seed": -1}}, "config.seed: Input should be greater than or equal to 0 (it is -1)"),
        ({"config": {"judge": 3}}, "config.judge: it must be a section of keys and values"),
    ],
)
def test_what_is_kept_beside_scores_is_checked(place, tmp_path, meta, words):
    out = with_meta(place, tmp_path / "out", **meta)
    assert told(ConfigError, compare, out, place / "whole").startswith(f"{out / 'results.json'}, meta: {words}")
    assert told(ConfigError, compare, place / "whole", out).startswith(f"{out / 'results.json'}, meta: {words}")


def test_judged_results_that_name_no_judge(place, tmp_path):
    out = with_meta(place, tmp_path / "out")
    path = out / "results.json"
    as_judged(path)
    said = told(DataError, compare, out, out)
    assert said == f"{path} is damaged: it names no judge; run the evaluation again."


def test_draws_are_bounded_before_anything_is_generated(place, tmp_path):
    said = told(
        ConfigError, config.load, None, [f"draws={10**15}"], {"model": {"base": "mini"}, "tasks": tasks_of(place)}
    )
    assert said.startswith("the options: draws: Input should be less than or equal to 1000000")


def test_a_judge_is_on_one_device():
    with pytest.raises(ValueError, match="a judge runs on one device; give auto, cpu or cuda:0"):
        JudgeSection(model="x", device="split")


def test_comparing_changes_nothing(place, tmp_path):
    """Not even a file that an evaluation is just adding to."""
    out = with_meta(place, tmp_path / "out", config={"judge": {"model": "x"}}, judge=["5f", "probability", "float32"])
    path = out / "results.json"
    as_judged(path)
    said = [
        {"question_id": one.question_id, "verdict": True, "asked": question_key(["5f", "probability", "float32"], one)}
        for one in read(out / "predictions" / "follow.jsonl")
    ]
    (out / "judgements").mkdir()
    growing = out / "judgements" / "follow.jsonl"
    put(growing, said)
    with growing.open("a") as file:
        file.write('{"question_id": "si')
    before = files(out)
    assert compare(out, out).differences["follow"].n == 6
    assert files(out) == before
    cut(growing)
    assert files(out)["judgements/follow.jsonl"] == before["judgements/follow.jsonl"][: -len('{"question_id": "si')]


def test_judgements_of_any_shape(tmp_path):
    file = tmp_path / "j.jsonl"
    put(file, [{"asked": [1], "verdict": True}, {"asked": {}}])
    assert verdicts(file, ["x"], []) == []
    for line in ("[]", "[1, 2]", '[["a", 1]]', "3", "null", "[" * 10**5, '{"a": "\\ud800"}', "{", "\xff"):
        file.write_bytes(line.encode("latin-1") + b"\n")
        said = told(CheckpointError, whole_lines, file)
        assert said == f"{file} has a line that is not a JSON object; delete the file"
    put(file, [{"asked": "a", "verdict": True}, {"asked": "b", "verdict": True}])
    whole, earlier = file.read_text(), '{"asked": "a"}\n'
    damaged = (whole.replace('"b"', '"c"'), whole.replace('"seal"', '"sea1"', 1), whole + earlier)
    for text, number in zip(damaged, (2, 1, 3), strict=True):
        file.write_text(text)
        for unsealed in (False, True):
            assert told(CheckpointError, whole_lines, file, unsealed) == (
                f"{file} is damaged: the checksum of line {number} is another; delete the file"
            )
    file.write_text(earlier)
    assert whole_lines(file, unsealed=True) == [{"asked": "a"}]
    file.unlink()
    assert whole_lines(file) == []
    cut(file)
    assert not file.exists()


def test_pipes_are_not_waited_for(place, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reason = "it is a pipe or a device, not a regular file"
    assert told(CheckpointError, whole_lines, pipe) == f"{pipe} cannot be read: {reason}"
    assert told(CheckpointError, cut, pipe) == f"{pipe} cannot be read, or cut after its last line: {reason}"
    for name in ("evaluation.json", "results.json", "predictions/follow.jsonl"):
        out = copied(place / "whole", tmp_path / name.replace("/", "-"))
        (out / name).unlink()
        os.mkfifo(out / name)
        if name == "evaluation.json":
            assert told(CheckpointError, Folder, out) == f"{out} exists, but is not an evaluation; choose another --out"
        else:
            assert reason in told(DataError, compare, out, place / "whole")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"tasks": [[1, 2]]}', '{"tasks": {"a": [3]}}', '{"tasks": {"\\ud800": {}}}', "[]", "3", "{}"]
)
def test_an_identity_of_any_shape(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    said = f"{tmp_path} exists, but is not an evaluation; choose another --out"
    assert told(CheckpointError, Folder, tmp_path) == said


def test_an_identity_is_told_in_bounds(place, tmp_path):
    out = copied(place / "whole", tmp_path / "out")
    record = json.loads((out / "evaluation.json").read_text())
    (out / "evaluation.json").write_text(json.dumps(record | {"base": "x" * 10**6}))
    assert len(refusal(CheckpointError, out, tasks_of(place))) < 1000


@pytest.mark.parametrize("text", ["[" * 10**5, '{"predict": "\\ud800"}', "[" * 70 + "]" * 70])
def test_predictions_that_cannot_be_walked_through_or_written_again(tmp_path, text):
    (tmp_path / "p.jsonl").write_text(text + "\n")
    assert told(DataError, read, tmp_path / "p.jsonl").startswith("p.jsonl:1: invalid JSON (")


@pytest.mark.parametrize(("name", "words"), [("n" * 300, "File name too long"), ("a\0b", "embedded null byte")])
def test_names_that_no_file_can_have(place, tmp_path, name, words):
    out = tmp_path / name
    said = refusal(RunError, out, tasks_of(place))
    assert said == f"{out} cannot be written: {words}; choose another --out"
    wanted = made(tmp_path / "out", tasks_of(place), model={"base": "mini", "device": "cpu", "adapter": str(out)})
    assert told(CheckpointError, evaluate, wanted).startswith(f"there is no PEFT adapter at {out} (")
    said = told(ConfigError, config.load, out)
    assert said.startswith(f"{out} cannot be read: ") or said == f"there is no configuration file {out}"
    assert not list(tmp_path.iterdir())
