"""YAML, includes, settings and options: what wins, and what is refused and how."""

import re

import pytest
import yaml

from interference import config
from interference.errors import ConfigError

MINIMAL = {"model": {"base": "b", "adapter": "a"}, "tasks": {"t": {"file": "t.jsonl"}}}


def write(file, values):
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return file


def test_defaults():
    found = config.build(MINIMAL, "x")
    assert found.model.dtype == "float32" and found.out is None and found.model.trust_remote_code is False
    probe = found.probe
    assert (probe.samples, probe.unit_size, probe.seed, probe.batch_size) == (100, 1, 0, 8)
    assert probe.components == ["language"] and probe.granularity == "module" and probe.memory_budget == 2**30


def test_command_line_over_settings_over_file_over_include(tmp_path):
    write(tmp_path / "deep.yaml", MINIMAL | {"probe": {"samples": 1000, "seed": 9, "batch_size": 2, "unit_size": 3}})
    (tmp_path / "sub").mkdir()
    own = {"include": "../deep.yaml", "probe": {"samples": 500, "seed": 8, "batch_size": 4}}
    write(tmp_path / "sub" / "own.yaml", own)
    settings = ["probe.samples=50", "probe.seed=7", "tasks.other.mini=heldout"]
    found = config.load(tmp_path / "sub" / "own.yaml", settings, {"probe": {"samples": 5}})
    probe = found.probe
    assert (probe.samples, probe.seed, probe.batch_size, probe.unit_size) == (5, 7, 4, 3)
    assert list(found.tasks) == ["t", "other"] and found.tasks["other"].mini == "heldout"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("probe.layers=[1, 5]", [1, 5]), ("probe.layers=null", None), ("probe.modules=[mlp]", ["mlp"])],
)
def test_settings_are_yaml(setting, value):
    found = config.load(None, [setting], MINIMAL)
    assert getattr(found.probe, setting.split(".")[1].split("=")[0]) == value


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("2GiB", 2**31), ("1.5 kb", 1500), ("64mib", 2**26), ("3 GB", 3 * 10**9), ("7B", 7)],
)
def test_amounts_of_memory(text, count):
    assert config.parse_bytes(text) == count
    assert config.load(None, [f"probe.memory_budget={text}"], MINIMAL).probe.memory_budget == count


@pytest.mark.parametrize("text", ["", ".", "1.2.3", "GiB", "-5", "3 apples", "1e9"])
def test_amounts_that_are_none(text):
    words = f"memory_budget: not an amount of memory; write a number of bytes, or an amount like 2GiB (it is {text!r})"
    with pytest.raises(ConfigError, match=re.escape(words)):
        config.load(None, [], {**MINIMAL, "probe": {"memory_budget": text}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("a: [1", "c.yaml:1: not valid YAML ("),
        (
            "- 1",
            "c.yaml: a configuration is a mapping with the keys model, tasks, probe, lookahead, validation, trial",
        ),
        ("", "c.yaml: a configuration is a mapping with the keys"),
        ("x: !!python/object/apply:os.system ['true']", "c.yaml:1: not valid YAML (could not determine a constructor"),
        (MINIMAL | {"include": "none.yaml"}, "there is no configuration file "),
        (MINIMAL | {"include": "c.yaml"}, "c.yaml: include: c.yaml leads back to a file that includes it"),
        ({"modle": MINIMAL["model"], "tasks": MINIMAL["tasks"]}, "c.yaml: unknown key 'modle'; did you mean 'model'?"),
        (
            MINIMAL | {"tasks": {False: {"file": "x"}}},
            "c.yaml: tasks: the name False is not text; put quotes around it",
        ),
        ("model: {base: b}\nmodel: {base: c}", "c.yaml:2: not valid YAML (the key 'model' appears twice)"),
        (MINIMAL | {"probes": {}}, "c.yaml: unknown key 'probes'; did you mean 'probe'?"),
        (MINIMAL | {"probe": {"zzz": 1}}, "c.yaml: unknown key 'probe.zzz'; the keys here are samples, unit_size, "),
        (MINIMAL | {"model": {"base": "b"}}, "c.yaml: 'model.adapter' is missing"),
        (MINIMAL | {"tasks": {}}, "c.yaml: tasks: "),
        (MINIMAL | {"tasks": {"t": {"fil": "x"}}}, "c.yaml: unknown key 'tasks.t.fil'; did you mean 'file'?"),
        (MINIMAL | {"tasks": {"t": {}}}, "c.yaml: tasks.t: give either file: PATH or mini: heldout"),
        (
            MINIMAL | {"model": {**MINIMAL["model"], "dtype": "int8"}},
            "c.yaml: model.dtype: Input should be 'float32', ",
        ),
        (MINIMAL | {"probe": {"layers": [1.5]}}, "c.yaml: probe.layers.0: Input should be a valid integer"),
        (MINIMAL | {"probe": {"components": ["eye"]}}, "c.yaml: probe.components.0: Input should be 'language', 'visi"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, values, message):
    file = write(tmp_path / "c.yaml", values)
    with pytest.raises(ConfigError) as error:
        config.load(file)
    said = str(error.value).replace(str(tmp_path) + "/", "")
    assert said.startswith(message)
    assert "\n" not in said


def test_what_is_no_text_is_told(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"c.yaml cannot be read: "):
        config.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, " is a directory, but has no run.json; name a YAML file or a run's directory"),
        ("[1]", "/run.json holds no configuration; name a YAML file or a run's directory"),
        ("{}", "/run.json holds no configuration; name a YAML file or a run's directory"),
        (
            "{",
            "/run.json cannot be read (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
            "name a YAML file or a run's directory",
        ),
        ('{"config": null}', " was computed from a notebook and has no configuration to rerun"),
    ],
)
def test_a_directory_that_cannot_be_rerun(tmp_path, text, words):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{tmp_path}{words}')}$"):
        config.load(tmp_path)
