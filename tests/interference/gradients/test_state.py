"""The state that a measurement changes: generators of random numbers, and an accelerator that nobody has used."""

import random

import numpy as np
import torch

import interference
from interference.gradients.state import own_randomness
from tests.support.models import batch, llama, lora

SEEDED = torch.Generator().manual_seed(5).get_state()


class Gpus:
    """What torch.cuda would be asked on a machine with two GPUs; the states of their generators are `states`."""

    def __init__(self, monkeypatch, used):
        self.states = [torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)]
        self.asked = []
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", self.seed)
        monkeypatch.setattr(torch.cuda, "get_rng_state", self.state)
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.put)

    def seed(self, seed):
        self.asked.append("seed")
        self.states = [torch.tensor([seed], dtype=torch.uint8)] * 2

    def state(self, device="cuda"):
        self.asked.append("state")
        return self.states[torch.device(device).index if isinstance(device, str) else int(device)]

    def put(self, state, device="cuda"):
        self.states[torch.device(device).index if isinstance(device, str) else int(device)] = state


def test_generators_start_from_the_seed_and_are_restored():
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with own_randomness(5):
        assert torch.equal(torch.get_rng_state(), SEEDED)
        drawn = random.random(), np.random.rand(), float(torch.rand(1))
    with own_randomness(5):
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == drawn
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_gpus_in_use_are_seeded_and_restored(monkeypatch):
    gpus = Gpus(monkeypatch, used=True)
    with own_randomness(5):
        assert [int(state) for state in gpus.states] == [5, 5] and torch.equal(torch.get_rng_state(), SEEDED)
    assert [int(state) for state in gpus.states] == [1, 2]


def test_a_gpu_that_nobody_has_used_stays_unused(monkeypatch):
    gpus, before = Gpus(monkeypatch, used=False), torch.get_rng_state()
    with own_randomness(5):
        assert torch.equal(torch.get_rng_state(), SEEDED)
    assert gpus.asked == [] and torch.equal(torch.get_rng_state(), before)


def test_measuring_a_model_on_the_cpu_asks_nothing_of_a_gpu(monkeypatch):
    model, gpus = lora(llama()), Gpus(monkeypatch, used=False)
    interference.compute(model, {task: [batch([7, 9], [2, 3])] for task in "ab"})
    assert gpus.asked == []
