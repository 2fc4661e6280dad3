"""Everything that README and docs/ show runs, in a directory of a user who has two checkpoints and some data."""

import json
import shutil
from contextlib import suppress
from unittest import SkipTest

import pytest

from tests.documentation.pages import environment, examples, pages
from tests.support.checkpoints import write_adapter, write_base, write_task
from tests.support.paths import ROOT


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with what the pages name: a base, adapters, data, and the reference runs."""
    write_base(tmp_path / "my-base")
    write_adapter(tmp_path / "my-lora")
    for seed, name in enumerate(("math", "code", "law", "poetry")):
        write_task(tmp_path / f"{name}.jsonl", 8, seed)
    (tmp_path / "records.jsonl").write_text("".join(map(record, range(12))), encoding="utf-8")
    shutil.copytree(ROOT / "reports" / "reference", tmp_path / "reports" / "reference")
    shutil.copytree(ROOT / "analysis_configs", tmp_path / "analysis_configs")
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return tmp_path


def record(k):
    """A line of a file that holds two topics, two records a document, under names of its own."""
    values = {"id": f"e{k}", "question": f"w{k} w{k + 1}", "answer": f"w{k + 2}", "topic": ("code", "math")[k % 2]}
    return json.dumps({**values, "document": f"d{k // 2}"}) + "\n"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page, workplace):
    for example in examples(page):
        with suppress(SkipTest):  # of this block alone
            example.evaluate()
