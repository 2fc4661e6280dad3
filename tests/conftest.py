"""What holds for every test: no hub. Files whose tests take long come first, so that no process is left with them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before its library is imported: a name that is no path must fail at once


def pytest_collection_modifyitems(items):
    """Put the files that have a slow test before the others; each keeps the order of its tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
