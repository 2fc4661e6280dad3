"""Two processes under DistributedDataParallel give the gradients of one at the same global batch."""

import os

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from tests.support.adapted import adapt, batch, gradients, llama, loss_of

PRESETS = ["paper", "official"]


def inputs(rank=None):
    made = batch([9, 7, 12, 10], [3, 3, 3, 3])  # as many supervised tokens in either half
    return made if rank is None else {key: value[2 * rank : 2 * rank + 2] for key, value in made.items()}


def work(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for preset in PRESETS:
        model = adapt(llama(), preset=preset)
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second forward raises where a parameter was left out of the first backward
            model.zero_grad()
            loss_of(parallel, inputs(rank)).backward()
        torch.save(gradients(model), f"{folder}/{preset}{rank}.pt")
    distributed.barrier()
    os._exit(0)  # taking a gloo group down can wait forever for one that has gone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("distributed")
    multiprocessing.set_forkserver_preload(["tests.support.adapted"])  # imported once for both
    multiprocessing.start_processes(work, (str(made),), nprocs=2, start_method="forkserver")
    return made


@pytest.mark.parametrize("preset", PRESETS)
def test_two_processes_give_the_gradients_of_one(folder, preset):
    model = adapt(llama(), preset=preset)
    loss_of(model, inputs()).backward()
    expected = gradients(model)
    assert len(expected) == 21 * (5 if preset == "paper" else 2)
    for rank in (0, 1):
        found = torch.load(folder / f"{preset}{rank}.pt")
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * expected[name].abs().max().item())
