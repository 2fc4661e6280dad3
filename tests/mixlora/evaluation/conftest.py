"""What the tests of evaluation share."""

import pytest

from mixlora import checkpoint


@pytest.fixture
def no_model(monkeypatch):
    """No model may be loaded."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(checkpoint, "load_base", load)
