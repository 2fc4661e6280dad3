"""Evaluation: generate answers and keep them, score them with intervals, judge, compare and tabulate them.

`config` has the options; `generation` makes answers; `grouping` labels those about one picture;
`folder`, `predictions` and `lines` are the files; `scoring/`
scores, `judging/` asks a language model; `results` are the scores, `comparison` their differences, `tables` and
`printing` show them; `run` puts them together; `lmms/` is a plugin of lmms-eval.

Not here: reading examples (`data`), loading models (`checkpoints`).
"""
