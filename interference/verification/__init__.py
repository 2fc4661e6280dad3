"""Is a run's claim true? Its units derived again by other means, and real steps taken.

`reference` is autograd of one example at a time, `derivation` compares a run's Gram matrices with it, `steps` follows
the gradients and reads the losses, `verify` puts both together.

Not here: whether a run's files are whole (`run.record`).
"""
