"""Checks of a run's claim: its gradients are derived again by other means, and real steps are taken.

`reference` is autograd of one example at a time, `independent` makes its batch by its processor alone, `derivation`
derives the gradients of units with both, `products` compares their inner products with a run's, block by block. `steps`
follows the gradients, `reading` reads the losses, `adam` does both with torch's AdamW. `result` says what was found,
`verify` compares all with the run.

Not here: whether a run's files are whole (`run.record`).
"""
