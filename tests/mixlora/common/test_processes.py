"""Processes that are to meet, and GPUs of which there are too few."""

import pytest
import torch

from mixlora.common import processes
from mixlora.common.errors import ConfigError, EndedError


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


LOST = [
    RuntimeError(
        "[/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nframe #0"
    ),
    torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1.\nmore"),
    torch.distributed.DistStoreError("wait timeout after 10000ms, keys: /x"),
]


@pytest.mark.parametrize("error", LOST)
def test_a_lost_process_is_told_with_the_first_line_of_torchs_words(monkeypatch, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EndedError) as told, processes.noticing():
        raise error
    first = str(error).split("\n")[0]
    assert str(told.value) == (
        f"another of the 2 processes ended or cannot be reached ({first}); the same command continues"
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The expected shape of the peer's tensor is [2]"),
        RuntimeError("Timed out decoding a.png"),
        RuntimeError("Socket of a lamp is no label"),
        ValueError("gloo"),
    ],
)
def test_other_errors_are_no_lost_process(monkeypatch, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(type(error), match=str(error)[:9]), processes.noticing():
        raise error
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match="Connection closed"), processes.noticing():
        raise LOST[0]
