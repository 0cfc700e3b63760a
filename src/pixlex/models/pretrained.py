"""Model directories: `config.json` and `model.safetensors`, without the frozen language model's weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pixlex.config.lqae import LQAEConfig, VQVAEConfig
from pixlex.config.run import run_from
from pixlex.models.lqae import LQAE
from pixlex.models.vqvae import VQVAE

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = 1

Tokenizer = LQAE | VQVAE


def build(config: LQAEConfig | VQVAEConfig) -> Tokenizer:
    """Build an untrained model from the configuration of its family."""
    return LQAE.build(config) if isinstance(config, LQAEConfig) else VQVAE.build(config)


def save(model: Tokenizer, folder: Path) -> None:
    """Write a model directory.

    Args:
        model: its weights and configuration are written; of a language model only name and fingerprint.
        folder: made if missing; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "format": FORMAT,
        "family": "lqae" if isinstance(model, LQAE) else "vqvae",
        "model": dataclasses.asdict(model.config),
        "num_codewords": model.num_codewords,
    }
    if isinstance(model, LQAE):
        config["language"] = {"name": model.language.name, "fingerprint": model.language.fingerprint}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(name: str, *, language_model: str | None = None, revision: str | None = None) -> Tokenizer:
    """Load a model directory, in evaluation mode, on the CPU.

    Args:
        name: a model directory, a run folder (its `model` is taken), or a repository on the hub.
        language_model: where the frozen language model lies now, if not under the name it was trained with.
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: no such model, files missing or damaged, weights that do not fit the configuration, or a
            language model whose word embeddings are not those the codes were made with.
    """
    folder = _find(name, revision)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {error}") from error
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: expected model format {FORMAT}, got {config.get('format')!r}")
    values = config["model"]
    if language_model is not None and "language" in values:
        values["language"]["name"] = language_model
    run = run_from({"family": config["family"], "model": values}, str(folder / CONFIG))
    model = build(run.model)
    if isinstance(model, LQAE) and model.language.fingerprint != config["language"]["fingerprint"]:
        raise ValueError(
            f"{folder} was trained with word embeddings {config['language']['fingerprint'][:12]} of "
            f"{config['language']['name']!r}, but {model.language.name!r} has "
            f"{model.language.fingerprint[:12]}: codes mean nothing in another vocabulary"
        )
    if model.num_codewords != config["num_codewords"]:
        raise ValueError(
            f"{folder} was trained with {config['num_codewords']} codewords, but this vocabulary has "
            f"{model.num_codewords}: the tokenizer is another version"
        )
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not hold this model's weights: {error}") from error
    return model.eval().requires_grad_(False)


def _find(name: str, revision: str | None) -> Path:
    """Return the directory that holds a model."""
    for folder in (Path(name), Path(name) / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if Path(name).exists() or name.startswith((".", "/")) or name.count("/") > 1:
        raise ValueError(f"{name} is not a model directory: expected {CONFIG} and {WEIGHTS} in it")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no model {name!r}: neither a directory with {CONFIG} nor a repository on the hub ({error})"
        ) from error


def parameter_count(model: torch.nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
