"""Prediction: what real training does next, told before it is done.

`lookahead` trains along every task from a checkpoint and reads every task's loss. `recipe` says by which training,
`pools` which examples are trained on and which are read, `branches` takes the steps, `held_out` reads the losses.
`horizons` is the result, on disk and as tables; `cost` tells what it takes before it is paid.

Not here: the first-order score (`measurement`), and the numbers of a result (`statistics.falls`).
"""

from interference.prediction.horizons import Lookahead, load

__all__ = ["Lookahead", "load"]
