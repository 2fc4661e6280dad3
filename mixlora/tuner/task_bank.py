"""Task definitions encoded by a frozen language model, for routing by task (Appendix A, Eq. 12)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixlora.common.errors import RoutingError


class TaskBank(nn.Module):
    """The encoded definitions of an adapter's tasks, saved with it.

    Attributes:
        names: the tasks, in alphabetical order, as a saved configuration lists them.
        embeddings: [tasks, width], mean hidden states of their definitions; NaN until they are encoded.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.names = sorted(names)
        self.register_buffer("embeddings", torch.full((len(self.names), width), float("nan")))
        self.embeddings: Tensor

    @property
    def width(self) -> int:
        """Width of an encoded definition."""
        return self.embeddings.shape[1]

    def of(self, tasks: Sequence[str] | str | None, instances: int) -> Tensor:
        """The embeddings [instances, width] of a batch's tasks.

        Raises:
            RoutingError: if no tasks are given, one is unknown, or definitions are not encoded yet.
        """
        if tasks is None:
            raise RoutingError(
                "routing='task' needs the task of every instance: model(..., tasks=[...]), or "
                "`with mixlora.routed(model, tasks=[...])` around it"
            )
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        names = names[:1] * instances if len(set(names)) == 1 else names
        places = {name: place for place, name in enumerate(self.names)}
        for task in names:
            if task not in places:
                raise RoutingError(
                    f"task {task!r} is unknown to the adapter, which knows: {', '.join(self.names)}; give its "
                    "definition: model.base_model.encode_tasks(tokenizer, {name: definition})"
                )
        if len(names) != instances:
            raise RoutingError(
                f"{len(names)} tasks are named for {instances} instances; name one for each, and leave the image "
                "encoder out of target_modules unless a batch has one image per example"
            )
        found = self.embeddings[[places[task] for task in names]]
        if bool(found.isnan().any()):
            raise RoutingError(
                "the task definitions are not encoded yet; call model.base_model.encode_tasks(tokenizer) once"
            )
        return found

    def put(self, encoded: Mapping[str, Tensor]) -> None:
        """Add the embeddings [width] of tasks, or replace those of known ones."""
        rows = dict(zip(self.names, self.embeddings, strict=True))
        rows |= {name: embedding.detach().to(self.embeddings) for name, embedding in encoded.items()}
        self.names = sorted(rows)
        self.embeddings = torch.stack([rows[name] for name in self.names])


@torch.no_grad()
def encode(definitions: Mapping[str, str], encoder: nn.Module, tokenizer: Any) -> dict[str, Tensor]:
    """{task: [width]}, the mean last hidden state over the tokens of its definition under a frozen LM (Eq. 12)."""
    training = encoder.training
    encoder.eval()
    try:
        device = next(encoder.parameters()).device
        found = {}
        for name, definition in definitions.items():
            tokens = getattr(tokenizer, "tokenizer", tokenizer)(definition, return_tensors="pt").to(device)
            ids = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
            hidden = encoder(**ids, output_hidden_states=True).hidden_states[-1]
            found[name] = hidden[0].float().mean(dim=0)
        return found
    finally:
        encoder.train(training)
