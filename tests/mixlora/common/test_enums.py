"""Options by name: a member of the enum, or a refusal that lists the members."""

from enum import StrEnum

import pytest

from mixlora.common.enums import NONE_OF, member
from mixlora.common.errors import CheckpointError, ConfigError


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@pytest.mark.parametrize("value", ["dark-blue", Colour.DARK_BLUE])
def test_a_text_and_the_member_itself_are_read(value):
    assert member(Colour, value, "colour") is Colour.DARK_BLUE


@pytest.mark.parametrize("value", ["{name}", "RED", None, 3, ["red"]])
def test_a_refusal_lists_the_members(value):
    with pytest.raises(ConfigError) as caught:
        member(Colour, value, "colour")
    assert str(caught.value) == f"colour is {value!r}, but must be one of 'red', 'dark-blue'"
    assert caught.value.__suppress_context__


def test_the_caller_chooses_the_error_and_its_words():
    with pytest.raises(CheckpointError, match=r"^colour 'green' is not one of red, dark-blue$"):
        member(Colour, "green", "colour", CheckpointError, NONE_OF)
