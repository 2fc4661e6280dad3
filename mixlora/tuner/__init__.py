"""Conditional Mixture-of-LoRA as a PEFT method.

`config` its options, `factors` and `routing` the mathematics, `layer` and `model` what PEFT injects, `context` and
`tracker` what a layer has to know of the batch it is in, `task_bank` the definitions that task routing needs.

Not here: reading checkpoints (`checkpoints`), training (`training`).
"""
