"""Terms with the text as the query: contrast, matching with hard negatives, masked words."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import ImageTextBatch, send
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.losses.contrastive import (
    IGNORED,
    hard_negatives,
    image_text_contrastive_loss,
    image_text_matching_loss,
)
from pixlex.losses.cross_entropy import masked_word_loss
from pixlex.models.cbvila import START_TEMPERATURE, CBViLA
from pixlex.nn.bert import Context
from pixlex.nn.masking import mask_words
from pixlex.nn.transformer import take_rows
from pixlex.objectives.draws import Draws


@dataclass(frozen=True)
class TextStates:
    """Texts after the text encoder: vectors, and what of them is padding."""

    vectors: Float[Tensor, "B T D"]
    key_padding: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class HiddenWords:
    """Texts as the encoder reads them with words hidden, and the places of those, counted through the texts."""

    word_ids: Int[Tensor, "B T"]
    places: Int[Tensor, " M"]


@dataclass(frozen=True)
class Similarity:
    """Each image of this process against all texts, each text against all images, over the temperature."""

    image_to_text: Float[Tensor, "B A"]
    text_to_image: Float[Tensor, "B A"]


def same_pairs(batch: ImageTextBatch) -> Bool[Tensor, "B A"]:
    """Return which pairs of all processes have the image or the caption of which pair of this one."""
    digests = (hashlib.sha256(text.encode()).digest()[:8] for text in batch.texts)
    captions = torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])
    own = send(torch.stack([batch.on_host.image_ids, captions], dim=1), batch.images.device)
    everyone = distributed.all_gather(own)
    return (own.unsqueeze(1) == everyone.unsqueeze(0)).any(-1)


def compared_terms(
    model: CBViLA,
    config: CBViLAObjectiveConfig,
    active: Collection[str],
    batch: ImageTextBatch,
    seen: Float[Tensor, "B M I"],
    draws: Draws,
    same: Bool[Tensor, "B A"],
) -> tuple[dict[str, Tensor], TextStates]:
    """Return those of the terms that are active, and the texts.

    Args:
        model: the network.
        config: share of hidden words.
        active: names of the terms.
        batch: images and texts of this process.
        seen: the images after the image encoder, nothing hidden.
        draws: of this step.
        same: see `same_pairs`.
    """
    masked = None
    word_ids, key_padding = batch.word_ids, batch.key_padding
    if "masked_language" in active:
        masked = _masked(model, config, batch, draws)
        both = model.encode_text(
            torch.cat([word_ids, masked.word_ids]), torch.cat([key_padding, key_padding])
        )
        vectors, masked_vectors = both.chunk(2)
    else:
        vectors = model.encode_text(word_ids, key_padding)
        masked_vectors = vectors[:0]
    text = TextStates(vectors, key_padding)
    terms: dict[str, Tensor] = {}
    if "image_text_contrastive" in active or "image_text_matching" in active:
        learned = "image_text_contrastive" in active
        similarity = _similarity(model, seen, vectors, learned=learned)
        if learned:
            terms["image_text_contrastive"] = image_text_contrastive_loss(
                similarity.image_to_text, similarity.text_to_image, same
            )
    if "image_text_matching" in active:
        context = model.image_context(seen)
        queries = (masked_vectors, key_padding) if masked is not None else None
        logits, labels, fused = _matched(
            model, seen, text, context, _opposed(similarity, same, draws), queries
        )
        count = distributed.all_mean((labels != IGNORED).sum().float())
        terms["image_text_matching"] = image_text_matching_loss(logits, labels, total=count)
    elif masked is not None:
        fused = model.fusion(masked_vectors, model.image_context(seen), key_padding)
    if masked is not None:
        terms["masked_language"] = _masked_language(model, fused, word_ids, masked)
    return terms, text


def _similarity(model: CBViLA, seen: Tensor, vectors: Tensor, *, learned: bool) -> Similarity:
    """Return similarities over the temperature; of the class vectors as they are, where none is learned."""
    if learned:
        images, texts = model.image_vectors(seen), model.text_vectors(vectors)
        scale: Tensor | float = model.log_scale.exp()
    else:
        images = F.normalize(model.image_projector(seen[:, 0]).detach().float(), dim=-1)
        texts = F.normalize(vectors[:, 0].detach().float(), dim=-1)
        scale = 1 / START_TEMPERATURE
    all_images, all_texts = distributed.gather_rows(images), distributed.gather_rows(texts)
    with torch.autocast(images.device.type, enabled=False):  # the products too are to be in float32
        return Similarity(scale * images @ all_texts.T, scale * texts @ all_images.T)


def _opposed(
    similarity: Similarity, same: Bool[Tensor, "B A"], draws: Draws
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Return a text for each image and an image for each text that do not belong to them, -1 for none."""
    return (
        hard_negatives(similarity.image_to_text.detach(), same, draws.negatives[:, 0]),
        hard_negatives(similarity.text_to_image.detach(), same, draws.negatives[:, 1]),
    )


def _matched(
    model: CBViLA,
    seen: Tensor,
    text: TextStates,
    context: Context,
    opposed: tuple[Tensor, Tensor],
    masked: tuple[Tensor, Tensor] | None,
) -> tuple[Float[Tensor, "R 2"], Int[Tensor, " R"], Float[Tensor, "B T D"]]:
    """Return logits and labels of pairs, images with other texts, texts with other images; and fused hidden words.

    What looks at the same image goes through the fusion encoder together, its keys and values are made once.
    """
    other_texts, other_images = opposed
    everyone = _everyone(text)
    numbers = other_texts.clamp_min(0)
    against = TextStates(take_rows(everyone.vectors, numbers), everyone.key_padding[numbers])
    parts = [text, against] + ([] if masked is None else [TextStates(*masked)])
    length = max(part.vectors.shape[1] for part in parts)
    padded = [_padded(part, length) for part in parts]
    fused = model.fusion(
        torch.cat([part.vectors for part in padded]),
        context,
        torch.cat([part.key_padding for part in padded]),
    )
    if distributed.world_size() == 1:
        other = context.rows(other_images.clamp_min(0))
    else:
        other = model.image_context(take_rows(distributed.gather_rows(seen), other_images.clamp_min(0)))
    elsewhere = model.fusion(text.vectors, other, text.key_padding)
    size = len(seen)
    logits = model.matching_head(torch.cat([fused[: 2 * size, 0], elsewhere[:, 0]]))
    labels = torch.zeros(3 * size, dtype=torch.long, device=seen.device)
    labels[:size] = 1
    labels[size : 2 * size].masked_fill_(other_texts < 0, IGNORED)
    labels[2 * size :].masked_fill_(other_images < 0, IGNORED)
    return logits, labels, fused[2 * size :, : text.vectors.shape[1]]


def _everyone(text: TextStates) -> TextStates:
    """Return the texts of all processes."""
    if distributed.world_size() == 1:
        return text
    longest = distributed.all_max(text.vectors.shape[1])
    padded = _padded(text, longest)
    return TextStates(
        distributed.gather_rows(padded.vectors), distributed.all_gather(padded.key_padding.long()).bool()
    )


def _padded(text: TextStates, length: int) -> TextStates:
    missing = length - text.vectors.shape[1]
    return TextStates(
        F.pad(text.vectors, (0, 0, 0, missing)), F.pad(text.key_padding, (0, missing), value=True)
    )


def _masked(model: CBViLA, config: CBViLAObjectiveConfig, batch: ImageTextBatch, draws: Draws) -> HiddenWords:
    """Hide words, on the CPU: how many there are decides shapes."""
    host, device = batch.on_host, batch.images.device
    special = model.tokenizer.special(host.word_ids, host.key_padding)
    masked = mask_words(
        host.word_ids, special, config.masked_language_ratio, model.tokenizer.mask_id, draws.words
    )
    return HiddenWords(send(masked.word_ids, device), send(masked.mask.flatten().nonzero()[:, 0], device))


def _masked_language(model: CBViLA, fused: Tensor, word_ids: Tensor, masked: HiddenWords) -> Tensor:
    """Return the cross-entropy of hidden words (equation 6), the mean over all processes' words."""
    hidden = masked.places
    return masked_word_loss(
        model.masked_word_head(take_rows(fused.flatten(0, 1), hidden)),
        word_ids.flatten()[hidden],
        model.text_encoder.words.weight,
        model.masked_word_head.bias,
        total=distributed.all_mean(torch.full((), float(len(hidden)), device=fused.device)),
    )
