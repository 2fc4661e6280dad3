"""Finished branches: their losses, trained now, or taken from where an interrupted call of the same job left them.

Not here: the steps (`branches`), and the directory in which finished branches wait (`measurement.resume`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from interference.measurement.spool import DiskSpool
from mixlora.checkpoints.digests import digest
from mixlora.data.checking import fingerprint

if TYPE_CHECKING:
    from mixlora.data.collation import Encoded

_KEY = "branch"


@dataclass(frozen=True)
class Finished:
    """Losses that were read in a job, by number.

    Attributes:
        spool: where they wait.
        identity: a digest of what all of them depend on.
    """

    spool: DiskSpool
    identity: str

    def has(self, number: int, *content: Any) -> bool:
        """Whether the losses with this number are there, and were read from this content."""
        return (self.spool.metadata(number) or {}).get(_KEY) == self._digest(number, content)

    def losses(self, number: int, work: Callable[[], Tensor], *content: Any) -> NDArray[np.float64]:
        """The losses with this number; `work` reads them if they are not there."""
        if not self.has(number, *content):
            self.spool.write(number, {"losses": work()}, {_KEY: self._digest(number, content)})
        found: NDArray[np.float64] = self.spool.rows(number)["losses"].numpy()
        return found

    def _digest(self, number: int, content: Sequence[Any]) -> str:
        return digest([repr((self.identity, number, content)).encode()])


def content(examples: Iterable["Encoded"]) -> str:
    """A digest of examples' tokens and pictures, 32 hexadecimal digits."""
    kept = list(examples)
    tokens = repr([(one.input_ids, one.labels) for one in kept])
    return digest([tokens.encode(), fingerprint(one.example for one in kept).encode()])
