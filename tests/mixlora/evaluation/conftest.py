"""What the tests of evaluation share."""

import pytest

from mixlora.checkpoints import loading


@pytest.fixture
def no_model(monkeypatch):
    """No model may be loaded."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_base", load)
