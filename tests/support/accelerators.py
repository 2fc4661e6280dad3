"""Simulated accelerators: tensors of the CPU that are said to be on devices "far:0" and "lazy:0".

As on GPUs, an operation of tensors on two devices fails, but for copies, numbers, and indices on the CPU. Importing
this registers the device in the whole process, and other libraries may take it for theirs: use a process of its own.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten, autocast = torch.ops.aten, torch.autocast
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class _Module(_DummyBackendModule):
    def device_count(self) -> int:
        return 2

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """The CPU draws in a simulated device's place, and has a state of its own."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("far", backend_module=_Module())
FAR, FARTHER = torch.device("far", 0), torch.device("lazy", 0)


class FarTensor(Tensor):
    """A tensor that is said to be far; what it holds is `near`."""

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device = FAR, requires_grad: bool = False) -> "FarTensor":
        return Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), dtype=held.dtype, device=device, requires_grad=requires_grad
        )

    def __init__(self, held: Tensor, device: torch.device = FAR, requires_grad: bool = False) -> None:
        self.near = held.near if isinstance(held, FarTensor) else held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.near!r} on {self.device}"

    def tolist(self) -> Any:
        return self.near.tolist()


class Accelerators(TorchDispatchMode):
    """While it is open, tensors can be made on the simulated devices and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(model: nn.Module, device: torch.device = FAR) -> nn.Module:
    """The model, its parameters and buffers on a simulated device; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None:
                if id(held) not in made:
                    far = FarTensor(held.detach(), device)
                    made[id(held)] = nn.Parameter(far, requires_grad=held.requires_grad)
                module._parameters[name] = made[id(held)]
        for name, held in module._buffers.items():
            module._buffers[name] = None if held is None else FarTensor(held, device)
    return model


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device that it is asked for, or its tensors are on."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if func is aten._local_scalar_dense.default:
        return func(*_near(args))
    if func not in COPIES:
        _refuse_two_devices(func, tensors)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*_near(args), **_near(kwargs))
    written = func._schema.returns and func._schema.returns[0].alias_info
    if written and written.is_write and len(func._schema.returns) == 1:
        return args[0] if func._schema.arguments[0].alias_info else kwargs["out"]
    place = asked or next((each.device for each in tensors if isinstance(each, FarTensor)), torch.device("cpu"))
    if place.type not in (FAR.type, FARTHER.type):
        return found
    return tree_map_only(Tensor, lambda each: FarTensor(each, _whole(place)), found)


def _refuse_two_devices(func: Any, tensors: list[Tensor]) -> None:
    """Raise a RuntimeError as torch does on GPUs."""
    sized = [each for each in tensors if each.dim() > 0]
    if func in INDEXING and isinstance(sized[0], FarTensor):
        sized = [each for each in sized if isinstance(each, FarTensor)]
    if len(places := {str(each.device) for each in sized}) > 1:
        raise RuntimeError(f"{func}: expected all tensors on the same device, but they are on {sorted(places)}")


def _near(values: Any) -> Any:
    return tree_map_only(FarTensor, lambda each: each.near, values)


def _whole(device: torch.device) -> torch.device:
    return torch.device(device.type, 0)


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return FarTensor(torch.empty_strided(size, stride, dtype=dtype), _whole(device))


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return FarTensor(torch.empty(size, dtype=dtype), _whole(device))


def _copy_from(source, target, non_blocking=False):
    _near(target).copy_(_near(source))
    return target


for key in ("privateuseone", "Lazy"):  # what is made in C++, as by torch.tensor, comes past every mode
    torch.library.impl("aten::empty_strided", key)(_empty_strided)
    torch.library.impl("aten::empty.memory_format", key)(_empty)
    torch.library.impl("aten::_copy_from", key)(_copy_from)


def _autocast(device_type: str, **options: Any) -> Any:
    """Autocast, of which torch knows nothing on this kind of device."""
    return nullcontext() if device_type == "lazy" else autocast(device_type, **options)


torch.autocast = _autocast  # type: ignore[misc, assignment]
