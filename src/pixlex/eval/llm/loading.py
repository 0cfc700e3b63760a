"""Causal language models from a directory or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pixlex.eval.llm.local import LocalClient


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
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if precision == "auto":
        precision = "bf16" if place.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        _check_causal(config)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as reason:
        raise ValueError(f"language model {name!r} cannot be loaded: {reason}") from reason
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"language model {name!r}: the checkpoint lacks {len(missing)} weights, first {missing[0]}"
        )
    return LocalClient(
        model.to(place),
        tokenizer,
        name=Path(name).name,
        chat=chat,
        batch_size=batch_size,
        context_size=context_size,
    )


def _check_causal(config: Any) -> None:
    """Refuse what would see the words to come: transformers loads a BERT as a causal model, with a warning."""
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ValueError(f"expected a causal language model (GPT-like), got a {config.model_type!r} model")
