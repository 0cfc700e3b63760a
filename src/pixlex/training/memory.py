"""The least memory that a run needs, from its configuration: no network is built to find out that none fits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from pixlex.config.run import Run
from pixlex.distributed import num_announced, num_on_this_machine, pick_device

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Needed:
    """The least that a run needs in a process."""

    parameters: int  # in transformer layers and learned codebooks; embeddings and heads come on top
    state: int  # bytes for weights, gradients and moments
    activations: int  # bytes for what image encoders and decoders keep for their gradients
    images: int  # in a step

    @property
    def memory(self) -> int:
        """Bytes: weights and moments are there when activations are, gradients are not."""
        return max(self.state, self.state * 3 // 4 + self.activations)

    def __str__(self) -> str:
        return f"at least {_count(self.parameters)} parameters, {_size(self.memory)} of memory"


def needed(run: Run) -> Needed:
    """Return the least that a run needs in a process, in closed form.

    A layer of width w has 4 w^2 parameters for attention, as many for cross-attention, and 2 r w^2 for the rest.
    For its gradients it keeps 6 + 2 r vectors of every patch; one, where it is recomputed or compiled.
    """
    train, parameters, kept = run.train, 0, 0.0
    visible = 1 - getattr(run.objective, "mask_ratio", 0.0) if hasattr(run, "objective") else 1.0
    for stack, width, mlp_ratio, fraction in _stacks(run.model, visible):
        attention = 4 if hasattr(stack, "width") else 8
        parameters += stack.depth * width * (width * attention + 2 * int(mlp_ratio * width))
        vectors = 1.0 if train.checkpoint_activations or train.compile else 6 + 2 * mlp_ratio
        kept += stack.depth * width * vectors * int(fraction * run.model.grid**2)
    codebooks = sum(_codebooks(run.model))
    images = train.batch_size // num_announced() // getattr(run.data, "texts_per_image", 1)
    # Of four bytes each: weights, gradients and two moments; codebooks that are moving averages have no moments.
    state = (16 * parameters + 4 * codebooks) // (num_announced() if train.shard_parameters else 1)
    number_size = 4 if train.precision == "fp32" else 2
    return Needed(parameters + codebooks, state, int(kept) * images * number_size, images)


def check_memory(run: Run) -> None:
    """Refuse a run that cannot fit; what is left out of the sum is for the device to say.

    Raises:
        ValueError: the least that the run needs is more than there is; with the numbers.
    """
    device, least = pick_device(run.train.device), needed(run)
    processes = num_on_this_machine() if device.type == "cpu" else 1
    available = memory_of(device)
    if available is not None and least.memory * processes > available:
        raise ValueError(
            f"this run cannot fit: its {_count(least.parameters)} parameters need at least "
            f"{_size(least.state * processes)} with gradients and moments, activations of "
            f"{least.images * processes:,} images {_size(least.activations * processes)}, and "
            f"{device} has {_size(available)}: expected a smaller train.batch_size, "
            "train.checkpoint_activations=true or a smaller model"
        )


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of a GPU, or those that this machine gives its processes, swap included; None: unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limits = [int(text) for text in map(_text, _CGROUPS) if text.isdecimal()]
    swap = re.search(r"^SwapTotal:\s*(\d+)", _text("/proc/meminfo"), re.MULTILINE)
    return min([memory, *limits]) + (int(swap[1]) * 1024 if swap else 0)


def _stacks(model: Any, visible: float) -> Iterator[tuple[Any, int, float, float]]:
    """Yield each stack of layers, its width and mlp_ratio, and the fraction of the patches that it computes."""
    model = getattr(model, "body", model)
    fractions = {"encoder": 1 - getattr(model, "mask_ratio", 0.0), "decoder": 1.0, "image": visible}
    for one in fields(model):
        stack = getattr(model, one.name)
        if hasattr(stack, "depth") and getattr(stack, "block", "") != "convolutional":
            # The fusion encoder is as wide as the text encoder.
            sizes = stack if hasattr(stack, "width") else model.text
            yield stack, sizes.width, sizes.mlp_ratio, fractions.get(one.name, 0.0)


def _codebooks(model: Any) -> Iterator[int]:
    if hasattr(model, "num_codewords"):
        yield model.num_codewords * (model.dim if hasattr(model, "dim") else model.codebook_dim)
    for one in fields(model):
        if is_dataclass(getattr(model, one.name)):
            yield from _codebooks(getattr(model, one.name))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _count(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e5 else f"{count:,}"


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
