"""Image encoders that are no transformers of ours: a convolutional network, any vision model of the hub; views."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pixlex.nn.transformer import PIXELS, ClassTokenEncoder, check_images, send

if TYPE_CHECKING:
    from pixlex.config.fields import ResizeMode
    from pixlex.nn.codebook import AllMean

ViewKind = Literal["photographs", "drawings"]


def alone(tensor: Tensor) -> Tensor:
    """Return the mean over processes where there is one."""
    return tensor


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015) whose statistics are measured, not gathered along the way.

    In training those of the batch count, and nothing is remembered; else those that `measure_statistics` found
    once the weights stand still (Wu and Johnson 2021, section 3, PreciseBN).
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.found: list[Tensor] | None = None

    def forward(self, maps: Float[Tensor, "B C *side"], over: AllMean | None = None) -> Tensor:
        """Return channels of mean 0 and variance 1, scaled and shifted.

        Args:
            maps: Some channels of images.
            over: With the statistics of the batch: their mean over processes (`alone` where there is one); None
                with those that were measured.
        """
        if over is None:
            return F.batch_norm(maps, self.mean, self.variance, self.weight, self.bias)
        if over is alone and self.found is None:  # torch's own: fewer passes over the maps
            return F.batch_norm(maps, None, None, self.weight, self.bias, training=True)
        others = [axis for axis in range(maps.ndim) if axis != 1]
        moments = over(torch.stack([maps.mean(others), maps.square().mean(others)]))
        mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
        if self.found is not None:
            self.found.append(moments.detach())
        scale = self.weight * (variance + 1e-5).rsqrt()
        shape = (-1, *[1] * (maps.ndim - 2))
        return maps * scale.view(shape) + (self.bias - mean * scale).view(shape)


def _norms(network: nn.Module) -> list[BatchNorm]:
    return [one for one in network.modules() if isinstance(one, BatchNorm)]


def needs_statistics(network: nn.Module) -> bool:
    """Return whether a network has norms whose statistics were never measured, or are forgotten."""
    return any(bool((norm.variance == 1).all() and not norm.mean.any()) for norm in _norms(network))


def forget_statistics(network: nn.Module) -> None:
    """Make the norms of a network what they were before statistics were measured."""
    for norm in _norms(network):
        norm.mean.zero_()
        norm.variance.fill_(1)


@torch.no_grad()
def measure_statistics(network: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Give the norms of a network the mean statistics of some passes through it, each over one batch."""
    norms = _norms(network)
    if not norms:
        return
    for norm in norms:
        norm.found = []
    for compute in passes:
        compute()
    for norm in norms:
        if not norm.found:
            raise ValueError("expected some images to measure the statistics of norms on, got none")
        mean, square = torch.stack(norm.found).mean(0)
        norm.mean.copy_(mean)
        norm.variance.copy_((square - mean.square()).clamp_min(0))
        norm.found = None


class ConvolutionalEncoder(nn.Module):
    """Image to one vector for the whole and one per patch, by 3 x 3 convolutions with batch normalization.

    The first one keeps the image's size; each stage halves it and doubles the channels, with a residual
    convolution. So many stages that a vector stands for a patch; the vector of the whole is the mean of the
    others. On some ten thousand small images it learns in minutes what a transformer takes hours for.

    Raises:
        ValueError: a patch size that is no power of two, or a width that the stages do not divide.
    """

    def __init__(self, width: int, image_size: int, patch_size: int) -> None:
        super().__init__()
        stages = patch_size.bit_length() - 1
        if 2**stages != patch_size or stages < 1 or width % 2**stages:
            raise ValueError(
                "convolutions need a patch_size that is a power of two, 2 or more, and divides the width, got "
                f"patch_size {patch_size} and width {width}"
            )
        self.image_size, self.patch_size = image_size, patch_size
        widths = [width >> shift for shift in range(stages, -1, -1)]
        self.first = _Convolution(3, widths[0], 1)
        self.stages = nn.ModuleList(_Convolution(before, after, 2) for before, after in pairwise(widths))
        self.residuals = nn.ModuleList(_Convolution(one, one, 1) for one in widths[1:])

    def forward(
        self, images: Float[Tensor, "B 3 H W"], over: AllMean | None = None
    ) -> Float[Tensor, "B N1 D"]:
        """Return the vector of the whole image, then the patch vectors, rows of the grid first.

        Images may be smaller than `image_size`: a smaller grid comes of them. `over`: see `BatchNorm`.
        """
        if images.shape[-1] > self.image_size or images.shape[-1] % self.patch_size:
            check_images(images, self.image_size)
        # Channels last: what convolutions and norms of a CPU compute a quarter to a half faster.
        maps = ((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        maps = self.first(maps, over)
        for stage, residual in zip(self.stages, self.residuals, strict=True):
            maps = stage(maps, over)
            maps = maps + residual(maps, over)
        vectors = maps.flatten(2).transpose(1, 2)
        return torch.cat([vectors.mean(1, keepdim=True), vectors], dim=1)


class _Convolution(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")
        self.norm = BatchNorm(after)

    def forward(self, maps: Tensor, over: AllMean | None) -> Tensor:
        return F.relu(self.norm(self.convolution(maps), over))


def vision_encoder(tower: Any, image_size: int, patch_size: int) -> ConvolutionalEncoder | ClassTokenEncoder:
    """Return the network of a configuration (`block`): one vector for the whole image, one for each patch."""
    if tower.block == "convolutional":
        return ConvolutionalEncoder(tower.width, image_size, patch_size)
    return ClassTokenEncoder(image_size, patch_size, tower.width, tower.depth, tower.heads, tower.mlp_ratio)


class ContrastiveHead(nn.Module):
    """Two linear maps behind an encoder, in whose output views are compared (Chen et al. 2020, section 2.1)."""

    def __init__(self, width: int, output_dim: int = 128) -> None:
        super().__init__()
        self.expand, self.norm = nn.Linear(width, width, bias=False), BatchNorm(width)
        self.contract = nn.Linear(width, output_dim)

    def forward(self, vectors: Float[Tensor, "V D"], over: AllMean | None = None) -> Float[Tensor, "V O"]:
        """Return the vectors that are compared."""
        compared: Tensor = self.contract(F.relu(self.norm(self.expand(vectors), over)))
        return compared


class PublishedEncoder(nn.Module):
    """A frozen vision model of transformers: image to one vector for the whole and one per patch.

    The vector of the whole is what the model itself has for it: its pooled output (CLIP, SigLIP), else its class
    token (DINOv2, ViT, DeiT), else the mean of the patches; of a masked autoencoder the mean, nothing hidden.
    Images are resized and normalized as its `preprocessor_config.json` says.

    Args:
        name: a directory, or a repository on the hub.
        random_weights: drawn, as for an untrained model that another is compared with.

    Raises:
        ValueError: no such model, or none that reads images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, random_weights: bool = False) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.name = name
        try:
            load: Any = AutoModel.from_pretrained
            build: Any = AutoModel.from_config
            whole = build(AutoConfig.from_pretrained(name)) if random_weights else load(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"no vision model {name!r}: {error!s:.300}") from error
        body = getattr(whole, "vision_model", whole)
        config = getattr(whole.config, "vision_config", whole.config)
        if not hasattr(config, "patch_size") or not hasattr(config, "image_size"):
            raise ValueError(f"{name} is a {whole.config.model_type}: expected a vision transformer")
        if hasattr(config, "mask_ratio"):
            config.mask_ratio = 0.0
        self.body = body.eval().requires_grad_(False)
        self.kind: str = config.model_type
        self.width = int(config.hidden_size)
        self.image_size, mean, std, _ = preprocessing(name, config)
        for key, values in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights as float32 bytes: words mean nothing under another one."""
        digest = hashlib.sha256()
        for key, weight in sorted(self.body.state_dict().items()):
            digest.update(key.encode() + weight.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> PublishedEncoder:
        """Do nothing: a frozen model stays in evaluation mode."""
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N1 D"]:
        """Return the vector of the whole image, then the patch vectors; `images` holds pixels in [0, 1]."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        given: dict[str, Any] = {"pixel_values": (images - self.mean) / self.std}
        if self.kind == "vit_mae":  # it would shuffle the patches
            count = (self.image_size // self.body.config.patch_size) ** 2
            given["noise"] = torch.arange(count, device=images.device).expand(len(images), -1)
        elif self.kind != "dinov2" and self.image_size != self.body.config.image_size:
            given["interpolate_pos_encoding"] = True
        output = self.body(**given)
        vectors = output.last_hidden_state
        before = (
            vectors.shape[1] - math.isqrt(vectors.shape[1]) ** 2 if self.kind != "siglip_vision_model" else 0
        )
        patches = vectors[:, before:]
        if self.kind in ("clip_vision_model", "siglip_vision_model"):
            first = output.pooler_output.unsqueeze(1)
        else:
            first = patches.mean(1, keepdim=True) if self.kind == "vit_mae" or not before else vectors[:, :1]
        return torch.cat([first, patches], dim=1)


def preprocessing(
    name: str, config: Any, revision: str | None = None
) -> tuple[int, tuple[float, ...], tuple[float, ...], ResizeMode]:
    """Return how a vision model wants its images: side in pixels, mean, standard deviation, how they are cut."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    said = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    kind = "clip" if "clip" in config.model_type else "half" if "siglip" in config.model_type else "imagenet"
    mean, std = PIXELS[kind]
    size = said.get("crop_size") if said.get("do_center_crop", True) else None
    size = size or said.get("size") or {}
    side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    squashed = not said.get("do_center_crop", kind != "half") and not (
        isinstance(size, dict) and "shortest_edge" in size
    )
    return (
        int(side or config.image_size),
        tuple(said.get("image_mean", mean)),
        tuple(said.get("image_std", std)),
        "squash" if squashed else "center",
    )


@dataclass(frozen=True)
class _Views:
    """What a random view may change: see `random_views`."""

    scale: tuple[float, float]  # of the side that is seen, over the image's
    stretch: float  # the logarithm of width over height is at most so far from 0
    angle: float  # in degrees, either way
    shift: float  # of the middle, over the image's side; 0 keeps the view inside
    flips: bool
    hue: float  # in turns, either way
    ground: float | None  # what lies around an image; None mirrors it


_VIEWS: dict[ViewKind, _Views] = {
    # SimCLR's crops and colors (Chen et al. 2020, appendix A), milder: areas of a fifth on.
    "photographs": _Views((0.2**0.5, 1.0), math.log(4 / 3), 0.0, 0.0, True, 0.1, None),
    "drawings": _Views((0.85, 1.25), math.log(1.17), 14.0, 0.08, False, 0.1, 1.0),
}
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
_COLORED, _GREY, _JITTER = 0.8, 0.2, 0.4


def random_views(
    images: Float[Tensor, "B 3 H W"], kind: ViewKind, draws: Float[Tensor, "B draws"], size: int | None = None
) -> Float[Tensor, "B 3 s s"]:
    """Return a random view of each image: another part of it, in other colors (Chen et al. 2020, SimCLR).

    Photographs: a crop of a fifth of the area or more, mirrored or not. Drawings: somewhat larger or smaller on
    their white ground, turned, shifted, stretched, never mirrored. Both: mild changes of color; one in five is
    grey.

    Args:
        images: pixels in [0, 1].
        draws: `NUM_DRAWS` numbers in [0, 1) for each image, drawn uniformly.
        size: side of a view in pixels; None for the image's own.
    """
    ways, batch = _VIEWS[kind], len(images)
    size = size or images.shape[-1]
    u = send(draws, images.device).unbind(1)
    low, high = ways.scale
    side = (low**2 + (high**2 - low**2) * u[0]).sqrt()  # uniform in area
    ratio = torch.exp(ways.stretch * (2 * u[1] - 1) / 2)
    width, height = side * ratio, side / ratio
    if not ways.shift:
        width, height = width.clamp(max=1), height.clamp(max=1)
    rooms = (1 - width, 1 - height) if not ways.shift else (torch.full_like(width, 2 * ways.shift),) * 2
    left, top = ((2 * one - 1) * room for one, room in zip(u[2:4], rooms, strict=True))
    mirrored = torch.where(u[4] < 0.5, -1.0, 1.0) if ways.flips else torch.ones_like(u[4])
    angle = math.radians(ways.angle) * (2 * u[5] - 1)
    cosine, sine = angle.cos(), angle.sin()
    rows = (cosine * width * mirrored, -sine * height, left, sine * width * mirrored, cosine * height, top)
    where = F.affine_grid(torch.stack(rows, 1).view(batch, 2, 3), [batch, 3, size, size], align_corners=False)
    ground = ways.ground or 0.0
    padding = "reflection" if ways.ground is None else "zeros"
    views = F.grid_sample(images - ground, where, padding_mode=padding, align_corners=False) + ground

    def column(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    brightness, contrast, saturation = (column(1 + _JITTER * (2 * one - 1)) for one in u[6:9])
    colored = torch.lerp(
        torch.full_like(views, ground), views, brightness
    )  # of drawings the ground stays white
    middle = colored.mean((1, 2, 3), keepdim=True) if ways.ground is None else torch.full_like(views, ground)
    colored = torch.lerp(middle, colored, contrast)
    to_yiq = torch.tensor(_TO_YIQ, device=images.device)
    grey = torch.einsum("c,bchw->bhw", to_yiq[0], colored).unsqueeze(1)
    colored = torch.lerp(grey, colored, saturation)
    turn = 2 * math.pi * ways.hue * (2 * u[9] - 1)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    turns = (one, zero, zero, zero, turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos())
    mixed = torch.linalg.inv(to_yiq) @ torch.stack(turns, 1).view(-1, 3, 3) @ to_yiq
    colored = torch.einsum("bij,bjhw->bihw", mixed, colored)
    views = torch.where(column(u[10] < _COLORED), colored, views)
    grey = torch.einsum("c,bchw->bhw", to_yiq[0], views).unsqueeze(1)
    return torch.where(column(u[11] < _GREY), grey, views).clamp(0, 1)


NUM_DRAWS = 12
