"""Per-example gradients of a model's adapter, in memory: no configuration, no files.

`targets` finds the adapted modules, `layers` has the gradient of each kind of layer as a function of its activations,
`losses` the loss of every example, `state` hands the model back as it came; `probe` puts them together. `weight_space`
turns gradients of A and B into rows of the weight they change, `sketch` shortens rows to random sums.

Not here: which examples are probed and where their gradients wait (`measurement`), and the slow derivation that they
are checked against (`verification`).
"""
