"""Soft agreement with people's answers: against the mean over subsets as it is defined, and normalisation by hand."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlora.evaluation.scoring.vqa import accuracy, normalise


def by_subsets(answer, references):
    """The definition, one subset after the other."""
    enough = min(3, len(references) - 1)
    subsets = list(combinations(references, len(references) - 1))
    return sum(min(subset.count(answer) / enough, 1) for subset in subsets) / len(subsets)


@given(st.lists(st.sampled_from("xyz"), min_size=2, max_size=12), st.sampled_from("xyz"))
def test_equals_the_mean_over_subsets(references, answer):
    assert accuracy(answer, references) == pytest.approx(by_subsets(answer, references), abs=1e-12)


@pytest.mark.parametrize(("agree", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_people(agree, wanted):
    assert accuracy("red", ["Red."] * agree + ["blue"] * (10 - agree)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("references", "wanted"),
    [(["x"], 1), (["y"], 0), (["x", "y"], 0.5), (["x", "x"], 1), (["x", "y", "z"], 1 / 3), (["x", "x", "y"], 2 / 3)],
)
def test_fewer_people(references, wanted):
    # of x, x, y: leaving out an x leaves 1 of 2, twice; leaving out y leaves both: (1/2 + 1/2 + 1) / 3 = 2/3
    assert accuracy("x", references) == pytest.approx(wanted)


def test_nobody_to_agree_with():
    with pytest.raises(ValueError, match="no reference"):
        accuracy("x", [])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Red\tCar.", "red car"),
        ("an apple and a pear", "apple and pear"),
        ("Two", "2"),
        ("none", "0"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        (".5 m.", ".5 m"),
        ("5.", "5"),
        ("100,978", "100978"),
        ("red,blue", "red blue"),
        ("t-shirt/jeans!", "t shirt jeans"),
        ("2:50 pm", "2:50 pm"),
        ("the girl\u2019s", "girl's"),
        ("dont know", "don't know"),
        ("it isnt", "it isn't"),
        ("they were ill", "they were ill"),
        ("'red'", "red"),
        ('"red"', "red"),
        ("a", "a"),
        ("$5 (five)", "5 5"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalised_by_hand(text, wanted):
    assert normalise(text) == wanted


@given(st.text(max_size=30))
def test_normalising_ignores_case_of_ascii_and_outer_space(text):
    ascii_text = text.encode("ascii", "ignore").decode()
    assert normalise(f"  {ascii_text.upper()} ") == normalise(ascii_text)
