"""LQAE and its VQ-VAE baseline: shapes of the networks, the search for words, the weights of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pixlex.config.check import Check, describe, part
from pixlex.config.data import CUT_MEANING, Cut


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision transformer without class token."""

    width: int = describe(768, "Width of the patch vectors; ViT-base has 768.")
    depth: int = describe(12, "Number of blocks; ViT-base has 12.")
    heads: int = describe(12, "Attention heads; must divide the width.")
    mlp_ratio: float = describe(4.0, "Width of the feed-forward part over the width of the patch vectors.")
    block: Literal["standard", "official"] = describe(
        "standard",
        "standard: pre-norm ViT block; official: gated feed-forward with a depthwise 3x3 convolution and "
        "NormFormer norms, as in the released LQAE code.",
    )
    pretrained: str = describe(
        "",
        "Of an encoder: hub name or directory of a ViT, DeiT, ViTMAE, DINOv2 or SigLIP to start from, positions "
        "resampled; a run of ours of family mae will do; empty for random weights.",
    )
    class_token: bool = describe(
        False,
        "Of an encoder: a class token among the patches, as all of those but SigLIP have; not passed on.",
    )
    pixels: Literal["none", "clip", "imagenet", "half"] = describe(
        "none",
        "Of an encoder: mean and standard deviation that pixels are normalized by: none (LQAE), CLIP's, "
        "ImageNet's (DeiT, MAE, DINOv2), or 0.5 and 0.5 (ViT, SigLIP).",
    )
    gelu: Literal["exact", "tanh"] = describe("exact", "Activation; tanh: approximated, as in SigLIP.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.positive("width", "depth", "heads", "mlp_ratio")
        check.one_of("pixels", ("none", "clip", "imagenet", "half"))
        check.one_of("gelu", ("exact", "tanh"))
        check.rule(
            "block",
            self.block == "standard" or not (self.pretrained or self.class_token or self.gelu == "tanh"),
            "must be standard with pretrained, class_token or gelu=tanh",
        )
        check.rule("heads", self.width % self.heads == 0, f"must divide the width {self.width}")
        check.one_of("block", ("standard", "official"))


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The frozen masked language model."""

    name: str = describe(
        "embedded",
        "Hub name or directory of a masked language model, or embedded: the MiniLM that a package carries.",
    )
    vocabulary: Literal["clean-words", "whole-words", "all"] = describe(
        "clean-words",
        "Which words may be codewords: whole-words: those that survive text and back; clean-words: of these "
        "the ones that are fit to print, without slurs, sexual words and swearing; all: every row (paper).",
    )
    random_weights: bool = describe(
        False, "Re-initialize the language model's body and keep its word embeddings (paper, Table 3, row B)."
    )
    random_seed: int = describe(0, "Seed of the re-initialized body.")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """How a patch vector finds its word.

    The value passed on is always the raw word embedding; only the space of the search changes.
    """

    search: Literal["raw", "whitened", "assigned"] = describe(
        "whitened",
        "raw: patch vectors against word embeddings (paper); whitened: both brought to unit covariance in "
        "the leading principal directions of the embeddings; assigned: a codebook learned along picks the word "
        "with its index (released code; like Table 3, row I).",
    )
    metric: Literal["cosine", "euclidean"] = describe(
        "cosine", "Nearest by angle, or by distance (paper, Table 3, row A: no L2 norm)."
    )
    search_dim: int = describe(16, "Width of the search space when it is whitened or assigned.")
    top_k: int = describe(1, "Codewords considered for each patch; 1 is the nearest alone.")
    top_k_mode: Literal["average", "random"] = describe(
        "average", "With top_k above 1: pass on the mean of the k nearest, or one of them drawn per patch."
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.one_of("search", ("raw", "whitened", "assigned"))
        check.one_of("metric", ("cosine", "euclidean"))
        check.positive("search_dim", "top_k")
        check.one_of("top_k_mode", ("average", "random"))


@dataclass(frozen=True, kw_only=True)
class LQAEConfig:
    """The language quantized autoencoder."""

    image_size: int = describe(256, "Side of the square image in pixels.")
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.")
    cut: Cut = describe("center", CUT_MEANING)
    encoder: VisionConfig = part(VisionConfig, "The image encoder.")
    decoder: VisionConfig = part(VisionConfig, "The image decoder.")
    language: LanguageConfig = part(LanguageConfig, "The frozen language model.")
    quantizer: QuantizerConfig = part(QuantizerConfig, "The search for words.")
    decoder_input: Literal["hidden", "mixed", "predicted"] = describe(
        "hidden",
        "What the decoder reads: the last hidden states (paper); mixed: a learned weighted mean of all layers' "
        "hidden states; predicted: the word embeddings that the language model predicts (paper, Table 3, row F).",
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check_sizes(check)
        check.one_of("decoder_input", ("hidden", "mixed", "predicted"))

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class LQAEObjectiveConfig:
    """Weights and masks of LQAE's loss."""

    mask_ratio_min: float = describe(0.5, "Lowest share of words hidden from the language model, in [0, 1].")
    mask_ratio_max: float = describe(
        0.5, "Highest such share; each image draws its own between the two. The paper hides half."
    )
    reconstruction_weight: float = describe(1.0, "Weight of the mean squared error of the pixels.")
    commitment_weight: float = describe(
        0.005, "Weight of the commitment to the nearest word (beta in the paper, 0.005)."
    )
    raw_commitment_weight: float = describe(
        0.0,
        "Weight of the same between patch vectors and raw word embeddings, whatever the space of the search; the "
        "released code adds it, with the weight of the other, where a learned codebook picks the word.",
    )
    masked_language_weight: float = describe(
        0.001, "Weight of the cross-entropy of the hidden words (alpha in the paper, 0.001)."
    )
    entropy_weight: float = describe(
        0.0, "Weight of the entropy regularization of the codes (paper, Table 3, row D)."
    )
    entropy_temperature: float = describe(
        0.01,
        "Temperature of the soft assignment in that term: softmax of minus the squared distances over it.",
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.share("mask_ratio_min", "mask_ratio_max")
        check.rule(
            "mask_ratio_max",
            self.mask_ratio_min <= self.mask_ratio_max,
            f"must be at least mask_ratio_min = {self.mask_ratio_min}",
        )
        check.not_negative(
            "reconstruction_weight", "commitment_weight", "raw_commitment_weight", "masked_language_weight",
            "entropy_weight",
        )  # fmt: skip
        check.positive("entropy_temperature")


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """The VQ-VAE baseline: the same networks around a learned codebook."""

    image_size: int = describe(256, "Side of the square image in pixels.")
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.")
    cut: Cut = describe("center", CUT_MEANING)
    encoder: VisionConfig = part(VisionConfig, "The image encoder.")
    decoder: VisionConfig = part(VisionConfig, "The image decoder.")
    num_codewords: int = describe(1024, "Rows of the learned codebook.")
    codebook_dim: int = describe(768, "Width of a codeword.")
    metric: Literal["cosine", "euclidean"] = describe("euclidean", "Nearest by angle or by distance.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check_sizes(check)
        check.positive("num_codewords", "codebook_dim")
        check.one_of("metric", ("cosine", "euclidean"))

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class VQVAEObjectiveConfig:
    """Weights of the VQ-VAE's loss and the care of its codebook."""

    reconstruction_weight: float = describe(1.0, "Weight of the mean squared error of the pixels.")
    codebook_weight: float = describe(1.0, "Weight of the term that moves codewords to patch vectors.")
    commitment_weight: float = describe(0.25, "Weight of the term that moves patch vectors to codewords.")
    restart_after: int = describe(
        100, "A codeword unused for so many steps is placed on a patch vector far from its own; 0 for never."
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        Check(self).not_negative(
            "reconstruction_weight", "codebook_weight", "commitment_weight", "restart_after"
        )


_LARGEST = 65_536  # pixels


def check_sizes(check: Check) -> None:
    """Require an image that its patches tile exactly, a known way to make it square, a decoder without a start."""
    check.one_of("cut", get_args(Cut))
    check.positive("image_size", "patch_size")
    check.rule("image_size", check.owner.image_size <= _LARGEST, f"must be at most {_LARGEST}")
    decoder = getattr(check.owner, "decoder", None)
    check.rule(
        "decoder",
        decoder is None or not (decoder.pretrained or decoder.class_token or decoder.pixels != "none"),
        "must have no pretrained, class_token and pixels, which are an encoder's",
    )
    patch = check.owner.patch_size
    check.rule(
        "image_size", check.owner.image_size % patch == 0, f"must be a multiple of the patch size {patch}"
    )
