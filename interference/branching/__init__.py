"""Branching: real steps of training from where a model stands, losses that are read on the way, and the way back.

`recipe` says by which training, `pools` which examples are trained on and which are read, `branches` takes the steps,
`combining` those that weigh or combine tasks. `held_out` reads the losses, `pictures` keeps the features of pictures
that do not change between readings, `finished` keeps losses where a job is interrupted, `workers` are further processes
that train with this one.

`trainers` takes the steps from where a Trainer's training stands, `readings` reads the losses there.

Not here: what is made of the losses (`prediction`, `advice`).
"""
