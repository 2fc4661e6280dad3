"""Untrained: the control of what a trained adapter selects, the same adapter at step 0, in the same model beside it.

Its weights are those of the training's snapshot of step 0, if there is one. Otherwise they are drawn again by the seed
that the training recorded, or, if no training is known, by `probe.seed`, which the output names.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from interference.config import whole_seed
from interference.errors import CheckpointError, ConfigError
from interference.gradients.state import as_found, own_randomness
from mixlora.common.files import SNAPSHOTS, TRAINING, is_file, read_json

NAME = "untrained"
_STEP_0 = Path(SNAPSHOTS, "step-0", "adapter_model.safetensors")
_CHECKPOINTS = "checkpoints"  # of a training that goes on
_DRAWN = (True, False, "gaussian", "orthogonal")
"""`init_lora_weights` of LoRA that draw weights; others compute them from the base's, or change those."""


class NoControlError(ConfigError):
    """There is no untrained adapter like the trained one."""


@dataclass(frozen=True)
class Origin:
    """Where the weights of an untrained adapter come from.

    Attributes:
        seed: by which they are drawn.
        recorded: whether the training recorded the seed.
        snapshot: the weights in its snapshot of step 0; None to draw them.
    """

    seed: int
    recorded: bool = False
    snapshot: Path | None = None

    @property
    def text(self) -> str:
        """What a reader is told of it."""
        if self.snapshot is not None:
            return "untrained: the training's snapshot of step 0"
        if self.recorded:
            return f"untrained: drawn again with the training's seed {self.seed}"
        return f"an untrained adapter of the same configuration, seed {self.seed}"


def origin(adapter: str, seed: int) -> Origin:
    """Where an untrained adapter like a stored one comes from.

    Args:
        adapter: path or hub id of the trained one: a training's, a snapshot or a checkpoint of it, or any other.
        seed: if the training recorded none.
    """
    path = Path(adapter)
    home = path.parent.parent if path.parent.name in (SNAPSHOTS, _CHECKPOINTS) else path
    recorded = _recorded(home)
    if recorded is None:
        return Origin(seed)
    return Origin(recorded, True, home / _STEP_0 if is_file(home / _STEP_0) else None)


def attach(model: nn.Module, adapter: str, source: Origin) -> str:
    """Add the untrained adapter to a model that holds the trained one; the name of it.

    The trained one stays active and as it was, and so do the random generators.

    Raises:
        NoControlError: if such an adapter cannot be made; the words go on from "there is no untrained adapter, ".
        CheckpointError: if the snapshot is not of the same adapter.
    """
    if not isinstance(model, PeftModel):
        raise NoControlError("because the model is not a PeftModel")
    config = deepcopy(model.peft_config[adapter])
    _check(config)
    name = NAME
    while name in model.peft_config:
        name += "_"
    with as_found(model), own_randomness(whole_seed(source.seed)):
        try:
            model.add_adapter(name, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise NoControlError(f"because PEFT cannot make a second one in this model ({error})") from None
    banks: Any = getattr(model.base_model, "mixlora_tasks", {})
    if adapter in banks:  # encoded definitions are not trained
        banks[name].load_state_dict(banks[adapter].state_dict())
    if source.snapshot is not None:
        _fill(model, name, source.snapshot)
    return name


def _recorded(home: Path) -> int | None:
    """The seed of the training in a directory; None where there is none, or it cannot be read."""
    try:
        return whole_seed(read_json(home / TRAINING)["config"]["training"]["seed"])
    except (OSError, ValueError, LookupError, TypeError, ConfigError):
        return None


def _check(config: Any) -> None:
    """Raise a NoControlError if PEFT would not draw weights for a second adapter like this."""
    drawn = getattr(config, "init_lora_weights", True)
    if drawn not in _DRAWN:
        raise NoControlError(f"because init_lora_weights={drawn!r} makes weights from those of the base")
    if getattr(config, "bias", "none") != "none":
        raise NoControlError(f"because bias={config.bias!r} trains weights of the base itself")


def _fill(model: nn.Module, name: str, snapshot: Path) -> None:
    """Give the adapter the weights of a snapshot.

    Raises:
        CheckpointError: if they are not of the same adapter.
    """
    remedy = "move it away, and the untrained adapter is drawn with the training's seed"
    try:
        saved = load_file(snapshot)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the snapshot {snapshot} cannot be read: {error}; {remedy}") from None
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    if {key: tuple(value.shape) for key, value in saved.items()} != shapes:
        raise CheckpointError(f"the snapshot {snapshot} is from another adapter; {remedy}")
    set_peft_model_state_dict(model, saved, adapter_name=name)
