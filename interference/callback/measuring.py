"""InterferenceCallback: measures a Trainer's training every n steps, and keeps a series of runs.

Not here: when it measures (`along`), and the measurement itself (`measurement.trainer`).
"""

import inspect
import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from transformers import Trainer
from transformers.integrations import TensorBoardCallback, WandbCallback

from interference.callback.along import Along, check_batches
from interference.measurement.compute import compute
from interference.measurement.grouping import Groups
from interference.measurement.labels import check_labels
from interference.measurement.series import RUNS
from interference.measurement.trainer import grouped_batches, handed_over, measure_batches, refuse_shards
from interference.measurement.units import Batch
from interference.run import Run
from interference.run.remarks import shown_verdicts
from interference.statistics.significance import Verdict
from mixlora.data.groups import IMAGE

COUNTS = {
    Verdict.CONFLICT: "conflicts",
    Verdict.SYNERGY: "synergies",
    Verdict.UNCLEAR: "unclear",
    Verdict.NO_SIGNAL: "no_signal",
    Verdict.CARRIED: "carried",
}
PICTURE = "train/interference/matrix"  # the Trainer's trackers put "train/" before its entries
MOST_DRAWN = 40
"""Tasks of a picture: more cannot be read."""


class InterferenceCallback(Along[Run]):
    """Measures the interference of tasks on a fixed probe set while a Trainer (also TRL's SFTTrainer) trains.

    Every measurement saves a run to `out/step-<N>` and adds an entry to the Trainer's log:

        interference/<affected>/<stepped>  I, as the ratio of means, over all probed blocks
        interference/conflicts             cells with that verdict; likewise synergies, unclear, no_signal, carried
        loss/<task>                        nats per token
        signal/<task>                      signal to noise of the task's mean gradient, in power (`metrics.Signal.snr`)

    Verdicts that I does not bear out are not counted. The log omits values that are not finite, and every I of a task
    whose verdict is no-signal: a ratio to its own Delta has no meaning. The run has them all.

    Where the Trainer reports to TensorBoard or Weights & Biases (`report_to`), these get the entry as scalars, and the
    matrix as a picture, `train/interference/matrix`. With `verdicts=False`, or more than 40 tasks, there is no picture.

    It measures the trainer's own loss. Where that is the mean cross-entropy over supervised tokens, it measures in
    batches. Any other loss is measured by `trainer.compute_loss`, one example per backward pass: label smoothing,
    `compute_loss_func`, a `compute_loss` of its class, a loss function of the model.

    The callback does not change the training: weights, random numbers, gradients and the Trainer's own log entries are
    those of a training without it. It measures the model in evaluation mode and in the precision of its own weights: if
    the Trainer puts autocast around the model (`bf16=True`, `fp16=True`), a measurement runs outside it. Under autocast
    a gradient would have an error of some percent, and MixLoRA would route examples near a tie to other factors. Random
    numbers that a measurement draws (`routing="random"`, a shuffling DataLoader) start from `seed` each time, so that
    all measurements draw the same.

    Of several processes the main one measures, and the others wait for at most `ddp_timeout`. This needs the whole
    model on every process, as under DistributedDataParallel; sharded parameters raise an error.

    A resumed training continues the series: runs up to the checkpoint's step stay, and a later one is replaced when the
    training has reached its step again.

    If the model and the probe set do not fit, the training raises the error of `interference.compute` before its first
    step. It raises a RunError if `out` already holds a series. Later errors (a loss that is not finite, a full disk)
    end the training; a picture that cannot be drawn or sent is only warned of.

    Args:
        trainer: The Trainer that the callback is added to.
        batches: {task: collated batches}, as for `interference.compute`; each a list or another iterable that yields
            the same batches every time. Or the name of a column of the trainer's `train_dataset` whose values are the
            tasks: `samples` rows of each are drawn with the seed and collated by the trainer, as by
            `interference.from_trainer`.
        every: Optimizer steps from one measurement to the next.
        out: Directory of the runs; None keeps them in memory.
        layers: Transformer blocks, from 0; None for all.
        modules: Module names ("q_proj") or "attention", "mlp"; None for all.
        first: Measure before the first step.
        last: Measure after the last step.
        verdicts: Count the verdicts, which takes a bootstrap of every matrix. If False, every finite I is logged,
            whether or not its task has signal.
        seed: Seed of the bootstraps, of the draw of rows, and of the random numbers of a measurement.
        samples: Rows of a task, where they are drawn by a column.
        groups: Which units are not independent: of batches {task: a label for every unit}, as in
            `interference.compute`; of rows of a column as in `interference.from_trainer`, by default those with the
            same picture.
        **options: Further options of `interference.compute`: adapter, components, unit, token_mean, granularity ...

    Raises:
        ConfigError: If `every` is below 1.
        ScopeError: If `batches` can be read only once, or `groups` does not fit them.
        TypeError: If `interference.compute` has no such option.

    Example:
        >>> import interference, tempfile, torch, transformers
        >>> from peft import LoraConfig, get_peft_model
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **size))
        >>> model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        >>> rows = [{"input_ids": (ids := torch.randint(32, (6,))), "labels": ids} for _ in range(8)]
        >>> options = {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        >>> folder = tempfile.TemporaryDirectory()
        >>> arguments = transformers.TrainingArguments(folder.name, use_cpu=True, **options)
        >>> trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        >>> probes = {task: [trainer.data_collator(rows[k : k + 4])] for task, k in (("a", 0), ("b", 4))}
        >>> callback = interference.InterferenceCallback(trainer, probes, every=1)
        >>> trainer.add_callback(callback)
        >>> trainer.remove_callback(transformers.PrinterCallback)  # which would print every entry of the log
        >>> _ = trainer.train()
        >>> list(callback.series())  # figures.series draws them side by side
        ['step 0', 'step 1', 'step 2']
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Mapping[str, Iterable[Batch]] | str,
        every: int = 50,
        out: Path | str | None = None,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        *,
        first: bool = True,
        last: bool = True,
        verdicts: bool = True,
        seed: int = 0,
        samples: int = 100,
        groups: Groups | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(batches, str):
            check_batches(batches)
            if groups is not None:
                check_labels(groups, batches, options.get("unit", "example"))
        if "loss" in options:
            raise TypeError("the callback measures the trainer's own loss; leave loss out")
        inspect.signature(compute).bind(trainer, batches, layers, modules, seed=seed, **options)
        super().__init__(trainer, every, out, RUNS, first, last)
        self.batches = batches
        self.verdicts = verdicts
        self.samples = samples
        self.groups = groups
        self._options = {"layers": layers, "modules": modules, "seed": seed, **options}

    @property
    def runs(self) -> dict[int, Run]:
        """The runs by step, in order; those in `out` are opened on each access.

        Without `out`, only the main process has them.
        """
        return self._series.all()

    def series(self) -> dict[str, Run]:
        """The runs by title, as `figures.series` takes them.

        Returns:
            {"step 0": run, "step 50": run ...}, in order.

        Raises:
            RunError: If a run in `out` is damaged.
        """
        return {f"step {step}": run for step, run in self.runs.items()}

    def _refuse(self) -> None:
        refuse_shards(self.trainer)

    def _check(self) -> None:
        self._compute({task: list(islice(given, 2)) for task, given in self._probes()[0].items()})

    def _find(self) -> Run:
        return self._compute(*self._probes())

    def _told(self, found: Run, step: int) -> dict[str, float]:
        table = found.table("interference") if self.verdicts else None
        if table is not None:
            _show(self.trainer, table, step)
        return _logged(found, table)

    def _probes(self) -> tuple[Mapping[str, Iterable[Batch]], Any]:
        """The probe set and its groups; rows of a column are drawn and collated again every time."""
        if not isinstance(self.batches, str):
            return self.batches, self.groups
        groups = IMAGE if self.groups is None else self.groups
        return grouped_batches(self.trainer, self.batches, self.samples, self._options["seed"], groups)

    def _compute(self, batches: Mapping[str, Iterable[Batch]], groups: Any = None) -> Run:
        with handed_over(self.trainer, self._options["seed"]) as model:
            return measure_batches(self.trainer, model, batches, groups=groups, **self._options)


def _logged(run: Run, table: pd.DataFrame | None) -> dict[str, float]:
    """The entry of a run in the Trainer's log, see InterferenceCallback; without verdicts where there is no table."""
    signal = run.signal()
    found = {f"loss/{task}": value for task, value in signal["loss"].items()}
    found |= {f"signal/{task}": value for task, value in signal["snr"].items()}
    if table is not None:
        counts = shown_verdicts(table).value_counts()
        found |= {f"interference/{name}": counts.get(verdict.value, 0) for verdict, name in COUNTS.items()}
        table = table[table["verdict"] != Verdict.NO_SIGNAL]
        cells = list(zip(table["affected"], table["stepped"], table["value"], strict=True))
    else:
        matrix = run.matrix("interference")
        cells = [(i, j, value) for i, row in matrix.iterrows() for j, value in row.items()]
    found |= {f"interference/{i}/{j}": value for i, j, value in cells if i != j}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _show(trainer: Trainer, table: pd.DataFrame, step: int) -> None:
    """Give the matrix as a picture to the trackers that the trainer's own callbacks write to, if there are any.

    A picture is not worth a training: what fails is warned of.
    """
    try:
        _send(trainer, table, step)
    except Exception as error:
        warnings.warn(f"the matrix of step {step} was not drawn for the trackers: {error}", stacklevel=2)


def _send(trainer: Trainer, table: pd.DataFrame, step: int) -> None:
    callbacks = trainer.callback_handler.callbacks
    writers = [one.tb_writer for one in callbacks if isinstance(one, TensorBoardCallback) and one.tb_writer is not None]
    wandb = next((one._wandb for one in callbacks if isinstance(one, WandbCallback)), None)
    if table["affected"].nunique() > MOST_DRAWN or not (writers or wandb):
        return
    picture = _drawn(table, step)
    for writer in writers:
        writer.add_image(PICTURE, np.asarray(picture), step, dataformats="HWC")
        writer.flush()
    if wandb:
        wandb.log({PICTURE: wandb.Image(picture, caption=f"step {step}"), "train/global_step": step})


def _drawn(table: pd.DataFrame, step: int) -> Image.Image:
    from interference.figures import canvas, matrices

    figure = matrices.drawn(table, "interference", f"step {step}")
    return Image.open(io.BytesIO(canvas.rendered(figure, "png", dots=100))).convert("RGB")
