"""Reading pickled files without executing them: a namespace of plain values, and tensors.

A small interpreter reads a namespace. It knows the opcodes that plain values need, and cannot call anything.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from struct import error as StructError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mixlora.common import files
from mixlora.common.errors import CheckpointError, reason

LARGEST_NAMESPACE = 2**20  # bytes
LARGEST_UNMAPPED = 2**30  # bytes; a file of torch before 1.6 has to be read whole
LARGEST_WHOLE = 10_000  # bits; Python does not print numbers of over 4300 digits, so a message could not show it

_GLOBALS = {  # the last four: how protocols 0 and 1 wrap an argparse.Namespace, in Python 2 and 3
    "types.SimpleNamespace": "namespace",
    "argparse.Namespace": "namespace",
    "copyreg._reconstructor": "reconstructor",
    "copy_reg._reconstructor": "reconstructor",
    "builtins.object": "object",
    "__builtin__.object": "object",
}
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, StructError)


def read_namespace(path: Path) -> dict[str, Any]:
    """The names and plain values of a pickled types.SimpleNamespace or argparse.Namespace; nothing is executed.

    Args:
        path: a pickle of protocol 0 to 5, or a file that torch.save made of the namespace.

    Raises:
        CheckpointError: if the file is missing, larger than 1 MiB or damaged, or holds anything else.
    """
    try:
        stored = _stored(path)
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: encryption or an unknown compression
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
    return _Machine(path).run(stored)


def _stored(path: Path) -> bytes:
    too_large = CheckpointError(f"{path} is above 1 MiB, and a namespace is not; it is not read")
    if path.stat().st_size > LARGEST_NAMESPACE:
        raise too_large
    if not zipfile.is_zipfile(path):
        return files.read_bytes(path, LARGEST_NAMESPACE)
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(members) != 1:
            raise CheckpointError(f"{path} is a zip file with {len(members)} members data.pkl; torch.save writes one")
        with archive.open(members[0]) as member:
            stored = member.read(LARGEST_NAMESPACE + 1)
    if len(stored) > LARGEST_NAMESPACE:
        raise too_large
    return stored


class _Global(str):
    """A dotted name of a global in a pickle; it is never imported."""


class _Arguments(tuple[Any, ...]):
    """A tuple that contains globals, so not a plain value."""


class _Namespace(dict[str, Any]):
    """A namespace that is read: its names and values."""


def _meaning(value: Any) -> str | None:
    return _GLOBALS[value] if isinstance(value, _Global) else None


def _named(value: Any) -> str:
    names: dict[type, str] = {_Arguments: "a tuple of globals", _Namespace: "a namespace"}
    if isinstance(value, _Global):
        return f"the global {str(value)!r}"
    return names.get(type(value), f"a value of type {type(value).__name__}")


_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)
_HASHABLE = (str, int, float, bool, type(None))


class _Machine:
    """Interprets the opcodes that pickle.dumps and torch.save write for a namespace of plain values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []  # where runs of items begin on the stack
        self.memo: dict[int, Any] = {}

    def run(self, stored: bytes) -> dict[str, Any]:
        try:
            for opcode, argument, _ in pickletools.genops(stored):
                self.step(opcode.name, argument)
            (result,) = self.stack
        except _DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{self.path} is not a pickle, or is damaged: {reason}") from None
        if not isinstance(result, _Namespace):
            raise self.refusal(f"{_named(result)} in place of a namespace")
        return dict(result)

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > LARGEST_WHOLE:
                raise self.refusal(f"a whole number of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise self.refusal(f"the pickle opcode {name}")

    def refusal(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} holds {what}; only a types.SimpleNamespace of plain values is read, and nothing is executed"
        )

    def plain(self, value: Any) -> Any:
        """The value, which must be a plain one."""
        if type(value) not in _PLAIN:
            raise self.refusal(f"{_named(value)} in place of a plain value")
        return value

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def name_global(self, name: str) -> None:
        if name not in _GLOBALS:
            raise self.refusal(f"the global {name!r}")
        self.stack.append(_Global(name))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str:
            raise self.refusal("a global that is not named by strings")
        self.name_global(f"{module}.{name}")

    def make(self, _: Any) -> None:
        """REDUCE and NEWOBJ: make an empty namespace; nothing else can be made."""
        arguments, made = self.stack.pop(), self.stack.pop()
        if _meaning(made) == "reconstructor" and type(arguments) is _Arguments and len(arguments) == 3:
            made, base, state = arguments
            arguments = () if _meaning(base) == "object" and state is None else (base, state)
        if _meaning(made) != "namespace" or arguments != ():
            raise self.refusal(f"a call of {_named(made)} with {len(arguments)} arguments")
        self.stack.append(_Namespace())

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Namespace) or type(state) is not dict or any(type(key) is not str for key in state):
            raise self.refusal("an object that is not a namespace")
        target.update(state)

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise self.refusal("an append to something that is not a list")
        self.stack[-1].extend(self.plain(item) for item in items)

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise self.refusal("items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _HASHABLE:
                raise self.refusal(f"{_named(key)} as the key of a dict")
            self.stack[-1][key] = self.plain(value)

    def make_dict(self, items: list[Any]) -> None:
        self.stack.append({})
        self.set_items(items)

    def make_list(self, items: list[Any]) -> None:
        self.stack.append([])
        self.append(items)

    def make_tuple(self, items: list[Any]) -> None:
        if any(isinstance(item, _Global) for item in items):
            self.stack.append(_Arguments(items))
        else:
            self.stack.append(tuple(self.plain(item) for item in items))

    def top(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def put(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]


_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": lambda machine, argument: machine.name_global(argument.replace(" ", ".", 1)),
    "MARK": _Machine.mark,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.make,
    "NEWOBJ": _Machine.make,
    "BUILD": _Machine.build,
    "APPEND": lambda machine, _: machine.append(machine.top(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "LIST": lambda machine, _: machine.make_list(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.top(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "DICT": lambda machine, _: machine.make_dict(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.make_tuple(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.make_tuple(machine.top(1)),
    "TUPLE2": lambda machine, _: machine.make_tuple(machine.top(2)),
    "TUPLE3": lambda machine, _: machine.make_tuple(machine.top(3)),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, slot: machine.stack.append(machine.memo[slot])),
}


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The mapped tensors of a file of torch.save or safetensors: only those that are used are read.

    Raises:
        CheckpointError: if the file is missing or damaged, holds anything but tensors, or was written by torch before
            1.6 and is too large to be read whole.
    """
    found = map_values(path)
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise CheckpointError(f"{path} contains more than named tensors; give a state_dict")
    return dict(found)


def map_values(path: Path) -> Any:
    """What a file of torch.save or safetensors holds: plain values and mapped tensors, however nested.

    Raises:
        CheckpointError: if the file is missing or damaged, holds anything else, or was written by torch before 1.6 and
            is too large to be read whole.
    """
    if files.exists(path) and not path.is_file():
        raise CheckpointError(f"no tensors can be read from {path}: it is not a regular file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, mmap=_can_be_mapped(path), weights_only=True, map_location="cpu")
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path} contains objects other than tensors, or is damaged; it is not read") from None
    except Exception as error:  # torch passes on every error of its unpickler
        words = "" if isinstance(error, KeyError) else str(error).strip()  # a KeyError's text is only the key
        said = getattr(error, "strerror", None) or words.partition("\n")[0].rstrip(".") or type(error).__name__
        raise CheckpointError(f"no tensors can be read from {path}: {said}") from None


def _can_be_mapped(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        return True
    if path.stat().st_size > LARGEST_UNMAPPED:
        raise CheckpointError(
            f"{path} has the format of torch before 1.6 and more than 1 GiB, so it cannot be read piece by piece; "
            "save it again with a newer torch"
        )
    return False
