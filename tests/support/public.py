"""The public API: everything that `interference.__all__` and `mixlora.__all__` lead to, by its name."""

import importlib
import inspect
import re
import textwrap
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("interference", "mixlora")
RETURNED = ("interference.run.scoped.Scoped", "interference.verification.result.Verification")
"""Classes that public functions give back, without a name in `__all__`."""


def own(found: Any) -> bool:
    """Whether something is defined in one of the packages."""
    return str(getattr(found, "__module__", "")).partition(".")[0] in PACKAGES


def members(name: str, kind: type) -> dict[str, Any]:
    """Public methods and properties of a class, with those of its parents of ours."""
    found: dict[str, Any] = {}
    for parent in reversed([one for one in kind.__mro__ if own(one)]):
        for key, value in vars(parent).items():
            inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            inner = property(value.func) if isinstance(value, cached_property) else inner
            if not key.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
                found[f"{name}.{key}"] = inner
    return found


def public() -> dict[str, Any]:
    """{name: module, function, class, method or property}."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            found[name] = value
            for key in value.__all__:
                add(f"{name}.{key}", getattr(value, key))
        elif inspect.isclass(value) and own(value):
            found[name] = value
            found.update(members(name, value))
        elif callable(value) and own(value):
            found[name] = value

    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            add(f"{package}.{name}", getattr(module, name))
    for name in RETURNED:
        home, _, kind = name.rpartition(".")
        add(name, getattr(importlib.import_module(home), kind))
    return found


def source(value: Any) -> Path:
    """The file that defines something."""
    return Path(inspect.getsourcefile(inspect.unwrap(value.fget if isinstance(value, property) else value)))


def sections(value: Any) -> dict[str, list[str]]:
    """{heading: the names of its entries} of a docstring as `?` shows it."""
    found = re.findall(r"^(\w+):\n((?:    .*\n|\n)+)", f"{inspect.getdoc(value)}\n", re.MULTILINE)
    return {
        heading: [line.partition(":")[0] for line in textwrap.dedent(text).splitlines() if line and line[0] != " "]
        for heading, text in found
    }
