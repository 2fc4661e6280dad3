"""From a configuration, or a model and batches, to a run.

`checkpoint` loads the model, `sample` draws and encodes the examples, `units` groups them, `prober` takes their
gradients, which wait in a `spool`; `gram` multiplies them, `builder` makes the run, `compute` runs the whole, `resume`
continues a killed one, `plan` tells the cost before.

Not here: gradients of one batch (`gradients`), checks of a finished run (`verification`).
"""
