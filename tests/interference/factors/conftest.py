"""The selections of a MixLoRA's examples, computed once for all tests of this folder."""

import pytest

from interference.factors import observer
from tests.support.observed import asked, written


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("factors"))


@pytest.fixture(scope="package")
def found(folder, tmp_path_factory):
    """What the examples select of the MixLoRA, saved in a directory that no test changes."""
    out = tmp_path_factory.mktemp("found") / "whole"
    return observer.compute_config(asked(folder), out), out
