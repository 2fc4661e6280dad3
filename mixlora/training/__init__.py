"""Training: LoRA, MixLoRA, specialists and full fine-tuning on the same data with the same recipe.

`config` says what can be asked for, `corpus` which examples, `order` in which order, `methods` what is trainable,
`folder` what is left on disk, `processes` how several of them start, `trainer` how a step is taken; `run` puts them
together.
"""
