"""How the shipped base model of the mini suite was made: `python -m mixlora.pretraining.recipe`.

`recipe` is the whole, `diet`, `sight` and `speech` what the model learns from, `architecture`, `loop` and `muon` how.

Not here: the model itself (`data/mini/base`) and the suite's tasks (`data.mini`).
"""
