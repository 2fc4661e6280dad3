"""A headless Chromium whose pages may read the one file under test and nothing else."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interference.report.html import render as report_page

FLAGS = ["--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
"""Without the first a page crashes now and then where /dev/shm is small, as in containers."""


@dataclass
class Opened:
    """A page, and what it said and asked for while it was used."""

    page: Any
    path: Path
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """A browser's process may die under a test, which says nothing of the page: such a test is run again."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=2, only_rerun=["Target crashed", "Page crashed"]))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright is not installed: pip install playwright")
    if chromium is None:
        _without("there is no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def _without(words: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """`opened(data, width, **options)`: a page whose charts are drawn, of a report's data or as it is in a file.

    The options are those of the browser's `new_page`, and `before`, a script to run before the page's own.

    A complaint or a request fails the test that used it.
    """
    everything: list[Opened] = []

    def open_page(data: dict | Path, width: int = 1400, before: str = "", **options: Any) -> Opened:
        new = tmp_path / f"report{len(everything)}.html"
        if not isinstance(data, Path):
            new.write_text(report_page.render(data), encoding="utf-8")
        path = data if isinstance(data, Path) else new
        result = Opened(browser.new_page(viewport={"width": width, "height": 900}, **options), path)
        everything.append(result)
        if before:
            result.page.add_init_script(before)
        result.page.on("console", lambda message: result.complaints.append(f"{message.type}: {message.text}"))
        result.page.on("pageerror", lambda error: result.complaints.append(f"error: {error}"))
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.route(lambda url: not url.startswith(("data:", path.as_uri())), lambda route: route.abort())
        result.page.goto(path.as_uri())
        result.page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        return result

    yield open_page
    for result in everything:
        result.page.close()
        assert result.complaints == []
        asked = {url for url in result.requests if not url.startswith(("data:", "blob:file:"))}  # its own downloads
        assert asked == {result.path.as_uri()}
