"""Labels: how a batch marks the tokens whose loss does not count."""

IGNORED = -100
"""The label of a token that is not supervised, as in transformers and torch's cross-entropy."""
