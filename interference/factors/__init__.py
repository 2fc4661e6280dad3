"""Which factors of a MixLoRA the examples select, or which rank directions of a LoRA they activate.

`observer` records the selections of a checkpoint and of the same adapter untrained (`untrained`) by hooks (`watching`).
`selections` holds them and counts, `neighbours` maps them (t-SNE, neighbourhoods), `shuffles` says what chance would
give, `contrast` what training added, `affinity` compares tasks by them, `factors` saves them with their tables.

Not here: pictures of them (`figures`).
"""

from interference.factors.factors import Factors, against, load, tables

__all__ = ["Factors", "against", "load", "tables"]
