"""A fine-tuned model that answers: questions about images, sentences that are true of them or not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pixlex.api.pictures import Images, batches_of, images_of, texts_of
from pixlex.batch import Words
from pixlex.data.text import clean_caption, clean_question
from pixlex.distributed import pick_device
from pixlex.eval.gradcam import ExplainedAnswer, explain_answer
from pixlex.messages import quoted
from pixlex.models import checkpoint
from pixlex.models.finetuned import Reasoner

# ALBEF keeps so many words of a question in testing.
MOST_WORDS = 50


@dataclass(frozen=True)
class Answer:
    """One answer to a question, or one verdict on a sentence.

    Attributes:
        text: the answer.
        probability: among those that were ranked; 1 where it was written freely.
    """

    text: str
    probability: float


def load_reasoner(
    name_or_dir: str | os.PathLike[str],
    *,
    language_model: str | None = None,
    device: str | torch.device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    revision: str | None = None,
) -> ImageReasoner:
    """Load a model that `pixlex finetune` made for questions, sentences or hypotheses.

    Args:
        name_or_dir: a model directory, a run folder, or a repository on the hub.
        language_model: where its tokenizer lies now, if not under the name it was trained with.
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        precision: fp32, or bf16 for mixed precision.
        revision: branch, tag or commit of a repository on the hub.

    Raises:
        ValueError: no such model, one that answers nothing, damaged files, or no such device.
    """
    model = checkpoint.load_any(os.fspath(name_or_dir), language_model=language_model, revision=revision)
    refusal = (
        f"{name_or_dir} holds a model of family {model.family}, which answers nothing: fine-tune a CB-ViLA "
        "first, with pixlex finetune"
    )
    model = checkpoint.require(Reasoner, model, refusal)
    return ImageReasoner(model, device=pick_device(device), precision=precision)


class ImageReasoner:
    """A fine-tuned model as something that is asked.

    Args:
        model: is put into evaluation mode on `device`.
        device: where to compute.
        precision: fp32, or bf16 for mixed precision.
    """

    def __init__(
        self,
        model: Reasoner,
        *,
        device: str | torch.device = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.precision = precision

    @property
    def task(self) -> str:
        """What the model was fine-tuned to: "vqa", "nlvr2", "entailment" or "assignment"."""
        return self.model.config.task

    @property
    def num_images(self) -> int:
        """Images that each text speaks of."""
        return self.model.config.num_images

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes, or the answers that are picked from."""
        return self.model.config.answers

    def answer(
        self,
        images: Images,
        texts: str | Iterable[str],
        *,
        top_k: int = 5,
        shortlist: int = 128,
        batch_size: int = 32,
    ) -> list[list[Answer]]:
        """Return the likeliest answers to each text about its images, the best first, with probabilities.

        Args:
            images: see `batches_of`: paths, bytes, PIL images, arrays (H, W, C), tensors (C, H, W). The
                `num_images` images of a text follow each other, or stand in a list of their own. Where there are
                as many as one text needs, all texts are about them.
            texts: questions, sentences or hypotheses.
            top_k: most answers returned for each.
            shortlist: answers of the list whose whole likelihood is computed.
            batch_size: texts at a time.

        Raises:
            ValueError: another number of images than the texts need, a text without a word, a number below 1, and
                as `batches_of`.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        rows: list[list[Answer]] = []
        for pixels, words, looks_at in self._batches(images, texts, batch_size):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                ranked = self.model.rank(pixels, words, looks_at=looks_at, shortlist=shortlist)
            pairs = zip(
                ranked.numbers[:, :top_k].tolist(), ranked.probabilities[:, :top_k].tolist(), strict=True
            )
            rows += [
                [Answer(self.answers[number], share) for number, share in zip(numbers, shares, strict=True)]
                for numbers, shares in pairs
            ]
        return rows

    def write(self, images: Images, texts: str | Iterable[str], *, batch_size: int = 32) -> list[str]:
        """Return the answers that the decoder writes freely; arguments as for `answer`.

        Raises:
            ValueError: the task is not "vqa"; otherwise as `answer`.
        """
        if self.task != "vqa":
            raise ValueError(
                f"answers are written freely for the task vqa alone, this model's is {self.task}"
            )
        return [
            text
            for pixels, words, looks_at in self._batches(images, texts, batch_size)
            for text in self.model.generate(pixels, words, looks_at)
        ]

    def explain(
        self, images: Images, text: str, *, answer: str | None = None, layer: int | None = None
    ) -> ExplainedAnswer:
        """Say which places of the images speak for an answer; arguments as for `answer` and `explain_answer`.

        Args:
            images: those of the one text.
            text: a question, sentence or hypothesis.
            answer: None for the model's own.
            layer: of the fusion encoder, counted from 1; None for the one that localizes best.

        Raises:
            ValueError: as `answer` and `explain_answer`.
        """
        config = self.model.config
        several = images_of(images)
        pixels = torch.cat(list(batches_of(several, max(1, len(several)), config.image_size, config.cut)))
        (cleaned,) = self._cleaned(text)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return explain_answer(self.model, pixels, cleaned, answer=answer, layer=layer)

    def _cleaned(self, texts: str | Iterable[str]) -> list[str]:
        """Return texts as the model's training texts were cleaned."""
        several = texts_of(texts)
        clean = clean_question if self.task == "vqa" else clean_caption
        cleaned = [clean(text, MOST_WORDS) for text in several]
        if not all(cleaned):
            bad = next(text for text, left in zip(several, cleaned, strict=True) if not left)
            raise ValueError(f"expected a question or a sentence with a word in it, got {quoted(bad)}")
        return cleaned

    def _batches(
        self, images: Images, texts: str | Iterable[str], batch_size: int
    ) -> Iterator[tuple[Tensor, Words, Tensor | None]]:
        """Yield texts with their images, which are read when their turn comes, and which of them each looks at."""
        cleaned = self._cleaned(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        config, each = self.model.config, self.num_images
        several = images_of(images)
        if len(several) not in (each, len(cleaned) * each):
            raise ValueError(
                f"expected {each} images for each of {len(cleaned)} texts, or {each} for all, got "
                f"{len(several)} images"
            )
        shared = len(several) == each
        at_once = each if shared else batch_size * each
        pixels = batches_of(several, at_once, config.image_size, config.cut)
        about_all = next(pixels).to(self.device) if shared else None
        for first in range(0, len(cleaned), batch_size):
            words = self.model.tokenize_texts(cleaned[first : first + batch_size], config.body.text.positions)
            asked = Words(words.word_ids.to(self.device), words.key_padding.to(self.device))
            if about_all is None:
                yield next(pixels).to(self.device), asked, None
            else:
                yield about_all, asked, torch.zeros(len(asked.word_ids), dtype=torch.long, device=self.device)
