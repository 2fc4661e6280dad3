"""The report's page as a file: its security policy and its data."""

import json
import re

import pytest

from interference.report.html import render as report_page
from tests.support import made_up


def test_the_policy_allows_only_this_pages_own_scripts():
    html = report_page.render(made_up.report())
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', html)[1]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert html.count("<script") == 4


def test_json_text_gives_the_page_of_its_dict():
    data = made_up.report()
    assert report_page.render(json.dumps(data)) == report_page.render(data)


def test_a_number_that_is_not_finite_is_refused():
    data = made_up.report()
    data["runs"][0]["loss"]["ink"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_page.render(data)
