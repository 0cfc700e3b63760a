"""MAE: image -> a quarter of its patches -> the image; the encoder's features are what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pixlex.config.lqae import MAEConfig, VisionConfig
from pixlex.models import ImageModel
from pixlex.nn.vit import IMAGENET_MEAN, IMAGENET_STD, sine_positions


@dataclass(frozen=True)
class MAEOutput:
    """One pass from visible patches to all of them.

    Attributes:
        predicted: values of every patch, in the space that the objective chose (see `MAE.patches`).
        mask: True where a patch was hidden from the encoder.
    """

    predicted: Float[Tensor, "B N pixels"]
    mask: Bool[Tensor, "B N"]


class MAE(ImageModel):
    """Masked autoencoder (He et al. 2021): transformers' network, built from a configuration.

    Args:
        config: shapes of the networks and the share of hidden patches.
    """

    family: ClassVar[str] = "mae"
    has_codes: ClassVar[Literal[False]] = False
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[False]] = False
    config: MAEConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _network(config)
        # Those of sines are computed, learned ones of another network are kept.
        _initialize(self.network, config.grid, kept=bool(config.encoder.pretrained))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def published(cls, folder: Path, name: str) -> MAE:
        """Load transformers' ViTMAE, such as those that the paper's authors published.

        Args:
            folder: holds its `config.json` and safetensors; a decoder that it lacks is random.
            name: what it is called, in the configuration and in errors.

        Raises:
            ValueError: the files are not those of a ViTMAE, or weights of its encoder are missing.
        """
        from transformers import ViTMAEForPreTraining

        try:
            loaded: Any = ViTMAEForPreTraining.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} cannot be loaded as a ViTMAE: {error}") from error
        network, loading = loaded
        missing = sorted(key for key in loading["missing_keys"] if key.startswith("vit."))
        if missing:
            raise ValueError(f"{name} lacks {len(missing)} weights of its encoder, first {missing[0]}")
        model = cls(_config_of(network.config, name))
        model.network.load_state_dict(network.state_dict())
        return model

    @property
    def encoder(self) -> nn.Module:
        """The encoder within transformers' network."""
        encoder: nn.Module = self.network.vit
        return encoder

    def forward(self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B N"]) -> MAEOutput:
        """Hide the patches with the largest noise, encode the others, predict all.

        Args:
            images: RGB pixels in [0, 1].
            noise: one number for each patch, rows of the grid first; no two alike in an image.
        """
        encoded = self.network.vit(self._normalized(images), noise=noise)
        predicted = self.network.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
        return MAEOutput(predicted, encoded.mask.bool())

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the mean of the encoder's patch vectors, nothing hidden, in float32.

        Args:
            images: RGB pixels in [0, 1].
        """
        vit = self.network.vit
        positions = vit.embeddings.position_embeddings
        hidden = vit.embeddings.patch_embeddings(self._normalized(images)) + positions[:, 1:]
        first = (vit.embeddings.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        hidden = torch.cat([first.to(hidden.dtype), hidden], dim=1)
        for layer in vit.layers:
            hidden = layer(hidden, None)
        features: Tensor = vit.layernorm(hidden)[:, 1:].float().mean(1)
        return features

    def patches(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N pixels"]:
        """Return the pixels of each patch, minus ImageNet's mean, over its standard deviation."""
        pixels: Tensor = self.network.patchify(self._normalized(images).float())
        return pixels

    def images(self, patches: Float[Tensor, "B N pixels"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images that patches make up, in [0, 1] but for what lies outside; undoes `patches`."""
        pixels: Tensor = self.network.unpatchify(patches.float()) * self.std + self.mean
        return pixels

    def _normalized(self, images: Tensor) -> Tensor:
        """Return the images as the network reads them; images of another size are refused."""
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(f"expected images of 3 x {size} x {size}, got {tuple(images.shape[1:])}")
        return (images - self.mean) / self.std


def _config_of(found: Any, name: str) -> MAEConfig:
    """Return our configuration of transformers' network."""
    if found.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"{name}: expected the activation gelu, got {found.hidden_act!r}")
    gelu: Literal["exact", "tanh"] = "exact" if found.hidden_act == "gelu" else "tanh"
    return MAEConfig(
        image_size=found.image_size,
        patch_size=found.patch_size,
        encoder=VisionConfig(
            width=found.hidden_size,
            depth=found.num_hidden_layers,
            heads=found.num_attention_heads,
            mlp_ratio=found.intermediate_size / found.hidden_size,
            pretrained=name,
            gelu=gelu,
        ),
        decoder=VisionConfig(
            width=found.decoder_hidden_size,
            depth=found.decoder_num_hidden_layers,
            heads=found.decoder_num_attention_heads,
            mlp_ratio=found.decoder_intermediate_size / found.decoder_hidden_size,
        ),
        mask_ratio=found.mask_ratio,
    )


def _network(config: MAEConfig) -> Any:
    """Build transformers' network, whose import takes a second, where it is needed."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, decoder = config.encoder, config.decoder
    settings = ViTMAEConfig(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=int(encoder.width * encoder.mlp_ratio),
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
        image_size=config.image_size,
        patch_size=config.patch_size,
        mask_ratio=config.mask_ratio,
        layer_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh" if encoder.gelu == "tanh" else "gelu",
    )
    return ViTMAEForPreTraining(settings)


def _initialize(network: Any, grid: int, *, kept: bool) -> None:
    """Set what transformers leaves at zero when a network is built anew, and keep positions out of training.

    Positions, class token and mask token are all zero in a network built by transformers 5.23 from a
    configuration. Positions become buffers, for whatever is a parameter is trained.
    """
    embeddings, decoder = network.vit.embeddings, network.decoder
    nn.init.xavier_uniform_(
        embeddings.patch_embeddings.projection.weight.view(embeddings.cls_token.shape[-1], -1)
    )
    nn.init.normal_(embeddings.cls_token, std=0.02)
    nn.init.normal_(decoder.mask_token, std=0.02)
    for owner, name in ((embeddings, "position_embeddings"), (decoder, "decoder_pos_embed")):
        width = getattr(owner, name).shape[-1]
        delattr(owner, name)
        owner.register_buffer(name, sine_positions(grid, width), persistent=kept)
