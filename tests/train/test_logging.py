"""The log of a run: what of the time was waited, how much memory was held."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tests.train.running import settings

from pixlex.train.logging import METRICS, RunLog, peak_memory, read_metrics


def test_waiting_is_a_fraction_of_the_time(tmp_path: Path) -> None:
    """Since the last line; the time of an evaluation does not count."""
    log = RunLog(tmp_path, 0, settings(batch_size=6), torch.device("cpu"), None)
    for step in (1, 2):
        time.sleep(0.1)
        log.waited += 0.05
        log.steps += 1
        if step == 1:
            log.write_step(1, "train", {"total": 0.5})
            time.sleep(0.3)
        log.write(step, {"eval/psnr": 20.0 + step})
    log.write_step(3, "train", {"total": 0.25})
    log.close()
    first, *evaluations, last = read_metrics(tmp_path / METRICS)
    assert first["train/total"] == 0.5
    assert 0.2 < first["data/wait"] < 0.6
    assert 12 < first["speed/images"] < 60
    assert 50 < first["memory/peak"] == pytest.approx(peak_memory(torch.device("cpu")) / 2**20, rel=0.2)
    assert [line["eval/psnr"] for line in evaluations] == [21.0, 22.0]
    assert last["data/wait"] == last["speed/images"] == 0
    assert list((tmp_path / "tensorboard").glob("events*"))
