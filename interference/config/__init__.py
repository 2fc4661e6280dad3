"""What commands are to do, from YAML, options or both. No model is loaded here.

`analysis` is the whole configuration, `steps` its sections for commands that take real steps.
"""

from interference.config.analysis import (
    LEAST_SUMS,
    MEMORY_BUDGET,
    OF_TRAINING,
    SKETCHED,
    AnalysisConfig,
    ModelConfig,
    ProbeConfig,
    TaskConfig,
    build,
    is_recorded,
    load,
    parse_bytes,
    whole_seed,
)
from interference.config.steps import (
    BranchSection,
    LookaheadConfig,
    TrialConfig,
    Truth,
    ValidateConfig,
    ascending,
)

__all__ = [
    "LEAST_SUMS",
    "MEMORY_BUDGET",
    "OF_TRAINING",
    "SKETCHED",
    "AnalysisConfig",
    "BranchSection",
    "LookaheadConfig",
    "ModelConfig",
    "ProbeConfig",
    "TaskConfig",
    "TrialConfig",
    "Truth",
    "ValidateConfig",
    "ascending",
    "build",
    "is_recorded",
    "load",
    "parse_bytes",
    "whole_seed",
]
