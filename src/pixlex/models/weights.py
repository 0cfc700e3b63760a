"""Weights of pretrained networks, read by their names in the files, which have been the same for years."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pixlex.files import read_json
from pixlex.models.described import CHECKSUM, verify_weights
from pixlex.models.hub import find_model
from pixlex.nn.tokenizer import EMBEDDED, EMBEDDED_HEAD, embedded_directory

Weights = Mapping[str, Tensor]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Where a body's weights begin, whatever it is part of; our own masked autoencoder's begin with network.vit.
_PREFIX = re.compile(r"^(network\.)?(bert|vit|deit|siglip|dinov2|vision_model|model)\.(vision_model\.)?")


def read_weights(name: str) -> Weights:
    """Return the weights in a directory's or repository's safetensors, the names without what the body is part of.

    Args:
        name: a directory, a run folder of ours, a repository on the hub, or "embedded".

    Raises:
        ValueError: there are none, or they are damaged.
    """
    folder = _folder_of(name)
    more = load_file(EMBEDDED_HEAD) if name == EMBEDDED else {}
    index = folder / _INDEX
    files = [_SINGLE]
    try:
        path = folder / "config.json"
        told = read_json(path) if path.is_file() else {}
        if told.keys() >= {"format", CHECKSUM}:  # a model directory of ours
            verify_weights(folder, told)
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        weights = {**more, **{key: one for file in files for key, one in load_file(folder / file).items()}}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{name}: its weights cannot be read: {error}") from error
    bare = {_PREFIX.sub("", key): tensor for key, tensor in weights.items()}
    # TensorFlow's names of a norm's weights, in the oldest files.
    return {key.replace(".gamma", ".weight").replace(".beta", ".bias"): bare[key].float() for key in bare}


def _folder_of(name: str) -> Path:
    if name == EMBEDDED:
        return embedded_directory()
    needs = (_SINGLE, _INDEX)
    return find_model(name, "pretrained weights", needs=needs, files=("*.safetensors", _INDEX, "config.json"))


def described(name: str) -> dict[str, object]:
    """Return what the network's `config.json` says, of a vision part or a model directory of ours the part."""
    path = _folder_of(name) / "config.json"
    if not path.is_file():
        return {}
    found: dict[str, object] = read_json(path)
    for inner in ("vision_config", "model", "encoder"):  # SigLIP's; a model directory of ours
        part = found.get(inner)
        found = part if isinstance(part, dict) else found
    return found


def check_heads(name: str, part: str, heads: int) -> None:
    """Compare the number of heads, on which the shapes of the weights do not depend, with what the files say."""
    settings = described(name)
    found = settings.get("num_attention_heads", settings.get("heads", heads))
    if found != heads:
        raise ValueError(f"{name} has {found} attention heads, but {part} is {heads}")


def check_depth(weights: Weights, key: str, needed: int, name: str) -> None:
    """Require as many numbered layers."""
    pattern = re.compile(rf"^{re.escape(key)}\.(\d+)\.")
    found = {int(match[1]) for match in map(pattern.match, weights) if match}
    if len(found) < needed:
        raise ValueError(
            f"{name} has {len(found)} layers, but {needed} are asked for: the first ones for the text (or image) "
            "encoder, those behind it for the fusion encoder"
        )


def taker(weights: Weights, name: str) -> Callable[[str], Tensor]:
    """Return what looks a weight up, and says what there is where it is missing."""

    def take(key: str) -> Tensor:
        if key not in weights:
            raise ValueError(f"{name} has no weight {key}, found {', '.join(sorted(weights)[:3])}, ...")
        return weights[key]

    return take


@torch.no_grad()
def copy(target: Tensor, source: Tensor, origin: str, what: str) -> None:
    """Copy a weight into a parameter of its shape."""
    if target.shape != source.shape:
        raise ValueError(
            f"{origin}: {what} is {tuple(source.shape)}, the configuration asks for {tuple(target.shape)}"
        )
    target.copy_(source)
