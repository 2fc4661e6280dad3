"""The outcomes of an attack: how often each occurred, and a sentence per fault."""

from dataclasses import dataclass, field

FAULTS = ("wrong", "tracebacks", "lost")
"""Outcomes that no attack may have."""


@dataclass
class Counts:
    """Outcomes of one attack.

    Attributes:
        tried: damages, kills, sizes or calls.
        expected: they ended as if nothing had been done.
        refused: they ended in one sentence.
        wrong: other numbers without a word.
        tracebacks: neither numbers nor one sentence.
        lost: files of the user's, or finished results, that were changed or deleted.
        told: the faults, for a reader.
    """

    tried: int = 0
    expected: int = 0
    refused: int = 0
    wrong: int = 0
    tracebacks: int = 0
    lost: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, outcome: str, place: str = "") -> None:
        """Count an outcome, the name of one of the fields; `place` says where, and is kept of a fault."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome in FAULTS:
            self.told.append(f"{outcome}: {place}")

    @property
    def faults(self) -> int:
        """Outcomes that may not be."""
        return sum(getattr(self, name) for name in FAULTS)

    def line(self, name: str) -> str:
        """All counts in one line."""
        return (
            f"{name}: {self.tried} tried, {self.expected} ended as expected, {self.refused} refused in a sentence, "
            f"{self.wrong} silent wrong numbers, {self.tracebacks} tracebacks, {self.lost} lost files"
        )
