"""How transformer layers compute in training: compiled, or in less memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pixlex.nn.bert import BertLayer
from pixlex.nn.transformer import Block, OfficialBlock

LAYERS = (Block, OfficialBlock, BertLayer, GradientCheckpointingLayer)

# Forms of one layer that are compiled before torch gives up and computes it uncompiled: cross-attention or none,
# a padding or none, gradients or none (phases, frozen parts), number of sequences and words fixed or any.
_FORMS = 64
# Dropout as torch draws it uncompiled, so that a step has the same masks either way.
_OPTIONS: dict[str, Any] = {"fallback_random": True}


def prepare_layers(
    model: nn.Module, *, compiles: bool = False, checkpoints: bool = False, backend: str = "inductor"
) -> int:
    """Let every transformer layer of a model be compiled, or keep its input alone, or both; neither puts it back.

    Layers of the same kind share what is compiled for one of them. What lies between layers stays as it is:
    search, masks and losses change shape with what they are given.

    A layer that keeps its input alone computes the rest again when gradients come back (Chen et al. 2016), and
    no number changes. Losses compare within a whole batch (contrast, matching, statistics of codes), so a batch
    cannot be cut into parts whose gradients are added; this makes room for a large one.

    Args:
        model: changed in place; names of parameters stay. Layers of a frozen language model that it holds count
            too: gradients pass through them.
        compiles: by `torch.compile`, at the first call of each form.
        checkpoints: whether layers compute again.
        backend: of `torch.compile`.

    Returns:
        The number of layers.
    """
    layers = list(_layers(model))
    if compiles:
        # For the rest of this thread's life. DDP sends gradients between layers, which need not be cut for it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
        torch._dynamo.config.optimize_ddp = False
    for layer in layers:
        vars(layer).pop("forward", None)  # what an earlier call put there
        if compiles:
            options = _OPTIONS if backend == "inductor" else None
            layer.forward = torch.compile(layer.forward, backend=backend, options=options)
        if checkpoints:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def check_compiler(device: torch.device) -> None:
    """Compile something small.

    Args:
        device: where training computes.

    Raises:
        ValueError: nothing can be compiled here; with the reason.
    """
    try:
        torch.compile(lambda numbers: numbers.exp() + 1, options=_OPTIONS)(torch.zeros(8, device=device))
    except (RuntimeError, ImportError, OSError) as reason:  # TorchDynamoException is a RuntimeError
        said = str(reason).strip().partition("\n")[0]
        raise ValueError(
            "train.compile=true: expected a working C++ compiler with Python's headers, or Triton on a GPU, got "
            f"{type(reason).__name__}: {said}"
        ) from reason


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Return the layers of a model, and of a language model that it holds outside its own modules."""
    language = getattr(model, "language", None)
    seen = dict.fromkeys(model.modules())
    if isinstance(language, nn.Module):
        seen |= dict.fromkeys(language.modules())
    yield from (module for module in seen if isinstance(module, LAYERS))
