"""Collectives on two processes against the same on one tensor."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from pixlex import distributed

SERVER = multiprocessing.get_context("forkserver")
ROWS = torch.arange(12.0).view(6, 2)


def _one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = ROWS.chunk(2)[rank].clone().requires_grad_()
    gathered = distributed.gather_rows(mine)
    # Each process weighs the rows of all in its own way: the gradient is the sum of both.
    (gathered * torch.arange(1.0, 7.0).view(6, 1) * (rank + 1)).sum().backward()
    torch.save(
        {
            "gathered": gathered.detach(),
            "gradient": mine.grad,
            "picked": distributed.pick_rows(mine.detach(), torch.tensor([5, 0, 0, 3])),
            "sum": distributed.all_sum(mine.detach()),
            "max": distributed.all_max(10 * rank, mine.device),
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Rows in order of rank, gradients from both sides, rows by number, sums and the largest."""
    children = [SERVER.Process(target=_one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    gradient = 3 * torch.arange(1.0, 7.0).view(6, 1).expand(6, 2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["gathered"], ROWS)
        assert torch.equal(found["gradient"], gradient.chunk(2)[rank])
        assert torch.equal(found["picked"], ROWS[[5, 0, 0, 3]])
        assert torch.equal(found["sum"], ROWS[:3] + ROWS[3:])
        assert found["max"] == 10


def test_alone_they_do_nothing() -> None:
    rows = ROWS.clone().requires_grad_()
    assert distributed.gather_rows(rows) is rows
    assert distributed.all_sum(rows) is rows
    assert torch.equal(distributed.pick_rows(ROWS, torch.tensor([4, 1])), ROWS[[4, 1]])
    assert distributed.all_max(3, ROWS.device) == 3
