"""Pictures of runs, factors and scores: data in, a matplotlib figure out. The only wing that imports matplotlib.

`canvas` is what all share, `cells` draws one matrix, `matrices` draws a run's, `ways` says by which estimators,
`factors` draws selections, `predictions` validations, `scores` results of an evaluation; `paper` has the figures of the
paper, `gallery` is the command `interference figure`.

Not here: numbers that are drawn (`statistics`, `factors`), and the report's own charts (`report.html`).
"""

from interference.figures.matrices import difference, heatmap, panels, save, series
from interference.figures.predictions import validation

__all__ = ["difference", "heatmap", "panels", "save", "series", "validation"]
