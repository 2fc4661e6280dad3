"""A language model as the judge of answers: `judge` asks it, `verdicts` reads what it said, `run` asks what is new."""
