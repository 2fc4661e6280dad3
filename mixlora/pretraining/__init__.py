"""How the shipped base model of the mini suite was made: `python -m mixlora.pretraining.recipe`.

`recipe` is the whole training; `architecture` is the model, `diet` its data, `sight` and `speech` are the two stages,
`loop` and `muon` the optimisation.

Not here: the model itself (`data/mini/base`) and the suite's tasks (`data.mini`).
"""
