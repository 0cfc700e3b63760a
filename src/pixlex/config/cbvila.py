"""CB-ViLA: encoders around a learned visual codebook and the terms of its loss; its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixlex.config.fields import (
    BELOW_ONE,
    INSIDE,
    NOT_NEGATIVE,
    POSITIVE,
    Config,
    EvalConfig,
    GridConfig,
    PairDataConfig,
    ResizeMode,
    TeacherConfig,
    TrainConfig,
    VisionTowerConfig,
    at_least,
    describe,
    naming,
    part,
)


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig(VisionTowerConfig):
    """The image encoder: a vision transformer with a class token, or a convolutional network."""

    block: Literal["standard", "convolutional"] = describe(
        "standard",
        "standard: pre-norm ViT block; convolutional: a small convolutional network, which learns in minutes on a "
        "CPU (of the sizes width alone counts); it is trained without captions first (objective.teacher).",
    )
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

    def _check(self) -> None:
        if self.block == "convolutional":
            self._require("block", not self.pretrained, "must be standard with pretrained")
            return
        super()._check()
        four = "must be a multiple of 4, for positions of sines and cosines"
        self._require("width", self.width % 4 == 0, four)


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(Config):
    """The text encoder: the lower layers of a BERT. Its width is that of the fusion encoder, too."""

    tokenizer: str = describe(
        "embedded",
        "Hub name or directory of a BERT's tokenizer, or embedded: the one that a package carries.",
        naming("a tokenizer"),
    )
    pretrained: str = describe(
        "",
        "Hub name or directory of a BERT whose embeddings and first layers to start from, or embedded: the MiniLM "
        "that a package carries; empty for random weights.",
    )
    words: Literal["trained", "frozen"] = describe(
        "trained",
        "trained: word embeddings are weights; frozen: they stay those of pretrained, which is named instead of "
        "stored, and words that no caption has keep their places among the others.",
    )
    width: int = describe(768, "Width of the word vectors; BERT-base has 768.", POSITIVE)
    depth: int = describe(6, "Number of layers; the paper's 6.", POSITIVE)
    heads: int = describe(
        12, "Attention heads, of the fusion encoder as well; must divide the width.", POSITIVE
    )
    mlp_ratio: float = describe(
        4.0, "Width of the feed-forward part over the width, of the fusion as well.", POSITIVE
    )
    pooling: Literal["first", "mean"] = describe(
        "first",
        "What of a text is compared with images: first: the vector of its start (ALBEF); mean: of all its words, "
        "which learns several times faster and serves short names.",
    )
    positions: int = describe(
        512,
        "Longest text in words (tokens), its start and end included; BERT's 512.",
        at_least(3, ", a word between start and end"),
    )

    def _check(self) -> None:
        self._require("heads", self.width % self.heads == 0, f"must divide the width {self.width}")
        self._require(
            "words", self.words == "trained" or bool(self.pretrained), "must be trained without pretrained"
        )


@dataclass(frozen=True, kw_only=True)
class FusionConfig(Config):
    """The fusion encoder: bidirectional layers that read one side and look at the other."""

    depth: int = describe(6, "Number of layers; the paper's 6.", POSITIVE)
    pretrained: str = describe(
        "",
        "Hub name or directory of a BERT whose layers behind those of the text encoder to start from, all but the "
        "cross-attention; empty for random weights.",
    )


@dataclass(frozen=True, kw_only=True)
class VisualCodebookConfig(Config):
    """The visual codebook and the estimator of its gradient."""

    num_codewords: int = describe(3000, "K, the number of codewords; the paper's 3K.", at_least(2))
    dim: int = describe(
        768,
        "Width of a codeword. Equal to the image encoder's: patch vectors are compared as they are (equation 1); "
        "else a linear map comes before the search.",
        POSITIVE,
    )
    metric: Literal["euclidean", "cosine"] = describe(
        "euclidean", "Nearest by distance (equation 1) or by angle."
    )
    estimator: Literal["straight_through", "gumbel"] = describe(
        "straight_through",
        "How gradients pass the search: straight_through (VQ-VAE), or gumbel: hard samples of the "
        "Gumbel-softmax of the distances, whose pixel loss reaches the codewords as well.",
    )

    def _check(self) -> None:
        self._require(
            "metric",
            self.estimator == "straight_through" or self.metric == "euclidean",
            "must be euclidean with estimator=gumbel, which draws by distances",
        )


@dataclass(frozen=True, kw_only=True)
class CBViLAConfig(GridConfig):
    """Vision-language model with a visual codebook (Guo et al. 2022)."""

    image_size: int = describe(256, "Side of the square image in pixels; the paper's 256.", POSITIVE)
    image: ImageTowerConfig = part(ImageTowerConfig, "The image encoder.")
    text: TextTowerConfig = part(TextTowerConfig, "The text encoder.")
    fusion: FusionConfig = part(FusionConfig, "The fusion encoder.")
    codebook: VisualCodebookConfig = part(VisualCodebookConfig, "The visual codebook.")
    contrastive_dim: int = describe(
        256, "Width in which images and texts are compared without fusion.", POSITIVE
    )
    masked_image_head: Literal["patch", "tied", "class"] = describe(
        "patch",
        "What names a hidden patch's codeword: patch: its own vector through a head; tied: the same compared with "
        "the codewords; class: the class vector and the patch's position (as figure 1 says).",
    )
    dropout_rate: float = describe(
        0.0, "Dropout of text and fusion encoder, of their attention too, in [0, 1); BERT's 0.1.", BELOW_ONE
    )

    caption_words: tuple[str, ...] = describe(
        (),
        "Words or phrases that images are named by (to_words). Where empty and contrast is trained, taken from "
        "the training captions: those of a few words that images share, else their content words.",
    )

    def _check(self) -> None:
        super()._check()
        blank = "must hold words of one character or more"
        self._require("caption_words", all(word.strip() for word in self.caption_words), blank)
        four = "must have a width that 4 divides, for sines in two directions"
        self._require("text", self.text.width % 4 == 0, four)


@dataclass(frozen=True, kw_only=True)
class CBViLAObjectiveConfig(Config):
    """The terms of the loss, what is hidden, and the care of the codebook."""

    image_text_matching_weight: float = describe(
        1.0, "Weight of image-text matching (equation 5).", NOT_NEGATIVE
    )
    masked_language_weight: float = describe(
        1.0, "Weight of masked language modeling (equation 6).", NOT_NEGATIVE
    )
    masked_image_weight: float = describe(
        1.0, "Weight of masked image modeling on codes (equation 4); 0 switches it off.", NOT_NEGATIVE
    )
    pixel_weight: float = describe(1.0, "Weight of the pixel loss (equation 3, first term).", NOT_NEGATIVE)
    codebook_weight: float = describe(
        1.0, "Weight of the term that moves codewords to patch vectors.", NOT_NEGATIVE
    )
    commitment_weight: float = describe(
        0.25,
        "Weight of the term that moves patch vectors to codewords (beta; not given in the paper).",
        NOT_NEGATIVE,
    )
    image_text_contrastive_weight: float = describe(
        1.0,
        "Weight of the contrastive term, which equation 7 lacks and hard negatives need; 0 is equation 7.",
        NOT_NEGATIVE,
    )
    teacher: TeacherConfig = part(
        TeacherConfig,
        "The first phase: contrast of the image encoder's views, images of one caption being alike, and of each "
        "view with the captions (image_text_contrastive_weight).",
    )
    image_contrastive_weight: float = describe(
        1.0,
        "Weight of the contrast of two views in that phase; 0: one view, compared with the captions alone.",
        NOT_NEGATIVE,
    )
    views: Literal["none", "photographs", "drawings"] = describe(
        "none", "Random views in the place of training images behind that phase, see teacher.views."
    )
    lock_images: bool = describe(
        False,
        "Behind that phase image vectors are whitened, which tells images apart that one caption made alike, and "
        "the image encoder stays as it is; all else learns to read it (Zhai et al. 2022, LiT).",
    )
    burn_in_steps: int = describe(
        1000, "First steps without the two masked terms (paper: 1,000); 0 for none.", NOT_NEGATIVE
    )
    alternate_every: int = describe(
        0, "Train codebook and encoders in turn, so many steps each; 0 trains them together.", NOT_NEGATIVE
    )
    masked_language_ratio: float = describe(0.15, "Share of the words hidden, in (0, 1).", INSIDE)
    mask_ratio: float = describe(0.75, "Share of the patches hidden, in (0, 1); the paper's 75 %.", INSIDE)
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
    ema_decay: float = describe(0.99, "Decay of those averages for each step, in [0, 1).", BELOW_ONE)
    restart_after: int = describe(
        100,
        "A codeword unused for so many steps is placed on a patch vector far from its own; 0 for never.",
        NOT_NEGATIVE,
    )
    temperature_start: float = describe(1.0, "Temperature of the Gumbel-softmax at the first step.", POSITIVE)
    temperature_end: float = describe(
        0.0625, "The same at the last step; the logarithm falls evenly in between.", POSITIVE
    )

    def _check(self) -> None:
        self._require(
            "alternate_every",
            not self.alternate_every or self.codebook_update == "gradient",
            "must be 0 with codebook_update=ema, which trains no codebook in turn",
        )
        contrast = self.image_contrastive_weight + self.image_text_contrastive_weight
        self._require(
            "image_contrastive_weight",
            not self.teacher.steps or contrast > 0,
            "must be above 0 where teacher.steps is and image_text_contrastive_weight is not",
        )

    @property
    def has_codebook_terms(self) -> bool:
        """Whether pixels or codes are predicted, for which images are quantized."""
        return bool(self.pixel_weight or self.masked_image_weight)


@dataclass(frozen=True, kw_only=True)
class CBViLADataConfig(PairDataConfig):
    """The images and captions of CB-ViLA."""

    crop_scale_min: float = describe(
        0.5,
        "Smallest fraction of the image's area that a random crop keeps, in (0, 1]; a caption speaks of all.",
    )
    clean_captions: bool = describe(
        True, "Lower case, without punctuation, at most 30 words, as ALBEF and its successors."
    )
    max_words: int = describe(
        25,
        "Words (tokens) of a caption with its start and end; longer ones are cut (ALBEF: 25).",
        at_least(3, ", a word between start and end"),
    )


@dataclass(frozen=True, kw_only=True)
class CBViLARun(Config):
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

    def _check(self) -> None:
        most = self.model.text.positions
        self._require(
            "data", self.data.max_words <= most, f"must have max_words of at most {most}, text.positions"
        )
        num_patches = self.model.grid**2
        kept = num_patches - round(num_patches * self.objective.mask_ratio)
        self._require(
            "objective",
            0 < kept < num_patches,
            f"must have a mask_ratio that leaves some of the {num_patches} patches visible and hides some",
        )
        has_norms = self.model.image.block == "convolutional"
        self._require(
            "objective",
            not has_norms or self.objective.mask_stage == "latent",
            "must have mask_stage=latent with convolutions, which see all patches",
        )
        image, learns = self.model.image, not self.objective.lock_images
        self._require(
            "objective",
            learns or bool(self.objective.teacher.steps or self.start or image.pretrained),
            "must have lock_images=false where nothing has taught the image encoder: no objective.teacher.steps, "
            "no start, no model.image.pretrained",
        )
        self._require(
            "objective",
            learns or self.model.contrastive_dim <= image.width,
            f"must have lock_images=false where model.contrastive_dim ({self.model.contrastive_dim}) is above "
            f"model.image.width ({image.width})",
        )
        compared = self.objective.image_text_matching_weight or self.objective.image_text_contrastive_weight
        self._require(
            "train",
            self.train.batch_size >= 2 or not compared,
            "must have a batch_size of 2 or more: matching and contrast need another pair to compare with",
        )


ReasoningTask = Literal["vqa", "nlvr2", "entailment", "assignment"]
TASKS: tuple[ReasoningTask, ...] = ("vqa", "nlvr2", "entailment", "assignment")
# Those that speak of several images.
_OF_SEVERAL: tuple[ReasoningTask, ...] = ("nlvr2", "assignment")


@dataclass(frozen=True, kw_only=True)
class ReasonerConfig(Config):
    """CB-ViLA with a head for one task."""

    task: ReasoningTask = describe(
        "vqa",
        "vqa: answers are written, by a decoder, or picked from a list; nlvr2: true or false of one image or of "
        "several; entailment: whether an image entails a text, leaves it open or contradicts it; assignment: to "
        "which of two images a caption belongs, which prepares for nlvr2.",
    )
    body: CBViLAConfig = part(CBViLAConfig, "The network under the head.")
    num_images: int = describe(1, "Images that a text speaks of; NLVR2 has 2. Taken from the data.", POSITIVE)
    answers: tuple[str, ...] = describe(
        (), "The classes, or the answers that are picked from. Taken from the data where empty."
    )
    max_answer_words: int = describe(
        10, "Longest answer of the decoder in words (tokens), with start and end."
    )

    def _check(self) -> None:
        self._require(
            "num_images", self.task in _OF_SEVERAL or self.num_images == 1, f"must be 1 with {self.task}"
        )
        self._require("answers", len(set(self.answers)) == len(self.answers), "must not repeat one")
        self._require(
            "max_answer_words",
            3 <= self.max_answer_words <= self.body.text.positions,
            f"must lie in [3, {self.body.text.positions}], text.positions",
        )

    @property
    def resize_mode(self) -> ResizeMode:
        """How images become square."""
        return self.body.resize_mode

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.body.image_size

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.body.grid


@dataclass(frozen=True, kw_only=True)
class ReasoningDataConfig(CBViLADataConfig):
    """The images, texts and answers."""

    train: str = describe(
        "embedded:scenes:train",
        "Images with texts and answers: the official files of VQA, Visual Genome, NLVR, NLVR2 and SNLI-VE, "
        "ALBEF's .json, .parquet, .csv, .tsv, .jsonl, or embedded:scenes:train; options follow, as in "
        "QUESTIONS.json?annotations=FILE&images=DIR; several joined by ' + '.",
    )
    validation: str = describe("", "Validation items, described as above; empty for none.")
    texts_per_image: int = describe(
        1,
        "1: items are drawn one by one, and each brings its images. More: images are drawn, up to so many of "
        "their items come along and share one pass of the image encoder; train.batch_size must be a multiple.",
        POSITIVE,
    )
    min_answer_count: int = describe(
        1, "An answer is in the list that is picked from where it was given so often (VQA v2: 9).", POSITIVE
    )


@dataclass(frozen=True, kw_only=True)
class ReasoningObjectiveConfig(Config):
    """What is minimized; the tasks have one term each."""

    answer_weights: Literal["count", "soft"] = describe(
        "count",
        "Weight of an answer among those of its question: count: how often it was given (ALBEF); soft: the soft "
        "accuracy it would score. With the decoder alone.",
    )


@dataclass(frozen=True, kw_only=True)
class ReasoningRun(Config):
    """Fine-tuning of a vision-language model to one task."""

    family: str = describe("reasoning", "Picks this class.")
    start: str = describe(
        "",
        "Model directory to start from, of a CB-ViLA or of a fine-tuned one, whose head goes on where the task is "
        "the same; empty: from the pretrained parts that the body names.",
    )
    model: ReasonerConfig = part(ReasonerConfig, "The network.")
    objective: ReasoningObjectiveConfig = part(ReasoningObjectiveConfig, "The loss.")
    data: ReasoningDataConfig = part(ReasoningDataConfig, "The images, texts and answers.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")

    def _check(self) -> None:
        most, together = self.model.body.text.positions, self.data.texts_per_image
        self._require(
            "data", self.data.max_words <= most, f"must have max_words of at most {most}, text.positions"
        )
        self._require(
            "train",
            self.train.batch_size % together == 0,
            f"must have a batch_size that is a multiple of {together}, data.texts_per_image",
        )
