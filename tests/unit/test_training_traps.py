"""Traps of training scripts that belong to no one part."""

from __future__ import annotations

import torch
import torch.distributed as dist

from kiln.engine.strategy import DataParallel
from kiln.models.create import create_model


def test_trap_drop_is_the_share_that_is_dropped():
    """Read as a keep probability, 0.1 would leave a tenth."""
    dropout = create_model("kiln/small_cnn", num_classes=3, drop=0.1).model.get_submodule("drop").train()
    torch.manual_seed(0)
    passed = dropout(torch.ones(100_000))
    assert abs((passed == 0).float().mean().item() - 0.1) < 0.005
    assert passed.max().item() == torch.tensor(1 / 0.9).item()  # scaled up, so that the mean stays


def test_trap_the_device_is_chosen_by_the_local_rank(monkeypatch):
    """Process 5 of 8 is the second of its machine, which has four devices."""
    chosen = []
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "new_group", lambda backend: backend)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    strategy = DataParallel(torch.device("cuda"))
    assert chosen == [1]
    assert (strategy.rank, strategy.world_size) == (5, 8)
