"""Prediction: what real training does next.

`lookahead` trains along every task from a checkpoint and reads every task's loss. `horizons` is the result, on disk and
as tables; `cost` estimates what it takes.

`validate` tests predictions: `truth` says which trainings are compared, `trainings` trains, `outcomes` is what they
did, `predictors` are what runs say of it, `validation` sets both beside each other, `holding` says for how many steps a
run's matrix holds.

Not here: the first-order score (`measurement`), the steps (`branching`), and the numbers of a result
(`statistics.falls`).
"""

from interference.prediction import predictors
from interference.prediction.horizons import Lookahead, load
from interference.prediction.validation import Validation
from interference.prediction.validation import load as load_validation

__all__ = ["Lookahead", "Validation", "load", "load_validation", "predictors"]
