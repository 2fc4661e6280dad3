"""An evaluation that is killed again and again, at any moment, ends with the files of one that was left alone."""

import json

import pytest
import torch

from mixlora.evaluation import config
from mixlora.evaluation.run import evaluate
from tests.support.evaluations import files as bytes_of
from tests.support.evaluations import follow_file, saved, values
from tests.support.judging import judge_of, saved_judge
from tests.support.killing import files, kill_until_done


def work(nested):
    torch.set_num_threads(1)
    evaluate(config.load(None, (), nested))


@pytest.mark.slow
def test_it_ends_with_the_same_files(tmp_path):
    saved(tmp_path / "lora"), saved_judge(tmp_path / "judge"), follow_file(tmp_path / "follow.jsonl")
    tasks = {
        "read_word": {"mini": "heldout", "samples": 8},
        "name_ink": {"mini": "heldout", "samples": 8, "score": "classification"},
        "follow": {"file": str(tmp_path / "follow.jsonl"), "score": "judge"},
    }
    more = {
        "model": {"base": "mini", "device": "cpu", "adapter": str(tmp_path / "lora")},
        "judge": judge_of(tmp_path, batch_size=1),
        "generation": {"batch_size": 2, "max_new_tokens": 6},
        "label": "one",
    }
    out, whole = tmp_path / "out", tmp_path / "whole"
    one, other = (values(place, tasks, **more) for place in (whole, out))
    kill_until_done(work, one, other, out, 12, (out / "results.json").exists)
    assert files(out) == files(whole)
    before = bytes_of(out)
    work(values(out, tasks, **more))
    assert bytes_of(out) == before and json.loads(before["results.json"])["tasks"]["follow"]["metric"] == "judge"
