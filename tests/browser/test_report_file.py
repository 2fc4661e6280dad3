"""The report's page as a file: its security policy, its data, and that it is whole or absent."""

import json
import re

import made_up
import pytest

from interference.errors import RunError
from interference.report import page as report_page


def test_the_policy_allows_only_this_pages_own_scripts():
    html = report_page.render(made_up.report())
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', html)[1]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert html.count("<script") == 3


def test_json_text_gives_the_page_of_its_dict():
    data = made_up.report()
    assert report_page.render(json.dumps(data)) == report_page.render(data)


def test_a_number_that_is_not_finite_is_refused():
    data = made_up.report()
    data["runs"][0]["loss"]["ink"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_page.render(data)


def test_a_page_is_whole_or_absent(tmp_path):
    path = report_page.write(made_up.report(), tmp_path / "new" / "report.html")
    before = path.read_text(encoding="utf-8")
    bad = made_up.report()
    bad["runs"][0]["loss"]["ink"] = float("inf")
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_page.write(bad, path)
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"the report cannot be written to .*/file/report\.html: .*; choose another --out"
    ):
        report_page.write(made_up.report(), tmp_path / "file" / "report.html")
