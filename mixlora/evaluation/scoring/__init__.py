"""Answers to scores, without a model or a disk.

`metrics` scores by name and `mme` sums MME's subtasks; both build on `parsing`, `vqa` and `intervals`.

Not here: a judge's scores (`judging`), tables (`tables`).
"""
