"""CSV that a spreadsheet opens: text stays text, numbers stay numbers, rows stay rows."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlora.common.spreadsheets import cell, frame_csv, rows_csv

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_begins_like_a_formula_begins_with_an_apostrophe(text):
    assert cell(text) == f"'{text}"
    assert cell(cell(text)) == f"''{text}"  # so that different names stay different


@pytest.mark.parametrize("value", ["a=1", " =1", "'a", "", "1", -0.5, -1, None, True])
def test_everything_else_stays(value):
    assert cell(value) is value


def test_a_frame_keeps_its_numbers_and_its_rows():
    frame = pd.DataFrame({"=x": [-0.5, 1 / 3], "t": ["-1", "a\r=2"], "m": ["+1", -2]}, index=["@a", "b"])
    before = frame.copy()
    assert frame_csv(frame, index=True).decode() == (
        ",'=x,t,m\n'@a,-0.5,'-1,'+1\n" + 'b,0.3333333333333333,"a\r=2",-2\n'
    )
    assert frame_csv(frame).decode().splitlines()[0] == "'=x,t,m"
    pd.testing.assert_frame_equal(frame, before)
    assert frame_csv(pd.DataFrame()) == b"\n"


@given(st.lists(st.lists(st.text(max_size=4), min_size=2, max_size=2), min_size=1, max_size=4))
def test_whatever_text_a_cell_holds_rows_are_read_back_as_written(rows):
    made = rows_csv(rows)
    assert list(csv.reader(io.StringIO(made, newline=""))) == rows
    assert "\r\n" in "".join(map("".join, rows)) or not made.endswith("\r\n")
