"""Configurations from strangers: bounded, and refused in one sentence."""

import json
import os

import pytest

from mixlora.common import settings
from mixlora.common.errors import ConfigError
from mixlora.training import config as training
from mixlora.training.config import TrainConfig


def refused(path):
    with pytest.raises(ConfigError) as error:
        settings.read(path, TrainConfig, "training.json")
    return str(error.value)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + of] * 10)}]\n" for of, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + of] * 10)}]}}\n" for of, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "c.yaml:5: not valid YAML (with its aliases written out it has over 100000 values or 64 levels)"),
        (MERGED, "with its aliases written out"),
        ("".join(f"a{k}: &a{k} [{f'*a{k - 1}' if k else 1}]\n" for k in range(70)), "with its aliases written out"),
        ("a: &a [*a]", "c.yaml:1: not valid YAML (an alias is inside the part that it repeats)"),
        ("a: &a {b: {c: *a}}", "an alias is inside the part that it repeats"),
        ("[" * 10**5, "c.yaml:1: not valid YAML (it is nested deeper than 64 levels)"),
        ("{a: " * 10**5, "it is nested deeper than 64 levels"),
        ("x" * (2**20 + 1), "c.yaml cannot be read: its 1048577 bytes are more than the limit of 1048576"),
        ("a: " + "9" * 5000, "' cannot be read as int"[1:]),
        ("a:\n  2020-99-99", "c.yaml:2: not valid YAML ('2020-99-99' cannot be read as timestamp)"),
        ("a: !!bool x", "'x' cannot be read as bool"),
        ('a: "\\ud800"', "cannot be read as str"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag"),
        ("tasks: !!map x", "expected a mapping node, but found scalar"),
        ("a: b\0", "special characters are not allowed"),
        ("include: [a, b]", "include: ['a', 'b'] is a list; give the name of one file"),
        ("include: /dev/zero", "/dev/zero cannot be read: it is a pipe or a device, not a regular file"),
        ("include: pipe", "pipe cannot be read: it is a pipe or a device, not a regular file"),
        ("include: 'a\\0b'", "there is no configuration file"),
        ("include: c.yaml", "leads back to a file that includes it"),
        (f"include: '{'9' * 5000}'", f"c.yaml: include: '{'9' * 59} has 5000 characters; give a path of up to 1024"),
        ("include: " + "x" * 300, "cannot be read: File name too long"),
        ("include: .", "cannot be read: Is a directory"),
        ("include: s0.yaml", "s15.yaml: include: s16.yaml is more than 16 files deep; include fewer"),
    ],
)
def test_configurations_are_bounded(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    os.mkfifo(tmp_path / "pipe")
    for k in range(40):
        (tmp_path / f"s{k}.yaml").write_text(f"include: s{k + 1}.yaml")
    assert words in refused(tmp_path / "c.yaml") and "\n" not in refused(tmp_path / "c.yaml")


def test_aliases_within_bounds_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {k: 1, l: [2]}\nb: {<<: *a, k: 3}\nc: *a\n")
    found = settings.read(tmp_path / "c.yaml", TrainConfig, "training.json")
    assert found == {"a": {"k": 1, "l": [2]}, "b": {"k": 3, "l": [2]}, "c": {"k": 1, "l": [2]}}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("a=" + "[" * 5000, "not valid YAML (it is nested deeper than 64 levels)"),
        ("a=&a [*a]", "not valid YAML (an alias is inside the part that it repeats)"),
        ("a=!!int x", "not valid YAML ('x' cannot be read as int)"),
        (".".join("a" * 3000) + "=1", "the key has more than 64 parts"),
    ],
)
def test_settings_are_bounded(setting, words):
    with pytest.raises(ConfigError) as error:
        settings.overridden({}, [setting], {})
    assert words in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("config", [[1], "x", 3, True])
def test_a_record_that_holds_no_configuration(tmp_path, config):
    (tmp_path / "training.json").write_text(json.dumps({"config": config}))
    assert (
        refused(tmp_path)
        == f"{tmp_path}/training.json holds no configuration; name a YAML file or a training's directory"
    )


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), ("x", "'x'")])
def test_a_value_in_place_of_a_section(value, shown):
    with pytest.raises(ConfigError) as error:
        training.load(None, [], {"method": "lora", "model": {"base": "mini"}, "tasks": {"t": value}})
    assert str(error.value).endswith(f"tasks.t: it must be a section of keys and values (it is {shown})")


def test_a_value_is_not_told_at_any_length():
    with pytest.raises(ConfigError) as error:
        training.load(None, [], {"model": {"base": "mini"}, "tasks": {"t": {"file": "f", "samples": "x" * 10**6}}})
    assert len(str(error.value)) < 500


def test_leaves_have_dotted_keys():
    nested = {"a": 1, "b": {"c": [2], "d": {}, "e": {"f": None}}}
    assert list(settings.leaves(nested)) == [("a", 1), ("b.c", [2]), ("b.e.f", None)]
