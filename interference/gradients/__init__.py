"""Per-example gradients of a model's adapter, in memory: no configuration, no files.

`targets` finds the adapted modules, `trained` what else trains with them. `layers` computes the gradient of each kind
of layer from its activations, `losses` the loss of every example, `padding` the positions of a batch padded on the
left. `state` restores the model after a measurement. `probe` combines them; for any other loss, `autograd` takes one
example of a batch at a time (`examples`). `weight_space` turns gradients of A and B into rows of the weight that they
change, `sketch` shortens rows to random sums.

Not here: which examples are probed and where their gradients wait (`measurement`), and the slow derivation that checks
them (`verification`).
"""
