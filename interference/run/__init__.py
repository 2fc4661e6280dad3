"""The run: what a measurement leaves on disk, and what a notebook asks of it. No model, no torch.

`run` is the object, `measured` what it holds, `scoped` the same in one scope, `comparison` compares two. `storage` is
its directory, `grams` packs its Gram matrices, `record` reads and writes its files, `schema` says what they must hold.
`frames` has the shapes of its tables, `notebook` how one shows it, `remarks` the sentences that its readers need;
`planning` says what a verdict needs by a pilot.

Not here: how a run is measured (`measurement`) and how its numbers are computed (`statistics`).
"""

from interference.blocks import Scope
from interference.run.comparison import compare
from interference.run.run import Run, load

__all__ = ["Run", "Scope", "compare", "load"]
