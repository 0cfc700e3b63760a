"""Causal language models from a directory or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from pixlex.distributed import pick_device
from pixlex.eval.llm.local import LocalClient
from pixlex.nn.causal import load_causal_parts


def load_local(
    name: str,
    *,
    chat: bool = False,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    batch_size: int = 16,
    context_size: int | None = None,
) -> LocalClient:
    """Load a causal language model; weights are read from safetensors only, and none of its code is run.

    Args:
        name: a directory, or a name on the hub.
        chat: as for `LocalClient`.
        device: auto, cpu, cuda or cuda:N; `auto` takes a GPU where there is one.
        precision: of weights and computation; `auto` takes bf16 on GPUs that compute it, fp32 elsewhere.
        batch_size: as for `LocalClient`.
        context_size: as for `LocalClient`.

    Raises:
        ValueError: nothing to load under that name, not a causal language model, or an incomplete checkpoint.
    """
    place = pick_device(device)
    if precision == "auto":
        precision = "bf16" if place.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, tokenizer = load_causal_parts(name, dtype)
    return LocalClient(
        model.to(place),
        tokenizer,
        name=Path(name).name,
        chat=chat,
        batch_size=batch_size,
        context_size=context_size,
    )
