"""Frozen: a vision encoder that learns to speak through a language model that never changes."""

from __future__ import annotations

from dataclasses import dataclass

from pixlex.config.check import Check, describe, part
from pixlex.config.data import CUT_MEANING, Cut, PairDataConfig
from pixlex.config.lqae import VisionConfig, check_sizes
from pixlex.config.train import EvalConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class CausalLanguageConfig:
    """The frozen causal language model."""

    name: str = describe(
        "openai-community/gpt2",
        "Hub name or directory of a causal language model; the paper's has 7 billion weights and is not public.",
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        Check(self).rule("name", bool(self.name.strip()), "must name a language model")


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """Images as words that no vocabulary has (Tsimpoukelli et al. 2021)."""

    image_size: int = describe(224, "Side of the square image in pixels; the paper's 224.")
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.")
    cut: Cut = describe("center", CUT_MEANING)
    encoder: VisionConfig = part(VisionConfig, "The image encoder; the paper's is an NF-ResNet-50.")
    num_prefix_tokens: int = describe(2, "Embeddings that an image becomes; the paper's 2.")
    language: CausalLanguageConfig = part(CausalLanguageConfig, "The frozen language model.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check_sizes(check)
        check.positive("num_prefix_tokens")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class FrozenDataConfig(PairDataConfig):
    """The images and captions of Frozen."""

    max_words: int = describe(48, "Words (tokens) of a caption with its end; longer ones are cut.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        super().__post_init__()
        Check(self).rule("max_words", self.max_words >= 2, "must be 2 or more, a word and the end")


@dataclass(frozen=True, kw_only=True)
class FrozenRun:
    """A vision encoder in front of a frozen language model, and its training."""

    family: str = describe("frozen", "Picks this class.")
    model: FrozenConfig = part(FrozenConfig, "The network.")
    data: FrozenDataConfig = part(FrozenDataConfig, "The images and captions.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")
