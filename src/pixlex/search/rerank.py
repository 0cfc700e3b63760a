"""The second stage: the fusion encoder looks at the best candidates of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pixlex.batch import Skipped
from pixlex.data.decoding import UnreadableImage
from pixlex.models.cbvila import CBViLA
from pixlex.models.inference import Precision, computing
from pixlex.search.originals import Originals
from pixlex.search.parts import Entry
from pixlex.search.queries import square
from pixlex.search.results import Hit, Score, SearchResult

# Images that a text looks at together.
_IMAGES_AT_ONCE = 16

Found = Sequence[tuple[Entry, float]]


def first_stage(found: Found, top_k: int) -> SearchResult:
    """Return candidates with their similarities as they are, best first."""
    return _result([(entry, similarity, None) for entry, similarity in found], top_k, ())


def second_stage(
    model: CBViLA,
    text: Float[Tensor, "T D"],
    key_padding: Bool[Tensor, " T"],
    found: Found,
    originals: Originals,
    *,
    rerank: int,
    score: Score,
    top_k: int,
    precision: Precision,
) -> SearchResult:
    """Return candidates of a text, the first of them by the matching head, behind them the rest as they were.

    Args:
        model: in evaluation mode.
        text: the words of the query after the text encoder, on the model's device.
        key_padding: True = padding.
        found: candidates with their similarities, best first.
        originals: where they are.
        rerank: how many of them are looked at.
        score: what they are ranked by.
        top_k: most hits.
        precision: bf16 computes under autocast.
    """
    looked_at = [entry for entry, _ in found[:rerank]]
    logits, skipped = matching_logits(model, text, key_padding, looked_at, originals, precision)
    plus = 1.0 if score == "matching+contrastive" else 0.0
    scored: list[tuple[Entry, float, float]] = []
    rest: list[tuple[Entry, float, None]] = []
    for (entry, similarity), logit in zip(
        found, [*logits, *[None] * (len(found) - len(logits))], strict=True
    ):
        if logit is None:
            rest.append((entry, similarity, None))
        else:
            scored.append((entry, similarity, logit + plus * similarity))
    scored.sort(key=lambda one: (-one[2], one[0].key))
    return _result([*scored, *rest], top_k, skipped)


def matching_logits(
    model: CBViLA,
    text: Float[Tensor, "T D"],
    key_padding: Bool[Tensor, " T"],
    candidates: Sequence[Entry],
    originals: Originals,
    precision: Precision,
) -> tuple[list[float | None], tuple[Skipped, ...]]:
    """Return the logit of "belongs" of a text and each candidate, as `pixlex.eval.retrieval` ranks by.

    Returns:
        None for a candidate that cannot be read again; those.
    """
    place = text.device
    logits: list[float | None] = [None] * len(candidates)
    skipped: list[Skipped] = []
    words = text[~key_padding]
    for first in range(0, len(candidates), _IMAGES_AT_ONCE):
        numbers, pixels = [], []
        for number, entry in enumerate(candidates[first : first + _IMAGES_AT_ONCE], start=first):
            try:
                pixels.append(square(originals.read(entry.key, entry.digest), model.config))
                numbers.append(number)
            except UnreadableImage as fault:
                skipped.append(Skipped(fault.key, fault.reason))
        if not numbers:
            continue
        with computing(place, precision):
            context = model.image_context(model.encode_image(torch.stack(pixels).to(place)))
            fused = model.fusion(words.expand(len(numbers), -1, -1), context)
            found: list[float] = model.matching_head(fused[:, 0]).float()[:, 1].tolist()
        for number, logit in zip(numbers, found, strict=True):
            logits[number] = logit
    return logits, tuple(skipped)


def _result(
    ranked: Sequence[tuple[Entry, float, float | None]], top_k: int, skipped: tuple[Skipped, ...]
) -> SearchResult:
    hits = tuple(
        Hit(rank, entry.key, similarity, matching)
        for rank, (entry, similarity, matching) in enumerate(ranked[:top_k], start=1)
    )
    return SearchResult(hits, skipped)
