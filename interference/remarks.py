"""Remarks: sentences, without capital and full stop, that a reader of a matrix needs wherever it is shown."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

_WHY = {
    "mean-of-ratios": "a mean of ratios is led by units whose own Delta is near 0; read --reduce ratio-of-means",
    "median-of-ratios": "a median of ratios weighs all units alike, however small their own Delta; read --reduce "
    "ratio-of-means",
    "ratio-of-means": "a mean of blocks' values is led by blocks with an own Delta near 0; the sum of blocks is not",
}


def opposed(table: pd.DataFrame, reduce: str | None = None) -> str | None:
    """That cells of I have the other sign than their verdict, and why; None where there is no such cell.

    Args:
        table: with columns value, I, and verdict, about Delta.
        reduce: how units became I; None for the default.
    """
    verdicts, values = table["verdict"], table["value"]
    count = int((((verdicts == "conflict") & (values > 0)) | ((verdicts == "synergy") & (values < 0))).sum())
    if not count:
        return None
    cells = "1 cell" if count == 1 else f"{count} cells"
    why = _WHY[reduce or "mean-of-ratios"]
    return f"in {cells} I has the other sign than Delta, which the verdict is about: {why}"


def sketched(meta: Mapping[str, Any]) -> str | None:
    """That a run's gradients are sketches, and how much inner products err; None where they are whole."""
    size, error = meta.get("sketch"), meta.get("sketch_error")
    if not size:
        return None
    much = "" if error is None else f" by up to {error:.1%} of the product of the norms (standard error)"
    return f"gradients are sketches of {size} sums a block: an inner product errs{much}, which no interval holds"
