"""Spec: what is measured of a model, and how, built once from a notebook's arguments or from a configuration.

Not here: which examples are measured (`units`, `sample`), and where gradients wait (`spool`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from interference.blocks import Component, Granularity, Step
from interference.config import LEAST_SUMS, MEMORY_BUDGET, SKETCHED, ProbeConfig, whole_seed
from interference.errors import ConfigError, ScopeError
from interference.gradients.sketch import relative_error
from interference.gradients.targets import Target, find_targets, probed_adapter
from mixlora.common.enums import member


@dataclass(frozen=True)
class Spec:
    """What is measured. `interference.compute` and `ProbeConfig` explain the attributes.

    Attributes:
        layers: transformer blocks, from 0; None for all.
        modules: module names or groups of them; None for all.
        adapter: the probed adapter; None for the active one.
        components: parts of the model.
        routers: also measure MixLoRA's routers.
        unit: what one gradient belongs to, an "example" (in a configuration: `unit_size` of them) or a "batch".
        token_mean: weigh the examples of a unit by their supervised tokens.
        granularity: how far blocks are summed before they are kept.
        weight_space: also measure the weight-space view.
        sketch: random sums that replace the gradient of a block; None to keep the gradient.
        step: whether AdamW's step is measured, too.
        seed: seed of the sketches and of later bootstraps.
        memory_budget: bytes that gradients may take in memory.
    """

    layers: Sequence[int] | None = None
    modules: Sequence[str] | None = None
    adapter: str | None = None
    components: Sequence[Component | str] = (Component.LANGUAGE,)
    routers: bool = False
    unit: str = "example"
    token_mean: bool = False
    granularity: Granularity = Granularity.MODULE
    weight_space: bool = False
    sketch: int | None = None
    step: Step = Step.GRADIENT
    seed: int = 0
    memory_budget: int = MEMORY_BUDGET

    @classmethod
    def checked(
        cls,
        *,
        unit: str,
        granularity: Granularity | str,
        sketch: int | None,
        seed: int,
        step: Step | str = Step.GRADIENT,
        **others: Any,
    ) -> "Spec":
        """The spec that a caller's arguments describe.

        Raises:
            ScopeError: if there is no such unit.
            ConfigError: if the granularity, sketch, step or seed cannot be used.
        """
        if unit not in ("example", "batch"):
            raise ScopeError(f"unit {unit!r} is not one of example, batch")
        granularity = member(Granularity, granularity, "granularity")
        if sketch is not None and sketch < LEAST_SUMS:
            raise ConfigError(f"sketch is {sketch}, but must be at least {LEAST_SUMS} (4096 is usual)")
        step = member(Step, step, "step")
        if step is Step.ADAM and sketch is not None:
            raise ConfigError(SKETCHED)
        return cls(unit=unit, granularity=granularity, sketch=sketch, step=step, seed=whole_seed(seed), **others)

    @classmethod
    def of(cls, probe: ProbeConfig) -> "Spec":
        """The spec that a configuration describes."""
        shared = [field.name for field in fields(cls) if field.name in ProbeConfig.model_fields]
        values = {name: getattr(probe, name) for name in shared}
        return cls(**values | {"granularity": Granularity(probe.granularity), "step": Step(probe.step)})

    @property
    def half_budget(self) -> int:
        """Bytes for gradients that wait in memory, and again for those that are multiplied."""
        return self.memory_budget // 2

    def targets(self, model: nn.Module) -> list[Target]:
        """The adapted modules of a model that are probed.

        Raises:
            CheckpointError: if the model has no adapter that can be probed.
            ScopeError: if a layer, module or component holds no adapted module.
        """
        adapter = probed_adapter(model, self.adapter)
        return find_targets(model, adapter, self.layers, self.modules, self.components, self.routers)

    def meta(self) -> dict[str, Any]:
        """What a run records of it, in addition to the seed and the scope."""
        found = {"unit": self.unit, "token_mean": self.token_mean, "granularity": str(self.granularity)}
        if self.sketch is None:
            return found
        return {**found, "sketch": self.sketch, "sketch_error": relative_error(self.sketch)}
