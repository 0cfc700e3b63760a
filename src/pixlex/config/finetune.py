"""Fine-tuning CB-ViLA to questions, statements about images, and entailment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixlex.config.cbvila import CBViLAConfig, CBViLADataConfig
from pixlex.config.data import Cut
from pixlex.config.fields import POSITIVE, Config, describe, part
from pixlex.config.train import EvalConfig, TrainConfig

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

    def check(self) -> None:
        """Check what fields have to do with each other."""
        self.require(
            "num_images", self.task in _OF_SEVERAL or self.num_images == 1, f"must be 1 with {self.task}"
        )
        self.require("answers", len(set(self.answers)) == len(self.answers), "must not repeat one")
        self.require(
            "max_answer_words",
            3 <= self.max_answer_words <= self.body.text.positions,
            f"must lie in [3, {self.body.text.positions}], text.positions",
        )

    @property
    def cut(self) -> Cut:
        """How images become square."""
        return self.body.cut

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

    def check(self) -> None:
        """Check what parts have to do with each other."""
        most, together = self.model.body.text.positions, self.data.texts_per_image
        self.require(
            "data", self.data.max_words <= most, f"must have max_words of at most {most}, text.positions"
        )
        self.require(
            "train",
            self.train.batch_size % together == 0,
            f"must have a batch_size that is a multiple of {together}, data.texts_per_image",
        )
