"""Targets: which modules of a model carry the adapter, and where in the model they sit.

Places come from the model itself (its decoder, its image encoder, its classes), not from guesses at parameter names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from interference import blocks
from interference.blocks import Block, Component, Scope, Side
from interference.errors import CheckpointError, ScopeError
from mixlora import MixLoraLayer
from mixlora.common.enums import NONE_OF, member
from mixlora.tuner.config import RouterGradient
from mixlora.tuner.model import base_model_of
from mixlora.tuner.routing import Router


@dataclass(frozen=True)
class Tap:
    """Where the gradient of a block can be read, example by example.

    Attributes:
        block: the block.
        weight: its parameter.
        module: the module whose inputs and output gradients give the gradient; see `layers.per_example`.
    """

    block: Block
    weight: Tensor
    module: nn.Module


@dataclass(frozen=True)
class Target:
    """An adapted Linear whose factors are probed.

    Attributes:
        path: its name in `model.named_modules()`.
        layer: the adapted module.
        adapter: name of the probed adapter.
        taps: its blocks, by side.
    """

    path: str
    layer: Any
    adapter: str
    taps: dict[Side, Tap]

    @property
    def blocks(self) -> list[Block]:
        """The blocks, A first."""
        return [tap.block for tap in self.taps.values()]

    @property
    def place(self) -> Block:
        """The block of A, for the module's place in the model."""
        return self.taps[Side.A].block


def probed_adapter(model: nn.Module, adapter: str | None) -> str:
    """The name of the adapter to probe: the one asked for, or the only active one.

    Raises:
        CheckpointError: if the model has no LoRA, the adapter is unknown, or several are active and none was named.
    """
    layers = [module for module in model.modules() if isinstance(module, (LoraLayer, MixLoraLayer))]
    if not layers:
        raise CheckpointError("the model has no LoRA or MixLoRA adapter; load one with peft.PeftModel.from_pretrained")
    known = sorted({name for layer in layers for name in _adapters(layer)})
    if adapter is not None:
        if adapter not in known:
            raise CheckpointError(f"adapter {adapter!r} is not loaded; loaded are: {', '.join(known)}")
        return adapter
    active = sorted({name for layer in layers for name in layer.active_adapters if name in known})
    if len(active) != 1:
        raise CheckpointError(
            f"{len(active)} adapters are active ({', '.join(active)}); name the one to probe: adapter="
        )
    return active[0]


def find_targets(
    model: nn.Module,
    adapter: str,
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    components: Sequence[Component | str] = (Component.LANGUAGE,),
    routers: bool = False,
) -> list[Target]:
    """The adapted Linears in the scope, in the order of the model's modules.

    Args:
        model: a model with a LoRA adapter, as a PeftModel or not.
        adapter: the probed adapter.
        layers: transformer block indices, from 0; None for all.
        modules: module names or the groups "attention", "mlp"; None for all.
        components: parts of the model: "language", "vision", "projector".
        routers: also probe MixLoRA's routers, as blocks of their own.

    Raises:
        CheckpointError: if the adapter is merged, switched off, or of a kind that cannot be probed, or the model has an
            encoder for its text.
        ScopeError: if a layer, module or component holds no adapted module; the message lists those that do.
    """
    _check_decoder(model)
    everything = list(all_targets(model, adapter, routers))
    if not everything:
        raise CheckpointError(f"adapter {adapter!r} adapts no Linear module; only adapters of Linear layers are probed")
    wanted = [member(Component, name, "component", ScopeError, NONE_OF) for name in components]
    there = sorted({target.place.component for target in everything})
    inside = [target for target in everything if target.place.component in wanted]
    if not inside:
        raise ScopeError(f"adapter {adapter!r} adapts nothing in {', '.join(wanted)}; it adapts: {', '.join(there)}")
    frame = blocks.to_frame(target.place for target in inside)
    chosen = set(blocks.select(frame, Scope(layers, modules))["name"])
    return [target for target in inside if target.place.name in chosen]


def all_targets(model: nn.Module, adapter: str, routers: bool = False) -> Iterator[Target]:
    """The adapted Linears of the whole model, in the order of its modules; see `find_targets`."""
    where = _Map(model)
    taken: set[str] = set()
    for path, module in model.named_modules():
        weights = _weights(path, module, adapter, routers)
        if not weights:
            continue
        component, layer, group = where.locate(path)
        name = path.rpartition(".")[2]
        if Block(component, layer, name, group, Side.A, 0).name in taken:
            name = where.relative(path)
        taps = {
            side: Tap(Block(component, layer, name, group, side, weight.numel()), weight, tapped)
            for side, (weight, tapped) in weights.items()
        }
        taken.add(taps[Side.A].block.name)
        yield Target(path, module, adapter, taps)


def _check_decoder(model: nn.Module) -> None:
    base = base_model_of(model)
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        raise CheckpointError(
            f"{type(base).__name__} has an encoder and a decoder, whose labels are not shifted as those of a causal "
            "language model; only decoder-only models are measured"
        )


def _adapters(layer: Any) -> list[str]:
    """Names of the adapters that a layer holds."""
    return [*layer.mixlora_A] if isinstance(layer, MixLoraLayer) else [*layer.lora_A, *layer.lora_embedding_A]


def _weights(path: str, layer: nn.Module, adapter: str, routers: bool) -> dict[Side, tuple[Tensor, nn.Module]]:
    """The parameters of a layer that are probed, each with the module that its gradient is read from."""
    if isinstance(layer, MixLoraLayer) and adapter in layer.mixlora_A:
        _check_switched_on(path, layer)
        found: dict[Side, tuple[Tensor, nn.Module]] = {
            Side.A: (layer.mixlora_A[adapter], layer.gather_A),
            Side.B: (layer.mixlora_B[adapter], layer.gather_B),
        }
        return found | _routers(path, layer, adapter) if routers else found
    if isinstance(layer, LoraLayer) and adapter in layer.lora_A and isinstance(layer.lora_A[adapter], nn.Linear):
        _check_probeable(path, layer, adapter)
        pair = {Side.A: layer.lora_A[adapter], Side.B: layer.lora_B[adapter]}
        return {side: (cast(nn.Linear, linear).weight, linear) for side, linear in pair.items()}
    return {}


def _routers(path: str, layer: MixLoraLayer, adapter: str) -> dict[Side, tuple[Tensor, nn.Module]]:
    if adapter not in layer.mixlora_router or layer.configs[adapter].router_gradient is RouterGradient.NONE:
        raise ScopeError(f"{path}: the routers of adapter {adapter!r} have no gradient; leave routers out")
    router = cast(Router, layer.mixlora_router[adapter])
    found: dict[Side, tuple[Tensor, nn.Module]] = {
        Side.ROUTER_A: (router.independent_A.weight, router.independent_A),
        Side.ROUTER_B: (router.independent_B.weight, router.independent_B),
    }
    if router.conditional is not None:
        found[Side.ROUTER_AB] = (router.conditional.weight, router.conditional)
    return found


def _check_switched_on(path: str, layer: BaseTunerLayer) -> None:
    if layer.disable_adapters:
        raise CheckpointError(f"{path}: adapters are switched off; call enable_adapters() first")


def _check_probeable(path: str, layer: LoraLayer, adapter: str) -> None:
    if layer.merged:
        raise CheckpointError(f"{path}: adapters are merged into the base weights; call unmerge_adapter() first")
    _check_switched_on(path, layer)
    variant = layer.lora_variant.get(adapter)
    if variant is not None and not isinstance(variant, DoraLinearVariant):
        raise CheckpointError(
            f"{path}: LoRA variant {type(variant).__name__} is not supported; supported are LoRA, rsLoRA and DoRA"
        )


class _Map:
    """Where in a model a module path lies."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): path for path, module in model.named_modules()}
        self.modules = dict(model.named_modules())
        self.stacks = [
            (component, self.names[id(root)], self._stack(root))
            for component, root in self._roots(base_model_of(model))
            if id(root) in self.names
        ]

    @staticmethod
    def _roots(base: Any) -> Iterator[tuple[Component, nn.Module]]:
        """The image encoder comes first: it is the vision part even if the decoder is the whole model."""
        if hasattr(base, "get_encoder"):
            encoder = base.get_encoder(modality="image")
            decoder = base.get_decoder()
            inner = getattr(base, "base_model", base)
            if encoder is not base and encoder is not inner and encoder is not decoder:
                yield Component.VISION, encoder
            yield Component.LANGUAGE, decoder
        else:
            yield Component.LANGUAGE, base

    def _stack(self, root: nn.Module) -> str:
        """The path of the stack of layers: the outermost ModuleList below root, the longest if there are several."""
        lists = [(path.count("."), -len(module), self.names[id(module)])
                 for path, module in root.named_modules() if isinstance(module, nn.ModuleList)]  # fmt: skip
        return min(lists)[2] if lists else ""

    def locate(self, path: str) -> tuple[Component, int | None, str]:
        """Component, layer index and group of the module at `path`."""
        for component, root, stack in self.stacks:
            if stack and path.startswith(stack + "."):
                index = path[len(stack) + 1 :].partition(".")[0]
                return component, int(index), self._group(path, stack)
            if not root or path.startswith(root + "."):
                return component, None, "head"
        outside = Component.LANGUAGE if len(self.stacks) == 1 else Component.PROJECTOR
        base = self.modules.get(path.rpartition(".")[0])
        if base is not None and getattr(base, "get_output_embeddings", None) is not None:
            outside = Component.LANGUAGE
        return outside, None, "head" if outside is Component.LANGUAGE else "projector"

    def relative(self, path: str) -> str:
        """A longer name for a module whose short name is taken within its layer."""
        for _, _, stack in self.stacks:
            if stack and path.startswith(stack + "."):
                return path[len(stack) + 1 :].partition(".")[2]
        return path

    def _group(self, path: str, stack: str) -> str:
        """Attention if a class between the layer and the module is named so, as in transformers; otherwise MLP."""
        while path != stack:
            path = path.rpartition(".")[0]
            if "Attention" in type(self.modules[path]).__name__:
                return "attention"
        return "mlp"
