"""Answers to scores: `metrics` by name, on `parsing`, `vqa` and `mme`, with `intervals`. No model, no disk."""
