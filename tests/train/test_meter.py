"""The meter counts what a step computes, and what of the time it waits."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pixlex.nn.transformer import Attention
from pixlex.train import meter as module
from pixlex.train.meter import Meter, peak_memory, product_rate

CPU = torch.device("cpu")


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """A meter of a device that does a trillion operations a second."""
    monkeypatch.setattr(module, "product_rate", lambda device, precision: 1e12)
    return Meter(CPU, "fp32", 6)


def _operations(meter: Meter, phase: str = "train") -> float:
    """Return what the meter counted in a step of a phase."""
    return float(meter._operations[phase])


def test_operations_of_a_linear_map(meter: Meter) -> None:
    """2 B I O forward, as many for the gradient of the weights, and none for inputs that need none."""
    linear = nn.Linear(7, 5)
    with meter.step("train"):
        linear(torch.rand(3, 7)).sum().backward()
    assert _operations(meter) == 2 * (2 * 3 * 7 * 5)


def test_operations_of_attention_are_counted_on_the_cpu(meter: Meter) -> None:
    """Four linear maps of D x D and two products of N x N x D, forward."""
    attention = Attention(16, 2)
    with meter.step("train"), torch.no_grad():
        attention(torch.rand(3, 10, 16))
    assert _operations(meter) == 2 * 3 * 10 * 4 * 16 * 16 + 2 * 3 * 2 * 10 * 10 * 16


def test_recomputation_counts(meter: Meter) -> None:
    linear, inputs = nn.Linear(7, 5), torch.rand(3, 7, requires_grad=True)
    with meter.step("train"), set_checkpoint_early_stop(False):
        checkpoint(linear, inputs, use_reentrant=False).sum().backward()
    assert _operations(meter) == 4 * (2 * 3 * 7 * 5)  # forward, again, and both gradients


def test_counting_keeps_no_recomputed_layer(meter: Meter) -> None:
    """The step that is counted must fit where the others do."""
    inside: list[StorageWeakRef] = []
    most = 0

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.contract, self.last = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal most
            hidden = self.expand(x)
            inside.append(StorageWeakRef(hidden.untyped_storage()))
            most = max(most, sum(not one.expired() for one in inside))
            output: torch.Tensor = self.last(self.contract(hidden))
            return output

    x = torch.rand(3, 8, requires_grad=True)
    with meter.step("train"):
        for layer in [Layer() for _ in range(8)]:
            x = checkpoint(layer, x, use_reentrant=False)
        x.sum().backward()
    assert len(inside) == 16  # forward, and again
    assert most <= 3


def test_each_phase_is_counted_once(meter: Meter) -> None:
    linear = nn.Linear(4, 4, bias=False)
    for phase, rows in (("one", 1), ("one", 9), ("two", 3), ("two", 3)):
        with meter.step(phase), torch.no_grad():
            linear(torch.rand(rows, 4))
    assert (_operations(meter, "one"), _operations(meter, "two")) == (32, 96)
    before = time.perf_counter()
    line = meter.line()
    seconds = time.perf_counter() - before + 1e-3
    assert line["speed/operations"] * 1e12 * seconds < 2 * 32 + 2 * 96
    assert line["speed/utilization"] == pytest.approx(line["speed/operations"])
    assert line["speed/operations"] * 1e12 / line["speed/images"] == pytest.approx(256 / 24)
    assert meter.line()["speed/images"] == 0  # begun anew


def test_waiting_is_a_share_of_the_time(meter: Meter) -> None:
    with meter.waiting():
        time.sleep(0.05)
    time.sleep(0.05)
    assert 0.2 < meter.line()["data/wait"] < 0.6
    with meter.waiting():
        time.sleep(0.05)
    meter.restart()
    time.sleep(0.01)
    assert meter.line()["data/wait"] == 0


def test_a_cpu_is_asked_again_and_its_best_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it answers at once."""
    answers = iter([2e12, 8e12, 1e12, 9e12])
    monkeypatch.setattr(module, "product_rate", lambda device, precision: next(answers))
    meter = Meter(CPU, "fp32", 6)
    rates = [meter.rate]
    for _ in range(2):
        meter.line()
        rates.append(meter.rate)
    assert rates == [2e12, 8e12, 8e12]
    monkeypatch.setattr(module, "_ASKING", 0.0)
    for _ in range(2):  # this answer was slow, and no other is asked for
        meter.line()
    assert meter.rate == 9e12


def test_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow product is asked for once; memory is that of a process with torch in it."""
    monkeypatch.setattr(module, "_SIDE", {"cpu": 64})
    assert product_rate(CPU, "fp32") > 1e6
    calls = []
    original = torch.mm

    def slow(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        time.sleep(0.02)
        return original(*arguments)

    monkeypatch.setattr(module, "_SECONDS", 0.01)
    monkeypatch.setattr(torch, "mm", slow)
    assert product_rate(CPU, "fp32") < 2 * 64**3 / 0.02
    assert len(calls) == 1
    assert 50 * 2**20 < peak_memory(CPU) < 2**40
