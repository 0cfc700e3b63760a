"""Model directories: `config.json` and `model.safetensors`, without the frozen language model's weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from pixlex.config.cbvila import CBViLAConfig
from pixlex.config.frozen import FrozenConfig
from pixlex.config.lqae import LQAEConfig, VQVAEConfig
from pixlex.config.mae import MAEConfig
from pixlex.config.reasoning import ReasonerConfig
from pixlex.config.run import run_from
from pixlex.files import write_atomically, write_json
from pixlex.models.cbvila import CBViLA
from pixlex.models.described import (
    CHECKSUM,
    CONFIG,
    FORMAT,
    PUBLISHED,
    WEIGHTS,
    ModelConfig,
    check_shapes,
    read_description,
    verify_weights,
    weights_checksum,
)
from pixlex.models.frozen import Frozen
from pixlex.models.hub import find_model
from pixlex.models.lqae import LQAE
from pixlex.models.mae import MAE
from pixlex.models.reasoner import Reasoner
from pixlex.models.vqvae import VQVAE

Tokenizer = LQAE | VQVAE | CBViLA
Model = Tokenizer | MAE | Frozen | Reasoner
_Kind = TypeVar("_Kind")
_CONSEQUENCES: dict[type[Model], tuple[str, str]] = {
    LQAE: ("word embeddings", "codes mean nothing in another vocabulary"),
    Frozen: ("weights", "an image's embeddings mean nothing to another language model"),
    CBViLA: ("the vocabulary", "word vectors mean nothing under another vocabulary"),
    Reasoner: ("the vocabulary", "word vectors mean nothing under another vocabulary"),
}


@overload
def build(config: LQAEConfig | VQVAEConfig | CBViLAConfig, *, initialize: bool = True) -> Tokenizer: ...
@overload
def build(
    config: MAEConfig | FrozenConfig | ReasonerConfig, *, initialize: bool = True
) -> MAE | Frozen | Reasoner: ...
def build(
    config: LQAEConfig | VQVAEConfig | MAEConfig | FrozenConfig | CBViLAConfig | ReasonerConfig,
    *,
    initialize: bool = True,
) -> Model:
    """Build an untrained model from the configuration of its family.

    Args:
        config: of one of the families.
        initialize: False where weights are read into the model at once: none are drawn or computed.
    """
    match config:
        case LQAEConfig():
            return LQAE.build(config, initialize=initialize)
        case VQVAEConfig():
            return VQVAE.build(config, initialize=initialize)
        case MAEConfig():
            return MAE.build(config, initialize=initialize)
        case FrozenConfig():
            return Frozen.build(config, initialize=initialize)
        case CBViLAConfig():
            return CBViLA.build(config, initialize=initialize)
        case ReasonerConfig():
            return Reasoner.build(config, initialize=initialize)


def language_of(model: Model) -> tuple[str, str] | None:
    """Return name and fingerprint of what a model's words are those of, None where it has no words."""
    if isinstance(model, LQAE):
        return model.language_words.name, model.language_words.fingerprint
    if isinstance(model, Frozen):
        return model.language.name, model.language.fingerprint
    if isinstance(model, CBViLA | Reasoner):
        return model.tokenizer.name, model.tokenizer.fingerprint
    return None


def save(model: Model, folder: Path, *, trained_on: Sequence[str] = ()) -> None:
    """Write a model directory.

    Args:
        model: its weights and configuration are written; of a language model only name and fingerprint.
        folder: made if missing; files of the same names are replaced.
        trained_on: descriptions of the data, of all trainings that it went through, the last one at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = to_bytes(weights, metadata={"format": "pt"})
    write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(content))
    config: dict[str, Any] = {
        "format": FORMAT,
        "family": model.family,
        "model": dataclasses.asdict(model.config),
        "trained_on": list(trained_on),
        CHECKSUM: weights_checksum(folder),
    }
    if model.has_codes:
        config["num_codewords"] = model.num_codewords
    language = language_of(model)
    if language is not None:
        config["language"] = {"name": language[0], "fingerprint": language[1]}
    write_json(folder / CONFIG, config)


def load(name: str, *, language_model: str | None = None, revision: str | None = None) -> Tokenizer:
    """Load the model directory of an image tokenizer; see `load_any`.

    Raises:
        ValueError: as `load_any`, or a model of another family, which writes no codes.
    """
    model = load_any(name, language_model=language_model, revision=revision)
    if not model.has_codes:
        other = "; pixlex.load_reasoner loads this one" if model.family == "reasoning" else ""
        raise ValueError(
            f"{name} holds a model of family {model.family}, which writes no codes: expected an image tokenizer, "
            f"lqae, vqvae or cbvila{other}"
        )
    return model


def load_cbvila(name: str, *, language_model: str | None = None, revision: str | None = None) -> CBViLA:
    """Load the model directory of a CB-ViLA; see `load_any`.

    Raises:
        ValueError: as `load_any`, or a model of another family.
    """
    model = load_any(name, language_model=language_model, revision=revision)
    return require(CBViLA, model, f"{name} holds a model of family {model.family}, expected one of cbvila")


def require(kind: type[_Kind], model: object, refusal: str) -> _Kind:
    """Return a model of a kind; raise `ValueError` with the refusal where it is none."""
    if not isinstance(model, kind):
        raise ValueError(refusal)
    return model


def load_any(name: str, *, language_model: str | None = None, revision: str | None = None) -> Model:
    """Load a model directory of any family, in evaluation mode, on the CPU.

    Args:
        name: a model directory, a run folder (its `model` is taken), or a repository on the hub; a ViTMAE of
            transformers is taken for an MAE.
        language_model: where the frozen language model, or the tokenizer of CB-ViLA, lies now, if not under the
            name it was trained with.
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: no such model, files missing or damaged, a configuration that is none or does not fit the
            weights (which is found before anything is built), or a language model whose word embeddings are not
            those the codes were made with.
    """
    folder = find_model(name, "model", needs=(CONFIG,), files=(CONFIG, WEIGHTS), revision=revision)
    config = read_description(folder)
    if config.get("model_type") == PUBLISHED:
        return MAE.published(folder, name).eval().requires_grad_(False)
    settings = _model_config(config, language_model, folder)
    verify_weights(folder, config)
    check_shapes(settings, folder)
    model = build(settings, initialize=False)
    language = language_of(model)
    if language is not None and language[1] != config["language"]["fingerprint"]:
        what, consequence = _CONSEQUENCES[type(model)]
        raise ValueError(
            f"{folder} was trained with {what} {config['language']['fingerprint'][:12]} of "
            f"{config['language']['name']!r}, but {language[0]!r} has {language[1][:12]}: {consequence}"
        )
    if model.has_codes and model.num_codewords != config["num_codewords"]:
        raise ValueError(
            f"{folder} was trained with {config['num_codewords']} codewords, but this vocabulary has "
            f"{model.num_codewords}: the tokenizer is another version"
        )
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not hold this model's weights: {error!s:.400}") from error
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.sum().isfinite() and not weight.isfinite().all():
            raise ValueError(
                f"{folder / WEIGHTS}: {key} is not finite; the training diverged, or it is damaged"
            )
    return model.eval().requires_grad_(False)


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return what `config.json` of a model directory says, the weights unread; see `load_any`."""
    return read_description(
        find_model(name, "model", needs=(CONFIG,), files=(CONFIG, WEIGHTS), revision=revision)
    )


def _model_config(config: Mapping[str, Any], language_model: str | None, folder: Path) -> ModelConfig:
    """Return the network that `config.json` tells of, its language model named anew where that lies elsewhere."""
    values = config["model"]
    described = {"family": config["family"], "model": values}
    body = {"cbvila": values, "reasoning": values.get("body")}.get(config["family"])
    named, key = (values.get("language"), "name") if body is None else (body.get("text"), "tokenizer")
    if language_model is not None and isinstance(named, dict):
        named[key] = language_model
    if body is not None and isinstance(named, dict) and "positions" in named:
        # A run's texts fit the model; here there is no run.
        described["data"] = {"max_words": named["positions"]}
    return run_from(described, str(folder / CONFIG)).model


def parameter_count(model: torch.nn.Module) -> int:
    """Return how many numbers training may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def fingerprint(model: Model, *, precision: str = "fp32") -> str:
    """Return a hash of all that decides what comes of an image: weights, words, sizes, precision.

    Settings at their defaults are not in it, so that one which a later version adds changes no fingerprint.
    """
    config = {**_told(model.config), "precision": precision}
    language = language_of(model)
    if language is not None:
        # Where the language model lies does not matter, which one it is does.
        config["language"] = language[1]
    if isinstance(model, LQAE) and model.vocabulary.kind != "whole-words":  # once the default, and not in it
        config["vocabulary"] = model.vocabulary.kind
    if isinstance(model, CBViLA):  # nor where it started from: its weights say it
        for part, names in (
            ("image", ("pretrained",)),
            ("text", ("pretrained", "tokenizer")),
            ("fusion", ("pretrained",)),
        ):
            config[part] = {name: one for name, one in config.get(part, {}).items() if name not in names}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _told(config: Any) -> dict[str, Any]:
    """Return what a configuration says otherwise than its defaults, its parts alike."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            found[one.name] = _told(value)
        elif value != one.default and one.name != "pretrained":  # the weights say where they came from
            found[one.name] = value
    return found
