"""The study: suites of tasks on which predictions are tested by training, by commands that anyone can repeat.

`python -m tests.study SUITE` writes a suite's data and configurations, trains, and validates; a killed call continues.

Not here: the trainings and the scores themselves, which are `mixlora train` and `interference validate`.
"""
