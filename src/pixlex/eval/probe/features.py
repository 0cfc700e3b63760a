"""What a frozen model makes of an image, as one vector: the inputs of the linear probe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pixlex.models.inference import Precision
from pixlex.models.pretrained import Tokenizer, fingerprint

Kind = Literal["layers", "last", "encoder", "codes", "pixels"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The sanity row: mean colors of so many by so many fields.
PIXEL_GRID = 8


def kinds_of(model: Tokenizer) -> tuple[Kind, ...]:
    """Return the kinds of features that a model has."""
    if model.vocabulary is not None:
        return ("layers", "last", "encoder", "codes", "pixels")
    return ("codes", "encoder", "pixels")


def default_kinds(model: Tokenizer) -> tuple[Kind, ...]:
    """Return what the paper probes (figure 4): LQAE's layers, a VQ-VAE's encoder; beside it, its codewords."""
    return ("layers",) if model.vocabulary is not None else ("encoder", "codes")


def image_features(
    model: Tokenizer, images: Float[Tensor, "B 3 H W"]
) -> dict[str, Float[Tensor, "B columns"]]:
    """Return one vector for each image and part of the model, the mean over all patches, in float32.

    LQAE, section 4: the hidden states of all layers of the language model, nothing hidden, each the mean
    over the patches. The released code drops the first patch, a habit of models with a class token; here
    every patch counts.

    Args:
        model: in evaluation mode.
        images: pixels in [0, 1].

    Returns:
        By name: `layer 0` (the embedding layer's output) to `layer L` in this order, for a model with a
        language model; `encoder`, patch vectors of the image encoder; `codes`, codewords; `pixels`, colors
        of 8 x 8 fields.
    """
    features = {name: values.float().mean(1) for name, values in model.patch_features(images).items()}
    features["pixels"] = functional.adaptive_avg_pool2d(images.float(), PIXEL_GRID).flatten(1)
    return features


def columns_of(widths: Mapping[str, int]) -> dict[str, slice]:
    """Return where each part and each kind of features lies in a row of all parts side by side.

    Args:
        widths: of the parts, in the order of `image_features`.
    """
    columns, start = {}, 0
    for name, width in widths.items():
        columns[name] = slice(start, start + width)
        start += width
    layers = [columns[name] for name in widths if name.startswith("layer ")]
    if layers:
        columns["layers"] = slice(layers[0].start, layers[-1].stop)
        columns["last"] = layers[-1]
    return columns


def weights_fingerprint(model: Tokenizer, precision: Precision = "fp32") -> str:
    """Return a hash of all that decides the features: what decides the codes, and the whole language model."""
    digest = hashlib.sha256(fingerprint(model, precision=precision).encode())
    if model.vocabulary is not None:
        for name, tensor in sorted(model.language.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def default_repeats(model: Tokenizer, compared: Tokenizer | None) -> dict[str, int]:
    """Return how often features of a VQ-VAE stand side by side, so that widths match.

    LQAE, section 4: "replicate the feature dimensions by the number of RoBERTa layers", which gives both
    classifiers as many parameters where patch vectors are as wide as hidden states. Elsewhere the number is
    what gives them as many: the least that makes the features at least as wide.

    Args:
        model: whose features are repeated.
        compared: the LQAE whose `layers` they are compared with; None for none.

    Returns:
        The number for `encoder` and for `codes`; nothing where nothing is repeated.
    """
    if model.vocabulary is not None or compared is None or compared.vocabulary is None:
        return {}
    width = (compared.language.num_layers + 1) * compared.language.hidden_width
    return {kind: max(1, -(-width // own)) for kind, own in model.feature_widths.items()}
