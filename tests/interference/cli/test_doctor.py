"""`interference doctor`: what it finds on this machine, and what it says where a part is missing or broken."""

import json
from collections import namedtuple
from importlib import metadata

import huggingface_hub.constants
import matplotlib
import numpy
import psutil
import pytest
import torch

from interference.cli import doctor
from interference.cli.doctor import Finding, Status
from interference.figures import canvas

Usage = namedtuple("Usage", ["total", "used", "free"])


def absent(monkeypatch, *names):
    """As if these distributions were not installed."""
    version = metadata.version

    def without(name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)


def test_json_holds_what_the_text_says_and_nothing_is_broken(interference):
    said = interference("doctor", "--json")
    rows = {row["what"]: row for row in json.loads(said.out)}
    assert (said.code, said.err) == (0, "")
    assert rows["Python"]["status"] == "ok" and rows["torch"]["found"] == torch.__version__
    assert (rows["numpy"]["found"], rows["matplotlib"]["found"]) == (numpy.__version__, matplotlib.__version__)
    assert {row["status"] for row in rows.values()} <= {"ok", "missing"}
    assert all(bool(row["lost"]) == (row["status"] != "ok") for row in rows.values())
    text = interference("doctor")
    lines = text.out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == list(rows) and "numpy: ok, " + numpy.__version__ in lines
    missing = sum(row["status"] == "missing" for row in rows.values())
    assert (f"{missing} optional part" in lines[-1]) == bool(missing)
    assert (text.code, text.err) == (0, "next: interference demo --quick\n")
    assert interference("doctor", "--quiet").err == ""


def test_a_required_package_that_is_gone_is_broken_and_exits_1(interference, monkeypatch):
    absent(monkeypatch, "scipy")
    said = interference("doctor")
    (line,) = [line for line in said.out.splitlines() if line.startswith("scipy:")]
    assert line.startswith("scipy: broken: it is not installed; pip install 'scipy>=")
    assert said.out.endswith("1 required part is broken; fix these first\n")
    assert (said.code, said.err) == (1, "")


def test_a_package_that_is_too_old_or_cannot_be_imported_is_broken(monkeypatch):
    found = doctor._required(("numpy", ">=99"))
    assert str(found) == (
        f"numpy: broken, {numpy.__version__}: task-interference needs numpy>=99; pip install 'numpy>=99'"
    )
    monkeypatch.setitem(doctor.MODULES, "numpy", "numpy_that_is_not_there")
    found = doctor._required(("numpy", ">=1"))
    assert found.status == Status.BROKEN
    assert found.lost == ("it cannot be imported (ModuleNotFoundError: No module named 'numpy_that_is_not_there')")
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    assert str(doctor._python()).startswith("Python: broken, 3.10.4: task-interference needs >=3.11; ")


def test_the_unrelated_package_of_the_same_import_name_is_broken(monkeypatch):
    assert list(doctor._namesakes()) == []
    monkeypatch.setattr(metadata, "version", {"mixlora": "0.2.3"}.__getitem__)
    (found,) = doctor._namesakes()
    assert (found.status, found.found) == (Status.BROKEN, "0.2.3") and "pip uninstall mixlora" in found.remedy


@pytest.mark.parametrize("name", doctor.OPTIONAL)
def test_an_optional_package_that_is_gone_says_what_is_lost(monkeypatch, name):
    absent(monkeypatch, name)
    lost = doctor.OPTIONAL[name]
    wanted = "'torchjd[cagrad,quadprog-projector]'" if name == "torchjd" else name
    assert str(doctor._optional(name, lost)) == f"{name}: missing: {lost}; pip install {wanted}"
    monkeypatch.setattr(metadata, "version", lambda _: "1.0")
    monkeypatch.setitem(doctor.MODULES, name, "numpy")
    assert doctor._optional(name, lost) == Finding(name, Status.OK, "1.0")
    monkeypatch.setitem(doctor.MODULES, name, "no_such_module")
    assert doctor._optional(name, lost).lost == f"its files are missing, so {lost}"


@pytest.mark.parametrize(("free", "status"), [(2**30, Status.OK), (2**30 - 1, Status.MISSING)])
def test_disks_with_and_without_room(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(2**40, 0, free))
    found = list(doctor._disks())
    assert [one.status for one in found] == [status] * 3 and "1.0 GiB free at" in found[0].found
    place = tmp_path / "not" / "yet"
    assert doctor._disk("x", place, "go elsewhere").found == f"1.0 GiB free at {place}"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert str(doctor._disk("x", place, "go elsewhere")) == (
        f"disk, x: missing, 1.0 GiB free at {place}: {tmp_path} cannot be written; go elsewhere"
    )


def test_memory_is_the_containers_where_that_is_less(monkeypatch, tmp_path):
    (tmp_path / "limit").write_text("1073741824\n")
    (tmp_path / "none").write_text("max\n")
    assert doctor._cgroup_limit(tmp_path / "limit") == 2**30
    assert doctor._cgroup_limit(tmp_path / "none") == doctor._cgroup_limit(tmp_path / "gone") == doctor.sys.maxsize
    state = namedtuple("State", ["total", "available"])(16 * 2**30, 8 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: state)
    monkeypatch.setattr(doctor, "_cgroup_limit", lambda: doctor.sys.maxsize)
    assert list(doctor._memory()) == [Finding("memory", Status.OK, "8.0 GiB free of 16.0 GiB")]
    monkeypatch.setattr(doctor, "_cgroup_limit", lambda: 2**30)
    (found,) = doctor._memory()
    assert (found.status, found.found) == (Status.MISSING, "1.0 GiB free of 1.0 GiB")


def test_devices(monkeypatch):
    card = namedtuple("Card", ["name", "total_memory"])("Card X", 24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert list(map(str, doctor._devices()))[1:] == ["GPU 0: ok, Card X, 24.0 GiB", "GPU 1: ok, Card X, 24.0 GiB"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = list(doctor._devices())[1]
    assert found.status == Status.MISSING and "its CPU build" in found.remedy


def test_fonts_browser_hub_and_terminal(monkeypatch):
    monkeypatch.setattr(canvas, "family_with", lambda sign: "Font X" if sign == "中" else "")
    emoji, chinese = doctor._fonts()
    assert "apt-get install fonts-symbola" in emoji.remedy and str(chinese) == "font, Chinese: ok, Font X"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if name == "google-chrome" else None)
    assert doctor._browser() == Finding("Chromium", Status.OK, "/bin/google-chrome")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor._browser().remedy == "apt-get install chromium"
    for offline, status in ((True, Status.MISSING), (False, Status.OK)):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        assert [one.status for one in doctor._hub()] == [status]
    monkeypatch.setattr(doctor.sys, "stdout", namedtuple("Stream", ["encoding"])("ascii"))
    assert doctor._terminal().status == Status.MISSING


def test_a_check_that_a_broken_package_stops_does_not_stop_the_others():
    def _fonts():
        raise RuntimeError("no freetype")

    assert list(map(str, doctor._survived(_fonts))) == [
        "fonts: missing: this was not checked (RuntimeError: no freetype)"
    ]


def test_the_verdict_counts():
    ok, missing, broken = (Finding("x", status) for status in Status)
    assert doctor.verdict([ok]) == "everything can run here"
    assert doctor.verdict([ok, missing]) == "nothing required is broken; 1 optional part is missing"
    assert doctor.verdict([missing, missing]) == "nothing required is broken; 2 optional parts are missing"
    assert doctor.verdict([broken, missing, broken]).startswith("2 required parts are broken")
