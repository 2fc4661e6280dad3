"""Prediction: what real training does next.

`recipe` says by which training, `pools` which examples are trained on and which are read, `branches` takes the steps,
`combining` those that weigh or combine tasks. `held_out` reads the losses, `pictures` keeps the features of pictures
that do not change between readings, `finished` keeps losses where a job is interrupted, `workers` are further processes
that train with this one.

`trainers` takes the steps from where a Trainer's training stands, `readings` reads the losses there.

`lookahead` trains along every task from a checkpoint and reads every task's loss. `horizons` is the result, on disk and
as tables; `cost` estimates what it takes.

`validate` tests predictions: `truth` says which trainings are compared, `trainings` trains, `outcomes` is what they
did, `predictors` are what runs say of it, `validation` sets both beside each other, `holding` says for how many steps a
run's matrix holds.

Not here: the first-order score (`measurement`), and the numbers of a result (`statistics.falls`).
"""

from interference.prediction import predictors
from interference.prediction.horizons import Lookahead, load
from interference.prediction.validation import Validation
from interference.prediction.validation import load as load_validation

__all__ = ["Lookahead", "Validation", "load", "load_validation", "predictors"]
