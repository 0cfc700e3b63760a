"""CB-ViLA: image, text and fusion encoders around a learned visual codebook, and the terms of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixlex.config.check import Check, describe, part
from pixlex.config.data import CUT_MEANING, Cut, PairDataConfig
from pixlex.config.lqae import check_sizes
from pixlex.config.train import EvalConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """The image encoder: a vision transformer with a class token."""

    width: int = describe(768, "Width of the patch vectors; ViT-base has 768.")
    depth: int = describe(12, "Number of blocks; ViT-base has 12.")
    heads: int = describe(12, "Attention heads; must divide the width.")
    mlp_ratio: float = describe(4.0, "Width of the feed-forward part over the width of the patch vectors.")
    pretrained: str = describe(
        "",
        "Hub name or directory of a ViT, DeiT, ViTMAE, DINOv2 or SigLIP to start from, positions resampled; a run "
        "of ours of family mae will do; empty for random weights.",
    )
    pixels: Literal["clip", "imagenet", "half", "none"] = describe(
        "clip",
        "Mean and standard deviation that pixels are normalized by: CLIP's (as ALBEF), ImageNet's (DeiT, MAE), "
        "0.5 and 0.5 (ViT, SigLIP), or none.",
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.positive("width", "depth", "heads", "mlp_ratio")
        check.rule("heads", self.width % self.heads == 0, f"must divide the width {self.width}")
        check.rule(
            "width", self.width % 4 == 0, "must be a multiple of 4, for positions of sines and cosines"
        )
        check.one_of("pixels", ("clip", "imagenet", "half", "none"))


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The text encoder: the lower layers of a BERT. Its width is that of the fusion encoder, too."""

    tokenizer: str = describe(
        "embedded",
        "Hub name or directory of a BERT's tokenizer, or embedded: the one that a package carries.",
    )
    pretrained: str = describe(
        "",
        "Hub name or directory of a BERT whose embeddings and first layers to start from, or embedded: the MiniLM "
        "that a package carries; empty for random weights.",
    )
    width: int = describe(768, "Width of the word vectors; BERT-base has 768.")
    depth: int = describe(6, "Number of layers; the paper's 6.")
    heads: int = describe(12, "Attention heads, of the fusion encoder as well; must divide the width.")
    mlp_ratio: float = describe(4.0, "Width of the feed-forward part over the width, of the fusion as well.")
    positions: int = describe(512, "Longest text in words (tokens), its start and end included; BERT's 512.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.rule("tokenizer", bool(self.tokenizer.strip()), "must name a tokenizer")
        check.positive("width", "depth", "heads", "mlp_ratio")
        check.rule("heads", self.width % self.heads == 0, f"must divide the width {self.width}")
        check.rule("positions", self.positions >= 3, "must be 3 or more, a word between start and end")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion encoder: bidirectional layers that read one side and look at the other."""

    depth: int = describe(6, "Number of layers; the paper's 6.")
    pretrained: str = describe(
        "",
        "Hub name or directory of a BERT whose layers behind those of the text encoder to start from, all but the "
        "cross-attention; empty for random weights.",
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        Check(self).positive("depth")


@dataclass(frozen=True, kw_only=True)
class VisualCodebookConfig:
    """The visual codebook and the estimator of its gradient."""

    num_codewords: int = describe(3000, "K, the number of codewords; the paper's 3K.")
    dim: int = describe(
        768,
        "Width of a codeword. Equal to the image encoder's: patch vectors are compared as they are (equation 1); "
        "else a linear map comes before the search.",
    )
    metric: Literal["euclidean", "cosine"] = describe(
        "euclidean", "Nearest by distance (equation 1) or by angle."
    )
    estimator: Literal["straight_through", "gumbel"] = describe(
        "straight_through",
        "How gradients pass the search: straight_through (VQ-VAE), or gumbel: hard samples of the "
        "Gumbel-softmax of the distances, whose pixel loss reaches the codewords as well.",
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.rule("num_codewords", self.num_codewords >= 2, "must be 2 or more")
        check.positive("dim")
        check.one_of("metric", ("euclidean", "cosine"))
        check.one_of("estimator", ("straight_through", "gumbel"))
        check.rule(
            "metric",
            self.estimator == "straight_through" or self.metric == "euclidean",
            "must be euclidean with estimator=gumbel, which draws by distances",
        )


@dataclass(frozen=True, kw_only=True)
class CBViLAConfig:
    """Vision-language model with a visual codebook (Guo et al. 2022)."""

    image_size: int = describe(256, "Side of the square image in pixels; the paper's 256.")
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.")
    cut: Cut = describe("center", CUT_MEANING)
    image: ImageTowerConfig = part(ImageTowerConfig, "The image encoder.")
    text: TextTowerConfig = part(TextTowerConfig, "The text encoder.")
    fusion: FusionConfig = part(FusionConfig, "The fusion encoder.")
    codebook: VisualCodebookConfig = part(VisualCodebookConfig, "The visual codebook.")
    contrastive_dim: int = describe(256, "Width in which images and texts are compared without fusion.")
    masked_image_head: Literal["patch", "tied", "class"] = describe(
        "patch",
        "What names a hidden patch's codeword: patch: its own vector through a head; tied: the same compared with "
        "the codewords; class: the class vector and the patch's position (as figure 1 says).",
    )
    dropout_rate: float = describe(
        0.0, "Dropout of text and fusion encoder, of their attention too, in [0, 1); BERT's 0.1."
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check_sizes(check)
        check.positive("contrastive_dim")
        check.one_of("masked_image_head", ("patch", "tied", "class"))
        check.rule("dropout_rate", 0 <= self.dropout_rate < 1, "must lie in [0, 1)")
        check.rule(
            "text",
            self.text.width % 4 == 0,
            "must have a width that 4 divides, for sines in two directions",
        )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class CBViLAObjectiveConfig:
    """The terms of the loss, what is hidden, and the care of the codebook."""

    image_text_matching_weight: float = describe(1.0, "Weight of image-text matching (equation 5).")
    masked_language_weight: float = describe(1.0, "Weight of masked language modeling (equation 6).")
    masked_image_weight: float = describe(
        1.0, "Weight of masked image modeling on codes (equation 4); 0 switches it off."
    )
    pixel_weight: float = describe(1.0, "Weight of the pixel loss (equation 3, first term).")
    codebook_weight: float = describe(1.0, "Weight of the term that moves codewords to patch vectors.")
    commitment_weight: float = describe(
        0.25, "Weight of the term that moves patch vectors to codewords (beta; not given in the paper)."
    )
    image_text_contrastive_weight: float = describe(
        1.0,
        "Weight of the contrastive term, which equation 7 lacks and hard negatives need; 0 is equation 7.",
    )
    burn_in_steps: int = describe(
        1000, "First steps without the two masked terms (paper: 1,000); 0 for none."
    )
    alternate_every: int = describe(
        0, "Train codebook and encoders in turn, so many steps each; 0 trains them together."
    )
    masked_language_ratio: float = describe(0.15, "Share of the words hidden, in (0, 1).")
    mask_ratio: float = describe(0.75, "Share of the patches hidden, in (0, 1); the paper's 75 %.")
    mask_stage: Literal["input", "latent"] = describe(
        "input",
        "input: hidden patches do not enter the image encoder (section IV-H); latent: they are taken out behind "
        "it (section III-B), where the visible ones have seen them.",
    )
    pixel_patches: Literal["all", "masked", "visible"] = describe(
        "all", "Which patches the pixel loss counts."
    )
    codebook_start: Literal["k_means", "random"] = describe(
        "k_means", "k_means: the first batch's patch vectors are clustered; random: drawn."
    )
    codebook_update: Literal["gradient", "ema"] = describe(
        "gradient", "gradient: by the codebook term (equation 3); ema: moving averages of the patch vectors."
    )
    ema_decay: float = describe(0.99, "Decay of those averages for each step, in [0, 1).")
    restart_after: int = describe(
        100, "A codeword unused for so many steps is placed on a patch vector far from its own; 0 for never."
    )
    temperature_start: float = describe(1.0, "Temperature of the Gumbel-softmax at the first step.")
    temperature_end: float = describe(
        0.0625, "The same at the last step; the logarithm falls evenly in between."
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check.not_negative(
            "image_text_matching_weight", "masked_language_weight", "masked_image_weight", "pixel_weight",
            "codebook_weight", "commitment_weight", "image_text_contrastive_weight", "burn_in_steps",
            "alternate_every", "restart_after",
        )  # fmt: skip
        for name in ("masked_language_ratio", "mask_ratio"):
            check.rule(name, 0 < getattr(self, name) < 1, "must lie in (0, 1)")
        check.one_of("mask_stage", ("input", "latent"))
        check.one_of("pixel_patches", ("all", "masked", "visible"))
        check.one_of("codebook_start", ("k_means", "random"))
        check.one_of("codebook_update", ("gradient", "ema"))
        check.rule(
            "alternate_every",
            not self.alternate_every or self.codebook_update == "gradient",
            "must be 0 with codebook_update=ema, which trains no codebook in turn",
        )
        check.rule("ema_decay", 0 <= self.ema_decay < 1, "must lie in [0, 1)")
        check.positive("temperature_start", "temperature_end")

    @property
    def has_codebook_terms(self) -> bool:
        """Whether pixels or codes are predicted, for which images are quantized."""
        return bool(self.pixel_weight or self.masked_image_weight)


@dataclass(frozen=True, kw_only=True)
class CBViLADataConfig(PairDataConfig):
    """The images and captions of CB-ViLA."""

    crop_scale_min: float = describe(
        0.5,
        "Smallest share of the image's area that a random crop keeps, in (0, 1]; a caption speaks of all.",
    )
    clean_captions: bool = describe(
        True, "Lower case, without punctuation, at most 30 words, as ALBEF and its successors."
    )
    max_words: int = describe(
        25, "Words (tokens) of a caption with its start and end; longer ones are cut (ALBEF: 25)."
    )

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        super().__post_init__()
        Check(self).rule("max_words", self.max_words >= 3, "must be 3 or more, a word between start and end")


@dataclass(frozen=True, kw_only=True)
class CBViLARun:
    """A vision-language model with a visual codebook, and its pretraining."""

    family: str = describe("cbvila", "Picks this class.")
    start: str = describe(
        "",
        "Model directory of a CB-ViLA to go on from; empty: from the pretrained parts that the model names.",
    )
    model: CBViLAConfig = part(CBViLAConfig, "The network.")
    objective: CBViLAObjectiveConfig = part(CBViLAObjectiveConfig, "The loss.")
    data: CBViLADataConfig = part(CBViLADataConfig, "The images and captions.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")

    def __post_init__(self) -> None:
        """Raise `ValueError` where parts do not fit together."""
        check = Check(self)
        most = self.model.text.positions
        check.rule(
            "data", self.data.max_words <= most, f"must have max_words of at most {most}, text.positions"
        )
        num_patches = self.model.grid**2
        kept = num_patches - round(num_patches * self.objective.mask_ratio)
        check.rule(
            "objective",
            0 < kept < num_patches,
            f"must have a mask_ratio that leaves some of the {num_patches} patches visible and hides some",
        )
        compared = self.objective.image_text_matching_weight or self.objective.image_text_contrastive_weight
        check.rule(
            "train",
            self.train.batch_size >= 2 or not compared,
            "must have a batch_size of 2 or more: matching and contrast need another pair to compare with",
        )
