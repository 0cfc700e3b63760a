"""Published weights to start from: where they lie, what they are called, into which of our parts they go.

The names in the files, unlike transformers' modules, have been the same for years.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pixlex.files import read_json, sha256_of
from pixlex.nn.bert import EMBEDDED, EMBEDDED_HEAD, FusionEncoder, TextEncoder, embedded_directory
from pixlex.nn.transformer import ImageEncoder, sine_positions

if TYPE_CHECKING:
    from pixlex.config.cbvila import CBViLAConfig
    from pixlex.config.lqae import VisionConfig

# Models that come with the package, a directory each.
RELEASED = Path(__file__).parents[1] / "released"

CONFIG = "config.json"
CARD = "README.md"
WEIGHTS = "model.safetensors"
# In our `config.json`; absent in directories that were written before there were checksums.
CHECKSUM = "weights_sha256"
_INDEX = "model.safetensors.index.json"
# Behind the name of a weight that is stored in 8 bits.
_SCALE = ":scale"
# Where a body's weights begin, whatever it is part of; our own masked autoencoder's begin with network.vit.
_PREFIX = re.compile(r"^(network\.)?(bert|vit|deit|siglip|dinov2|vision_model|model)\.(vision_model\.)?")

_BERT_LAYER = {
    "attention.query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "expand": ("intermediate.dense",),
    "contract": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
_BERT_HEAD = {
    "transform.weight": "transform.dense.weight",
    "transform.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}
_QUERY = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
# Our names of a vision transformer's layer -> theirs, in the order of the known kinds of file.
_VISION_LAYER = {
    "attention.query_key_value": (
        _QUERY,
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        _QUERY,
    ),
    "attention.output": (
        ("attention.output.dense",), ("self_attn.out_proj",), ("attention.o_proj",), ("attention.output.dense",),
    ),
    "attention_norm": (("layernorm_before",), ("layer_norm1",), ("layernorm_before",), ("norm1",)),
    "feed_forward_norm": (("layernorm_after",), ("layer_norm2",), ("layernorm_after",), ("norm2",)),
    "expand": (("intermediate.dense",), ("mlp.fc1",), ("mlp.fc1",), ("mlp.fc1",)),
    "contract": (("output.dense",), ("mlp.fc2",), ("mlp.fc2",), ("mlp.fc2",)),
}  # fmt: skip
_VISION_LAYERS = ("encoder.layer", "encoder.layers", "layers", "encoder.layer")
# A network of transformers' ViTMAE in memory has the names of the third kind.
_VIT, _SIGLIP, _NEW, _DINOV2 = range(4)
# DINOv2's factors of what a layer adds, which go into the linear map before them.
_FACTORS = {"attention.output": "layer_scale1.lambda1", "contract": "layer_scale2.lambda1"}


def released() -> dict[str, Path]:
    """Return the models that come with the package, directories by their names."""
    return {folder.name: folder for folder in sorted(RELEASED.glob("*")) if (folder / CONFIG).is_file()}


def find_model(
    name: str, what: str, *, needs: Sequence[str], files: Sequence[str], revision: str | None = None
) -> Path:
    """Return the directory that holds a model; one on the hub is downloaded, or taken from its cache.

    Args:
        name: A directory, a run folder (its `model` is taken), one of `released`, or a repository on the hub.
        what: What to call its contents in an error, such as "pretrained weights".
        needs: Names of files, one of which the directory must hold.
        files: Names or patterns of all files that are read.

    Raises:
        ValueError: No such directory or repository, or it cannot be reached.
    """
    if not name.strip():
        raise ValueError(f"no {what} {name!r}: expected a directory or a repository on the hub")
    for folder in (Path(name), Path(name) / "model"):
        if any((folder / one).is_file() for one in needs):
            return folder
    if name in (built_in := released()):
        return built_in[name]
    near = () if "/" in name else difflib.get_close_matches(name, built_in, n=1, cutoff=0.8)
    if near and not Path(name).exists():
        raise ValueError(f"no {what} {name!r}: did you mean {near[0]}?")
    expected = " or ".join(needs)
    if Path(name).exists() or name.startswith((".", "/")) or name.count("/") > 1:
        raise ValueError(f"{name} holds no {what}: expected {expected} in it")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no {what} {name!r}: neither a directory with {expected} nor a repository on the hub ({error})"
        ) from error


def weights_checksum(folder: Path) -> str:
    """Return the SHA-256 of the weights of a model directory; `ValueError` where they cannot be read."""
    try:
        return sha256_of(folder / WEIGHTS)
    except OSError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def verify_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a ValueError for weights that are not those of the checksum in `config.json`, where that has one."""
    expected = config.get(CHECKSUM)
    if expected is not None and expected != weights_checksum(folder):
        raise ValueError(
            f"{folder / WEIGHTS} is damaged or was replaced: its SHA-256 is not the {CHECKSUM} of {CONFIG}"
        )


def compact(model: nn.Module, bits: int) -> dict[str, Tensor]:
    """Return what a file holds of a model, parameters of two dimensions or more in so many bits: 32, 16 or 8.

    Statistics stay as they are: a covariance that is rounded is none. 8: whole numbers in [-127, 127] and beside
    them, named NAME:scale, what each row is multiplied by, its largest magnitude over 127; where there is but one
    row, 16 bits. A ValueError names a weight that does not fit.
    """
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in parameters & found.keys():
        tensor = found[name].float()
        if tensor.ndim < 2 or bits == 32:
            continue
        scale = tensor.flatten(1).abs().amax(1) / 127
        if bits == 16 or len(tensor) == 1:
            found[name] = tensor.half()
        else:
            steps = tensor / scale.clamp_min(torch.finfo(scale.dtype).tiny).view(-1, *[1] * (tensor.ndim - 1))
            found |= {name: steps.round().to(torch.int8), f"{name}{_SCALE}": scale}
        if not (scale.isfinite().all() and found[name].isfinite().all()):
            raise ValueError(
                f"{name}: expected weights that {bits} bits hold, got up to {float(tensor.abs().max()):g}"
            )
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file, what `compact` made of them undone; safetensors' errors are raised."""
    stored = load_file(path)
    scales = {name.removesuffix(_SCALE): stored.pop(name) for name in list(stored) if name.endswith(_SCALE)}
    for name, scale in scales.items():
        stored[name] = stored[name].float() * scale.view(-1, *[1] * (stored[name].ndim - 1))
    return stored


class Published:
    """The weights of a published network in float32, by names without what the body is part of.

    `name` is a directory, a run folder of ours, a repository on the hub, or "embedded"; `settings` is what
    `config.json` says, of a vision part or a model directory of ours the part.

    Raises:
        ValueError: There are none, or they are damaged.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        embedded = name == EMBEDDED
        needs, files = (WEIGHTS, _INDEX), ("*.safetensors", _INDEX, CONFIG)
        folder = (
            embedded_directory()
            if embedded
            else find_model(name, "pretrained weights", needs=needs, files=files)
        )
        try:
            settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
            if settings.keys() >= {"format", CHECKSUM}:  # a model directory of ours
                verify_weights(folder, settings)
            parts = {WEIGHTS}
            if (folder / _INDEX).is_file():
                parts = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            loaded = load_file(EMBEDDED_HEAD) if embedded else {}
            for part in sorted(parts):
                loaded |= read_weights(folder / part)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{name}: its weights cannot be read: {error}") from error
        # TensorFlow's names of a norm's weights, in the oldest files.
        self.weights = {
            _PREFIX.sub("", key).replace(".gamma", ".weight").replace(".beta", ".bias"): tensor.float()
            for key, tensor in loaded.items()
        }
        for inner in ("vision_config", "model", "encoder"):  # SigLIP's; a model directory of ours
            found = settings.get(inner)
            settings = found if isinstance(found, dict) else settings
        self.settings = settings

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.weights:
            raise ValueError(f"{self.name} has no weight {key}, found {self.some_names}")
        return self.weights[key]

    @property
    def some_names(self) -> str:
        """A few names of weights, for errors."""
        return f"{', '.join(sorted(self.weights)[:3])}, ..."

    def joined(self, parts: Sequence[str], prefix: str) -> dict[str, Tensor]:
        """Return weight and bias of linear maps side by side."""
        return {
            kind: torch.cat([self[f"{prefix}{part}.{kind}"] for part in parts]) for kind in ("weight", "bias")
        }

    def check_heads(self, field: str, heads: int) -> None:
        """Compare the number of heads, on which no shape of a weight depends, with what `config.json` says."""
        found = self.settings.get("num_attention_heads", self.settings.get("heads", heads))
        if found != heads:
            raise ValueError(f"{self.name} has {found} attention heads, but {field} is {heads}")

    def check_depth(self, key: str, needed: int) -> None:
        """Require as many numbered layers."""
        pattern = re.compile(rf"^{re.escape(key)}\.(\d+)\.")
        found = {match[1] for match in map(pattern.match, self.weights) if match}
        if len(found) < needed:
            raise ValueError(
                f"{self.name} has {len(found)} layers, but {needed} are asked for: the first ones for the text "
                "(or image) encoder, those behind it for the fusion encoder"
            )

    @torch.no_grad()
    def copy_into(self, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into parameters and buffers of their names and shapes."""
        targets = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for key, source in weights.items():
            if targets[key].shape != source.shape:
                raise ValueError(
                    f"{self.name}: {key} is {tuple(source.shape)}, the configuration asks for "
                    f"{tuple(targets[key].shape)}"
                )
            targets[key].copy_(source)


def initialize_towers(
    image_encoder: nn.Module,
    text_encoder: TextEncoder,
    fusion: FusionEncoder,
    masked_word_head: nn.Module,
    config: CBViLAConfig,
) -> None:
    """Copy published weights into the parts of CB-ViLA for which the configuration names any.

    The image encoder receives a vision transformer, its positions resampled; a class token that it lacks stays.
    The text encoder receives embeddings and first layers of a BERT, the fusion encoder the layers behind those,
    all but the cross-attention, and the head for hidden words the one behind the last of them, if there is one.

    Raises:
        ValueError: Weights that cannot be found or read, or are of other shapes than the configuration's.
    """
    parts = (config.image, config.text, config.fusion)
    published = {name: Published(name) for name in {part.pretrained for part in parts} - {""}}
    image, text, behind = (published.get(part.pretrained) for part in parts)
    for one, field, heads in (
        (image, "image.heads", config.image.heads),
        (text, "text.heads", config.text.heads),
        (behind, "text.heads", config.text.heads),
    ):
        if one is not None:
            one.check_heads(field, heads)
    if image is not None:
        found = vision_weights(image, config.grid, config.image.depth)
        if "class_token" not in found:
            own = image_encoder.get_parameter("positions").detach()[:, :1]
            found["positions"] = torch.cat([own, found["positions"][:, 1:]], dim=1)
        image.copy_into(image_encoder, found)
    if text is not None:
        text.copy_into(text_encoder, _bert_embeddings(text, text_encoder))
        text.copy_into(text_encoder, _bert_layers(text, 0, config.text.depth))
    if behind is not None:
        behind.copy_into(fusion, _bert_layers(behind, config.text.depth, config.fusion.depth))
        if f"cls.predictions.{_BERT_HEAD['transform.weight']}" in behind.weights:
            words = len(masked_word_head.get_parameter("bias"))
            head = {ours: behind[f"cls.predictions.{theirs}"] for ours, theirs in _BERT_HEAD.items()}
            behind.copy_into(masked_word_head, {**head, "bias": head["bias"][:words]})


def _bert_embeddings(bert: Published, encoder: TextEncoder) -> dict[str, Tensor]:
    """Return a BERT's embeddings, those of its first segment added to its positions."""
    positions, wanted = bert["embeddings.position_embeddings.weight"], encoder.positions.shape[1]
    if len(positions) < wanted:
        raise ValueError(f"{bert.name} has {len(positions)} positions, text.positions is {wanted}")
    segment = bert["embeddings.token_type_embeddings.weight"][0]
    return {
        # Some tables have more rows than there are words, to be divisible by 64.
        "words.weight": bert["embeddings.word_embeddings.weight"][: len(encoder.words.weight)],
        "positions": (positions[:wanted] + segment).unsqueeze(0),
        "norm.weight": bert["embeddings.LayerNorm.weight"],
        "norm.bias": bert["embeddings.LayerNorm.bias"],
    }


def _bert_layers(bert: Published, first: int, count: int) -> dict[str, Tensor]:
    """Return layers of a BERT by our names, from the one numbered `first` on."""
    bert.check_depth("encoder.layer", first + count)
    return {
        f"layers.{number}.{ours}.{kind}": one
        for number in range(count)
        for ours, theirs in _BERT_LAYER.items()
        for kind, one in bert.joined(theirs, f"encoder.layer.{first + number}.").items()
    }


def vision_weights(vision: Published, grid: int, depth: int) -> dict[str, Tensor]:
    """Return the first layers of a vision transformer by the names of `ClassTokenEncoder`, positions resampled.

    A ViT, DeiT, ViTMAE, DINOv2 or SigLIP, which has no class token; a ValueError refuses others.
    """
    weights = vision.weights
    starts = (f"{key}.0." for key in _VISION_LAYERS)
    known = (kind for kind, start in enumerate(starts) if any(one.startswith(start) for one in weights))
    kind = _DINOV2 if "encoder.layer.0.norm1.weight" in weights else next(known, None)
    patches = "embeddings.patch_embedding" if kind == _SIGLIP else "embeddings.patch_embeddings.projection"
    if kind is None or f"{patches}.weight" not in weights or "embeddings.register_tokens" in weights:
        raise ValueError(
            f"{vision.name}: expected a ViT, DeiT, ViTMAE, DINOv2 (without registers) or SigLIP, found "
            f"{vision.some_names}"
        )
    vision.check_depth(_VISION_LAYERS[kind], depth)
    norm = "post_layernorm" if kind == _SIGLIP else "layernorm"
    found = {f"patches.{one}": vision[f"{patches}.{one}"] for one in ("weight", "bias")}
    found |= {f"norm.{one}": vision[f"{norm}.{one}"] for one in ("weight", "bias")}
    found["positions"] = _positions(weights, grid, len(found["patches.bias"]))
    if "embeddings.cls_token" in weights:
        found["class_token"] = weights["embeddings.cls_token"]
    for number in range(depth):
        prefix = f"{_VISION_LAYERS[kind]}.{number}."
        for ours, theirs in _VISION_LAYER.items():
            both = vision.joined(theirs[kind], prefix)
            if kind == _DINOV2 and ours in _FACTORS:
                factors = vision[f"{prefix}{_FACTORS[ours]}"]
                both = {"weight": both["weight"] * factors.unsqueeze(1), "bias": both["bias"] * factors}
            found |= {f"blocks.{number}.{ours}.{one}": tensor for one, tensor in both.items()}
    return found


def _positions(weights: Mapping[str, Tensor], grid: int, width: int) -> Float[Tensor, "1 N1 D"]:
    """Return positions for class token and patches, bicubically resampled where the grid is another one."""
    if "embeddings.position_embedding.weight" in weights:
        patches = weights["embeddings.position_embedding.weight"].unsqueeze(0)
        first = torch.zeros_like(patches[:, :1])
    elif "embeddings.position_embeddings" in weights:
        found = weights["embeddings.position_embeddings"]
        # DeiT's distilled ones have a second token before the patches.
        before = found.shape[1] - int(found.shape[1] ** 0.5) ** 2
        first, patches = found[:, :1], found[:, before:]
    else:  # our masked autoencoder's are fixed
        return sine_positions(grid, width)
    return torch.cat([first, resampled(patches, grid)], dim=1)


def resampled(rows: Float[Tensor, "1 n D"], grid: int) -> Float[Tensor, "1 N D"]:
    """Return the rows of a square grid, bicubically resampled to another."""
    side = round(rows.shape[1] ** 0.5)
    if side == grid:
        return rows
    on_grid = rows.transpose(1, 2).reshape(1, -1, side, side)
    moved = F.interpolate(on_grid, size=(grid, grid), mode="bicubic", align_corners=False)
    return moved.flatten(2).transpose(1, 2)


def initialize_encoder(encoder: nn.Module, config: VisionConfig, grid: int) -> None:
    """Copy a vision transformer into the image encoder of LQAE, VQ-VAE, MAE or Frozen, if `config` names one.

    Args:
        encoder: An `ImageEncoder`, or the body of transformers' ViTMAE.

    Raises:
        ValueError: No such weights, or they do not fit the configuration.
    """
    if not config.pretrained:
        return
    vision = Published(config.pretrained)
    vision.check_heads("encoder.heads", config.heads)
    activation = vision.settings.get("hidden_act")
    gelu = "tanh" if "tanh" in str(activation) else "exact"
    if activation and gelu != config.gelu:
        raise ValueError(f"{vision.name} needs encoder.gelu={gelu}, got {config.gelu}")
    found = vision_weights(vision, grid, config.depth)
    has_token = "class_token" in found
    if isinstance(encoder, ImageEncoder):
        if has_token != config.class_token:
            raise ValueError(
                f"{vision.name} has {'a' if has_token else 'no'} class token: it needs encoder.class_token="
                f"{str(has_token).lower()}"
            )
        token = {"class_token": found.pop("class_token") + found["positions"][:, :1]} if has_token else {}
        found["positions"] = found["positions"][:, 1:]
        inside = {key if key.startswith("patches") else f"trunk.{key}": one for key, one in found.items()}
        vision.copy_into(encoder, {**inside, **token})
    else:
        vision.copy_into(encoder, _by_transformers_names(found))


def _by_transformers_names(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of transformers' network, where queries, keys and values are three maps."""
    ends = {
        "patches": "embeddings.patch_embeddings.projection", "norm": "layernorm",
        "class_token": "embeddings.cls_token", "positions": "embeddings.position_embeddings",
    }  # fmt: skip
    renamed = {}
    for key, tensor in found.items():
        start, _, rest = key.partition(".")
        if start != "blocks":
            renamed[f"{ends[start]}.{rest}".removesuffix(".")] = tensor
            continue
        number, _, inner = rest.partition(".")
        ours, _, kind = inner.rpartition(".")
        names = _VISION_LAYER[ours][_NEW]
        for name, part in zip(names, tensor.chunk(len(names)), strict=True):
            renamed[f"layers.{number}.{name}.{kind}"] = part
    return renamed
