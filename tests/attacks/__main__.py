"""python -m tests.attacks [flips] [full] [together] [signals] [changes] [--seed N] [--times K].

If none is named, all of them. Prints a line of counts for each, the faults below it, and exits with 1 if there are any.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers.utils import logging

from tests.attacks import changes, flips, full, signals, together

ATTACKS = {"flips": flips, "full": full, "together": together, "signals": signals, "changes": changes}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("attack", nargs="*", help=f"any of {', '.join(ATTACKS)}")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--times", type=float, default=1, help="how many times as much as usual")
    given = parser.parse_args()
    if unknown := set(given.attack) - set(ATTACKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    faults = 0
    for name in given.attack or ATTACKS:
        begun, attack = time.monotonic(), ATTACKS[name]
        with tempfile.TemporaryDirectory(prefix=f"attack-{name}-") as folder:
            found = attack.attack(Path(folder), random.Random(given.seed), max(1, round(attack.COUNT * given.times)))
        print(f"{found.line(name)} (seed {given.seed}, {time.monotonic() - begun:.0f} s)", flush=True)
        for fault in found.told:
            print(f"  {fault}", flush=True)
        faults += found.faults
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
