"""Models on accelerators, one or two: simulated ones, on which tensors of two devices do not meet."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

NAMES = [
    *("lora", "eager attention", "dora", "tied embeddings", "opt", "gpt2", "llava", "llava's image encoder"),
    *("weight space", "sketch", "units of batches"),
    *("mixlora", "mixlora, official", "mixlora, random", "mixlora, llava", "routers"),
    *("training", "training, official", "training by task"),
    *("training by task, its tasks on the CPU", "training on packed rows"),
    *("generation", "generation by beams", "generation by token", "generation of llava"),
    *("factors", "rank directions"),
]


@pytest.fixture(scope="module")
def found():
    """What is found in a process of its own, of which the simulated devices are a part for good."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.accelerated"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["one", "two"])
@pytest.mark.parametrize("case", NAMES)
def test_it_is_what_the_cpu_gives(found, case, place):
    given = found["cases"][case][place]
    assert isinstance(given, dict), given
    assert given and max(given.values()) < 1e-4, given


@pytest.mark.slow
def test_every_case_is_looked_at(found):
    assert list(found["cases"]) == NAMES


@pytest.mark.slow
def test_tensors_on_two_devices_are_refused(found):
    places = [["cpu", "far:0"]] * 3 + [["far:0", "lazy:0"]] * 4  # an index, the last, may be on the CPU
    expected = [f"expected all tensors on the same device, but they are on {both}" for both in places]
    assert [words.partition(": ")[2] for words in found["refused"]] == expected
