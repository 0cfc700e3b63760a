"""LQAE and its baselines: VQ-VAE, the masked autoencoder, Frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pixlex.config.fields import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Config,
    DataConfig,
    EvalConfig,
    GridConfig,
    PairDataConfig,
    TeacherConfig,
    TrainConfig,
    VisionTowerConfig,
    at_least,
    describe,
    naming,
    part,
)


@dataclass(frozen=True, kw_only=True)
class VisionConfig(VisionTowerConfig):
    """A vision transformer without class token."""

    block: Literal["standard", "official", "convolutional"] = describe(
        "standard",
        "standard: pre-norm ViT block; official: gated feed-forward with a depthwise 3x3 convolution and "
        "NormFormer norms, as in the released LQAE code; convolutional, of LQAE's encoder with model.words alone: "
        "a small convolutional network, which learns in minutes on a CPU (of the sizes width alone counts).",
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

    def _check(self) -> None:
        self._require(
            "block",
            self.block == "standard" or not (self.pretrained or self.class_token or self.gelu == "tanh"),
            "must be standard with pretrained, class_token or gelu=tanh",
        )
        if self.block != "convolutional":
            super()._check()


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Config):
    """The frozen masked language model."""

    name: str = describe(
        "embedded",
        "Hub name or directory of a masked language model, or embedded: the MiniLM that a package carries.",
    )
    vocabulary: Literal["clean-words", "neutral-words", "whole-words", "all"] = describe(
        "clean-words",
        "Which words may be codewords: whole-words: those that survive text and back; clean-words: of these "
        "the ones that are fit to print, without slurs, sexual words and swearing; neutral-words: without "
        "peoples, faiths, politics, illness and violence as well; all: every row (paper).",
    )
    random_weights: bool = describe(
        False, "Re-initialize the language model's body and keep its word embeddings (paper, Table 3, row B)."
    )
    random_seed: int = describe(0, "Seed of the re-initialized body.")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig(Config):
    """How a patch vector finds its word.

    The value passed on is always the raw word embedding; only the space of the search changes.
    """

    search: Literal["raw", "whitened", "assigned", "concepts"] = describe(
        "whitened",
        "raw: patch vectors against word embeddings (paper); whitened: both brought to unit covariance in "
        "the leading principal directions of the embeddings; assigned: a codebook learned along picks the word "
        "with its index (released code; like Table 3, row I); concepts, with model.words: clusters of images, "
        "each of which has a word.",
    )
    metric: Literal["cosine", "euclidean"] = describe(
        "cosine", "Nearest by angle, or by distance (paper, Table 3, row A: no L2 norm)."
    )
    search_dim: int = describe(
        16, "Width of the search space when it is whitened, assigned or of concepts.", POSITIVE
    )
    num_concepts: int = describe(
        128, "Clusters of images that have a word, where concepts are searched.", at_least(2)
    )
    top_k: int = describe(1, "Codewords considered for each patch; 1 is the nearest alone.", POSITIVE)
    top_k_mode: Literal["average", "random"] = describe(
        "average", "With top_k above 1: pass on the mean of the k nearest, or one of them drawn per patch."
    )


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(GridConfig):
    """Image encoder and decoder."""

    encoder: VisionConfig = part(VisionConfig, "The image encoder.")
    decoder: VisionConfig = part(VisionConfig, "The image decoder.")

    def _check(self) -> None:
        super()._check()
        decoder = self.decoder
        self._require(
            "decoder",
            not (decoder.pretrained or decoder.class_token or decoder.pixels != "none"),
            "must have no pretrained, class_token and pixels, which are an encoder's",
        )
        if not getattr(self, "words", 0):
            self._require("encoder", self.encoder.block != "convolutional", "must not be convolutional")
        self._require("decoder", decoder.block != "convolutional", "must not be convolutional")


@dataclass(frozen=True, kw_only=True)
class LQAEConfig(AutoencoderConfig):
    """The language quantized autoencoder."""

    language: LanguageConfig = part(LanguageConfig, "The frozen language model.")
    quantizer: QuantizerConfig = part(QuantizerConfig, "The search for words.")
    decoder_input: Literal["hidden", "mixed", "predicted"] = describe(
        "hidden",
        "What the decoder reads: the last hidden states (paper); mixed: a learned weighted mean of all layers' "
        "hidden states; predicted: the word embeddings that the language model predicts (paper, Table 3, row F).",
    )
    words: int = describe(
        0,
        "0: a word for each patch (paper). Above 0: so many words for the whole image, those of its nearest "
        "concepts, the nearest first; they belong to no place (ours, docs/equations.md).",
        NOT_NEGATIVE,
    )
    teacher: str = describe(
        "",
        "With words: hub name or directory of a vision model whose features decide the words, such as "
        "facebook/dinov2-small (DINOv2, ViT, MAE, SigLIP, CLIP), in the place of `encoder`; empty: the encoder "
        "itself, trained first, without labels (phase teacher).",
    )

    @property
    def num_words(self) -> int:
        """Words of an image."""
        return self.words or self.grid**2

    def _check(self) -> None:
        super()._check()
        concepts = self.quantizer.search == "concepts"
        self._require(
            "words",
            concepts == bool(self.words),
            "must be above 0 with quantizer.search=concepts, and 0 otherwise",
        )
        self._require(
            "words",
            self.words <= self.quantizer.num_concepts,
            f"must be at most the {self.quantizer.num_concepts} concepts",
        )
        self._require("teacher", not self.teacher or concepts, "must be empty without model.words")
        own = self.encoder
        self._require(
            "encoder",
            not concepts or not (own.block == "official" or own.pretrained),
            "must not be official or pretrained with model.words: model.teacher names a published one",
        )


@dataclass(frozen=True, kw_only=True)
class LQAEObjectiveConfig(Config):
    """Weights and masks of LQAE's loss."""

    mask_ratio_min: float = describe(
        0.5, "Lowest fraction of words hidden from the language model, in [0, 1].", FRACTION
    )
    mask_ratio_max: float = describe(
        0.5,
        "Highest such fraction; each image draws its own between the two. The paper hides half.",
        FRACTION,
    )
    reconstruction_weight: float = describe(
        1.0, "Weight of the mean squared error of the pixels.", NOT_NEGATIVE
    )
    commitment_weight: float = describe(
        0.005, "Weight of the commitment to the nearest word (beta in the paper, 0.005).", NOT_NEGATIVE
    )
    raw_commitment_weight: float = describe(
        0.0,
        "Weight of the same between patch vectors and raw word embeddings, whatever the space of the search; the "
        "released code adds it, with the weight of the other, where a learned codebook picks the word.",
        NOT_NEGATIVE,
    )
    masked_language_weight: float = describe(
        0.001, "Weight of the cross-entropy of the hidden words (alpha in the paper, 0.001).", NOT_NEGATIVE
    )
    entropy_weight: float = describe(
        0.0, "Weight of the entropy regularization of the codes (paper, Table 3, row D).", NOT_NEGATIVE
    )
    entropy_temperature: float = describe(
        0.01,
        "Temperature of the soft assignment in that term: softmax of minus the squared distances over it.",
        POSITIVE,
    )
    teacher: TeacherConfig = part(
        TeacherConfig, "With model.words and without model.teacher: the phase that trains it."
    )
    feature_weight: float = describe(
        1.0,
        "With model.words: weight of one minus the cosine between the teacher's features and what the words tell "
        "of them.",
        NOT_NEGATIVE,
    )
    relation_weight: float = describe(
        1.0,
        "With model.words: weight of the mean squared difference between the cosines of all pairs of images, by "
        "the teacher's features and by what the words tell of them.",
        NOT_NEGATIVE,
    )

    def _check(self) -> None:
        least = self.mask_ratio_min
        self._require(
            "mask_ratio_max", least <= self.mask_ratio_max, f"must be at least mask_ratio_min = {least}"
        )


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(AutoencoderConfig):
    """The VQ-VAE baseline: the same networks around a learned codebook."""

    num_codewords: int = describe(1024, "Rows of the learned codebook.", POSITIVE)
    codebook_dim: int = describe(768, "Width of a codeword.", POSITIVE)
    metric: Literal["cosine", "euclidean"] = describe("euclidean", "Nearest by angle or by distance.")


@dataclass(frozen=True, kw_only=True)
class VQVAEObjectiveConfig(Config):
    """Weights of the VQ-VAE's loss and the care of its codebook."""

    reconstruction_weight: float = describe(
        1.0, "Weight of the mean squared error of the pixels.", NOT_NEGATIVE
    )
    codebook_weight: float = describe(
        1.0, "Weight of the term that moves codewords to patch vectors.", NOT_NEGATIVE
    )
    commitment_weight: float = describe(
        0.25, "Weight of the term that moves patch vectors to codewords.", NOT_NEGATIVE
    )
    restart_after: int = describe(
        100,
        "A codeword unused for so many steps is placed on a patch vector far from its own; 0 for never.",
        NOT_NEGATIVE,
    )


def _start() -> Any:
    return describe("", "Model directory of the same family and shape to go on from; empty: fresh weights.")


@dataclass(frozen=True, kw_only=True)
class LQAERun(Config):
    """A language quantized autoencoder and its training."""

    family: str = describe("lqae", "Picks this class.")
    start: str = _start()
    model: LQAEConfig = part(LQAEConfig, "The network.")
    objective: LQAEObjectiveConfig = part(LQAEObjectiveConfig, "The loss.")
    data: DataConfig = part(DataConfig, "The images.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")


@dataclass(frozen=True, kw_only=True)
class VQVAERun(Config):
    """The VQ-VAE baseline and its training."""

    family: str = describe("vqvae", "Picks this class.")
    start: str = _start()
    model: VQVAEConfig = part(VQVAEConfig, "The network.")
    objective: VQVAEObjectiveConfig = part(VQVAEObjectiveConfig, "The loss.")
    data: DataConfig = part(DataConfig, "The images.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")


def _decoder() -> VisionConfig:
    """Return the paper's decoder: narrower and shallower than the encoder."""
    return VisionConfig(width=512, depth=8, heads=16)


@dataclass(frozen=True, kw_only=True)
class MAEConfig(AutoencoderConfig):
    """The masked autoencoder (He et al. 2021), transformers' ViTMAE built anew."""

    image_size: int = describe(
        256, "Side of the square image in pixels; the paper's 224, here LQAE's.", POSITIVE
    )
    encoder: VisionConfig = part(VisionConfig, "The encoder, which reads the visible patches alone.")
    decoder: VisionConfig = part(_decoder, "The decoder; the paper's has 8 blocks, 512 wide, 16 heads.")
    mask_ratio: float = describe(0.75, "Share of the patches hidden, in (0, 1); the paper hides 75 %.")

    def _check(self) -> None:
        super()._check()
        for name, side in (("encoder", self.encoder), ("decoder", self.decoder)):
            self._require(name, side.block == "standard", "must have standard blocks")
            four = "must have a width that 4 divides, for sines in two directions"
            self._require(name, side.width % 4 == 0, four)
        self._require(
            "encoder",
            not self.encoder.class_token and self.encoder.pixels == "none",
            "must leave class_token and pixels alone: it has a class token and ImageNet's pixels",
        )
        patches = self.grid**2
        self._require(
            "mask_ratio",
            0 < int(patches * (1 - self.mask_ratio)) < patches,
            f"must leave some of the {patches} patches visible and hide some",
        )


@dataclass(frozen=True, kw_only=True)
class MAEObjectiveConfig(Config):
    """The loss of the masked autoencoder."""

    normalize_targets: bool = describe(
        True,
        "Predict each patch after its own mean and standard deviation are taken out, as the paper's best.",
    )


@dataclass(frozen=True, kw_only=True)
class MAERun(Config):
    """The masked autoencoder and its training."""

    family: str = describe("mae", "Picks this class.")
    start: str = _start()
    model: MAEConfig = part(MAEConfig, "The network.")
    objective: MAEObjectiveConfig = part(MAEObjectiveConfig, "The loss.")
    data: DataConfig = part(DataConfig, "The images.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")


@dataclass(frozen=True, kw_only=True)
class CausalLanguageConfig(Config):
    """The frozen causal language model."""

    name: str = describe(
        "openai-community/gpt2",
        "Hub name or directory of a causal language model; the paper's has 7 billion weights and is not public.",
        naming("a language model"),
    )


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(GridConfig):
    """Images as words that no vocabulary has (Tsimpoukelli et al. 2021)."""

    image_size: int = describe(224, "Side of the square image in pixels; the paper's 224.", POSITIVE)
    encoder: VisionConfig = part(VisionConfig, "The image encoder; the paper's is an NF-ResNet-50.")
    num_prefix_tokens: int = describe(2, "Embeddings that an image becomes; the paper's 2.", POSITIVE)
    language: CausalLanguageConfig = part(CausalLanguageConfig, "The frozen language model.")

    def _check(self) -> None:
        super()._check()
        self._require("encoder", self.encoder.block != "convolutional", "must not be convolutional")


@dataclass(frozen=True, kw_only=True)
class FrozenDataConfig(PairDataConfig):
    """The images and captions of Frozen."""

    max_words: int = describe(
        48,
        "Words (tokens) of a caption with its end; longer ones are cut.",
        at_least(2, ", a word and the end"),
    )


@dataclass(frozen=True, kw_only=True)
class FrozenRun(Config):
    """A vision encoder in front of a frozen language model, and its training."""

    family: str = describe("frozen", "Picks this class.")
    start: str = _start()
    model: FrozenConfig = part(FrozenConfig, "The network.")
    data: FrozenDataConfig = part(FrozenDataConfig, "The images and captions.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")
