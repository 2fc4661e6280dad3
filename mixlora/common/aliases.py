"""Aliases: modules that live in a wing of a package and are imported under their public name."""

from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Aliases(MetaPathFinder, Loader):
    """Makes `import package.name` load the module from its wing; both names are the same module object.

    Args:
        package: name of the package.
        homes: {public name: where the module lives below the package, as "wing.module"}.
    """

    def __init__(self, package: str, homes: Mapping[str, str]) -> None:
        self._homes = {f"{package}.{name}": f"{package}.{home}" for name, home in homes.items()}

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """The specification of a public name; None for any other."""
        return ModuleSpec(name, self) if name in self._homes else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module from its wing."""
        module = import_module(self._homes[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own specification: its import has executed it already."""
        module.__spec__ = None if module.__spec__ is None else module.__spec__.loader_state
