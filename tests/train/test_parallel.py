"""Devices and precision by name."""

from __future__ import annotations

import pytest
import torch

from pixlex.distributed import pick_device
from pixlex.train.parallel import mixed_precision, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("units", "expected"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16"),
                                                 ({"amx_bf16": True}, "bf16")])  # fmt: skip
def test_auto_is_bf16_where_the_processor_has_units_for_it(
    units: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert pick_precision("auto", CPU) == expected
    assert [pick_precision(name, CPU) for name in ("bf16", "fp32")] == ["bf16", "fp32"]
    with mixed_precision(CPU, "auto"):
        assert torch.is_autocast_enabled("cpu") == (expected == "bf16")


def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bfloat16, of older GPUs, does not count."""
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert pick_precision("auto", torch.device("cuda")) == ("bf16" if has else "fp32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_that_are_not_there() -> None:
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="device 'cuda' is not there: torch sees 0 GPUs"):
        pick_device("cuda")
    with pytest.raises(ValueError, match=r"device must be auto, cpu, cuda or cuda:N, got 'tpu\?'"):
        pick_device("tpu?")


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("auto") == torch.device("cuda", 0)
    for rank, expected in (("3", 3), ("5", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device("auto") == torch.device("cuda", expected)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("RANK", "6")  # a launcher that numbers all processes alone
    assert pick_device("auto") == torch.device("cuda", 2)
    assert pick_device("cuda:2") == torch.device("cuda", 2)
    with pytest.raises(ValueError, match="device 'cuda:4' is not there: torch sees 4 GPUs"):
        pick_device("cuda:4")
