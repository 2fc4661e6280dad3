"""A language model as the judge of answers.

`judge` asks it, `run` asks it about new answers and keeps its judgements, `verdicts` reads them without a model.
"""
