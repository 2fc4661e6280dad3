"""From a Gram matrix to a number and its error: numpy and scipy only, no model, no disk.

`layout` orders units by task, `groups` says which are not independent, `pairs` averages over pairs of units, `metrics`
names the averages, `health` how far they may be trusted, `estimand` what is estimated. `carriers` tells which tasks a
few units carry, `bootstrap` draws units again, `resamples` shares the draws, `intervals` has their ends, `significance`
tests. `uncertainty` puts intervals and verdicts together, `differences` those of two runs, `power` says how many groups
they need.

Not here: Gram matrices themselves (`measurement` makes them, `run` stores them) and how a number is drawn or printed.
"""
