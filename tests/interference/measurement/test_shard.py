"""Shards: who measures which part, and what a process on its own does."""

import pytest
import torch

from interference.measurement.shard import ALL, Shard


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [0, 1, 4, 7, 100])
def test_shards_divide_all(count, rows):
    shards = [Shard(rank, count) for rank in range(count)]
    assert [sum(shard.owns(part) for shard in shards) for part in range(10)] == [1] * 10
    shares = [list(range(rows))[shard.share(rows)] for shard in shards]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_on_its_own_needs_no_others(monkeypatch):
    """As one that measures while others train."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    values = torch.ones(2)
    assert ALL.first and ALL.total(values) is values and ALL.gathered("mine") == ["mine"]
    assert ALL.first_then_others(lambda: 3) == 3
    with ALL.together():
        pass


def test_a_shard_is_that_of_the_environment(monkeypatch):
    met = []
    monkeypatch.setattr("mixlora.common.processes.meet", lambda device, patience: met.append(device))
    assert Shard.of_processes("cpu") == ALL and met == []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert Shard.of_processes("cpu") == Shard(2, 3) and met == ["cpu"]
    assert not Shard(2, 3).first
