"""Frozen: image -> a few embeddings that a frozen causal language model reads as words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from pixlex.batch import Words
from pixlex.config.lqae import FrozenConfig
from pixlex.models import ImageModel
from pixlex.nn.causal import CausalLanguageModel, load_causal_language_model
from pixlex.nn.transformer import initializing
from pixlex.nn.vit import ImageEncoder


class Frozen(ImageModel):
    """A vision encoder in front of a frozen language model (Tsimpoukelli et al. 2021, section 3).

    The encoder is ours, a vision transformer whose patch vectors are averaged, where the
    paper has an NF-ResNet-50.

    Args:
        config: shapes of the encoder, and how many embeddings an image becomes.
        language: the frozen causal language model.

    Raises:
        ValueError: the language model cannot read as many embeddings as an image becomes, and a word.
    """

    family: ClassVar[str] = "frozen"
    has_codes: ClassVar[Literal[False]] = False
    speaks: ClassVar[Literal[True]] = True
    fuses: ClassVar[Literal[False]] = False

    mismatch: ClassVar[tuple[str, str]] = (
        "weights", "an image's embeddings mean nothing to another language model",
    )  # fmt: skip
    config: FrozenConfig
    _frozen: tuple[CausalLanguageModel]

    def __init__(self, config: FrozenConfig, language: CausalLanguageModel) -> None:
        super().__init__()
        needed = len(language.start_ids) + config.num_prefix_tokens + 1
        if language.max_words is not None and language.max_words < needed:
            raise ValueError(
                f"num_prefix_tokens is {config.num_prefix_tokens}, but {language.name} reads at most "
                f"{language.max_words} words"
            )
        self.config = config
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

    @property
    def text_identity(self) -> tuple[str, str]:
        """Name and fingerprint of the language model."""
        return self.language.name, self.language.fingerprint

    def tokenize_texts(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts as the language model reads them, each cut to so many words (tokens) with its end."""
        return self.language.encode(texts, max_words)

    def prefix(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B prefix D"]:
        """Return the embeddings that stand for images: the mean patch vector, mapped linearly.

        Args:
            images: RGB pixels in [0, 1].
        """
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
            images: pixels in [0, 1].
            word_ids: captions with their ends.
            key_padding: True = padding, on the right.
        """
        return self._continued(self.prompt(self.prefix(images)), word_ids, key_padding)

    def _continued(self, before: Tensor, word_ids: Tensor, key_padding: Tensor) -> Tensor:
        """Return the logits of words behind embeddings."""
        # The last word is not read: nothing follows it.
        read = torch.cat([before, self.language.embed(word_ids[:, :-1])], dim=1)
        padding = torch.cat([key_padding.new_zeros(before.shape[:2]), key_padding[:, :-1]], dim=1)
        return self.language.logits(read, padding)[:, before.shape[1] - 1 :]

    @torch.no_grad()
    def score(
        self,
        prompt: Float[Tensor, "B prompt D"],
        word_ids: Int[Tensor, "B T"],
        key_padding: Bool[Tensor, "B T"],
    ) -> Float64[Tensor, " B"]:
        """Return ln p of words behind a prompt in nats, summed over the words that are no padding.

        Args:
            prompt: embeddings of words and images, the start included (see `prompt`).
            word_ids: what may follow.
            key_padding: True = padding, on the right.
        """
        logits = self._continued(prompt, word_ids, key_padding)
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
