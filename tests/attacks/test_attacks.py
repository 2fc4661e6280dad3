"""A moment of each attack: none finds a fault, and each would see one."""

import random

import pytest

from interference.run import record
from tests.attacks import changes, flips, full, signals, together
from tests.attacks.counts import Counts

FEW = {"lora_alpha", "a picture", "batch size"}


def moments(folder):
    """{attack: what a moment of it finds}."""
    drawn = random.Random(0)
    kinds = {name: kind for name, kind in changes.KINDS.items() if name in FEW}
    return {
        "flips": lambda: flips.attack(folder, drawn, 60, ("compute",)),
        "full": lambda: full.attack(folder, drawn, 3),
        "together": lambda: together.attack(folder, drawn, 1, 3),
        "signals": lambda: signals.attack(folder, drawn, 3, ("compute",)),
        "changes": lambda: changes.attack(folder, drawn, 1, kinds, 0.3),
    }


@pytest.mark.parametrize("attack", ["flips", "full", "together", "signals", "changes"])
def test_it_finds_no_fault(tmp_path, attack):
    found = moments(tmp_path / "attack")[attack]()
    assert found.faults == 0, found.told
    assert found.tried >= 2 and found.expected + found.refused >= 2


def test_numbers_that_nobody_checks_are_found_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "check_sums", lambda *_: None)
    found = flips.attack(tmp_path / "attack", random.Random(0), 100, ("compute",))
    assert found.wrong and found.told[0].startswith("wrong: ") and " bit " in found.told[0]


def test_a_line_says_all_counts():
    found = Counts()
    for outcome in ("tried", "tried", "refused", "lost"):
        found.add(outcome, "there")
    assert (found.faults, found.told) == (1, ["lost: there"])
    assert found.line("full") == (
        "full: 2 tried, 0 ended as expected, 1 refused in a sentence, 0 silent wrong numbers, 0 tracebacks, "
        "1 lost files"
    )
