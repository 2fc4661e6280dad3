"""Callbacks: what a Trainer (transformers' Trainer, TRL's SFTTrainer) calls along its training.

`along` says when a callback acts, and keeps what it finds as a series. `measuring` measures gradients, `branching`
takes real steps along single tasks and goes back.

Not here: the measurement (`measurement.trainer`) and the steps (`prediction.trainers`).
"""

from interference.callback.branching import LookaheadCallback
from interference.callback.measuring import InterferenceCallback

__all__ = ["InterferenceCallback", "LookaheadCallback"]
