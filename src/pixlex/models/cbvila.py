"""CB-ViLA: images and texts through encoders of their own, a visual codebook, and one fusion encoder for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.models import CodeModel, ImageModel, JointModel, compute_texts
from pixlex.models.initialization import initialize_towers
from pixlex.nn.bert import Context, FusionEncoder, TextEncoder, TextTokenizer, Words, load_tokenizer
from pixlex.nn.codebook import AllMean, LearnedCodebook, Quantized, principal_directions
from pixlex.nn.language_model import load_language_words
from pixlex.nn.transformer import (
    ClassTokenEncoder,
    bridge,
    initialize,
    initializer,
    initializing,
    register_pixels,
    send,
    sine_positions,
    take,
    take_rows,
)
from pixlex.nn.vision import vision_encoder

if TYPE_CHECKING:
    from pixlex.config.cbvila import CBViLAConfig, TextTowerConfig

# Divides similarities before training, and those that no training has scaled (ALBEF's code).
START_TEMPERATURE = 0.07


@dataclass(frozen=True)
class SplitPatches:
    """Indices of the visible and of the hidden patches of each image, both in the order of the grid."""

    visible: Int[Tensor, "B n"]
    hidden: Int[Tensor, "B m"]

    def to(self, device: torch.device) -> SplitPatches:
        """Return the same on a device."""
        return SplitPatches(send(self.visible, device), send(self.hidden, device))


def split_patches(
    num_images: int, num_patches: int, num_visible: int, generator: torch.Generator
) -> SplitPatches:
    """Draw exactly `num_visible` patches of each image, all sets alike likely (He et al. 2021, section 3)."""
    order = torch.rand(num_images, num_patches, generator=generator).argsort(dim=1)
    return SplitPatches(order[:, :num_visible].sort(dim=1).values, order[:, num_visible:].sort(dim=1).values)


def load_text_tokenizer(config: TextTowerConfig) -> TextTokenizer:
    """Load what texts are read with, and the vectors of its words where training leaves them as they are."""
    frozen = config.words == "frozen"
    return load_tokenizer(
        config.tokenizer, load_language_words(config.pretrained).word_embedding if frozen else None
    )


class TextModel(ImageModel):
    """What a pretrained and a fine-tuned model have in common: texts look at images in a fusion encoder."""

    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[True]] = True
    mismatch = ("the vocabulary", "word vectors mean nothing under another vocabulary")
    _frozen: tuple[TextTokenizer]

    @property
    def tokenizer(self) -> TextTokenizer:
        """What texts are read with."""
        return self._frozen[0]

    def tokenize_texts(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts as the text encoder reads them, each cut to so many words (tokens)."""
        return self.tokenizer.encode(texts, max_words)


class CBViLA(TextModel, CodeModel, JointModel):
    """Vision-language model with a visual codebook (Guo et al. 2022, arXiv:2208.00475).

    Attributes:
        image_encoder: All patches, or the visible ones, to vectors.
        fusion: Reads one side, looks at the other; equations 3 to 6 share it.
        log_scale: Logarithm of what similarities are multiplied by, 1 over the temperature.
    """

    family: ClassVar[str] = "cbvila"
    vocabulary: ClassVar[None] = None  # its codes are no words
    task: ClassVar[None] = None
    config: CBViLAConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: CBViLAConfig, tokenizer: TextTokenizer) -> None:
        super().__init__(config)
        self._frozen = (tokenizer,)
        self.caption_words = config.caption_words
        image, text, codebook, width = config.image, config.text, config.codebook, config.text.width
        self.image_encoder = vision_encoder(image, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(
            tokenizer.vocab_size, text.positions, width, text.depth, text.heads, text.mlp_ratio,
            config.dropout_rate, tokenizer.embedding,
        )  # fmt: skip
        self.fusion = FusionEncoder(
            width, config.fusion.depth, text.heads, text.mlp_ratio, config.dropout_rate
        )
        self.image_projector = _bridge(image.width, width)
        self.code_projector = _bridge(image.width, codebook.dim)
        self.num_codewords = codebook.num_codewords
        self.codebook = LearnedCodebook(codebook.num_codewords, codebook.dim, codebook.metric)
        self.query = VisualQuery(codebook.dim, width, config.grid)
        self.matching_head = nn.Linear(width, 2)
        self.masked_word_head = MaskedWordHead(width, tokenizer.vocab_size)
        self.pixel_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * config.patch_size**2))
        tied = config.masked_image_head == "tied"
        self.masked_patch_head = MaskedPatchHead(
            width, codebook.dim if tied else width, None if tied else codebook.num_codewords
        )
        self.class_patch_head = (
            ClassPatchHead(width, config.grid**2) if config.masked_image_head == "class" else None
        )
        self.image_contrast = nn.Linear(image.width, config.contrastive_dim)
        self.text_contrast = nn.Linear(width, config.contrastive_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / START_TEMPERATURE)))
        for head in (self.matching_head, self.pixel_head):
            head.apply(initialize)
        initializer(width)(self.text_contrast)
        initializer(image.width)(self.image_contrast)
        register_pixels(self, image.pixels)

    @classmethod
    def build(cls, config: CBViLAConfig, *, initialize: bool = True) -> CBViLA:
        """Build the model with fresh weights."""
        with initializing(initialize):
            return cls(config, load_text_tokenizer(config.text))

    @classmethod
    def start(cls, config: CBViLAConfig) -> CBViLA:
        """Build the model from the pretrained parts that the configuration names.

        Raises:
            ValueError: A part cannot be loaded or does not fit the configuration.
        """
        model = cls.build(config)
        initialize_towers(
            model.image_encoder, model.text_encoder, model.fusion, model.masked_word_head, config
        )
        return model

    @property
    def compares(self) -> bool:
        """Whether contrast was trained, without which similarities are those of random maps."""
        # Nothing else moves the temperature.
        return self.log_scale.item() != torch.tensor(math.log(1 / START_TEMPERATURE)).item()

    def encode_image(
        self,
        images: Float[Tensor, "B 3 H W"],
        visible: Int[Tensor, "B n"] | None = None,
        over: AllMean | None = None,
    ) -> Float[Tensor, "B n1 I"]:
        """Return the class vector of images, RGB in [0, 1], then the vectors of the patches that are seen.

        Convolutions see all patches. `over`: statistics of their norms in training, see `BatchNorm`.
        """
        if isinstance(self.image_encoder, ClassTokenEncoder):
            seen: Tensor = self.image_encoder((images - self.mean) / self.std, visible)
            return seen
        seen = self.image_encoder(images, over)
        return seen if visible is None else torch.cat([seen[:, :1], take(seen[:, 1:], visible)], dim=1)

    def encode_text(
        self, word_ids: Int[Tensor, "B T"], key_padding: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Return the vectors of words, that of the start first; `key_padding` is True where padded."""
        text: Tensor = self.text_encoder(word_ids, key_padding)
        return text

    def image_context(self, seen: Float[Tensor, "B M I"]) -> Context:
        """Return images as the fusion encoder looks at them, for texts as queries."""
        return self.fusion.project(self.image_projector(seen))

    def text_context(self, text: Float[Tensor, "B T D"], key_padding: Bool[Tensor, "B T"]) -> Context:
        """Return texts as the fusion encoder looks at them, for images as queries."""
        return self.fusion.project(text, key_padding)

    def image_vectors(self, seen: Float[Tensor, "B M I"]) -> Float[Tensor, "B e"]:
        """Return images as vectors of length 1; their product with those of texts is the similarity. Float32."""
        return F.normalize(self.image_contrast(seen[:, 0]).float(), dim=-1)

    def text_vectors(
        self, text: Float[Tensor, "B T D"], key_padding: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B e"]:
        """Return texts as vectors of length 1, in float32; see `image_vectors` (`model.text.pooling`)."""
        pooled = text[:, 0]
        if self.config.text.pooling == "mean":
            words = (~key_padding).unsqueeze(-1).to(text.dtype)
            pooled = (text * words).sum(1) / words.sum(1)
        return F.normalize(self.text_contrast(pooled).float(), dim=-1)

    @torch.no_grad()
    def whiten_images(self, seen: Float[Tensor, "N I"]) -> None:
        """Give the vectors of such images unit covariance, and texts the same similarity before lengths are 1.

        Directions that hardly vary are raised to a thousandth of the largest variance.
        """
        image, text, size = self.image_contrast, self.text_contrast, self.config.contrastive_dim
        center, directions, scales = principal_directions(seen.cpu(), size)
        scales = (scales.square() + 1e-3 * scales[0].square()).sqrt()
        said = (directions * scales).double().T @ image.weight.cpu().double().T
        for weights in (text.weight, text.bias):
            weights.copy_(said @ weights.cpu().double())
        image.weight.copy_((directions / scales).T)
        image.bias.copy_(-image.weight.cpu().double() @ center.double())

    def joint_images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B e"]:
        """Return `image_vectors` of images, nothing hidden."""
        return self.image_vectors(self.encode_image(images))

    def joint_texts(self, texts: Sequence[str]) -> Float[Tensor, "C e"]:
        """Return `text_vectors` of texts, on the CPU; that of a text depends on no other's."""
        words = self.tokenize_texts(texts, self.config.text.positions)

        def compute(word_ids: Tensor) -> Tensor:
            nothing = torch.zeros_like(word_ids, dtype=torch.bool)
            return self.text_vectors(self.encode_text(word_ids, nothing), nothing)

        lengths = (~words.key_padding).sum(1)
        return compute_texts(words.word_ids, lengths, compute, device=self.log_scale.device)

    @property
    def temperature(self) -> float:
        """What divides the similarities in the contrast, learned."""
        return float(torch.exp(-self.log_scale.detach()))

    def match(self, images: Context, text: Float[Tensor, "T D"]) -> Float[Tensor, "B 2"]:
        """Return the logits that a text does not and does belong to images, after `image_context` (equation 5)."""
        texts = text.expand(len(images.layers[0].keys), -1, -1)
        logits: Tensor = self.matching_head(self.fusion(texts, images)[:, 0])
        return logits.float()

    def quantize_vectors(self, patch_vectors: Float[Tensor, "B n I"]) -> Quantized:
        """Return the nearest codeword of each patch vector (equation 1)."""
        quantized: Quantized = self.codebook(self.code_projector(patch_vectors))
        return quantized

    def code_vectors(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N S"]:
        """Return what `codebook` is given of images, nothing hidden: a vector for each patch."""
        vectors: Tensor = self.code_projector(self.encode_image(images)[:, 1:])
        return vectors

    def patch_features(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B N columns"]]:
        """Return one vector for each patch: `encoder`, then `codes`, its codeword."""
        vectors = self.encode_image(images)[:, 1:]
        return {"encoder": vectors, "codes": self.quantize_vectors(vectors).values}

    def masked_codes_head(
        self, fused: Float[Tensor, "B N1 D"], hidden: Int[Tensor, "B m"]
    ) -> tuple[Float[Tensor, "M S"], Float[Tensor, "K S"], Float[Tensor, " K"] | None]:
        """Return what names the codewords of hidden patches: vectors, output matrix, bias (equation 4).

        Args:
            fused: The fusion encoder's vectors of class and patches.
            hidden: Indices of the hidden patches.
        """
        if self.class_patch_head is not None:
            vectors = self.class_patch_head(fused[:, 0], hidden)
        else:
            vectors = take(fused[:, 1:], hidden)
        predicted = self.masked_patch_head(vectors.flatten(0, 1))
        output = self.masked_patch_head.codewords
        if output is None:  # the codewords do not move for the sake of being predicted
            return predicted, F.normalize(self.codebook.weight.detach(), dim=-1), None
        return predicted, output.weight, output.bias

    def patches(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N pixels"]:
        """Return the normalized pixels of each patch: row, column, channel."""
        side = self.config.patch_size
        pixels = ((images - self.mean) / self.std).unfold(2, side, side).unfold(3, side, side)
        return pixels.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)

    def images(self, patches: Float[Tensor, "B N pixels"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images that patches make up, in [0, 1] but for what lies outside; undoes `patches`."""
        side, grid = self.config.patch_size, self.grid
        tiles = patches.float().view(len(patches), grid, grid, side, side, 3)
        pixels = tiles.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, grid * side, grid * side)
        return pixels * self.std + self.mean

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B I"]:
        """Return the class vector of images, in float32; `images` holds RGB pixels in [0, 1]."""
        return self.encode_image(images)[:, 0].float()

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images that codes alone stand for, in [0, 1].

        Training has a class vector and a caption beside the codes. Here there is neither: the vector of hidden
        patches stands for the one, an empty text for the other.
        """
        words = self.tokenize_texts([""] * len(codes), 3).to(codes.device)
        everywhere = torch.arange(codes.shape[1], device=codes.device).expand(len(codes), -1)
        unknown = self.query.hidden[0].expand(len(codes), -1)
        query = self.query(self.codebook.weight[codes], unknown, everywhere)
        return self._drawn(query, words)

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "B 3 H W"], words: Words, split: SplitPatches
    ) -> Float[Tensor, "B 3 H W"]:
        """Return images rebuilt from the codewords of their visible patches and their texts, in [0, 1].

        Args:
            images: RGB pixels in [0, 1].
            split: Which patches are seen; the others are predicted.
        """
        seen = self.encode_image(images, split.visible)
        codewords = self.quantize_vectors(seen[:, 1:]).values
        return self._drawn(self.query(codewords, self.image_projector(seen[:, 0]), split.visible), words)

    def _drawn(self, query: Float[Tensor, "B N1 D"], words: Words) -> Float[Tensor, "B 3 H W"]:
        """Return the images, in [0, 1], that the fusion encoder makes of its queries and of texts."""
        text = self.encode_text(words.word_ids, words.key_padding)
        fused = self.fusion(query, self.text_context(text, words.key_padding))
        return self.images(self.pixel_head(fused[:, 1:])).clamp(0, 1)


class VisualQuery(nn.Module):
    """Codewords of visible patches, and a learned vector for hidden ones, as the fusion encoder reads them.

    Positions are added again: codewords have lost theirs, and the vector for hidden patches has none.
    """

    def __init__(self, codeword_width: int, width: int, grid: int) -> None:
        super().__init__()
        # Codewords as wide as patch vectors are as large as positions; others are brought to that size.
        linear = _bridge(codeword_width, width)
        same = codeword_width == width
        self.projector = linear if same else nn.Sequential(linear, nn.LayerNorm(width, eps=1e-12))
        self.hidden = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(
            sine_positions(grid, width)[:, 1:].clone(memory_format=torch.contiguous_format)
        )
        self.norm = nn.LayerNorm(width, eps=1e-12)
        nn.init.normal_(self.hidden, std=0.02)

    def forward(
        self,
        codewords: Float[Tensor, "B n S"],
        class_vectors: Float[Tensor, "B D"],
        visible: Int[Tensor, "B n"],
    ) -> Float[Tensor, "B N1 D"]:
        """Return the class vector, then one vector for each patch in the order of the grid.

        Args:
            codewords: Of the visible patches, at the indices `visible`.
            class_vectors: Of the visible part of each image, not quantized.
        """
        projected = self.projector(codewords)
        places = visible.unsqueeze(-1).expand(-1, -1, projected.shape[-1])
        blank = self.hidden.to(projected.dtype).expand(len(visible), self.positions.shape[1], -1)
        sequence = self.norm(blank.scatter(1, places, projected) + self.positions)
        return torch.cat([class_vectors.unsqueeze(1).to(sequence.dtype), sequence], dim=1)


class MaskedWordHead(nn.Module):
    """BERT's head for hidden words; its output matrix is the word embedding (Devlin et al. 2018)."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(initializer(width))

    def forward(self, vectors: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Return vectors to be compared with word embeddings."""
        predicted: Tensor = self.norm(F.gelu(self.transform(vectors)))
        return predicted


class MaskedPatchHead(nn.Module):
    """Names the codewords of hidden patches: BERT's transform, then an output matrix of its own.

    Without `num_codewords` the codewords themselves are compared.
    """

    def __init__(self, width: int, output_width: int, num_codewords: int | None) -> None:
        super().__init__()
        self.transform = nn.Linear(width, output_width)
        self.norm = nn.LayerNorm(output_width, eps=1e-12)
        self.apply(initializer(width))
        self.codewords = None if num_codewords is None else nn.Linear(output_width, num_codewords)
        # Cosines of what is random differ by 1 / sqrt(width): untrained logits have a spread of about 1.
        self.log_scale = (
            nn.Parameter(torch.tensor(0.5 * math.log(output_width))) if num_codewords is None else None
        )
        if self.codewords is not None:
            initialize(self.codewords)  # small: an untrained head finds all codewords alike likely

    def forward(self, vectors: Float[Tensor, "M D"]) -> Float[Tensor, "M S"]:
        """Return vectors to be compared with the output matrix; with codewords, by angle times a learned scale."""
        predicted: Tensor = self.norm(F.gelu(self.transform(vectors)))
        if self.log_scale is not None:
            predicted = self.log_scale.exp() * F.normalize(predicted.float(), dim=-1)
        return predicted


class ClassPatchHead(nn.Module):
    """Makes a vector for each hidden patch of the class vector and the patch's position (CB-ViLA, figure 1)."""

    def __init__(self, width: int, num_patches: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(sine_positions(math.isqrt(num_patches), width)[0, 1:])
        self.mix = nn.Linear(2 * width, width)
        self.apply(initializer(width))

    def forward(
        self, class_vectors: Float[Tensor, "B D"], hidden: Int[Tensor, "B m"]
    ) -> Float[Tensor, "B m D"]:
        """Return one vector for each hidden patch."""
        whole = class_vectors.unsqueeze(1).expand(-1, hidden.shape[1], -1)
        mixed: Tensor = self.mix(
            torch.cat([whole, take_rows(self.positions, hidden).to(whole.dtype)], dim=-1)
        )
        return mixed


def _bridge(before: int, after: int) -> nn.Module:
    return bridge(before, after).apply(initializer(before))
