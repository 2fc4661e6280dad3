"""A language model as the judge of answers: `judge` asks it, `verdicts` decides whom to ask and keeps what it said."""
