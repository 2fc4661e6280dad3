"""Processes that are to meet, and GPUs of which there are too few."""

import pytest
import torch

from mixlora.common import processes
from mixlora.common.errors import ConfigError


@pytest.mark.parametrize(("gpus", "words"), [(1, "1 GPU;"), (3, "3 GPUs;")])
def test_more_processes_than_gpus_are_refused_in_one_sentence(monkeypatch, gpus, words):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(processes, "PartialState", lambda **_: pytest.fail("they meet"))
    with pytest.raises(ConfigError) as refused:
        processes.meet("cuda")
    assert str(refused.value) == (
        f"4 processes were started on this machine, where torch finds {words} start one process a GPU, or give "
        "device: cpu"
    )
    assert refused.value.shared and refused.value.exit_code == 2


@pytest.mark.parametrize(("device", "gpus", "met"), [("cpu", 0, False), ("cuda", 4, False), ("cuda", 1, True)])
def test_others_meet(monkeypatch, device, gpus, met):
    """On the CPU, with a GPU each, and where the caller has brought them together in a way that shares one."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: met)
    given = []

    class State:
        is_main_process = True

        def __init__(self, **options):
            given.append(options)

    monkeypatch.setattr(processes, "PartialState", State)
    assert processes.meet(device) is True and given == [{"cpu": device == "cpu"}]
