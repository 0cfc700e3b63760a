"""Model directories: `config.json` and `model.safetensors`, without the weights of frozen language models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from pixlex.config.run import run_from
from pixlex.files import open_regular, read_json, write_atomically, write_json
from pixlex.messages import printable
from pixlex.models import hash_of
from pixlex.models.baselines import MAE, VQVAE, DualEncoder, Frozen
from pixlex.models.cbvila import CBViLA
from pixlex.models.finetuned import Reasoner
from pixlex.models.initialization import (
    CHECKSUM,
    CONFIG,
    WEIGHTS,
    compact,
    find_model,
    read_weights,
    verify_weights,
    weights_checksum,
)
from pixlex.models.lqae import LQAE

Tokenizer = LQAE | VQVAE | CBViLA
Model = Tokenizer | MAE | Frozen | Reasoner | DualEncoder
MODELS: dict[str, type[Model]] = {kind.family: kind for kind in (LQAE, VQVAE, MAE, Frozen, CBViLA, Reasoner)}
SomeModel = TypeVar("SomeModel", bound=Model)
_Kind = TypeVar("_Kind")

FORMAT = 1
# What transformers calls the published masked autoencoder, in its `config.json`.
PUBLISHED = "vit_mae"
_CALLED: Mapping[type, str] = {dict: "keys and values", str: "a text", int: "a whole number", list: "a list"}
# Patches along a side, where no weight depends on them.
_LARGEST_GRID = 1024
# Field -> a weight, and which side of it is that long; None: so many numbered parts it has.
_Sizes = dict[str, tuple[str, int | None]]


def _tower(field: str, wide: str, parts: str, expand: str = "expand") -> _Sizes:
    """The sizes of a transformer: a weight whose third side is its width, and where its layers are."""
    first = f"{parts}.0.{expand}.weight"
    return {f"{field}.width": (wide, 2), f"{field}.depth": (parts, None), f"{field}.mlp_ratio": (first, 0)}


_ENCODER: _Sizes = {
    "patch_size": ("encoder.patches.weight", 2),
    "image_size": ("encoder.trunk.positions", 1),
    **_tower("encoder", "encoder.trunk.positions", "encoder.trunk.blocks"),
}
_AUTOENCODER: _Sizes = {**_ENCODER, **_tower("decoder", "decoder.trunk.positions", "decoder.trunk.blocks")}
# Of an LQAE whose words belong to no place.
_WORDS: _Sizes = {
    "image_size": ("decoder.trunk.positions", 1),
    "patch_size": ("decoder.pixels.weight", 2),
    **_tower("decoder", "decoder.trunk.positions", "decoder.trunk.blocks"),
    "quantizer.num_concepts": ("quantizer.concepts", 0),
}
_CBVILA: _Sizes = {
    "patch_size": ("image_encoder.patches.weight", 2),
    "image_size": ("query.positions", 1),
    **_tower("image", "image_encoder.positions", "image_encoder.blocks"),
    **_tower("text", "text_encoder.positions", "text_encoder.layers"),
    "text.positions": ("text_encoder.positions", 1),
    "fusion.depth": ("fusion.layers", None),
    "codebook.num_codewords": ("codebook.weight", 0),
    "codebook.dim": ("codebook.weight", 1),
    "contrastive_dim": ("image_contrast.weight", 0),
}
_VIT = "network.vit"
_SIZES: Mapping[str, _Sizes] = {
    "lqae": _AUTOENCODER,
    "vqvae": {
        **_AUTOENCODER, "num_codewords": ("codebook.weight", 0), "codebook_dim": ("codebook.weight", 1),
    },
    "mae": {
        "patch_size": (f"{_VIT}.embeddings.patch_embeddings.projection.weight", 2),
        **_tower("encoder", f"{_VIT}.embeddings.cls_token", f"{_VIT}.layers", "mlp.fc1"),
        **_tower("decoder", "network.decoder.mask_token", "network.decoder.decoder_layers", "mlp.fc1"),
    },
    "frozen": _ENCODER,
    "cbvila": _CBVILA,
    "reasoning": {f"body.{field}": (f"body.{name}", side) for field, (name, side) in _CBVILA.items()},
}  # fmt: skip
# Sizes of the parts that a model may have: where the weights have one, its size is that of the field.
_WHERE_THERE = (
    ("quantizer.search_dim", "quantizer.directions", 1),
    ("quantizer.search_dim", "quantizer.learned", 1),
    ("body.fusion.depth", "decoder.layers", None),
    ("num_images", "class_head.0.weight", 1),
    ("answers", "class_head.2.weight", 0),
)


def save(model: Model, folder: Path, *, trained_on: Sequence[str] = (), bits: int = 32) -> None:
    """Write a model directory.

    Args:
        model: Its weights and configuration are written; of a language model only name and fingerprint.
        folder: Made if missing; files of the same names are replaced.
        trained_on: Descriptions of the data, of all trainings that it went through, the last one at the end.
        bits: Of each weight of a matrix, 32, 16 or 8; fewer than 32 round the model.

    Raises:
        ValueError: Another number of bits.
    """
    if bits not in (32, 16, 8):
        raise ValueError(f"bits must be 32, 16 or 8, got {bits!r:.40}")
    folder.mkdir(parents=True, exist_ok=True)
    content = to_bytes(compact(model, bits), metadata={"format": "pt"})
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
    if model.text_identity is not None:
        config["language"] = dict(zip(("name", "fingerprint"), model.text_identity, strict=True))
    if (teacher := model.image_identity) is not None:
        config["teacher"] = dict(zip(("name", "fingerprint"), teacher, strict=True))
    write_json(folder / CONFIG, config)


def load(name: str, *, language_model: str | None = None, revision: str | None = None) -> Tokenizer:
    """Load the model directory of an image tokenizer; see `load_any`.

    Raises:
        ValueError: As `load_any`, or a model of another family, which writes no codes.
    """
    return require_codes(load_any(name, language_model=language_model, revision=revision), name)


def require_codes(model: Model, name: str) -> Tokenizer:
    """Return a model that writes codes; raise `ValueError` for another."""
    if not model.has_codes:
        other = "; pixlex.load_reasoner loads this one" if model.fuses else ""
        raise ValueError(
            f"{name} holds a model of family {model.family}, which writes no codes: expected an image tokenizer, "
            f"lqae, vqvae or cbvila{other}"
        )
    return model


def load_cbvila(name: str, *, language_model: str | None = None, revision: str | None = None) -> CBViLA:
    """Load the model directory of a CB-ViLA; see `load_any`.

    Raises:
        ValueError: As `load_any`, or a model of another family.
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
        name: A model directory, a run folder (its `model` is taken), or a repository on the hub; a ViTMAE of
            transformers is taken for an MAE, its CLIP, SigLIP and alike for a `DualEncoder`.
        language_model: Where the frozen language model, or the tokenizer of CB-ViLA, lies now, if not under the
            name it was trained with.
        revision: Branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: No such model, files missing or damaged, a configuration that is none or does not fit the
            weights (which is found before anything is built), or a language model whose word embeddings are not
            those the codes were made with.
    """
    folder, described = _description(name, revision)
    if "model_type" in described:
        if described["model_type"] == PUBLISHED:
            return MAE.published(folder, name).eval().requires_grad_(False)
        found = DualEncoder.published(str(folder) if Path(name).exists() else name, revision)
        return found.eval().requires_grad_(False)
    kind, config = MODELS[described["family"]], _model_config(described, language_model, folder)
    verify_weights(folder, described)
    check_shapes(kind, config, folder)
    model: Any = kind.build(config, initialize=False)
    _check_words(model, described, folder)
    try:
        model.load_state_dict(read_weights(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not hold this model's weights: {error!s:.400}") from error
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.sum().isfinite() and not weight.isfinite().all():
            raise ValueError(
                f"{folder / WEIGHTS}: {key} is not finite; the training diverged, or it is damaged"
            )
    loaded: Model = model.eval().requires_grad_(False)
    return loaded


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return what `config.json` of a model directory says, the weights unread; see `load_any`."""
    return _description(name, revision)[1]


def pinned(name: str, revision: str | None) -> str:
    """Return where the files of a revision lie; without one the name as it is."""
    return name if revision is None else str(_description(name, revision)[0])


def _description(name: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Return a model directory and what its `config.json` says, its form checked."""
    folder = find_model(name, "model", needs=(CONFIG,), files=(CONFIG, WEIGHTS), revision=revision)
    path = folder / CONFIG
    try:
        config = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if "model_type" in config and "format" not in config:  # of transformers
        return folder, config
    if config.get("format") != FORMAT:
        raise ValueError(f"{path}: expected model format {FORMAT}, got {config.get('format')!r:.80}")
    named = config.get("family")
    model = MODELS.get(named) if isinstance(named, str) else None
    if model is None:
        raise ValueError(f"{path}: expected family to be one of {', '.join(MODELS)}, got {named!r:.80}")
    fields: dict[str, type] = {"model": dict}
    if model.mismatch is not None:
        fields |= {"language": dict, "language.name": str, "language.fingerprint": str}
    if isinstance(config.get("model"), dict) and config["model"].get("teacher"):
        fields |= {"teacher": dict, "teacher.name": str, "teacher.fingerprint": str}
    if model.has_codes:
        fields["num_codewords"] = int
    if model.fuses and not model.has_codes:
        fields["model.body"] = dict
    if "trained_on" in config:
        fields["trained_on"] = list
    for name, kind in fields.items():
        place: Any = config
        for key in name.split("."):
            if key not in place:
                raise ValueError(f"{path}: expected {_CALLED[kind]} in {name}, found no such field")
            place = place[key]
        if type(place) is not kind:
            raise ValueError(f"{path}: expected {_CALLED[kind]} in {name}, got {place!r:.80}")
    return folder, config


def _model_config(described: Mapping[str, Any], language_model: str | None, folder: Path) -> Any:
    """Return the network that `config.json` describes, its language model renamed where that lies elsewhere."""
    values = described["model"]
    run: dict[str, Any] = {"family": described["family"], "model": values}
    body = values.get("body", values)
    text = body.get("text")
    # A run's texts and objective fit the model; here there is no run.
    if isinstance(text, dict) and "positions" in text:
        run["data"] = {"max_words": text["positions"]}
    if described["family"] == "cbvila":
        run["objective"] = {"mask_stage": "latent"}
    named, key = (values.get("language"), "name") if text is None else (text, "tokenizer")
    if language_model is not None and isinstance(named, dict):
        named[key] = language_model
        if named.get("words") == "frozen":
            named["pretrained"] = language_model
    return run_from(run, str(folder / CONFIG)).model


def check_shapes(kind: type[Model], config: Any, folder: Path) -> None:
    """Compare the sizes in a configuration with the shapes of the weights, which are not read for it.

    Without it a size beyond all reason would be built, for hours or until the memory is full, and only then be
    compared. A ValueError names the field, or the weight that is not there.
    """
    path, where = folder / WEIGHTS, folder / CONFIG
    try:
        with open_regular(path), safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold this model's weights: {error!s:.200}") from error
    sizes = _WORDS if getattr(config, "words", 0) else _SIZES[kind.family]
    body = "body." if hasattr(config, "body") else ""
    tower = getattr(config.body if body else config, "image", None)
    if tower is not None and tower.block == "convolutional":
        of_image = (f"{body}image.", f"{body}patch_size")
        sizes = {field: one for field, one in sizes.items() if not field.startswith(of_image)}
        sizes[f"{body}image.width"] = (f"{body}image_contrast.weight", 1)
    needed = [(field, name, side) for field, (name, side) in sizes.items()]
    there = [one for one in _WHERE_THERE if _found(shapes, *one[1:]) is not None]
    for field, name, side in [*needed, *there]:
        try:
            expected = _size(config, field)
        except ArithmeticError as error:
            raise ValueError(f"{where}: model has a size beyond all reason ({error})") from error
        found = _found(shapes, name, side)
        if found is None:
            raise ValueError(
                f"{path} does not hold this model's weights: there is no {name}, which model.{field} tells of"
            )
        if found != expected:
            raise ValueError(
                f"{where}: model.{field} makes the {'number' if side is None else 'size'} of {name} "
                f"{printable(expected):.40}, the weights have {found}"
            )
    prefix = getattr(config, "num_prefix_tokens", 1)
    if prefix > 1 and shapes["projector.weight"][0] % prefix:
        raise ValueError(
            f"{where}: model.num_prefix_tokens must divide {shapes['projector.weight'][0]}, the size of "
            f"projector.weight, got {prefix}"
        )
    if config.grid > _LARGEST_GRID:
        raise ValueError(
            f"{where}: model.image_size must be at most {_LARGEST_GRID} patches, got {config.grid}"
        )


def _size(config: Any, field: str) -> int:
    """Return the size that a field makes."""
    *parents, last = field.split(".")
    owner = reduce(getattr, parents, config)
    value: Any = getattr(owner, last)
    match last:
        case "mlp_ratio":
            value = int(owner.width * value)
        case "image_size":
            value = owner.grid**2
        case "num_images":
            value *= config.body.text.width
        case "answers":
            value = len(value)
    return int(value)


def _found(shapes: Mapping[str, tuple[int, ...]], name: str, side: int | None) -> int | None:
    """Return the length of one side of a weight, or how many numbered parts it has; None where there is none."""
    if side is not None:
        return shapes[name][side] if side < len(shapes.get(name, ())) else None
    numbers = {key.removeprefix(f"{name}.").split(".")[0] for key in shapes if key.startswith(f"{name}.")}
    return len(numbers) or None


def _check_words(model: Model, described: Mapping[str, Any], folder: Path) -> None:
    """Require the words that the model was trained with."""
    if model.text_identity is not None and model.mismatch is not None:
        (name, found), trained = model.text_identity, described["language"]
        if found != trained["fingerprint"]:
            what, consequence = model.mismatch
            raise ValueError(
                f"{folder} was trained with {what} {trained['fingerprint'][:12]} of {trained['name']!r}, but "
                f"{name!r} has {found[:12]}: {consequence}"
            )
    if (teacher := model.image_identity) is not None:
        (name, found), trained = teacher, described["teacher"]
        if found != trained["fingerprint"]:
            raise ValueError(
                f"{folder} was trained with the features {trained['fingerprint'][:12]} of {trained['name']!r}, "
                f"but {name!r} has {found[:12]}: words mean nothing by other features"
            )
    if model.has_codes and model.num_codewords != described["num_codewords"]:
        raise ValueError(
            f"{folder} was trained with {described['num_codewords']} codewords, but this vocabulary has "
            f"{model.num_codewords}: the tokenizer is another version"
        )


def untrained_copy(model: SomeModel, images: Float[Tensor, "B 3 H W"], seed: int = 0) -> SomeModel:
    """Return the same model with fresh weights, in evaluation mode, on its device: what training is compared with.

    The language model is the same one. Statistics of a whitened search and of norms, and the concepts of images,
    are found on the given images: no weight learns by that, and without it an untrained encoder would write nearly
    the same word everywhere, which makes a weaker opponent than need be.

    Args:
        images: `num_measured` images, pixels in [0, 1].
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        device = next(model.parameters()).device
        fresh: Any = model.untrained().requires_grad_(False).to(device)
        fresh.eval().measure(images.to(device))
    untrained: SomeModel = fresh.eval()
    return untrained


def fingerprint(model: Model, *, precision: str = "fp32") -> str:
    """Return a hash of all that decides what comes of an image: weights, words, sizes, precision.

    Settings at their defaults are not in it, so that one which a later version adds changes no fingerprint.
    """
    config = {**_not_default(model.config), "precision": precision}
    # Where the language model lies does not matter, which one it is does.
    if model.text_identity is not None:
        config["language"] = model.text_identity[1]
    if (teacher := model.image_identity) is not None:
        config["teacher"] = teacher[1]
    config.get("text", {}).pop("tokenizer", None)
    if model.has_codes and model.vocabulary is not None and model.vocabulary.kind != "whole-words":
        config["vocabulary"] = model.vocabulary.kind  # the default was once whole-words, and not in it
    return hash_of(json.dumps(config, sort_keys=True).encode(), model)


# Settings that had another name when fingerprints began.
_FINGERPRINTED = {"resize_mode": "cut"}


def _not_default(config: Any) -> dict[str, Any]:
    """Return what a configuration says otherwise than its defaults, its parts alike."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            found[one.name] = _not_default(value)
        # The weights say where they came from; words that images are named by change no vector.
        elif value != one.default and one.name not in ("pretrained", "caption_words"):
            found[_FINGERPRINTED.get(one.name, one.name)] = value
    return found
