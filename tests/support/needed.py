"""Packages that only some tests need: all of them come with `make install`."""

import importlib
import os

import pytest


def needed(name):
    """The package of that name; without it a test is skipped, but where CI is set it fails."""
    if not os.environ.get("CI"):
        return pytest.importorskip(name)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return pytest.fail(f"{name} cannot be imported, but make install brings it: {error}")
