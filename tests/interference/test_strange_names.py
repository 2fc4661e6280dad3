"""Tasks with names that would steer a terminal, a page or a path: shown escaped, nothing written outside --out."""

import pytest
from checkpoints import ARGUMENTS

from interference import load

NAMES = ["../../evil\x1b[2J\x9b1m", "\u202eevil\r\n<script>alert(1)</script>" + "x" * 500]


def everything(folder):
    return set(folder.rglob("*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("strange") / "a" / "b"


def test_names_that_steer(interference, tiny, place):
    place.mkdir(parents=True)
    top, run, report = place.parent.parent, place / "run", place / "report"
    tasks = [
        part for name, file in zip(NAMES, tiny.tasks.values(), strict=True) for part in ("--task", f"{name}={file}")
    ]
    model = ["--base", tiny.base, "--adapter", tiny.adapter]
    said = [interference("compute", *model, *tasks, *ARGUMENTS, "--out", run)]
    assert load(run).tasks == NAMES
    said.append(interference("show", run))
    said.append(interference("compare", run, run))
    said.append(interference("plan", *model, *tasks, *ARGUMENTS[:-1]))
    said.append(interference("report", run, "--detail", "small", "--out", report, "--quiet"))
    for one in said:
        assert one.code == 0, one.err
        assert not set("\x1b\x9b\r\u202e") & set(one.out + one.err)
    assert "<script>alert" not in (report / "report.html").read_text(encoding="utf-8")
    outside = {path for path in everything(top) if not {run, report} & {path, *path.parents}}
    assert outside == {place, place.parent}
