"""Conditional Mixture-of-LoRA as a PEFT method.

`config` has the options, `factors` and `routing` the mathematics; `layer` and `model` are what PEFT injects; `context`
is what a layer must know of the current forward, and `tracker` follows forwards; `task_bank` has the encoded
definitions for routing by task.

Not here: reading checkpoints (`checkpoints`), training (`training`).
"""
