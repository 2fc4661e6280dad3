"""Evaluation: answers are generated and kept, scored with intervals, judged, compared and put into tables.

`config` says what can be asked for; `generation` answers; `folder` and `predictions` keep; `scoring/` scores,
`judging/` judges; `results`, `comparison`, `tables`, `printing` tell; `run` puts them together. `lmms/` is for another
harness.
"""
