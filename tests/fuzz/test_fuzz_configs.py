"""Configurations from strangers: every file and every setting is read, or refused in a sentence."""

import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from interference import config as analysis
from mixlora.common.sections import resolved
from mixlora.evaluation import config as evaluation
from mixlora.training import config as training
from tests.support.mutations import NASTY, attempt, changed, damaged, fuzz, values, written
from tests.support.paths import CONFIGS

SHIPPED = sorted(CONFIGS.glob("*.yaml"))
LOADERS = (analysis.load, training.load, evaluation.load)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("configs")
    for path in SHIPPED:
        shutil.copy(path, made)
    return made


def read(path, *settings):
    return [attempt(lambda load=load: resolved(load(path, list(settings), {}))) for load in LOADERS]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_ones_are_each_read_by_a_command_or_included_by_another(path):
    included = [yaml.safe_load(other.read_text(encoding="utf-8")).get("include") for other in SHIPPED if other != path]
    assert None in read(path) or path.name in included


@fuzz()
@given(st.data())
def test_damaged_files(folder, data):
    source = data.draw(st.sampled_from(SHIPPED)).read_bytes()
    (folder / "x.yaml").write_bytes(data.draw(damaged(source) | st.binary(max_size=60)))
    read(folder / "x.yaml")


@fuzz()
@given(st.data())
def test_changed_values(folder, data):
    whole = yaml.safe_load(data.draw(st.sampled_from(SHIPPED)).read_text(encoding="utf-8"))
    made = data.draw(changed(whole))
    try:
        text = yaml.safe_dump(made, allow_unicode=data.draw(st.booleans()))
    except (ValueError, RecursionError):  # what YAML's own writer cannot write, its reader is not given
        return
    (folder / "x.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    read(folder / "x.yaml")


@fuzz()
@given(st.lists(st.sampled_from(["&a", "*a", "[", "]", "{", "}", "<<", ":", ",", "-", "!!int", "!!set", "!!binary", "x",
                                 "\n", " ", "  ", "include", "tasks", "?", "|", "'", '"', "%YAML 9", "---", "...", "&b",
                                 "*b", "\t", "#", "2020-99-99", "0x", "1:99", "~", "!!timestamp", "!!bool", "!!null",
                                 "!!python/name:os.system", "!!float", "!!omap", "!!pairs"]), max_size=30))  # fmt: skip
def test_pieces_of_yaml(folder, pieces):
    (folder / "x.yaml").write_text("".join(pieces), encoding="utf-8")
    read(folder / "x.yaml")


@fuzz()
@given(st.lists(st.sampled_from(["model", "tasks", "probe", "base", "samples", "x", "training", "file"]), max_size=4),
       st.text(max_size=12) | st.sampled_from(NASTY))  # fmt: skip
def test_settings(folder, keys, value):
    read(folder / "demo.yaml", f"{'.'.join(keys)}={value}")
    read(None, value)


@fuzz()
@given(values)
def test_records_of_finished_directories(folder, found):
    (folder / "done").mkdir(exist_ok=True)
    for name in ("run.json", "training.json", "results.json"):
        (folder / "done" / name).write_bytes(
            b'{"config": ' + written(found) + b', "meta": {"config": ' + written(found) + b"}}"
        )
    read(folder / "done")
