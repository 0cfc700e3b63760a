"""Images found by texts, texts by images: two stages, and how many queries find their own near the top."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageBatch, Skipped, TooManyBroken
from pixlex.config.fields import SQUARE
from pixlex.data.loader import Images, Loader, loading
from pixlex.data.records import Records
from pixlex.data.sources import evenly_spaced, subset
from pixlex.eval.evaluate import (
    DEFAULT_PASS,
    Evaluation,
    Measured,
    NothingToEvaluate,
    Pass,
    autocast,
    evaluate,
    evaluating,
    progress_bar,
    read_arrays,
    write_arrays,
)
from pixlex.files import write_atomically
from pixlex.models.cbvila import CBViLA
from pixlex.models.checkpoint import fingerprint
from pixlex.nn.bert import Words

Score = Literal["contrastive", "matching", "matching+contrastive"]
RANKS = (1, 5, 10)
# Texts that look at one image together.
_TEXTS_AT_ONCE = 256
# Images whose scores are one file.
_IMAGES_A_FILE = 32


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """I images and all their C captions after their encoders, on the CPU; vectors are of length 1.

    Attributes:
        states: The images that this process has encoded, class vector first; all of them when alone. No vectors,
            as in `text`, where those of the first stage alone were kept.
        own: Which of the images those are.
        image_of: Row of each caption's image.
        same_pixels, same_text: Row of the first image, or caption, that is the same.
        skipped: Images that could not be read; their captions are left out as well.
    """

    states: Float[Tensor, "O M W"]
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


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(Evaluation):
    """Recalls at 1, 5 and 10 in both directions, their mean, and what they are of.

    `text_recall_at_k` is the fraction of images one of whose captions is among the first k, `image_recall_at_k`
    that of captions whose image, or one that has the same caption, is among the first k. `num_scored` counts the
    pairs that the second stage scored, each once.
    """

    num_images: int
    num_captions: int
    num_scored: int


@torch.no_grad()
def gallery(
    model: CBViLA,
    source: Records,
    how: Pass = DEFAULT_PASS,
    *,
    max_words: int,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 0,
    states: bool = True,
) -> Gallery:
    """Encode images and all their captions, each once.

    A source that lists an image more than once has it here once, with the captions of all its rows, equal ones
    too. Several processes share images and captions, and each keeps what the second stage looks at of its own
    images alone.

    Args:
        source: Images with captions, as they are to be encoded.
        max_words: Longest caption in words (tokens) with start and end.
        limit: If given, so many rows, evenly spaced.
        states: Keep what the second stage needs; vectors alone need far less memory.

    Raises:
        TooManyBroken: No image can be read.
    """
    by_image = dict[int, list[int]]()
    for row in evenly_spaced(len(source), limit):
        by_image.setdefault(source.image_of(row), []).append(row)
    rows, config = list(by_image.values()), model.config
    settings = loading(config, batch_size, workers=workers)
    batches = Loader(Images(subset(source.images, [first for first, *_ in rows])), settings).evaluation()
    own: list[tuple[Tensor, Tensor]] = []

    def encode(batch: ImageBatch, _: int) -> Measured:
        encoded, indices = model.encode_image(batch.images), batch.indices.cpu()
        own.append((indices, (encoded if states else encoded[:, :0]).cpu()))
        there = (batch.origin or batch).images
        pixels = tuple(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in there)
        vectors = model.image_vectors(encoded).cpu()
        return Measured(rows={"images": indices, "vectors": vectors, "pixels": pixels})

    try:
        found = evaluate(model, batches, encode, replace(how, total=len(rows)), description="encode")
    except NothingToEvaluate as fault:
        raise TooManyBroken(f"{source.name}: none of {len(rows)} images can be read") from fault
    images: Tensor = found.rows["images"]
    captions = [[text for row in rows[image] for text in source.texts[row]] for image in images.tolist()]
    texts = [text for several in captions for text in several]
    words = model.tokenize_texts(texts, max_words)
    text, text_vectors = _encode_texts(model, words, batch_size, how, states=states)
    return Gallery(
        states=torch.cat([one for _, one in own]) if own else torch.empty(0, 0, config.image.width),
        own=torch.searchsorted(images, torch.cat([one for one, _ in own])) if own else images[:0],
        image_vectors=found.rows["vectors"],
        text=text,
        key_padding=words.key_padding,
        text_vectors=text_vectors,
        image_of=torch.tensor([number for number, several in enumerate(captions) for _ in several]),
        same_pixels=_firsts(found.rows["pixels"]),
        same_text=_firsts(texts),
        max_words=max_words,
        skipped=found.skipped,
    )


def _encode_texts(
    model: CBViLA, words: Words, batch_size: int, how: Pass, *, states: bool
) -> tuple[Tensor, Tensor]:
    """Return texts after their encoder, and their vectors; processes take turns at the batches."""
    device = next(model.parameters()).device
    found = []
    firsts = range(0, len(words.word_ids), batch_size)
    bar = progress_bar(len(firsts), "batches", "encode texts", shown=how.progress)
    with evaluating(model), autocast(device, how.precision), bar:
        for first in distributed.my_turns(firsts):
            part = slice(first, first + batch_size)
            padding = words.key_padding[part].to(device)
            text = model.encode_text(words.word_ids[part].to(device), padding)
            found.append(((text if states else text[:, :0]).cpu(), model.text_vectors(text, padding).cpu()))
            bar.update()
    everyone = distributed.in_turn(found)
    return torch.cat([text for text, _ in everyone]), torch.cat([vectors for _, vectors in everyone])


def _firsts(values: Sequence[str]) -> Int[Tensor, " V"]:
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(value, place) for place, value in enumerate(values)])


@torch.no_grad()
def evaluate_retrieval(
    model: CBViLA,
    items: Gallery,
    how: Pass = DEFAULT_PASS,
    *,
    score: Score = "matching",
    top_k: int = 128,
    cache: Path | None = None,
) -> RetrievalResult:
    """Rank captions for each image and images for each caption.

    The first stage compares vectors. The second scores, for each image, its `top_k` captions, and for each
    caption its `top_k` images, by the matching head: the logit of "belongs" (ALBEF), with `matching+contrastive`
    plus the first stage's similarity (LAVIS, BLIP). Pairs that it does not score come last; ties count against.
    Each image is projected once, and a pair that is in both lists is scored once. Several processes score the
    pairs of the images that each has encoded, and all return the same result.

    Args:
        cache: A folder in which the second stage's scores lie until it is finished; a second call on as many
            processes goes on there.
    """
    assert top_k > 0
    similarity = items.image_vectors.float() @ items.text_vectors.float().T
    num_scored, first = 0, ""
    by_image = by_caption = similarity
    if score != "contrastive":
        of_images, of_captions = top_pairs(similarity, top_k)
        wanted = of_images | of_captions
        num_scored = int(wanted.sum())
        first = f"the top {min(top_k, max(similarity.shape))} of each by contrast, then "
        logits = matching_logits(model, items, wanted, how, cache)
        if score == "matching+contrastive":
            logits = logits + similarity
        # Each direction ranks its own k best, whatever the other one had scored.
        by_image = torch.where(of_images, logits, -torch.inf)
        by_caption = torch.where(of_captions, logits, -torch.inf)
    text_ranks, image_ranks = distributed.from_first(
        lambda: (ranks(by_image, belongs := items.belongs)[0], ranks(by_caption, belongs)[1])
    )
    values: dict[str, float] = {}
    for name, places in (("text", text_ranks), ("image", image_ranks)):
        values |= {f"{name}_recall_at_{k}": float((places < k).double().mean()) for k in RANKS}
    config, num_images, num_captions = model.config, len(items.image_vectors), len(items.text)
    return RetrievalResult(
        values={**values, "mean_recall": sum(values.values()) / len(values)},
        skipped=items.skipped,
        protocol=f"{num_images} images, {num_captions} captions, each against all; {config.image_size} px, "
        f"{SQUARE[config.resize_mode]}; captions of at most {items.max_words} tokens; ranked by {first}{score}; "
        "ties count against",
        num_images=num_images,
        num_captions=num_captions,
        num_scored=num_scored,
    )


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

    A wrong one of the same score stands before: a model that gives all the same score finds nothing. Scores are
    minus infinity where a pair was not scored; each image and caption belongs to one or more.
    """
    right = scores.masked_fill(~belongs, -torch.inf)
    # What is not below stands before: so does what is no number.
    text_ranks = (~(scores < right.amax(1, keepdim=True)) & ~belongs).sum(1)
    return text_ranks, (~(scores < right.amax(0)) & ~belongs).sum(0)


@torch.no_grad()
def matching_logits(
    model: CBViLA, items: Gallery, wanted: Bool[Tensor, "I C"], how: Pass, cache: Path | None = None
) -> Float[Tensor, "I C"]:
    """Return the logit of "belongs" for the wanted pairs, zeros elsewhere; an image is projected once."""
    device, own = next(model.parameters()).device, wanted[items.own]
    scores = None
    if cache is not None and len(own):
        # The key holds all that the scores depend on: model, images and texts after their encoders, pairs.
        digest = hashlib.sha256(fingerprint(model, precision=how.precision).encode())
        for tensor in (items.states[:, 0].float(), items.text[:, 0].float(), own):
            digest.update(tensor.contiguous().numpy().tobytes())
        scores = CachedScores(cache, digest.hexdigest())
    found = [torch.zeros(0)]
    bar = progress_bar(int(wanted.sum()), "pairs", "match", shown=how.progress)
    with evaluating(model), autocast(device, how.precision), bar:
        for first in range(0, len(own), _IMAGES_A_FILE):
            block = own[first : first + _IMAGES_A_FILE]
            part = None if scores is None else scores.read(first, int(block.sum()))
            if part is None:
                parts = [torch.zeros(0)]
                for number, row in enumerate(block, start=first):
                    parts += _match(model, items, items.states[number : number + 1].to(device), row)
                part = torch.cat(parts)
                if scores is not None:
                    scores.write(first, part)
            bar.update(len(part))
            found.append(part)
    logits = torch.zeros(wanted.shape)
    for images, some in distributed.gather_objects((items.own, torch.cat(found))):
        logits[images] = logits[images].masked_scatter(wanted[images], some)
    if scores is not None:
        scores.remove()  # once the scores of all are there
    return logits


def _match(
    model: CBViLA, items: Gallery, state: Float[Tensor, "1 M W"], row: Bool[Tensor, " C"]
) -> list[Float[Tensor, " P"]]:
    """Return the logits of one image's texts, in their order."""
    texts: Int[Tensor, " P"] = row.nonzero().flatten()
    if not len(texts):
        return []
    context, logits = model.image_context(state), []
    for part in torch.split(texts, _TEXTS_AT_ONCE):
        padding = items.key_padding[part]
        length = int((~padding).sum(1).max())  # no text is longer
        text = items.text[part, :length].to(state.device)
        fused = model.fusion(text, context, padding[:, :length].to(state.device))
        logits.append(model.matching_head(fused[:, 0]).float()[:, 1].cpu())
    return logits


class CachedScores:
    """Scores of pairs under a key, a file for some images each, that an interrupted evaluation need not repeat."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / f"scores-{key[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, first: int, count: int) -> Float[Tensor, " P"] | None:
        """Return the scores of the images from one on; None where there are none, or not so many."""
        found = read_arrays(self._path(first)).get("scores")
        if found is None or found.shape != (count,) or found.dtype != np.float32:
            return None
        return torch.from_numpy(found)

    def write(self, first: int, scores: Float[Tensor, " P"]) -> None:
        """Store the scores of the images from one on."""
        write_atomically(self._path(first), lambda path: write_arrays(path, scores=scores.numpy()))

    def remove(self) -> None:
        """Remove them all: the evaluation is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:07d}.npz"
