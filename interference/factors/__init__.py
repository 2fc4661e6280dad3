"""What examples select among the factors of a MixLoRA, or where they activate a LoRA's.

`observer` records selections of a checkpoint, `selections` holds them, `neighbours` maps them (t-SNE, neighbourhoods),
`affinity` compares tasks by them, `factors` keeps them on disk with their tables.

Not here: pictures of them (`figures`).
"""

from interference.factors.factors import Factors, against, load, tables

__all__ = ["Factors", "against", "load", "tables"]
