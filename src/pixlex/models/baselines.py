"""VQ-VAE (a codebook), MAE (features alone), Frozen (images before a language model); CLIP and alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from pixlex.models import CodeModel, ImageModel, JointModel, compute_texts
from pixlex.nn.bert import Words
from pixlex.nn.codebook import LearnedCodebook
from pixlex.nn.language_model import CausalLanguageModel, load_causal_language_model
from pixlex.nn.transformer import (
    ImageEncoder,
    PixelDecoder,
    bridge,
    check_images,
    initializing,
    register_pixels,
    sine_positions,
    where_exact,
)
from pixlex.nn.vision import preprocessing

if TYPE_CHECKING:
    from pixlex.config.fields import GridConfig
    from pixlex.config.lqae import FrozenConfig, MAEConfig, VQVAEConfig

# Transformers' names of width, depth, heads and the feed-forward part's width; the decoder's have a prefix.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class VQVAE(CodeModel):
    """Vector quantized autoencoder (van den Oord et al. 2017) with LQAE's encoder and decoder."""

    family: ClassVar[str] = "vqvae"
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[False]] = False
    vocabulary: ClassVar[None] = None  # its codes are no words
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.encoder = ImageEncoder(config.encoder, config.image_size, config.patch_size)
        self.projector = bridge(config.encoder.width, config.codebook_dim)
        self.num_codewords = config.num_codewords
        self.codebook = LearnedCodebook(config.num_codewords, config.codebook_dim, config.metric)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.patch_size, config.codebook_dim)

    def code_vectors(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N S"]:
        """Return what `codebook` is given: a vector for each patch."""
        vectors: Tensor = self.projector(self.encoder(images))
        return vectors

    def patch_features(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B N columns"]]:
        """Return one vector for each patch: `encoder`, then `codes`, its codeword."""
        vectors = self.encoder(images)
        return {"encoder": vectors, "codes": self.codebook(self.projector(vectors)).values}

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images that codes stand for, in [0, 1]."""
        images: Tensor = self.decoder(self.codebook.weight[codes])
        return images.float().clamp(0, 1)


@dataclass(frozen=True)
class MAEOutput:
    """Values of every patch, in the space that the objective chose, and which were hidden (`mask` True)."""

    predicted: Float[Tensor, "B N pixels"]
    mask: Bool[Tensor, "B N"]


class MAE(ImageModel):
    """Masked autoencoder (He et al. 2021): transformers' network, built from a configuration."""

    family: ClassVar[str] = "mae"
    has_codes: ClassVar[Literal[False]] = False
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[False]] = False
    config: MAEConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: MAEConfig) -> None:
        super().__init__(config)
        self.network = _network(config)
        # Those of sines are computed, learned ones of another network are kept.
        _initialize(self.network, config.grid, kept=bool(config.encoder.pretrained))
        register_pixels(self, "imagenet")

    @classmethod
    def published(cls, folder: Path, name: str) -> MAE:
        """Load transformers' ViTMAE, such as the published ones; a decoder that it lacks is random.

        Args:
            folder: Holds its `config.json` and safetensors.
            name: What it is called, in the configuration and in errors.

        Raises:
            ValueError: The files are not those of a ViTMAE, or weights of its encoder are missing.
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
        model = cls.build(_config_of(network.config, name), initialize=False)
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
            noise: One number for each patch, rows of the grid first; no two alike in an image.
        """
        encoded = self.network.vit(self._normalized(images), noise=noise)
        predicted = self.network.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
        return MAEOutput(predicted, encoded.mask.bool())

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the mean of the encoder's patch vectors, nothing hidden, in float32; pixels are in [0, 1]."""
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
        check_images(images, self.config.image_size)
        return (images - self.mean) / self.std


def _config_of(found: Any, name: str) -> MAEConfig:
    from pixlex.config.lqae import MAEConfig, VisionConfig

    if found.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"{name}: expected the activation gelu, got {found.hidden_act!r}")

    def part(prefix: str, **more: Any) -> VisionConfig:
        width, depth, heads, hidden = (getattr(found, f"{prefix}{size}") for size in _SIZES)
        return VisionConfig(width=width, depth=depth, heads=heads, mlp_ratio=hidden / width, **more)

    return MAEConfig(
        image_size=found.image_size,
        patch_size=found.patch_size,
        encoder=part("", pretrained=name, gelu="exact" if found.hidden_act == "gelu" else "tanh"),
        decoder=part("decoder_"),
        mask_ratio=found.mask_ratio,
    )


def _network(config: MAEConfig) -> Any:
    """Build transformers' network, whose import takes a second, where it is needed."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes: dict[str, Any] = {}
    for prefix, part in (("", config.encoder), ("decoder_", config.decoder)):
        values = (part.width, part.depth, part.heads, int(part.width * part.mlp_ratio))
        sizes |= {f"{prefix}{size}": value for size, value in zip(_SIZES, values, strict=True)}
    settings = ViTMAEConfig(
        **sizes,
        image_size=config.image_size,
        patch_size=config.patch_size,
        mask_ratio=config.mask_ratio,
        layer_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh" if config.encoder.gelu == "tanh" else "gelu",
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


class Frozen(ImageModel):
    """A vision encoder in front of a frozen language model (Tsimpoukelli et al. 2021, section 3).

    The encoder is ours, a vision transformer with averaged patch vectors, where the paper has an NF-ResNet-50.

    Args:
        config: Shapes of the encoder, and how many embeddings an image becomes.

    Raises:
        ValueError: The language model cannot read as many embeddings as an image becomes, and a word.
    """

    family: ClassVar[str] = "frozen"
    has_codes: ClassVar[Literal[False]] = False
    speaks: ClassVar[Literal[True]] = True
    fuses: ClassVar[Literal[False]] = False
    mismatch = ("weights", "an image's embeddings mean nothing to another language model")
    config: FrozenConfig
    _frozen: tuple[CausalLanguageModel]

    def __init__(self, config: FrozenConfig, language: CausalLanguageModel) -> None:
        super().__init__(config)
        needed = len(language.start_ids) + config.num_prefix_tokens + 1
        if language.max_words is not None and language.max_words < needed:
            raise ValueError(
                f"num_prefix_tokens is {config.num_prefix_tokens}, but {language.name} reads at most "
                f"{language.max_words} words"
            )
        self._frozen = (language,)
        self.encoder = ImageEncoder(config.encoder, config.image_size, config.patch_size)
        self.projector = nn.Linear(config.encoder.width, config.num_prefix_tokens * language.width)
        nn.init.normal_(self.projector.weight, std=0.02)
        nn.init.zeros_(self.projector.bias)

    @classmethod
    def build(cls, config: FrozenConfig, *, initialize: bool = True) -> Frozen:
        """Load the language model that the configuration names, and build the model."""
        language = load_causal_language_model(config.language.name)
        with initializing(initialize):
            return cls(config, language)

    @property
    def language(self) -> CausalLanguageModel:
        """The frozen language model."""
        return self._frozen[0]

    def tokenize_texts(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts as the language model reads them, each cut to so many words (tokens) with its end."""
        return self.language.encode(texts, max_words)

    def prefix(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B prefix D"]:
        """Return the embeddings that stand for images in [0, 1]: the mean patch vector, mapped linearly."""
        pooled = self.encoder(images).mean(1)
        embeddings: Tensor = self.projector(pooled).unflatten(1, (self.config.num_prefix_tokens, -1))
        return embeddings

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of each caption word, given the image and the words before it.

        Args:
            images: Pixels in [0, 1].
            word_ids: Captions with their ends.
            key_padding: True = padding, on the right.
        """
        before = self.prompt(self.prefix(images))
        # The last word is not read: nothing follows it.
        read = torch.cat([before, self.language.embed(word_ids[:, :-1])], dim=1)
        padding = torch.cat([key_padding.new_zeros(before.shape[:2]), key_padding[:, :-1]], dim=1)
        return self.language.logits(read, padding)[:, before.shape[1] - 1 :]

    @torch.no_grad()
    def score(
        self,
        prompts: Float[Tensor, "P prompt D"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
    ) -> Float64[Tensor, " B"]:
        """Return ln p of each row of words behind its prompt in nats, summed over the words that are no padding.

        Args:
            prompts: Embeddings of words and images, the start included (see `prompt`): of each row, or one of all.
            word_ids: What may follow.
            key_padding: True = padding, on the right.
        """
        logits = where_exact(self.language.following(prompts, word_ids, key_padding))
        word_ids, key_padding = word_ids.to(logits.device), key_padding.to(logits.device)
        scores = logits.double().log_softmax(-1).gather(-1, word_ids.unsqueeze(-1)).squeeze(-1)
        return scores.masked_fill(key_padding, 0.0).sum(1)

    def prompt(self, embeddings: Float[Tensor, "B prefix D"]) -> Float[Tensor, "B prompt D"]:
        """Return embeddings behind the word that the language model wants before every text, if it has one."""
        if not self.language.start_ids:
            return embeddings
        start = self.language.embed(torch.tensor(self.language.start_ids, device=embeddings.device))
        return torch.cat([start.expand(len(embeddings), -1, -1), embeddings.to(start.dtype)], dim=1)

    @torch.no_grad()
    def caption(self, images: Float[Tensor, "B 3 H W"], max_words: int) -> list[str]:
        """Return what the language model says of each image, greedily, up to so many words."""
        rows = self.language.write(self.prompt(self.prefix(images)), max_words)
        return [self.language.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


class DualEncoder(JointModel):
    """Published encoders of images and texts, trained by contrast: CLIP, SigLIP and others of transformers.

    Images are resized and normalized as its `preprocessor_config.json` says, texts padded as it was trained.

    Args:
        config: How images become squares; the patches only tell how much work an image is.
        network: Of transformers, with `get_image_features` and `get_text_features`.
        pixels: Mean and standard deviation that pixels are normalized by.
    """

    family: ClassVar[str] = "dual_encoder"
    has_codes: ClassVar[Literal[False]] = False
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[False]] = False
    vocabulary: ClassVar[None] = None
    num_words: ClassVar[int] = 0
    word_grid: ClassVar[int] = 0
    num_codewords: ClassVar[int] = 0
    compares = True
    config: GridConfig
    mean: Tensor
    std: Tensor

    def __init__(
        self, config: GridConfig, network: Any, tokenizer: Any, pixels: Sequence[Sequence[float]]
    ) -> None:
        super().__init__(config)
        self.network, self.tokenizer, self.pixels = network, tokenizer, pixels
        for name, values in zip(("mean", "std"), pixels, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def published(cls, name: str, revision: str | None = None) -> DualEncoder:
        """Load a model of a directory or of a repository on the hub.

        Raises:
            ValueError: It has no encoder of images or none of texts, or cannot be loaded.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_MAPPING

        from pixlex.config.fields import GridConfig

        try:
            found = AutoConfig.from_pretrained(name, revision=revision)
            kind = MODEL_MAPPING.get(type(found), None)
            vision = getattr(found, "vision_config", None)
            towers = hasattr(kind, "get_text_features") and hasattr(kind, "get_image_features")
            if not towers or not hasattr(vision, "image_size"):
                raise ValueError(f"a {found.model_type} has no text tower and image tower that are compared")
            network, loading = AutoModel.from_pretrained(
                name, revision=revision, dtype=torch.float32, output_loading_info=True
            )
            if missing := sorted(loading["missing_keys"]):
                raise ValueError(f"it lacks {len(missing)} weights, first {missing[0]}")
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{name} holds no model of ours, no ViTMAE, CLIP, SigLIP or alike: {error!s:.300}"
            ) from error
        side, mean, std, resize_mode = preprocessing(name, vision, revision)
        patch = next(one for one in range(getattr(vision, "patch_size", 32), side + 1) if side % one == 0)
        config = GridConfig(image_size=side, patch_size=patch, resize_mode=resize_mode)
        return cls(config, network, tokenizer, (mean, std))

    def untrained(self) -> DualEncoder:
        """Return the same network with weights drawn anew."""
        from transformers import AutoModel

        build: Any = AutoModel.from_config
        network = build(self.network.config)
        return DualEncoder(self.config, network, self.tokenizer, self.pixels)

    @property
    def temperature(self) -> float:
        """What divides the similarities in the contrast, learned."""
        return float(torch.exp(-self.network.logit_scale.detach()))

    def joint_images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B e"]:
        """Return the vectors of images, pixels in [0, 1], in float32."""
        check_images(images, self.config.image_size)
        return _joint(self.network.get_image_features(pixel_values=(images - self.mean) / self.std))

    def joint_texts(self, texts: Sequence[str]) -> Float[Tensor, "C e"]:
        """Return the vectors of texts, in float32 on the CPU; that of a text depends on no other's."""
        whole = self.network.config.model_type.startswith("siglip")  # trained with padding that it sees
        most = min(self.network.config.text_config.max_position_embeddings, self.tokenizer.model_max_length)
        found = self.tokenizer(
            list(texts),
            padding="max_length" if whole else "longest",
            truncation=True,
            max_length=most,
            return_attention_mask=True,
            return_tensors="pt",
        )
        rows = torch.stack([found.input_ids, found.attention_mask], 1)

        def compute(some: Tensor) -> Tensor:
            given = {"input_ids": some[:, 0]} | ({} if whole else {"attention_mask": some[:, 1]})
            return _joint(self.network.get_text_features(**given))

        lengths = torch.full((len(rows),), rows.shape[2]) if whole else found.attention_mask.sum(1)
        return compute_texts(rows, lengths, compute, device=self.mean.device)

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B e"]:
        """Return `joint_images`."""
        return self.joint_images(images)


def _joint(features: Any) -> Tensor:
    return F.normalize(features.pooler_output.float(), dim=-1)
