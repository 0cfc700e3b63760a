"""Collectives on two processes against the same on one tensor."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from pixlex import distributed

SERVER = multiprocessing.get_context("forkserver")
ROWS = torch.arange(12.0).view(6, 2)
WORK = torch.arange(7)


def _one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = ROWS.chunk(2)[rank].clone().requires_grad_()
    gathered = distributed.all_processes().gather_rows(mine)
    # Each process weighs the rows of all in its own way: the gradient is the sum of both.
    (gathered * torch.arange(1.0, 7.0).view(6, 1) * (rank + 1)).sum().backward()
    torch.save(
        {
            "gathered": gathered.detach(),
            "gradient": mine.grad,
            "picked": distributed.pick_rows(mine.detach(), torch.tensor([5, 0, 0, 3])),
            "sum": distributed.all_sum(mine.detach()),
            "anywhere": [distributed.anywhere(rank == number) for number in (1, 2)],
            "in turn": distributed.in_turn([(one, WORK[:one]) for one in distributed.my_turns(range(7))]),
            "uneven": distributed.in_turn(["only"] if rank == 0 else []),
            "objects": distributed.gather_objects({"rank": rank}),
            "from first": distributed.from_first(lambda: f"of {rank}"),
            "alone": _alone(),
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


def _alone() -> tuple[list[int], bool]:
    """What one process does by itself waits for no other."""
    number = distributed.rank()
    with distributed.alone():
        return distributed.in_turn([number]), distributed.is_first()


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
        assert found["anywhere"] == [True, False]
        assert [one for one, _ in found["in turn"]] == list(range(7))
        assert all(torch.equal(rows, WORK[:one]) for one, rows in found["in turn"])
        assert found["uneven"] == ["only"]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["from first"] == "of 0"
        assert found["alone"] == ([rank], True)


def test_alone_they_do_nothing() -> None:
    rows = ROWS.clone().requires_grad_()
    assert distributed.all_processes() == distributed.ALONE
    assert distributed.ALONE.gather_rows(rows) is distributed.ALONE.all_mean(rows) is rows
    assert distributed.all_sum(rows) is rows
    assert torch.equal(distributed.pick_rows(ROWS, torch.tensor([4, 1])), ROWS[[4, 1]])
    assert distributed.anywhere(True)
    assert distributed.in_turn([4, 1]) == distributed.my_turns([4, 1]) == [4, 1]
    assert distributed.gather_objects(7) == [7]
    assert distributed.from_first(lambda: 7) == 7
    assert distributed.is_first()
