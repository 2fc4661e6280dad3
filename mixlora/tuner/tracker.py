"""Tracker: follows a model's forwards, so that each adapted layer knows the context that it is called in.

It hooks the model's own forward, so that masks, labels and tasks reach the layers whoever calls the model: a Trainer,
generate, or a loss function. Blocks that gradient checkpointing runs again in the backward keep the context of their
first run.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixlora.common.errors import RoutingError
from mixlora.tuner.context import Context, Held, packing_of, pictures_of, prompt_mask

_CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute of every block that holds transformers' checkpointing function."""
_HELD = "mixlora_held"
"""Attribute of a cache that holds the prompt's selections; the forwards of generated tokens bring the cache back."""


@dataclass
class _Generation:
    """One call of generate.

    Attributes:
        length: tokens of the prompt; None if unknown.
        mask: [batch, length], the attention mask of the prompt; None if not given.
        held: the prompt's selections, after its forward.
    """

    length: int | None = None
    mask: Tensor | None = None
    held: Held = field(default_factory=dict)


class Tracker:
    """Knows the context of a model's current forward."""

    def __init__(self) -> None:
        self._running: Context | None = None
        self._last: Context | None = None
        self._given: dict[str, Any] = {}
        self._generation: _Generation | None = None
        self._parameters: list[str] = []
        self._blocks: list[Any] = []
        self._handles: list[Any] = []
        self._warned: set[str] = set()

    @property
    def context(self) -> Context | None:
        """The context of the running forward, or of the one that a backward recomputes; None outside both."""
        if self._running is None and torch._C._current_graph_task_id() != -1:
            return self._last
        return self._running

    def attach(self, model: nn.Module) -> None:
        """Start to follow the forwards of a model."""
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
        self._handles.append(model.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._leave, always_call=True))
        if hasattr(model, "generate"):
            vars(model)["generate"] = _Generate(model, self, vars(model).get("generate"))

    def detach(self, model: nn.Module) -> None:
        """Stop following a model, and restore it."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if isinstance(generate := vars(model).get("generate"), _Generate):
            del vars(model)["generate"]
            if generate.own is not None:
                vars(model)["generate"] = generate.own
        for block in self._blocks:
            if isinstance(checkpoint := getattr(block, _CHECKPOINT, None), _Remembering):
                setattr(block, _CHECKPOINT, checkpoint.checkpoint)

    @contextmanager
    def within(self, context: Context | None) -> Iterator[None]:
        """Make this the context of the layers that are called inside the block."""
        before, self._running = self._running, context
        try:
            yield
        finally:
            self._running = before

    @contextmanager
    def given(self, **known: Any) -> Iterator[None]:
        """Give labels or tasks to the forwards inside the block that have none; see `model.routed`."""
        before, self._given = self._given, self._given | {k: v for k, v in known.items() if v is not None}
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def generating(self, generation: _Generation) -> Iterator[None]:
        """Treat the first forward inside the block as a prompt's, whose selections the following forwards use."""
        before, self._generation = self._generation, generation
        try:
            yield
        finally:
            self._generation = before

    def warn_once(self, kind: str, message: str) -> None:
        """Warn once for each kind of message."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=2)

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        tasks = kwargs.pop("tasks", self.tasks)
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        tokens = inputs.get("input_ids")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        for block in self._blocks:
            checkpoint = getattr(block, _CHECKPOINT, None)
            if checkpoint is not None and not isinstance(checkpoint, _Remembering):
                setattr(block, _CHECKPOINT, _Remembering(checkpoint, self))
        self._running = self._last = None if tokens is None else self._context_of(tokens, inputs, tasks)
        return args, kwargs

    @property
    def tasks(self) -> Any:
        """The tasks that `routed` or generate gives to forwards."""
        return self._given.get("tasks")

    def _labels(self, inputs: Mapping[str, Any], context: Context) -> Tensor | None:
        if inputs.get("labels") is not None or context.decoding:
            return inputs.get("labels")
        labels = self._given.get("labels")
        if labels is not None and tuple(labels.shape) != context.shape:
            raise RoutingError(
                f"routed was given labels of shape {tuple(labels.shape)}, but the forward has tokens of shape "
                f"{context.shape}; give those of this batch"
            )
        return labels

    def _context_of(self, tokens: Tensor, inputs: Mapping[str, Any], tasks: Any) -> Context:
        batch, seq = tokens.shape[:2]
        context = Context((batch, seq), pictures=pictures_of(inputs), alone=bool(self._given.get("alone")))
        self._continue(context, inputs.get("past_key_values"))
        attention = inputs.get("attention_mask")
        if self._generation is not None and not context.decoding:
            context.attended = self._of_prompt(self._generation, context, attention, tokens.device)
        elif isinstance(attention, Tensor) and attention.dim() == 2:
            context.attended = attention[:, -seq:].bool()
        elif attention is not None and not context.decoding:
            self._warn_of_mask()
        if self._generation is None and (attention is None or context.attended is not None):
            context.packing = packing_of(inputs.get("position_ids"), tokens, context.attended)
        if context.packing is not None:
            context.attended = context.packing.mask
        context.prompt = prompt_mask(context, self._labels(inputs, context))
        instances = batch if context.packing is None else len(context.packing.mask)
        context.tasks = _task_of_each(tasks, instances, self._generation is not None)
        return context

    def _of_prompt(
        self, generation: _Generation, context: Context, attention: Any, device: torch.device
    ) -> Tensor | None:
        """The mask of the prompt's tokens in the first forward of a generation; None for all."""
        (batch, seq), length = context.shape, generation.length
        if length is not None and seq < length:
            raise RoutingError(
                f"the prompt of {length} tokens is processed in chunks of {seq}, but MixLoRA routes by the whole "
                "prompt; leave prefill_chunk_size out"
            )
        if not (isinstance(attention, Tensor) and attention.dim() == 2):
            if generation.mask is None and attention is not None:
                self._warn_of_mask()
            attention = generation.mask
        if attention is None and (length is None or seq == length):
            return None
        if attention is None:
            attention = torch.ones(context.shape, device=device)
        attended = attention[:, :length].bool().repeat_interleave(batch // len(attention), dim=0)
        return nn.functional.pad(attended, (0, seq - attended.shape[1]))  # speculative tokens follow the prompt

    def _warn_of_mask(self) -> None:
        self.warn_once(
            "mask",
            "the attention mask is not [batch, seq], so MixLoRA pools over every position; "
            "pass the two-dimensional mask for routing that leaves padding out",
        )

    def _continue(self, context: Context, cache: Any) -> None:
        """Take the prompt's selections if the tokens continue one; if they are a prompt, keep its own for later."""
        held = None if self._generation is None else self._generation.held
        cached = cache is not None and hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > 0
        context.decoding = cached or bool(held)
        if context.decoding:
            context.held = (getattr(cache, _HELD, None) if cached else None) or held or {}
            return
        if held is not None:
            context.held = held
        if cache is not None:
            _keep(cache, context.held)

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if self._running is not None and cache is not None and not hasattr(cache, _HELD):
            _keep(cache, self._running.held)
        self._running = None


class _Generate:
    """A model's own `generate`, which also accepts tasks and tells the tracker that a generation runs."""

    def __init__(self, model: nn.Module, tracker: Tracker, own: Callable[..., Any] | None) -> None:
        self.model = model
        self.tracker = tracker
        self.own = own

    def __call__(self, *args: Any, tasks: Any = None, **kwargs: Any) -> Any:
        """Generate; `tasks` as in a forward."""
        given = [*(kwargs.get(name) for name in ("inputs_embeds", "input_ids", "inputs")), *args[:1]]
        prompt = next((value for value in given if isinstance(value, Tensor)), None)
        mask = kwargs.get("attention_mask")
        generation = _Generation(
            None if prompt is None else prompt.shape[1],
            mask if isinstance(mask, Tensor) and mask.dim() == 2 else None,
        )
        generate = self.own or functools.partial(type(self.model).generate, self.model)  # type: ignore[attr-defined]
        with self.tracker.generating(generation), self.tracker.given(tasks=tasks):
            return generate(*args, **kwargs)


class _Remembering:
    """A checkpointing function whose layers get the context of their first run when they run again."""

    def __init__(self, checkpoint: Callable[..., Any], tracker: Tracker) -> None:
        self.checkpoint = checkpoint
        self.tracker = tracker

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint `function`."""
        context = self.tracker.context

        def remembered(*args: Any, **kwargs: Any) -> Any:
            with self.tracker.within(context):
                return function(*args, **kwargs)

        return self.checkpoint(remembered, *args, **kwargs)


def _keep(cache: Any, held: Held) -> None:
    if hasattr(cache, "__dict__"):
        setattr(cache, _HELD, held)


def _task_of_each(tasks: Any, instances: int, generating: bool) -> list[str] | None:
    if tasks is None:
        return None
    names = [tasks] * instances if isinstance(tasks, str) else list(tasks)
    if generating and names and instances % len(names) == 0:
        names = [name for name in names for _ in range(instances // len(names))]  # beams of an instance
    if len(names) != instances:
        raise RoutingError(
            f"tasks names {len(names)} tasks, but the batch has {instances} instances; name one for each"
        )
    return names
