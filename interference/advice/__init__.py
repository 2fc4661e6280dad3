"""Advice: what to do about interference, from runs, and whether it helped, by training.

`evidence` chooses the matrix, `grouping` the groups of tasks that it supports, `weighting` the weights of losses,
`dropping` the examples to look at. `advice` is what runs say, on disk, with the `configurations` of trainings that
follow. `arms` are the trainings that are compared, `setup` has what they need, `trial` trains them, `tried` is what
came of it; `cost` says what that takes. `job` does all of it.

Not here: predictions and their test (`prediction`), and the page (`report`).
"""

from interference.advice.advice import Advice, load
from interference.advice.tried import Trial
from interference.advice.tried import load as load_trial

__all__ = ["Advice", "Trial", "load", "load_trial"]
