"""LQAE: image -> words of a frozen language model -> image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixlex.models import CodeModel
from pixlex.nn.codebook import AllMean, ConceptCodebook, Quantized, WordCodebook, straight_through
from pixlex.nn.language_model import (
    LanguageModel,
    LanguageOutput,
    LanguageWords,
    load_language_model,
    load_language_words,
)
from pixlex.nn.transformer import ImageEncoder, PixelDecoder, bridge, initializing
from pixlex.nn.vision import ConvolutionalEncoder, PublishedEncoder, alone, measure_statistics, vision_encoder
from pixlex.nn.vocabulary import Vocabulary, build_vocabulary

if TYPE_CHECKING:
    from pixlex.config.lqae import LQAEConfig

# Words of the vocabulary that a concept may have: tokenizers number frequent ones first.
_CANDIDATES = 4096
# Images whose features are computed at a time.
_PART = 128


class LQAE(CodeModel):
    """Language quantized autoencoder (LQAE, section 3.2).

    Args:
        language: The frozen masked language model, or its words alone.
        vocabulary: The words that may be codewords.
        teacher: The frozen vision model that `config.teacher` names.
        initialize: False where weights are read at once: the search computes nothing that they hold.

    Raises:
        ValueError: The language model cannot read as many words as the image has patches.
    """

    family: ClassVar[str] = "lqae"
    speaks: ClassVar[Literal[False]] = False
    fuses: ClassVar[Literal[False]] = False
    mismatch = ("word embeddings", "codes mean nothing in another vocabulary")
    config: LQAEConfig
    quantizer: Any  # WordCodebook, or ConceptCodebook with words for the whole image
    _frozen: tuple[Any, ...]
    _word_ids: Tensor

    def __init__(
        self,
        config: LQAEConfig,
        language: LanguageModel | LanguageWords,
        vocabulary: Vocabulary,
        teacher: PublishedEncoder | None = None,
        *,
        initialize: bool = True,
    ) -> None:
        super().__init__(config)
        if isinstance(language, LanguageModel) and config.num_words > language.max_words:
            remedy = "fewer words" if config.words else "a larger patch_size"
            raise ValueError(
                f"{config.image_size} px at patch size {config.patch_size} gives {config.num_words} words, but "
                f"{language.name} reads at most {language.max_words}; use {remedy}"
            )
        self.vocabulary = vocabulary
        self._frozen = (language,) if teacher is None else (language, teacher)
        # Moves with the model, so that no step copies it to a GPU anew.
        self.register_buffer("_word_ids", vocabulary.word_ids, persistent=False)
        self.num_codewords = len(vocabulary)
        embedding = language.word_embedding[vocabulary.word_ids]
        width = language.width if config.decoder_input == "predicted" else language.hidden_width
        self.encoder: nn.Module
        if config.words:
            if self.teacher is None:
                self.encoder = vision_encoder(config.encoder, config.image_size, config.patch_size)
            features = config.encoder.width if self.teacher is None else self.teacher.width
            self.quantizer = ConceptCodebook(embedding, config.quantizer, features)
            self.feature_head = nn.Linear(width, features)
        else:
            self.quantizer = WordCodebook(embedding, config.quantizer, initialize=initialize)
            self.encoder = ImageEncoder(config.encoder, config.image_size, config.patch_size)
            self.projector = bridge(config.encoder.width, self.quantizer.input_dim)
        self.decoder = PixelDecoder(config.decoder, config.image_size, config.patch_size, width, config.words)
        if config.decoder_input == "mixed":
            self.layer_weights = nn.Parameter(torch.zeros(language.num_layers + 1))

    @classmethod
    def build(cls, config: LQAEConfig, *, initialize: bool = True) -> LQAE:
        """Load the language model and the vocabulary that the configuration names, and build the model."""
        part = config.language
        load = load_language_model if initialize else load_language_words
        language = load(part.name, random_weights=part.random_weights, random_seed=part.random_seed)
        vocabulary = build_vocabulary(language, part.vocabulary)
        teacher = PublishedEncoder(config.teacher) if config.teacher else None
        with initializing(initialize):
            return cls(config, language, vocabulary, teacher, initialize=initialize)

    def untrained(self) -> LQAE:
        """Return the same network with weights drawn anew, a teacher's too; the language model is shared."""
        teacher = None if self.teacher is None else PublishedEncoder(self.teacher.name, random_weights=True)
        return LQAE(self.config, self._frozen[0], self.vocabulary, teacher)

    @property
    def language(self) -> LanguageModel:
        """The frozen language model; images become words without it, so that it may be loaded only here."""
        language: LanguageModel | LanguageWords = self._frozen[0]
        if isinstance(language, LanguageWords):
            language = language.load().to(self.quantizer.embedding)  # device and dtype
            self._frozen = (language, *self._frozen[1:])
        return language

    @property
    def num_measured(self) -> int:
        """Images that `measure` needs."""
        return 8 * self.config.quantizer.num_concepts if self.config.words else super().num_measured

    @property
    def num_words(self) -> int:
        """Words of an image."""
        words: int = self.config.num_words
        return words

    @property
    def word_grid(self) -> int:
        """Words along one side of an image; 0 where they belong to no place."""
        return 0 if self.config.words else self.grid

    @property
    def teacher(self) -> PublishedEncoder | None:
        """The published vision model whose features decide the words, if there is one."""
        return self._frozen[1] if len(self._frozen) > 1 else None

    @property
    def image_identity(self) -> tuple[str, str] | None:
        """Name and fingerprint of the teacher that is not stored with the model, if there is one."""
        return None if self.teacher is None else (self.teacher.name, self.teacher.fingerprint)

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the vector of each whole image in float32; where words have places, the mean of the patches'."""
        return self.features(images) if self.config.words else super().embed(images)

    def features(self, images: Float[Tensor, "B 3 H W"], over: AllMean | None = None) -> Float[Tensor, "B D"]:
        """Return what the teacher makes of whole images, in float32; for words without a place.

        `over`: see `BatchNorm`; None but in training it.
        """
        encoder: Any = self.encoder if self.teacher is None else self.teacher
        vectors: Tensor
        if over is not None and isinstance(encoder, ConvolutionalEncoder):
            vectors = encoder(images, over)
        else:
            vectors = encoder(images)
        return vectors[:, 0].float()

    @torch.no_grad()
    def measure(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Find what no training finds: statistics of a whitened search, or of norms, concepts and their words.

        Concepts of images that the model was not trained with: what an untrained model is given.
        """
        if not isinstance(self.quantizer, ConceptCodebook):
            if self.config.quantizer.search == "whitened":
                moments = self.train().quantize(images).moments
                assert moments is not None
                self.eval()
                self.quantizer.whitening.update(moments)
            return
        parts = torch.split(images, _PART)
        if self.teacher is None:
            measure_statistics(self.encoder, [partial(self.features, part, alone) for part in parts])
        self.fit_concepts(torch.cat([self.features(part) for part in parts]))

    @torch.no_grad()
    def fit_concepts(self, features: Float[Tensor, "M D"]) -> None:
        """Find the concepts of images by their features, and a word for each among the first of the vocabulary.

        Words are alike as the language model's embeddings of them are.
        """
        assert isinstance(self.quantizer, ConceptCodebook)
        count = max(_CANDIDATES, self.config.quantizer.num_concepts)
        self.quantizer.fit(features, self.quantizer.embedding[:count])

    def word_ids(self, codes: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Return the language model's ids of codewords."""
        return self._word_ids[codes]

    @property
    def codebook(self) -> WordCodebook | ConceptCodebook:
        """The words that images are written with, and how they are found."""
        codebook: WordCodebook | ConceptCodebook = self.quantizer
        return codebook

    def code_vectors(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B *N S"]:
        """Return what `codebook` is given: a vector for each patch, or one for the whole of each image."""
        vectors: Tensor = self.features(images) if self.config.words else self.projector(self.encoder(images))
        return vectors

    def quantize(
        self,
        images: Float[Tensor, "B 3 H W"],
        generator: torch.Generator | None = None,
        all_mean: AllMean = lambda tensor: tensor,
    ) -> Quantized:
        """Return the nearest word of each patch, or the words of the whole image's nearest concepts.

        Args:
            images: Pixels in [0, 1].
            generator: Needed with random top-k only.
            all_mean: Mean over the processes that share the batch, keeping gradients.
        """
        how = (self.num_words,) if self.config.words else (generator, all_mean)
        quantized: Quantized = self.quantizer(self.code_vectors(images), *how)
        return quantized

    def patch_features(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B N columns"]]:
        """Return one vector for each word and part of the model: `layer 0` to `layer L`, `encoder`, `codes`.

        Of the encoder, one for each patch; of words without a place, the teacher's for the whole image.
        """
        quantized = self.quantize(images)
        vectors = self.features(images).unsqueeze(1) if self.config.words else self.encoder(images)
        layers = self.encode_text(quantized.values, all_states=True).hidden_states
        named = {f"layer {number}": hidden for number, hidden in enumerate(layers)}
        return {**named, "encoder": vectors, "codes": quantized.values}

    def encode_text(
        self,
        values: Float[Tensor, "B N D"],
        mask: Bool[Tensor, "B N"] | None = None,
        *,
        all_states: bool = False,
    ) -> LanguageOutput:
        """Run the frozen language model over word embeddings, hidden ones replaced by its mask word."""
        if mask is not None:
            hidden_word = self.language.word_embedding[self.language.mask_id].to(values.dtype)
            values = torch.where(mask.unsqueeze(-1), hidden_word, values)
        all_states = all_states or self.config.decoder_input == "mixed"
        output: LanguageOutput = self.language(values, all_states=all_states)
        return output

    def reconstruct(self, language: LanguageOutput) -> Float[Tensor, "B 3 H W"]:
        """Return the image that the decoder sees in the language model's output, not clipped."""
        if self.config.decoder_input == "mixed":
            hidden = self._mixed(language.hidden_states)
        elif self.config.decoder_input == "predicted":
            hidden = self._predicted_embeddings(language.last)
        else:
            hidden = language.last
        images: Tensor = self.decoder(hidden)
        return images

    def predicted_features(self, language: LanguageOutput) -> Float[Tensor, "B D"]:
        """Return what the words, as the language model reads them, tell of the features, less their mean."""
        hidden = (
            self._mixed(language.hidden_states) if self.config.decoder_input == "mixed" else language.last
        )
        features: Tensor = self.feature_head(hidden.mean(1))
        return features

    def _mixed(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Return the weighted mean of all layers, each normalized (Peters et al. 2018, equation 1)."""
        mixed: Tensor = sum(
            weight * F.layer_norm(hidden.float(), hidden.shape[-1:])
            for weight, hidden in zip(self.layer_weights.softmax(0), hidden_states, strict=True)
        )
        return mixed

    def _predicted_embeddings(self, hidden: Tensor) -> Tensor:
        """Return the embedding of the likeliest codeword, with the gradient of the expected embedding."""
        logits = self.language.logits(hidden, self._word_ids).float()
        embedding = self.quantizer.embedding
        return straight_through(logits.softmax(-1) @ embedding, embedding[logits.argmax(-1)])

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images that words stand for, in [0, 1]: through the language model, nothing hidden."""
        return self.reconstruct(self.encode_text(self.quantizer.embedding[codes])).float().clamp(0, 1)
