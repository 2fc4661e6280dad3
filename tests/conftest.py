"""What holds for every test: no hub. Tests of a browser, of what is written and of much at random are slow ones."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before its library is imported: a name that is no path must fail at once
SLOW = {"attacks", "browser", "documentation", "fuzz"}


def pytest_collection_modifyitems(items):
    """Mark as slow what is in a folder of slow tests."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
