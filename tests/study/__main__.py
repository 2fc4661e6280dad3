"""python -m tests.study SUITE... [--out DIR] [--set KEY=VALUE] [--until STAGE] [--advise STEP] [--publish DIR].

Trains a suite's probed adapter with snapshots, and tests by training what each of them predicted. `--advise` then tries
what the run of a checkpoint advises. Everything is kept in OUT/SUITE, and the same command continues there. `--publish`
writes tables, a figure and a page to DIR/SUITE.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml

import interference
from interference.errors import InterferenceError
from mixlora.common import terminal
from tests.study import published
from tests.study.ideas import IDEAS
from tests.study.suites import SUITES, run_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.study", description=__doc__)
    parser.add_argument("suite", nargs="+", choices=sorted(SUITES), metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where everything is kept")
    parser.add_argument("--set", action="append", default=[], help="over the validation's configuration")
    parser.add_argument("--until", choices=("write", "train", "validate"), default="validate", help="the last stage")
    parser.add_argument("--advise", type=int, metavar="STEP", help="try what the run of this checkpoint advises")
    parser.add_argument("--publish", type=Path, help="a folder for tables, figure and page of each suite")
    given = parser.parse_args()
    for name in given.suite:
        folder = (given.out / name).absolute()
        try:
            if code := study(name, folder, given.set, given.until):
                return code
            if given.advise is not None:
                tried(name, folder, given.advise)
        except InterferenceError as error:
            print(error, file=sys.stderr)
            return 2
        if given.publish is not None and given.until == "validate":
            published.write(folder / "run-validation", given.publish / name)
    return 0


def study(name: str, folder: Path, settings: list[str], until: str) -> int:
    """Write, train, validate; the exit code of what failed, else 0.

    Args:
        name: of the suite.
        folder: where it is kept.
        settings: "key.subkey=value", over the validation's configuration.
        until: the last stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, validate = map(_yaml, (folder / "train.yaml", folder / "validate.yaml"), SUITES[name].configurations(folder))
    if until == "write":
        return 0
    code = subprocess.run([sys.executable, "-m", "mixlora.cli", "train", train], check=False).returncode
    if code or until == "train":
        return code
    with terminal.progress(terminal.console(stderr=True)) as report:
        print(interference.validate(validate, settings=settings, predictors=IDEAS, progress=report))
    return 0


def tried(name: str, folder: Path, step: int) -> None:
    """Try what the run of a checkpoint advises.

    Args:
        name: of the suite.
        folder: where it is kept.
        step: of the checkpoint.
    """
    trial = _yaml(folder / "trial.yaml", SUITES[name].trial(folder, step))
    with terminal.progress(terminal.console(stderr=True)) as report:
        print(interference.advise(run_of(folder, step), train=trial, progress=report).trial)


def _yaml(place: Path, values: dict[str, Any]) -> str:
    place.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(place)


if __name__ == "__main__":
    sys.exit(main())
