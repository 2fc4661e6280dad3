"""The run: what a measurement leaves on disk, and what a notebook asks of it. No model, no torch.

`run` is the object, `grams` packs its Gram matrices, `record` reads and writes its files, `schema` says what they must
hold, `remarks` has the sentences that its readers need, `planning` says what a verdict needs by a pilot.

Not here: how a run is measured (`measurement`) and how its numbers are computed (`statistics`).
"""

from interference.blocks import Scope
from interference.run.run import Run, compare, load

__all__ = ["Run", "Scope", "compare", "load"]
