"""Words of errors: nothing in them steers a terminal, and the system's own reason is named."""

import pytest

from mixlora.common.errors import plain, reason


@pytest.mark.parametrize(
    "evil", ["\x1b[2J", "\x9b31m", "\r", "\n", "\0", "\u202e", "\u2066", "\u2028", "\ud800", "\x7f"]
)
def test_what_steers_a_terminal_is_replaced(evil):
    shown = plain(f"a{evil}b")
    assert shown[0] == "a" and shown[-1] == "b" and "\N{REPLACEMENT CHARACTER}" in shown
    assert not set(evil) & set("\x1b\x9b\r\n\0\u202e\u2066\u2028\ud800\x7f") & set(shown)


def test_a_reason_is_the_systems_or_the_errors_own():
    assert reason(OSError(28, "No space left on device", "a")) == "No space left on device"
    assert reason(OSError("no file can have this name")) == "no file can have this name"
    assert reason(ValueError("embedded null byte")) == "embedded null byte"
