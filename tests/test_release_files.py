"""What a release says of itself: one version and day everywhere, every data file packed, workflows that can run.

`make dist` does the rest: it builds, installs and uses a release.
"""

import datetime
import re
import tomllib

import pytest
import yaml

from tests.support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def sections(text):
    """{heading: its lines} of a changelog."""
    parts = re.split(r"^## ", text, flags=re.M)[1:]
    return {part.splitlines()[0]: part.splitlines()[1:] for part in parts}


def test_citation_changelog_and_package_name_one_version_and_day():
    citation = read(ROOT / "CITATION.cff")
    assert (citation["cff-version"], citation["type"], citation["title"]) == ("1.2.0", "software", PROJECT["name"])
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["message"] and citation["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]
    released = citation["date-released"]
    assert isinstance(released, datetime.date)
    assert f"[{PROJECT['version']}] - {released.isoformat()}" in sections(CHANGELOG)


def test_the_changelog_begins_with_what_is_unreleased_and_is_short():
    found = sections(CHANGELOG)
    assert next(iter(found)) == "[Unreleased]"
    (first,) = [lines for title, lines in found.items() if title.startswith("[0.1.0]")]
    assert len(first) <= 60


def test_every_data_file_of_the_packages_is_packed():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, names in patterns.items()
        for name in names
        for path in (ROOT / package.replace(".", "/")).glob(name)
    }
    others = {
        path
        for package in ("interference", "mixlora")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert len(packed) > 10 and packed == others


def test_licences_and_third_party_material_are_told():
    assert PROJECT["license-files"] == ["LICENSE", "THIRD_PARTY.md"]
    told = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:mixlora|reports|tests)/[\w./]+)`", told)
    assert len(named) >= 5 and [name for name in named if not (ROOT / name).exists()] == []


def test_what_is_required_has_one_lower_bound_and_a_pin_that_keeps_it():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pins = {re.sub(r"[-_.]+", "-", name).lower(): pin for name, _, pin in (line.partition("==") for line in lines)}
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    for text in [*PROJECT["dependencies"], *extras]:
        needed = Requirement(text)
        pin = pins[re.sub(r"[-_.]+", "-", needed.name).lower()]
        assert needed.specifier.contains(pin), f"{text} refuses {pin} of constraints.txt"
        if text in PROJECT["dependencies"]:
            assert [part.operator for part in needed.specifier] == [">="], text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path):
    workflow = read(path)
    assert path.read_text(encoding="utf-8").startswith("# ") and "has not been run" in path.read_text(encoding="utf-8")
    assert workflow[True] and workflow["permissions"] == {"contents": "read"}  # YAML reads "on" as true
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called = re.findall(r"\bmake ([\w-]+)", "\n".join(step.get("run", "") for step in steps(workflow)))
    assert called and set(called) <= targets
    assert all(("uses" in step) != ("run" in step) for step in steps(workflow))


def test_workflows_mirror_ci():
    own = re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    first = next(path for path in WORKFLOWS if path.stem == "test")
    ordered = sorted(WORKFLOWS, key=lambda path: path != first)
    runs = [step["run"] for path in ordered for step in steps(read(path)) if "run" in step]
    assert set(own) <= set(runs) and "chromium" in runs[0]
    assert [run for run in runs if run in ("make lint", "make test", "make test-slow")] == own[:3]


def test_only_the_publishing_job_may_ask_for_an_identity():
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and jobs["publish"]["needs"] == "build"
    assert "permissions" not in jobs["build"]
    (check,) = [step["run"] for step in jobs["build"]["steps"] if "grep" in step.get("run", "")]
    line = f'version = "{PROJECT["version"]}"'
    assert "${GITHUB_REF_NAME#v}" in check and line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("\n")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_whole(path):
    form = read(path)
    assert form["name"] and form["description"] and form["labels"]
    known = {"textarea", "input", "dropdown", "checkboxes", "markdown"}
    asked = [part["id"] for part in form["body"]]
    assert {part["type"] for part in form["body"]} <= known and len(set(asked)) == len(asked)
    assert all(part["attributes"]["label"] for part in form["body"])
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_there_is_a_form_for_each_concern():
    assert [path.stem for path in FORMS] == ["bug", "question", "refused"]
    assert {path.stem for path in WORKFLOWS} == {"docs", "release", "test"}
    checks = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("- [ ] ") for line in checks) >= 4
