"""Images found by texts, texts by images: two stages, and how many queries find their own near the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from pixlex.batch import Skipped, Words
from pixlex.data.loader import evaluation_batches
from pixlex.data.pairs import PairSource
from pixlex.eval.passes import evaluating
from pixlex.models.cbvila import CBViLA

Score = Literal["contrastive", "matching", "matching+contrastive"]
SCORES: tuple[Score, ...] = ("contrastive", "matching", "matching+contrastive")
RANKS = (1, 5, 10)

# Texts that look at one image together.
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Gallery:
    """Images and all their captions after their encoders, on the CPU.

    Attributes:
        seen: the images, class vector first.
        image_vectors: for the first stage, of length 1.
        text: the captions.
        key_padding: True = padding.
        text_vectors: for the first stage, of length 1.
        image_of: row of each caption's image.
        skipped: images that could not be read; their captions are left out as well.
    """

    seen: Float[Tensor, "I M W"]
    image_vectors: Float[Tensor, "I e"]
    text: Float[Tensor, "C T D"]
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
        text_recall: share of images one of whose captions is among the first 1, 5, 10.
        image_recall: share of captions whose image is among the first 1, 5, 10.
        skipped: images that could not be read.
    """

    score: Score
    top_k: int
    num_images: int
    num_captions: int
    num_scored: int
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
        first = f"top {self.top_k} by contrast, then " if self.top_k else ""
        return (
            f"{self.num_images} images, {self.num_captions} captions, each against all; ranked by {first}"
            f"{self.score}; ties count against"
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
    progress: bool = True,
) -> Gallery:
    """Encode images and all their captions, each once.

    Args:
        model: the network, where it is.
        source: images with captions, as they are to be read.
        max_words: longest caption in words (tokens) with start and end.
        batch_size: images, and captions, at a time.
        limit: if given, so many images, evenly spaced.
        workers: processes that decode images.
        precision: bf16 computes networks under autocast.
        progress: show a bar.

    Raises:
        TooManyBroken: no image can be read.
    """
    place = next(model.parameters()).device
    batches = evaluation_batches(
        source, image_size=model.config.image_size, batch_size=batch_size, limit=limit, workers=workers
    )
    rows: list[int] = []
    skipped: list[Skipped] = []
    seen, image_vectors = [], []
    total = min(len(source), limit or len(source))
    bar = tqdm(total=total, unit=" images", desc="see", disable=not progress)
    with evaluating(model), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            skipped += batch.skipped
            rows += batch.indices.tolist()
            states = model.see(batch.images.to(place))
            seen.append(states.cpu())
            image_vectors.append(model.image_vectors(states).cpu())
            bar.update(len(batch.images))
        texts = [text for row in rows for text in source.captions[row]]
        words = model.encode_texts(texts, max_words)
        text, text_vectors = _read(model, words, batch_size, place, progress=progress)
    image_of = [number for number, row in enumerate(rows) for _ in source.captions[row]]
    return Gallery(
        torch.cat(seen), torch.cat(image_vectors), text, words.key_padding, text_vectors,
        torch.tensor(image_of), tuple(skipped),
    )  # fmt: skip


def _read(
    model: CBViLA, words: Words, batch_size: int, place: torch.device, *, progress: bool
) -> tuple[Tensor, Tensor]:
    states, vectors = [], []
    firsts = range(0, len(words.word_ids), batch_size)
    for first in tqdm(firsts, unit=" batches", desc="read", disable=not progress):
        part = slice(first, first + batch_size)
        text = model.read(words.word_ids[part].to(place), words.key_padding[part].to(place))
        states.append(text.cpu())
        vectors.append(model.text_vectors(text).cpu())
    return torch.cat(states), torch.cat(vectors)


@torch.no_grad()
def evaluate_retrieval(
    model: CBViLA,
    items: Gallery,
    *,
    score: Score = "matching",
    top_k: int = 128,
    precision: Literal["bf16", "fp32"] = "fp32",
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
        progress: show a bar.

    Raises:
        ValueError: an unknown score, or a top_k below 1.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    similarity = items.image_vectors.float() @ items.text_vectors.float().T
    num_scored = 0
    scores, depth = similarity, 0
    if score != "contrastive":
        wanted, depth = _wanted(similarity, top_k), min(top_k, max(similarity.shape))
        logits = _matching_logits(model, items, wanted, precision, progress=progress)
        if score == "matching+contrastive":
            logits = logits + similarity
        scores = torch.where(wanted, logits, -torch.inf)
        num_scored = int(wanted.sum())
    text_ranks, image_ranks = ranks(scores, items.image_of)
    return RetrievalResult(
        score, depth, len(items.seen), len(items.text), num_scored,
        recalls(text_ranks), recalls(image_ranks), items.skipped,
    )  # fmt: skip


def _wanted(similarity: Float[Tensor, "I C"], top_k: int) -> Bool[Tensor, "I C"]:
    """Return the pairs that the second stage scores."""
    wanted = torch.zeros_like(similarity, dtype=torch.bool)
    wanted.scatter_(1, similarity.topk(min(top_k, similarity.shape[1]), dim=1).indices, True)
    wanted.scatter_(0, similarity.topk(min(top_k, similarity.shape[0]), dim=0).indices, True)
    return wanted


def _matching_logits(
    model: CBViLA, items: Gallery, wanted: Bool[Tensor, "I C"], precision: str, *, progress: bool
) -> Float[Tensor, "I C"]:
    """Return the logit of "belongs" for the wanted pairs, image by image; zeros elsewhere."""
    place = next(model.parameters()).device
    logits = torch.zeros(wanted.shape)
    bar = tqdm(total=int(wanted.sum()), unit=" pairs", desc="match", disable=not progress)
    with evaluating(model), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for image, row in enumerate(wanted):
            captions = row.nonzero().flatten()
            if not len(captions):
                continue
            context = model.look_at_images(items.seen[image : image + 1].to(place))
            for part in captions.split(_TEXTS_AT_ONCE):
                padding = items.key_padding[part]
                length = int((~padding).sum(1).max())  # no text is longer
                fused = model.fusion(
                    items.text[part, :length].to(place), context, padding[:, :length].to(place)
                )
                logits[image, part] = model.matching_head(fused[:, 0]).float()[:, 1].cpu()
                bar.update(len(part))
    return logits


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
    text_ranks = ((scores >= best) & ~own).sum(1)
    right = scores[image_of, torch.arange(len(image_of))]
    return text_ranks, ((scores >= right) & ~own).sum(0)


def recalls(places: Int[Tensor, " Q"], at: Sequence[int] = RANKS) -> tuple[float, ...]:
    """Return the share of queries whose own is among the first k, for each k."""
    return tuple(float((places < k).double().mean()) for k in at)
