"""Checkpoints are whole or not there, and the last good one survives."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from pixlex.training.checkpoint import checkpoints, load_newest, save_checkpoint


def test_newest_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    """Only `keep` remain."""
    assert load_newest(tmp_path / "absent") is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"weights": torch.full((2,), float(step))}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002.pt", "step-00000003.pt"]
    state = load_newest(tmp_path)
    assert state["step"] == 3


@pytest.mark.parametrize("damage", ["cut off", "one bit of a weight"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    """A damaged file is passed over with a word; with nothing readable the error names every file."""
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(1000)}, keep=3)
    newest = save_checkpoint(tmp_path, 2, {"weights": torch.ones(1000)}, keep=3)
    content = bytearray(newest.read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 402] ^= 64
    newest.write_bytes(content if damage == "one bit of a weight" else content[:500])
    with pytest.warns(UserWarning, match=r"step-00000002.pt: .*; going on from step-00000001.pt"):
        state = load_newest(tmp_path)
    assert state["step"] == 1
    checkpoints(tmp_path)[0].write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"step-00000002.pt.*step-00000001.pt"):
        load_newest(tmp_path)


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails, the old checkpoint is still there and nothing half-written is left."""
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(3)}, keep=1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"weights": torch.ones(3)}, keep=1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    state = load_newest(tmp_path)
    assert state["step"] == 1


def test_loading_runs_no_code(tmp_path: Path) -> None:
    """A checkpoint that would run a command when unpickled is refused."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"step": 1, "x": Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises(ValueError, match="can be read"):
        load_newest(tmp_path)
    assert not (tmp_path / "owned").exists()
