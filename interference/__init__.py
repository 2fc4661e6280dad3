"""Which fine-tuning tasks hurt which, in which layers, and is it real? Measured on the gradients of LoRA factors.

    run = interference.compute(model, {"task a": batches, "task b": batches})
    run = interference.from_trainer(trainer, by="task")
    run.matrix("interference", layers=[5], side="A")
    run.table("interference")

Names are loaded when they are first used: importing this package imports neither torch nor pandas.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixlora.common.aliases import Aliases

if TYPE_CHECKING:
    from interference import advice as advice
    from interference import factors as factors
    from interference import figures as figures
    from interference import prediction as prediction
    from interference.advice.job import advise
    from interference.callback import InterferenceCallback, LookaheadCallback
    from interference.factors import observer as observation
    from interference.figures import paper
    from interference.measurement.compute import compute
    from interference.measurement.trainer import from_trainer, trainer_batches
    from interference.prediction.lookahead import lookahead
    from interference.prediction.validate import validate
    from interference.run import Run, compare, load
    from interference.statistics import metrics, uncertainty
    from interference.verification import reference
    from interference.verification.verify import verify

__all__ = [
    "InterferenceCallback",
    "LookaheadCallback",
    "Run",
    "advice",
    "advise",
    "compare",
    "compute",
    "factors",
    "figures",
    "from_trainer",
    "load",
    "lookahead",
    "metrics",
    "observation",
    "paper",
    "prediction",
    "reference",
    "trainer_batches",
    "uncertainty",
    "validate",
    "verify",
]

_HOMES = {
    "InterferenceCallback": "callback",
    "LookaheadCallback": "callback",
    "Run": "run",
    "advise": "advice.job",
    "compare": "run",
    "compute": "measurement.compute",
    "from_trainer": "measurement.trainer",
    "load": "run",
    "lookahead": "prediction.lookahead",
    "trainer_batches": "measurement.trainer",
    "validate": "prediction.validate",
    "verify": "verification.verify",
}
_MODULES = {
    "metrics": "statistics.metrics",
    "observation": "factors.observer",
    "paper": "figures.paper",
    "reference": "verification.reference",
    "uncertainty": "statistics.uncertainty",
}
"""Public modules that live in a wing: `interference.metrics` is `interference.statistics.metrics`."""

sys.meta_path.append(Aliases(__name__, _MODULES))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return import_module(f"{__name__}.{_MODULES.get(name, name)}")


def __dir__() -> list[str]:
    """What completion offers."""
    return __all__
