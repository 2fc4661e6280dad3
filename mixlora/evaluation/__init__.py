"""Evaluation: answers are generated and kept, scored with intervals, judged, compared and put into tables.

`config` says what can be asked for; `generation` answers; `folder` and `predictions` keep; `scoring`, on `parsing`,
`vqa`, `intervals` and `mme`, scores; `judge` and `judging` judge; `results`, `comparison`, `tables`, `printing` tell;
`run` puts them together. `lmms_eval` is for another harness.
"""
