"""Evaluations that a language model judges: what it said is kept, asked once, and compared under one judge alone."""

import inspect
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from mixlora.common.errors import CheckpointError, ConfigError, DataError, TrainingError
from mixlora.evaluation import predictions, results
from mixlora.evaluation.comparison import compare
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.judging import run as judging
from mixlora.evaluation.judging.judge import Judge, read_prompt
from mixlora.evaluation.judging.verdicts import question_key
from mixlora.evaluation.lines import append_lines
from mixlora.evaluation.scoring.intervals import Sample, Share, differences
from tests.support.evaluations import FOLLOW, answer, copied, files, follow_file, lines, made, put, ran, settle
from tests.support.judging import judge_of, saved_judge, tasks_of

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A judge, a task file, and an evaluation `whole` that it judged."""
    folder = tmp_path_factory.mktemp("judged")
    saved_judge(folder / "judge")
    follow_file(folder / "follow.jsonl")
    ran(folder / "whole", tasks_of(folder), judge=judge_of(folder))
    return folder


@pytest.fixture
def no_judge(monkeypatch):
    """No judge may be loaded."""

    def load(*_, **__):
        raise AssertionError("a judge was loaded")

    monkeypatch.setattr(Judge, "load", load)


def judgements(folder):
    return folder / "judgements" / "follow.jsonl"


def ruled(folder, section, verdicts):
    """Replace what the judge said."""
    rows = [
        {"question_id": one.question_id, "verdict": verdict, "asked": question_key(judging.identity(section), one)}
        for one, verdict in zip(predictions.read(folder / "predictions" / "follow.jsonl"), verdicts, strict=True)
    ]
    put(judgements(folder), rows)
    return folder


def test_a_judge_that_says_neither_yes_nor_no_found_no_answer(place):
    entry = results.load(place / "whole").tasks["follow"]
    assert (entry["metric"], entry["n"], entry["unparsed"], entry["main"]) == ("judge", 6, 6, "accuracy")
    assert entry["scores"]["accuracy"]["value"] == 0
    rows = lines(judgements(place / "whole"))
    assert sorted(row["question_id"] for row in rows) == sorted(one for one, _ in FOLLOW)
    assert all(row["verdict"] is None and 0 < row["confidence"] < 0.1 and row["text"] is None for row in rows)


def test_what_was_judged_is_not_asked_again(place, tmp_path, no_judge):
    out = copied(place / "whole", tmp_path / "out")
    ran(out, tasks_of(place), judge=judge_of(place, batch_size=2, device="auto"))
    assert files(out)["judgements/follow.jsonl"] == files(place / "whole")["judgements/follow.jsonl"]


def test_only_what_is_new_is_written_and_only_its_chunk_judged(place, tmp_path, monkeypatch):
    out = copied(place / "whole", tmp_path / "out")
    told = []
    judge = Judge.judge
    monkeypatch.setattr(Judge, "judge", lambda self, some: told.extend(some) or judge(self, some))
    with judgements(out).open("a") as file:
        file.write('{"question_id": "si')  # killed while writing
    said = [row["predict"] for row in lines(out / "predictions" / "follow.jsonl")]
    answer(out, "follow", ["something else", *said[1:]])
    ran(out, tasks_of(place), judge=judge_of(place))
    assert [one.question_id for one in told] == [one for one, _ in FOLLOW] and len(lines(judgements(out))) == 7
    told.clear()
    for _ in range(2):
        ran(out, tasks_of(place), judge=judge_of(place, by="generation"))  # a judge of another kind
    assert [one.question_id for one in told] == [one for one, _ in FOLLOW] and len(lines(judgements(out))) == 13
    other = saved_judge(tmp_path / "other", seed=1)
    ran(out, tasks_of(place), judge=judge_of(place, model=str(other)))
    assert len(lines(judgements(out))) == 19


def test_a_prompt_of_ones_own(place, tmp_path):
    """It is asked as it stands in the file, also with other braces; its content decides what was judged before."""
    file = tmp_path / "prompt.txt"
    file.write_text('\n{"q": "{question}", "a": "{target}", "p": "{prediction}"} {Yes|No}?\n', encoding="utf-8")
    out = copied(place / "whole", tmp_path / "out")
    for _ in range(2):
        ran(out, tasks_of(place), judge=judge_of(place, prompt=str(file)))
    rows = lines(judgements(out))
    assert len(rows) == 12  # those of our own words stay
    one = predictions.read(out / "predictions" / "follow.jsonl")[0]
    section = JudgeSection(**judge_of(place, prompt=str(file)))
    assert question_key(judging.identity(section), one) in {row["asked"] for row in rows[6:]}
    judge = Judge.load(section.model, "float32", prompt=read_prompt(section.prompt))
    told = f'{{"q": "{one.prompt}", "a": "{one.target}", "p": "{{target}}"}} {{Yes|No}}?'
    assert judge.text(replace(one, predict="{target}")) == told
    own = ran(out, tasks_of(place), judge=judge_of(place, prompt=str(file))).meta["config"]["judge"]["prompt"]
    assert own == str(file.resolve())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file or directory; name a text file"),
        (b"\xff\xfe{question}", "cannot be read: it is not text in UTF-8; name a text file"),
        (b"{question} {prediction}", "has no {target}; it needs all of {question}, {target}, {prediction}"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_before_any_answer(place, tmp_path, text, words):
    file = tmp_path / "prompt.txt"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigError) as error:
        ran(tmp_path / "out", tasks_of(place), judge=judge_of(place, prompt=str(file)))
    assert str(error.value) == f"judge.prompt: {file} {words}" and not (tmp_path / "out" / "predictions").exists()


def test_verdicts_are_counted(place, tmp_path, no_judge):
    section = JudgeSection(**judge_of(place))
    out = ruled(copied(place / "whole", tmp_path / "out"), section, [True, True, True, False, False, None])
    entry = ran(out, tasks_of(place), judge=judge_of(place)).tasks["follow"]
    assert (entry["scores"]["accuracy"]["value"], entry["unparsed"]) == (0.5, 1)


def test_two_models_are_compared_under_one_judge(place, tmp_path, no_judge):
    section = JudgeSection(**judge_of(place))
    first, second = [True, True, False, False, None, True], [True, False, True, True, True, True]
    for name, verdicts in (("first", first), ("second", second)):
        out = ruled(copied(place / "whole", tmp_path / name), section, verdicts)
        ran(out, tasks_of(place), judge=judge_of(place), seed=3)
    found = compare(tmp_path / "first", tmp_path / "second")
    own = found.differences["follow"]
    assert (found.first, found.second, own.metric, own.n, own.differing) == ("first", "second", "judge", 6, 4)
    columns = torch.tensor([[1.0, one is True, 1.0, other is True] for one, other in zip(first, second, strict=True)])
    expected = differences(Sample(columns.double().numpy()), {"accuracy": Share(1, 0)}, 100, 3)
    assert own.values == expected and own.values["accuracy"].value == pytest.approx(2 / 6)
    other = judging.identity(JudgeSection(**judge_of(place, by="generation")))
    for one in predictions.read(tmp_path / "first" / "predictions" / "follow.jsonl"):  # another judge counts nothing
        said = {"question_id": one.question_id, "verdict": False, "asked": question_key(other, one)}
        append_lines(judgements(tmp_path / "first"), [said])
    assert compare(tmp_path / "first", tmp_path / "second") == found
    judgements(tmp_path / "first").write_text("")
    with pytest.raises(CheckpointError, match=r"^Task follow: .*follow.jsonl lacks 6 of 6 judgements by its judge; "):
        compare(tmp_path / "first", tmp_path / "second")


def test_other_judges_and_other_questions_are_not_compared(place, tmp_path):
    out = copied(place / "whole", tmp_path / "out")
    ran(out, tasks_of(place), judge=judge_of(place, by="generation"))
    with pytest.raises(
        DataError, match=r"whole was judged by .*judge \(by probability, in float32\) and .*out by .*gen"
    ):
        compare(place / "whole", out)
    other = follow_file(tmp_path / "follow.jsonl", [*FOLLOW[:5], ("six", "eight")])
    ran(tmp_path / "other", {"follow": {"file": str(other), "score": "judge"}}, judge=judge_of(place))
    with pytest.raises(DataError, match=r"^Task follow: Example six .* target 'seven' on the first side and 'eight'"):
        compare(place / "whole", tmp_path / "other")
    out = copied(place / "whole", tmp_path / "reworded")
    rows = lines(out / "predictions" / "follow.jsonl")
    rows[4]["prompt"] = "What comes after five?"
    put(out / "predictions" / "follow.jsonl", rows)
    settle(out)
    with pytest.raises(
        DataError, match=r"^Task follow: Example .* has a different prompt on the second side; evaluate"
    ):
        compare(place / "whole", out)


def test_judged_answers_are_matched_by_their_ids(place, tmp_path):
    section = JudgeSection(**judge_of(place))
    for name, verdicts in (("first", [True, True, False, False, None, True]), ("second", [True, False] * 3)):
        ruled(copied(place / "whole", tmp_path / name), section, verdicts)
    expected = compare(tmp_path / "first", tmp_path / "second")
    assert expected.differences["follow"].differing == 4
    file = tmp_path / "second" / "predictions" / "follow.jsonl"
    put(file, lines(file)[::-1])
    settle(tmp_path / "second")
    assert compare(tmp_path / "first", tmp_path / "second") == expected
    rows = lines(file)
    put(file, rows[:5])
    settle(tmp_path / "second")
    with pytest.raises(DataError, match=r"^Task follow: 1 examples, .* have a prediction only on the first side"):
        compare(tmp_path / "first", tmp_path / "second")


def test_memory_that_runs_out_while_judging_is_told_and_what_was_said_is_kept(place, tmp_path, monkeypatch):
    out = copied(place / "whole", tmp_path / "out")
    judgements(out).unlink()
    monkeypatch.setattr(judging, "_TOGETHER", 1)
    calls = []
    forward = LlamaForCausalLM.forward

    def second(self, *args, **given):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **given)

    second.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(LlamaForCausalLM, "forward", second)
    config = made(out, tasks_of(place), judge=judge_of(place))
    found = {"follow": predictions.read(out / "predictions" / "follow.jsonl")}
    asked = judging.identity(config.judge)
    with pytest.raises(TrainingError, match=r"memory ran out with 4 predictions to judge: lower judge\.batch_size"):
        judging.judge_all(config.judge, asked, found, {"follow": judgements(out)}, lambda *_: None)
    assert len(lines(judgements(out))) == 4
    judging.judge_all(config.judge, asked, found, {"follow": judgements(out)}, lambda *_: None)
    assert {row["asked"] for row in lines(judgements(out))} == {
        row["asked"] for row in lines(judgements(place / "whole"))
    }


def test_a_file_of_judgements_that_is_none_is_refused(place, tmp_path, no_judge):
    out = copied(place / "whole", tmp_path / "out")
    put(judgements(out), [{}])
    for said in ("a line that is not a judgement", "a line that is not a JSON object"):
        with pytest.raises(CheckpointError, match=rf"follow\.jsonl has {said}; delete the file"):
            ran(out, tasks_of(place), judge=judge_of(place))
        judgements(out).write_text("[]]\n")
    ruled(out, JudgeSection(**judge_of(place)), [False] * 6)
    judgements(out).write_text(judgements(out).read_text().replace("false", "true", 1))
    with pytest.raises(CheckpointError, match=r"follow\.jsonl is damaged: the checksum of line 1 is another; "):
        ran(out, tasks_of(place), judge=judge_of(place))


def test_a_judge_is_known_by_its_content(place, tmp_path, monkeypatch):
    """Not by its path: one trained again in its place is asked again; a moved one is not."""
    judge = copied(place / "judge", tmp_path / "judge")
    out = copied(place / "whole", tmp_path / "out")
    asked, own = [], Judge.judge
    monkeypatch.setattr(Judge, "judge", lambda self, some: asked.extend(some) or own(self, some))
    ran(out, tasks_of(place), judge=judge_of(tmp_path))
    assert asked == [] and compare(place / "whole", out).differences["follow"].differing == 0
    saved_judge(judge, seed=1)
    ran(out, tasks_of(place), judge=judge_of(tmp_path))
    assert len(asked) == 6
    other = copied(out, tmp_path / "other")
    (judge / "generation_config.json").write_text('{"eos_token_id": 1}')
    ran(other, tasks_of(place), judge=judge_of(tmp_path))
    assert len(asked) == 12
    with pytest.raises(DataError, match=r"out was judged by .* and .*other by .*, whose files differ; evaluate both"):
        compare(out, other)


@pytest.mark.pretrained
@pytest.mark.slow
def test_a_real_judge(place, tmp_path):
    from tests.support import smollm2

    out = copied(place / "whole", tmp_path / "out")
    answer(out, "follow", [target for _, target in FOLLOW[:3]] + ["a cat", "a dog", "a bird"])
    found = ran(out, tasks_of(place), judge=judge_of(place, model=str(smollm2.saved())))
    rows = lines(judgements(out))[6:]
    assert len(rows) == 6 and all(0 < row["probability"] < 1 for row in rows)
    entry = found.tasks["follow"]
    verdicts = [row["verdict"] for row in rows]
    assert entry["unparsed"] == verdicts.count(None) < 6
    assert entry["scores"]["accuracy"]["value"] == pytest.approx(verdicts.count(True) / 6)
    kept = files(out)["judgements/follow.jsonl"]
    ran(out, tasks_of(place), judge=judge_of(place, model=str(smollm2.saved())))
    assert files(out)["judgements/follow.jsonl"] == kept


def test_a_difference_under_a_judge_resamples_groups(place, tmp_path, no_judge):
    """Grouped in threes, in which all changed alike, six answers are two."""
    section = JudgeSection(**judge_of(place))
    for name, verdicts in (("first", [True] * 3 + [False] * 3), ("second", [True] * 6)):
        ruled(copied(place / "whole", tmp_path / name), section, verdicts)
    alone = compare(tmp_path / "first", tmp_path / "second").differences["follow"]
    file = tmp_path / "second" / "predictions" / "follow.jsonl"
    rows = [row | {"group": str(k // 3)} for k, row in enumerate(lines(file))]
    put(file, rows)
    settle(tmp_path / "second")
    found = compare(tmp_path / "first", tmp_path / "second").differences["follow"]
    assert (alone.groups, found.groups, alone.differing, found.differing) == (6, 2, 3, 3)
    one, other = alone.values["accuracy"], found.values["accuracy"]
    assert one.value == other.value == 0.5 and other.high - other.low > one.high - one.low
