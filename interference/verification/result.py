"""Result: what a verification found, and whether it passed. Not here: how it is found (`verify`)."""

from dataclasses import dataclass

import pandas as pd

TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.2, "4-bit": 0.01, "8-bit": 0.2}
"""Relative errors of a gradient that a base's precision alone causes: padding changes the rounding, and 8-bit Linears
round their inputs, too."""


@dataclass(frozen=True)
class AdamVerification:
    """How far a run's step of AdamW is torch's.

    Attributes:
        error: Largest error of an inner product <g_u, P g_v> of any block, as `Verification.gram_error`, or of the
            length of a step |P g_u| in it, relative to that length. A length counts as at least 0.01 of that of the
            largest block of its side in the median unit.
        block: The block that differs most.
        steps: One row per step size: `step` (length of the predicted step), `predicted`, `slope`, `correlation`,
            `pairs` of a stepped task and a unit whose loss is read.
        linear_until: The largest step up to which slope lies within 0.9 to 1.1 and correlation above 0.99; 0 if none.
    """

    error: float
    block: str
    steps: pd.DataFrame
    linear_until: float


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        gradients: One row per recomputed unit. `task` and `source` name it; `norm` is that of its gradient. `error` is
            the error against batch-1 autograd, relative to that norm or to the median unit's, whichever is larger: the
            gradient of a loss near 0 is a difference of nearly equal numbers and has few right digits. `own_error` is
            relative to its own norm. `worst_block` is the block that differs most, `worst_error` its error relative to
            that block (no block if the two ways agree to the bit).
        gram_error: Largest |K - K'| / sqrt(K'[u,u] K'[v,v]) of any block, those of the weight-space view included. K is
            the run's Gram; K' that of the derived gradients, or of their sketches if the run is of sketches. Compared
            are the units in `gradients`, and one unit of every other part of the run against them. K'[u,u] counts as
            at least 1e-4 of that of the largest block of its side in the median unit.
        gram_block: The block that differs most.
        loss_error: Largest error of the loss of one of these units, relative to it or to the median unit's, whichever
            is larger; inf where a unit has another number of supervised tokens.
        steps: One row per step size: `step` (lambda), `predicted` (root mean square fall of the loss, nats per token),
            `slope` of the real fall on the predicted one, `correlation`, `pairs` of units.
        linear_until: The largest step up to which slope lies within 0.9 to 1.1 and correlation above 0.99; 0 if none.
        dtype: Dtype of the base's weights: "float32", "bfloat16", "float16", "float64", "4-bit" or "8-bit".
        routers: Whether MixLoRA's routers were measured; their straight-through gradient is not the loss's derivative.
        adam: Of a run with `step="adam"`, how far its step of AdamW is torch's. Each task steps along the mean gradient
            of the units that were derived, by torch's AdamW with the saved second moments and no momentum.
    """

    gradients: pd.DataFrame
    gram_error: float
    gram_block: str
    loss_error: float
    steps: pd.DataFrame
    linear_until: float
    dtype: str
    routers: bool = False
    adam: AdamVerification | None = None

    @property
    def error(self) -> float:
        """The largest relative error of a unit's gradient."""
        return float(self.gradients["error"].max())

    @property
    def passed(self) -> bool:
        """Whether gradients, Gram and losses are autograd's within the base's precision, and small steps as told."""
        tolerance, adam = TOLERANCES[self.dtype], self.adam
        products = [self.gram_error, *([] if adam is None else [adam.error])]
        judged = [self.linear_until, *([] if adam is None else [adam.linear_until])]
        right = self.error <= tolerance and all(error <= 3 * tolerance for error in products)  # of two gradients each
        return right and self.loss_error <= tolerance and (min(judged) > 0 or self.dtype != "float32")

    def summary(self) -> pd.DataFrame:
        """The steps with the gradient errors.

        Returns:
            One row per step size: the columns of `steps`, gradient_error, gram_error, gram_block, loss_error,
            linear_until, passed. Of a run with `step="adam"` then those of its steps, and a first column space.
        """
        rows = self.steps.assign(
            gradient_error=self.error, gram_error=self.gram_error, gram_block=self.gram_block,
            loss_error=self.loss_error, linear_until=self.linear_until, passed=self.passed,
        )  # fmt: skip
        if (adam := self.adam) is None:
            return rows
        own = adam.steps.assign(gram_error=adam.error, gram_block=adam.block, linear_until=adam.linear_until)
        own = own.assign(**{name: rows[name].iloc[0] for name in ("gradient_error", "loss_error", "passed")})
        return pd.concat([rows.assign(space="parameters"), own.assign(space="adam")])[["space", *rows]]
