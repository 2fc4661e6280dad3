"""Training: LoRA, MixLoRA, specialists and full fine-tuning on the same data with the same recipe.

`config` has the options, `corpus` the examples, `order` their order, `methods` the trainable model, `trainer` the
steps, `combining` steps that see each task's gradient, `folder` the directory on disk; `run` puts them together.

Not here: what examples are (`data`), loading a base (`checkpoints`), the method MixLoRA (`tuner`).
"""
