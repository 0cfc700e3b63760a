"""Images found by texts, texts by images: two stages, and how many queries find their own near the top."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import Skipped, Words
from pixlex.config.data import SQUARE, Cut
from pixlex.data.loader import TooManyBroken, evaluation_batches
from pixlex.data.pairs import PairSource
from pixlex.data.sources import subset
from pixlex.eval.pair_scores import matching_logits
from pixlex.eval.passes import evaluating, progress_bar
from pixlex.models.cbvila import CBViLA

Score = Literal["contrastive", "matching", "matching+contrastive"]
SCORES: tuple[Score, ...] = ("contrastive", "matching", "matching+contrastive")
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Gallery:
    """Images and all their captions after their encoders, on the CPU.

    Attributes:
        seen: the images that this process has encoded, class vector first; all of them when alone.
        own: which of the images those are.
        image_vectors: for the first stage, of length 1.
        text: the captions; no words of them, and no patches of images, where vectors alone were kept.
        key_padding: True = padding.
        text_vectors: for the first stage, of length 1.
        image_of: row of each caption's image.
        same_pixels: row of the first image with the pixels of each.
        same_text: row of the first caption with the text of each.
        max_words: longest caption in words (tokens) with start and end.
        skipped: images that could not be read; their captions are left out as well.
    """

    seen: Float[Tensor, "O M W"]
    own: Int[Tensor, " O"]
    image_vectors: Float[Tensor, "I e"]
    text: Float[Tensor, "C L D"]
    key_padding: Bool[Tensor, "C T"]
    text_vectors: Float[Tensor, "C e"]
    image_of: Int[Tensor, " C"]
    same_pixels: Int[Tensor, " I"]
    same_text: Int[Tensor, " C"]
    max_words: int
    skipped: tuple[Skipped, ...]

    @property
    def belongs(self) -> Bool[Tensor, "I C"]:
        """Which captions are right for which images: their own, and what nobody can tell from those."""
        listed = torch.zeros(len(self.same_pixels), len(self.same_text), dtype=torch.bool)
        listed[self.same_pixels[self.image_of], self.same_text] = True
        return listed[self.same_pixels][:, self.same_text]


@dataclass(frozen=True)
class RetrievalResult:
    """What an evaluation found.

    Attributes:
        score: what pairs were ranked by.
        top_k: pairs scored by the second stage for each image and for each caption; 0 where there was none.
        num_images: I.
        num_captions: C.
        num_scored: pairs that the second stage scored, each once.
        image_size: side of the images in pixels.
        cut: how images became square.
        max_words: longest caption in words (tokens) with start and end.
        text_recall: share of images one of whose captions is among the first 1, 5, 10.
        image_recall: share of captions whose image, or one that has the same caption, is among the first 1, 5, 10.
        skipped: images that could not be read.
    """

    score: Score
    top_k: int
    num_images: int
    num_captions: int
    num_scored: int
    image_size: int
    cut: Cut
    max_words: int
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
            f"{self.num_images} images, {self.num_captions} captions, each against all; {self.image_size} px, "
            f"{SQUARE[self.cut]}; captions of at most {self.max_words} tokens; "
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

    A source that lists an image more than once has it here once, with the captions of all its rows, equal ones
    too. Several processes share images and captions, and each keeps what the second stage looks at of its own
    images alone.

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
    rows = _rows_of_images(source, limit)
    batches = evaluation_batches(
        subset(source.images, [first for first, *_ in rows]),
        image_size=model.config.image_size,
        batch_size=batch_size,
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        cut=model.config.cut,
    )
    found: list[_Seen] = []
    states_of_own: list[Tensor] = []
    bar = progress_bar(len(rows), "images", "see", shown=progress)
    with evaluating(model), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            vectors = torch.empty(0, model.config.contrastive_dim)
            if len(batch.images):
                seen = model.encode_image(batch.images.to(place))
                states_of_own.append(seen.cpu() if states else seen[:, :0].cpu())
                vectors = model.image_vectors(seen).cpu()
            pixels = tuple(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images)
            found.append(_Seen(batch.indices, vectors, pixels, batch.skipped))
            bar.update(len(batch.images))
    everyone = distributed.in_turn(found)
    kept = torch.cat([one.images for one in everyone])
    skipped = tuple(broken for one in everyone for broken in one.skipped)
    if not len(kept):
        raise TooManyBroken(f"{source.name}: none of {len(rows)} images can be read")
    captions = [[text for row in rows[image] for text in source.captions[row]] for image in kept.tolist()]
    texts = [text for several in captions for text in several]
    words = model.tokenize_texts(texts, max_words)
    with evaluating(model), torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        text, text_vectors = _read(model, words, batch_size, place, states=states, progress=progress)
    image_of = [number for number, several in enumerate(captions) for _ in several]
    return Gallery(
        torch.cat(states_of_own) if states_of_own else torch.empty(0, 0, model.config.image.width),
        torch.searchsorted(kept, torch.cat([one.images for one in found])) if found else kept[:0],
        torch.cat([one.vectors for one in everyone]),
        text,
        words.key_padding,
        text_vectors,
        torch.tensor(image_of),
        _firsts([pixels for one in everyone for pixels in one.pixels]),
        _firsts(texts),
        max_words,
        skipped,
    )


@dataclass(frozen=True)
class _Seen:
    """A batch of images after their encoder: which images, in order, vectors, hashes of pixels."""

    images: Int[Tensor, " B"]
    vectors: Float[Tensor, "B e"]
    pixels: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def _firsts(values: Sequence[str]) -> Int[Tensor, " V"]:
    """Return where each value stands first."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(value, place) for place, value in enumerate(values)])


def _rows_of_images(source: PairSource, limit: int | None) -> list[list[int]]:
    """Return the rows of each distinct image among so many rows, evenly spaced; images in order of their first."""
    total = len(source)
    count = total if limit is None else min(limit, total)
    rows: dict[int, list[int]] = {}
    for number in range(count):
        row = number * total // count
        rows.setdefault(source.image_of(row), []).append(row)
    return list(rows.values())


def _read(
    model: CBViLA, words: Words, batch_size: int, place: torch.device, *, states: bool, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return texts after their encoder, and their vectors, batches dealt out to all processes in turn."""
    found = []
    firsts = range(0, len(words.word_ids), batch_size)
    bar = progress_bar(len(firsts), "batches", "read", shown=progress)
    with bar:
        for first in distributed.my_turns(firsts):
            part = slice(first, first + batch_size)
            text = model.encode_text(words.word_ids[part].to(place), words.key_padding[part].to(place))
            found.append((text.cpu() if states else text[:, :0].cpu(), model.text_vectors(text).cpu()))
            bar.update()
    everyone = distributed.in_turn(found)
    return torch.cat([text for text, _ in everyone]), torch.cat([vectors for _, vectors in everyone])


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
    last. Each image is projected once, and a pair that is in both lists is scored once. Several processes score
    the pairs of the images that each has encoded, and all return the same result.

    Args:
        model: the network, where it is.
        items: what is searched, from the same model.
        score: what pairs are ranked by.
        top_k: see above; 1 or more.
        precision: bf16 computes networks under autocast.
        keep: a folder in which the second stage's scores lie until it is finished; a second call on as many
            processes goes on there.
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
            model, items.seen, items.text, items.key_padding, wanted, own=items.own, precision=precision,
            keep=keep, progress=progress,
        )  # fmt: skip
        if score == "matching+contrastive":
            logits = logits + similarity
        # Each direction ranks its own k best, whatever the other one had scored.
        by_image = torch.where(of_images, logits, -torch.inf)
        by_caption = torch.where(of_captions, logits, -torch.inf)
        num_scored = int(wanted.sum())
    text_ranks, image_ranks = distributed.from_first(
        lambda: (ranks(by_image, items.belongs)[0], ranks(by_caption, items.belongs)[1])
    )
    return RetrievalResult(
        score, depth, len(items.image_vectors), len(items.text), num_scored,
        model.config.image_size, model.config.cut, items.max_words, recalls(text_ranks), recalls(image_ranks),
        items.skipped,
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
    scores: Float[Tensor, "I C"], belongs: Bool[Tensor, "I C"]
) -> tuple[Int[Tensor, " I"], Int[Tensor, " C"]]:
    """Return how many wrong ones stand before the best right caption of each image, and the same of captions.

    A wrong one of the same score stands before: a model that gives all the same score finds nothing.

    Args:
        scores: of all pairs; minus infinity where a pair was not scored.
        belongs: which captions are right for which images; each has one or more.
    """
    right = scores.masked_fill(~belongs, -torch.inf)
    # What is not below stands before: so does what is no number.
    text_ranks = (~(scores < right.amax(1, keepdim=True)) & ~belongs).sum(1)
    return text_ranks, (~(scores < right.amax(0)) & ~belongs).sum(0)


def recalls(places: Int[Tensor, " Q"], at: Sequence[int] = RANKS) -> tuple[float, ...]:
    """Return the share of queries whose own is among the first k, for each k."""
    return tuple(float((places < k).double().mean()) for k in at)
