"""The base of an evaluation that names none is its adapter's own, and whatever else is wrong is told first."""

import json

import pytest

from mixlora.common.errors import ConfigError
from mixlora.evaluation import config
from tests.support.evaluations import follow_file

FOUND = {"t": {"file": "x"}}


def adapter(path, base):
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return path


def loaded(adapter, tasks, *settings):
    return config.load(None, settings, {"model": {"adapter": str(adapter)}, "tasks": tasks})


def refused(adapter, tasks, *settings):
    with pytest.raises(ConfigError) as error:
        loaded(adapter, tasks, *settings)
    return str(error.value)


@pytest.mark.parametrize("there", [True, False])
def test_what_is_wrong_with_tasks_is_told_as_with_a_base(tmp_path, there):
    path = adapter(tmp_path / "lora", "mini") if there else tmp_path / "none"
    for own in (path, tmp_path / "{task}"):
        said = "the options: tasks: the name 2024 is not text; put quotes around it"
        assert refused(own, {2024: {"file": "x"}}) == said
        assert refused(own, 5) == "the options: tasks: it must be a section of keys and values (it is 5)"
        assert refused(own, ["t"]) == "the options: tasks: it must be a section of keys and values (it is ['t'])"
        assert refused(own, {}) == "the options: tasks: it is empty; give at least one"
        assert refused(own, FOUND, "modle=x") == "the options: unknown key 'modle'; did you mean 'model'?"
        with pytest.raises(ConfigError, match=r"^the options: 'tasks' is missing$"):
            config.load(None, (), {"model": {"adapter": str(own)}})


@pytest.mark.parametrize("entry", [{"by": "kind"}, {"file": None, "mme": "MME"}])
@pytest.mark.parametrize("folder", ["sp", "s*[a]?"])
def test_an_entry_for_several_tasks_takes_the_base_of_the_first_adapter(tmp_path, entry, folder):
    for name, base in (("b", "second"), ("a", "first"), ("c", "third")):
        adapter(tmp_path / folder / name / "final", base)
    adapter(tmp_path / "some[a]x" / "0" / "final", "another")  # what a folder's name would match as a pattern
    pattern = tmp_path / folder / "{task}" / "final"
    task = {"file": str(follow_file(tmp_path / "f.jsonl"))} | entry
    assert loaded(pattern, {"all": task}).model.base == "first"
    assert loaded(pattern, {"c": task, "all": task}).model.base == "third"


def test_a_pattern_that_matches_nothing_names_the_file_it_was_looked_for_in(tmp_path):
    (tmp_path / "sp" / "a").mkdir(parents=True)
    for name in ("sp", "a\0b", "n" * 300):
        path = tmp_path / name / "all" / "adapter_config.json"
        said = f"no base model is named in {path}; check the adapter's path, or give model.base (--base)"
        assert refused(tmp_path / name / "{task}", {"all": {"file": "x", "by": "kind"}}) == said
