"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from pixlex.files import Damaged, check_zip, write_atomically
from pixlex.messages import printable

_NAME = re.compile(r"step-(\d+)\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` finished steps and drop all but the `keep` newest checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # torch alone would not say what the disk refused
            torch.save({"step": step, **state}, file)

    write_atomically(path, write)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that can be read, None where there is none.

    torch writes checksums into its archives and does not look at them: here they are compared first.

    Warns:
        UserWarning: naming those that were passed over, and the one that is gone on from.

    Raises:
        ValueError: when there are checkpoints and none can be read.
    """
    found = checkpoints(folder)
    reasons: list[str] = []
    for path in reversed(found):
        try:
            check_zip(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or type(state.get("step")) is not int:
                raise Damaged("it is no checkpoint of a run")
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reasons.append(f"{path.name}: {printable(str(error).removeprefix(f'{path} is '))[:200]}")
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}; going on from {path.name}", stacklevel=2)
        return state
    if found:
        raise ValueError(f"no checkpoint in {folder} can be read: {'; '.join(reasons)}")
    return None
