"""The command `interference`: a thin shell over the library. Nothing heavy is imported before it is needed.

`commands` declares the commands that measure and print, `drawing` those that draw, `predicting` and `advising` those
that train. `options` has what they take, `printing`, `plans`, `horizons`, `validations` and `trials` what they print.
`demo` is the demonstration, `doctor` says what can run here.

Not here: anything that computes.
"""

from interference.cli import advising, drawing, predicting
from interference.cli.commands import main

__all__ = ["advising", "drawing", "main", "predicting"]
