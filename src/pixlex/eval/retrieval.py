"""Images found by texts, texts by images: two stages, and how many queries find their own near the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from pixlex.batch import Skipped, Words
from pixlex.config.data import SQUARE, Cut
from pixlex.data.loader import evaluation_batches
from pixlex.data.pairs import PairSource
from pixlex.eval.pair_scores import matching_logits
from pixlex.eval.passes import evaluating
from pixlex.models.cbvila import CBViLA

Score = Literal["contrastive", "matching", "matching+contrastive"]
SCORES: tuple[Score, ...] = ("contrastive", "matching", "matching+contrastive")
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Gallery:
    """Images and all their captions after their encoders, on the CPU.

    Attributes:
        seen: the images, class vector first.
        image_vectors: for the first stage, of length 1.
        text: the captions; no words of them, and no patches of images, where vectors alone were kept.
        key_padding: True = padding.
        text_vectors: for the first stage, of length 1.
        image_of: row of each caption's image.
        skipped: images that could not be read; their captions are left out as well.
    """

    seen: Float[Tensor, "I M W"]
    image_vectors: Float[Tensor, "I e"]
    text: Float[Tensor, "C L D"]
    key_padding: Bool[Tensor, "C T"]
    text_vectors: Float[Tensor, "C e"]
    image_of: Int[Tensor, " C"]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class RetrievalResult:
    """What an evaluation found.

    Attributes:
        score: what pairs were ranked by.
        top_k: pairs scored by the second stage for each image and for each caption; 0 where there was none.
        num_images: I.
        num_captions: C.
        num_scored: pairs that the second stage scored, each once.
        cut: how images became square.
        text_recall: share of images one of whose captions is among the first 1, 5, 10.
        image_recall: share of captions whose image is among the first 1, 5, 10.
        skipped: images that could not be read.
    """

    score: Score
    top_k: int
    num_images: int
    num_captions: int
    num_scored: int
    cut: Cut
    text_recall: tuple[float, ...]
    image_recall: tuple[float, ...]
    skipped: tuple[Skipped, ...]

    @property
    def mean_recall(self) -> float:
        """The mean of the six, by which checkpoints are chosen."""
        return sum(self.text_recall + self.image_recall) / (2 * len(RANKS))

    @property
    def protocol(self) -> str:
        """What the numbers mean, in a line."""
        first = f"the top {self.top_k} of each by contrast, then " if self.top_k else ""
        return (
            f"{self.num_images} images, {self.num_captions} captions, each against all; {SQUARE[self.cut]}; "
            f"ranked by {first}{self.score}; ties count against"
        )

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log."""
        found = {f"eval/text_recall_at_{k}": one for k, one in zip(RANKS, self.text_recall, strict=True)}
        found |= {f"eval/image_recall_at_{k}": one for k, one in zip(RANKS, self.image_recall, strict=True)}
        return {**found, "eval/mean_recall": self.mean_recall}


@torch.no_grad()
def gallery(
    model: CBViLA,
    source: PairSource,
    *,
    max_words: int,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 0,
    precision: Literal["bf16", "fp32"] = "fp32",
    states: bool = True,
    progress: bool = True,
) -> Gallery:
    """Encode images and all their captions, each once.

    A source that lists an image more than once has it here once, with the captions of all its rows.

    Args:
        model: the network, where it is.
        source: images with captions, as they are to be read.
        max_words: longest caption in words (tokens) with start and end.
        batch_size: images, and captions, at a time.
        limit: if given, so many images, evenly spaced.
        workers: processes that decode images.
        precision: bf16 computes networks under autocast.
        states: keep what the second stage needs; vectors alone need far less memory.
        progress: show a bar.

    Raises:
        TooManyBroken: no image can be read.
    """
    place = next(model.parameters()).device
    batches = evaluation_batches(
        source,
        image_size=model.config.image_size,
        batch_size=batch_size,
        limit=limit,
        workers=workers,
        cut=model.config.cut,
    )
    found = _Rows(source)
    skipped: list[Skipped] = []
    seen, image_vectors = [], []
    total = min(len(source), limit or len(source))
    bar = tqdm(total=total, unit=" images", desc="see", disable=not progress)
    with evaluating(model), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            skipped += batch.skipped
            new = found.add(batch.indices.tolist())
            if new:
                vectors = model.see(batch.images[new].to(place))
                seen.append(vectors.cpu() if states else vectors[:, :0].cpu())
                image_vectors.append(model.image_vectors(vectors).cpu())
            bar.update(len(batch.images))
        words = model.encode_texts([text for texts in found.captions for text in texts], max_words)
        text, text_vectors = _read(model, words, batch_size, place, states=states, progress=progress)
    image_of = [number for number, texts in enumerate(found.captions) for _ in texts]
    return Gallery(
        torch.cat(seen), torch.cat(image_vectors), text, words.key_padding, text_vectors,
        torch.tensor(image_of), tuple(skipped),
    )  # fmt: skip


class _Rows:
    """The distinct images met so far, and their captions."""

    def __init__(self, source: PairSource) -> None:
        self.source = source
        self.captions: list[list[str]] = []
        self._numbers: dict[int, int] = {}

    def add(self, rows: Sequence[int]) -> list[int]:
        """Take in rows of the source; return the places of those whose image is new."""
        new = []
        for place, row in enumerate(rows):
            image = self.source.image_of(row)
            if image not in self._numbers:
                self._numbers[image] = len(self.captions)
                self.captions.append([])
                new.append(place)
            texts = self.captions[self._numbers[image]]
            texts += [text for text in self.source.captions[row] if text not in texts]
        return new


def _read(
    model: CBViLA, words: Words, batch_size: int, place: torch.device, *, states: bool, progress: bool
) -> tuple[Tensor, Tensor]:
    kept, vectors = [], []
    firsts = range(0, len(words.word_ids), batch_size)
    for first in tqdm(firsts, unit=" batches", desc="read", disable=not progress):
        part = slice(first, first + batch_size)
        text = model.read(words.word_ids[part].to(place), words.key_padding[part].to(place))
        kept.append(text.cpu() if states else text[:, :0].cpu())
        vectors.append(model.text_vectors(text).cpu())
    return torch.cat(kept), torch.cat(vectors)


@torch.no_grad()
def evaluate_retrieval(
    model: CBViLA,
    items: Gallery,
    *,
    score: Score = "matching",
    top_k: int = 128,
    precision: Literal["bf16", "fp32"] = "fp32",
    keep: Path | None = None,
    progress: bool = True,
) -> RetrievalResult:
    """Rank captions for each image and images for each caption.

    The first stage compares vectors. The second scores, for each image, its `top_k` captions, and for each
    caption its `top_k` images, by the matching head: the logit of "belongs" (ALBEF), with
    `matching+contrastive` plus the first stage's similarity (LAVIS, BLIP). Pairs that it does not score come
    last. Each image is projected once, and a pair that is in both lists is scored once.

    Args:
        model: the network, where it is.
        items: what is searched, from the same model.
        score: what pairs are ranked by.
        top_k: see above; 1 or more.
        precision: bf16 computes networks under autocast.
        keep: a folder in which the second stage's scores lie until it is finished; a second call goes on there.
        progress: show a bar.

    Raises:
        ValueError: an unknown score, or a top_k below 1.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    similarity = items.image_vectors.float() @ items.text_vectors.float().T
    num_scored, depth = 0, 0
    by_image = by_caption = similarity
    if score != "contrastive":
        of_images, of_captions = top_pairs(similarity, top_k)
        wanted, depth = of_images | of_captions, min(top_k, max(similarity.shape))
        logits = matching_logits(
            model, items.seen, items.text, items.key_padding, wanted, precision=precision, keep=keep,
            progress=progress,
        )  # fmt: skip
        if score == "matching+contrastive":
            logits = logits + similarity
        # Each direction ranks its own k best, whatever the other one had scored.
        by_image = torch.where(of_images, logits, -torch.inf)
        by_caption = torch.where(of_captions, logits, -torch.inf)
        num_scored = int(wanted.sum())
    text_ranks, image_ranks = ranks(by_image, items.image_of)[0], ranks(by_caption, items.image_of)[1]
    return RetrievalResult(
        score, depth, len(items.seen), len(items.text), num_scored,
        model.config.cut, recalls(text_ranks), recalls(image_ranks), items.skipped,
    )  # fmt: skip


def setting_of(trained_on: Sequence[str], data: str) -> str:
    """Say what kind of number an evaluation gives, as publications must be told apart by it.

    Args:
        trained_on: descriptions of the data of all trainings, pretraining first; empty where unknown.
        data: description of what is evaluated.

    Returns:
        "zs-direct": pretrained, nothing fine-tuned. "zs-coco-ft": fine-tuned on COCO, evaluated on something else,
        which ALBEF and its heirs call zero-shot on Flickr30k. "fine-tuned on ...": on anything else.
        "training unknown": a model directory that does not say, or an untrained model.
    """
    if not trained_on:
        return "training unknown"
    if len(trained_on) == 1:
        return "zs-direct"
    coco = "coco" in trained_on[-1].lower() and "coco" not in data.lower()
    return "zs-coco-ft" if coco else f"fine-tuned on {trained_on[-1]}"


def top_pairs(
    similarity: Float[Tensor, "I C"], top_k: int
) -> tuple[Bool[Tensor, "I C"], Bool[Tensor, "I C"]]:
    """Return the k best captions of each image and the k best images of each caption."""
    nothing = torch.zeros_like(similarity, dtype=torch.bool)
    captions = similarity.topk(min(top_k, similarity.shape[1]), dim=1).indices
    images = similarity.topk(min(top_k, similarity.shape[0]), dim=0).indices
    return nothing.scatter(1, captions, True), nothing.scatter(0, images, True)


def ranks(
    scores: Float[Tensor, "I C"], image_of: Int[Tensor, " C"]
) -> tuple[Int[Tensor, " I"], Int[Tensor, " C"]]:
    """Return how many wrong ones stand before the best caption of each image, and before each caption's image.

    A wrong one of the same score stands before: a model that gives all the same score finds nothing.

    Args:
        scores: of all pairs; minus infinity where a pair was not scored.
        image_of: row of each caption's image; each image has one or more.
    """
    own = image_of.unsqueeze(0) == torch.arange(len(scores)).unsqueeze(1)
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    # What is not below stands before: so does what is no number.
    text_ranks = (~(scores < best) & ~own).sum(1)
    right = scores[image_of, torch.arange(len(image_of))]
    return text_ranks, (~(scores < right) & ~own).sum(0)


def recalls(places: Int[Tensor, " Q"], at: Sequence[int] = RANKS) -> tuple[float, ...]:
    """Return the share of queries whose own is among the first k, for each k."""
    return tuple(float((places < k).double().mean()) for k in at)
