"""What `config.json` of a model directory says: checked for its form and beside the weights, before building."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pixlex.config.cbvila import CBViLAConfig
from pixlex.config.frozen import FrozenConfig
from pixlex.config.lqae import LQAEConfig, VisionConfig, VQVAEConfig
from pixlex.config.mae import MAEConfig
from pixlex.config.reasoning import ReasonerConfig
from pixlex.config.run import FAMILIES
from pixlex.files import open_regular, read_json
from pixlex.messages import printable

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = 1
# What transformers calls the published masked autoencoder, in its `config.json`.
PUBLISHED = "vit_mae"
# Absent in directories that were written before there were checksums.
CHECKSUM = "weights_sha256"

ModelConfig = LQAEConfig | VQVAEConfig | MAEConfig | FrozenConfig | CBViLAConfig | ReasonerConfig
# Family -> the fields that its `config.json` has besides, with their types; those of a dotted name lie deeper.
_TEXTS = {"language": dict, "language.name": str, "language.fingerprint": str}
_FIELDS: Mapping[str, Mapping[str, type]] = {
    "lqae": {**_TEXTS, "num_codewords": int},
    "vqvae": {"num_codewords": int},
    "mae": {},
    "frozen": _TEXTS,
    "cbvila": {**_TEXTS, "num_codewords": int},
    "reasoning": {**_TEXTS, "model.body": dict},
}
_CALLED: Mapping[type, str] = {dict: "keys and values", str: "a text", int: "a whole number", list: "a list"}
# Patches along a side, where no weight depends on them.
_LARGEST_GRID = 1024


def read_description(folder: Path) -> dict[str, Any]:
    """Return what `config.json` of a model directory says.

    Raises:
        ValueError: it cannot be read, is damaged, or a field is missing or of another type; the field is named.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if config.get("model_type") == PUBLISHED:
        return config
    if config.get("format") != FORMAT:
        raise ValueError(f"{path}: expected model format {FORMAT}, got {config.get('format')!r:.80}")
    family = config.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"{path}: expected family to be one of {', '.join(FAMILIES)}, got {family!r:.80}")
    for name, kind in {"model": dict, **_FIELDS[family]}.items():
        _check_type(config, name, kind, path)
    if "trained_on" in config:
        _check_type(config, "trained_on", list, path)
    return config


def _check_type(config: Mapping[str, Any], name: str, kind: type, path: Path) -> None:
    """Raise `ValueError` unless a field is there and of a type."""
    place: Any = config
    for key in name.split("."):
        if key not in place:
            raise ValueError(f"{path}: expected {_CALLED[kind]} in {name}, found no such field")
        place = place[key]
    if type(place) is not kind:
        raise ValueError(f"{path}: expected {_CALLED[kind]} in {name}, got {place!r:.80}")


def verify_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare the weights of a model directory with the checksum in its `config.json`, where that has one.

    Raises:
        ValueError: they are not those that were written.
    """
    told = config.get(CHECKSUM)
    if told is not None and told != weights_checksum(folder):
        raise ValueError(
            f"{folder / WEIGHTS} is damaged or was replaced: its SHA-256 is not the {CHECKSUM} of {CONFIG}"
        )


def weights_checksum(folder: Path) -> str:
    """Return the SHA-256 of the weights of a model directory.

    Raises:
        ValueError: they cannot be read.
    """
    try:
        with open_regular(folder / WEIGHTS) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def check_shapes(config: ModelConfig, folder: Path) -> None:
    """Compare the sizes in a configuration with the shapes of the weights, which are not read for it.

    Without it a size beyond all reason would be built, for hours or until the memory is full, and only then be
    compared.

    Raises:
        ValueError: naming the field, or the weight that is not there.
    """
    path = folder / WEIGHTS
    try:
        with open_regular(path), safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold this model's weights: {error!s:.200}") from error
    try:
        facts = list(_facts(config))
    except ArithmeticError as error:
        raise ValueError(f"{folder / CONFIG}: model has a size beyond all reason ({error})") from error
    for field, expected, name, side in facts:
        found = _found(shapes, name, side)
        if found is None:
            raise ValueError(
                f"{path} does not hold this model's weights: there is no {name}, which model.{field} tells of"
            )
        if found != expected:
            raise ValueError(
                f"{folder / CONFIG}: model.{field} makes the {'number' if side is None else 'size'} of {name} "
                f"{printable(expected):.40}, the weights have {found}"
            )
    if isinstance(config, FrozenConfig) and shapes["projector.weight"][0] % config.num_prefix_tokens:
        raise ValueError(
            f"{folder / CONFIG}: model.num_prefix_tokens must divide {shapes['projector.weight'][0]}, the size of "
            f"projector.weight, got {config.num_prefix_tokens}"
        )
    if config.grid > _LARGEST_GRID:
        raise ValueError(
            f"{folder / CONFIG}: model.image_size must be at most {_LARGEST_GRID} patches, got {config.grid}"
        )


_Fact = tuple[str, int, str, int | None]


def _found(shapes: Mapping[str, tuple[int, ...]], name: str, side: int | None) -> int | None:
    """Return the length of one side of a weight, or how many numbered parts it has; None where there is none."""
    if side is not None:
        return shapes[name][side] if side < len(shapes.get(name, ())) else None
    numbers = {key.removeprefix(f"{name}.").split(".")[0] for key in shapes if key.startswith(f"{name}.")}
    return len(numbers) or None


def _facts(config: ModelConfig) -> Iterator[_Fact]:
    """Yield field, value, name of a weight, and which side of it is so long; None: how many parts it has."""
    match config:
        case ReasonerConfig():
            yield from _of_reasoner(config)
        case CBViLAConfig():
            yield from _of_cbvila(config)
        case MAEConfig():
            yield from _of_mae(config)
        case _:
            yield "patch_size", config.patch_size, "encoder.patches.weight", 2
            yield from _of_vision("encoder", config.encoder, config.grid)
            if not isinstance(config, FrozenConfig):
                yield from _of_vision("decoder", config.decoder, config.grid)
    if isinstance(config, VQVAEConfig):
        yield "num_codewords", config.num_codewords, "codebook.weight", 0
        yield "codebook_dim", config.codebook_dim, "codebook.weight", 1
    if isinstance(config, LQAEConfig) and config.quantizer.search != "raw":
        name = {"whitened": "quantizer.directions", "assigned": "quantizer.learned"}[config.quantizer.search]
        yield "quantizer.search_dim", config.quantizer.search_dim, name, 1


def _of_vision(name: str, config: VisionConfig, grid: int) -> Iterator[_Fact]:
    trunk = f"{name}.trunk"
    yield f"{name}.width", config.width, f"{trunk}.positions", 2
    yield f"{name}.depth", config.depth, f"{trunk}.blocks", None
    yield f"{name}.mlp_ratio", int(config.width * config.mlp_ratio), f"{trunk}.blocks.0.expand.weight", 0
    yield "image_size", grid**2, f"{trunk}.positions", 1


def _of_mae(config: MAEConfig) -> Iterator[_Fact]:
    vit, decoder = "network.vit", "network.decoder"
    yield "patch_size", config.patch_size, f"{vit}.embeddings.patch_embeddings.projection.weight", 2
    for name, side, width, layers in (
        ("encoder", config.encoder, f"{vit}.embeddings.cls_token", f"{vit}.layers"),
        ("decoder", config.decoder, f"{decoder}.mask_token", f"{decoder}.decoder_layers"),
    ):
        yield f"{name}.width", side.width, width, 2
        yield f"{name}.depth", side.depth, layers, None
        yield f"{name}.mlp_ratio", int(side.width * side.mlp_ratio), f"{layers}.0.mlp.fc1.weight", 0


def _of_cbvila(config: CBViLAConfig) -> Iterator[_Fact]:
    image, text, codebook = config.image, config.text, config.codebook
    yield "patch_size", config.patch_size, "image_encoder.patches.weight", 2
    yield "image_size", config.grid**2 + 1, "image_encoder.positions", 1
    yield "image.width", image.width, "image_encoder.positions", 2
    yield "image.depth", image.depth, "image_encoder.blocks", None
    yield "image.mlp_ratio", int(image.width * image.mlp_ratio), "image_encoder.blocks.0.expand.weight", 0
    yield "text.positions", text.positions, "text_encoder.positions", 1
    yield "text.width", text.width, "text_encoder.positions", 2
    yield "text.depth", text.depth, "text_encoder.layers", None
    yield "text.mlp_ratio", int(text.width * text.mlp_ratio), "text_encoder.layers.0.expand.weight", 0
    yield "fusion.depth", config.fusion.depth, "fusion.layers", None
    yield "codebook.num_codewords", codebook.num_codewords, "codebook.weight", 0
    yield "codebook.dim", codebook.dim, "codebook.weight", 1
    yield "contrastive_dim", config.contrastive_dim, "image_contrast.weight", 0


def _of_reasoner(config: ReasonerConfig) -> Iterator[_Fact]:
    for field, value, name, side in _of_cbvila(config.body):
        yield f"body.{field}", value, f"body.{name}", side
    if config.task == "vqa":
        yield "body.fusion.depth", config.body.fusion.depth, "decoder.layers", None
    else:
        width = config.num_images * config.body.text.width
        yield "num_images", width, "class_head.0.weight", 1
        yield "answers", len(config.answers), "class_head.2.weight", 0
