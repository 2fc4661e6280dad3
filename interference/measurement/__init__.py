"""From a configuration, or a model and batches, to a run.

`spec` says what is measured. `checkpoint` loads the model, `sample` draws and encodes the examples, `units` groups them
into parts; `labels` are a caller's own groups, `grouping` those of a trainer's rows. `prober` measures their gradients,
which wait in a `spool`; `gram` multiplies them, and `builder` makes the run. `adam` is the step that AdamW takes from a
gradient, by the second moments that `optimizers` reads. `objective` says which loss is measured;
`trainer` takes `rows` and collator from a transformers Trainer, `trainer_loss` says which loss it has. `shard` divides
the work among processes. `compute` runs the pipeline, `resume` continues a killed one, `plan` predicts the cost.

Not here: gradients of one batch (`gradients`), checks of a finished run (`verification`).
"""
