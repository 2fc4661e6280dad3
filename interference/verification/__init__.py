"""Checks of a run's claim: its gradients are derived again by other means, and real steps are taken.

`reference` is autograd of one example at a time, `derivation` derives the gradients of units with it, `steps` follows
the gradients and reads the losses, `verify` compares both with the run.

Not here: whether a run's files are whole (`run.record`).
"""
