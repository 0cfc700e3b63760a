"""The terms of CB-ViLA's loss as one writes them from the paper: a pass of its own for each of them.

As in ALBEF's released code an image is encoded once and then looked at by one pass of the fusion encoder after the
other, each of which makes keys and values of it anew: its own text, a text that does not belong to it, a text with
another image, the text with hidden words. Words have logits at every position of every text. Of the codebook all
distances are held, and codewords are one-hot codes times the codebook. Pixels and masked codes have a pass each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixlex.batch import ImageTextBatch
from pixlex.losses import hard_negatives
from pixlex.models.cbvila import CBViLA
from pixlex.nn.bert import mask_words
from pixlex.objectives.cbvila import StepRandom

IGNORED = -100


def terms_of(model: CBViLA, word_ratio: float, pairs: ImageTextBatch, draws: StepRandom) -> dict[str, Tensor]:
    """Return all terms, by their names, of pairs that have neither image nor text in common."""
    words, padding, patches = pairs.word_ids, pairs.key_padding, draws.patches
    seen, text = model.encode_image(pairs.images), model.encode_text(words, padding)
    similarity = model.log_scale.exp() * model.image_vectors(seen) @ model.text_vectors(text, padding).T
    everyone = torch.arange(len(words), device=words.device)
    contrast = F.cross_entropy(similarity, everyone) + F.cross_entropy(similarity.T, everyone)

    codes, whole, whole_codewords = quantized(model, seen[:, 1:])
    visible = model.encode_image(pairs.images, patches.visible)
    _, z, visible_codewords = quantized(model, visible[:, 1:])
    all_z = torch.cat([whole, z], dim=1)
    all_codewords = torch.cat([whole_codewords, visible_codewords], dim=1)
    values = z + (visible_codewords - z).detach()

    def look_at_text() -> Tensor:
        query = model.query(values, model.image_projector(visible[:, 0]), patches.visible)
        return model.fusion(query, model.text_context(text, padding))[:, 1:]

    pixels = model.pixel_head(look_at_text()).float()
    hidden = patches.hidden.unsqueeze(-1)
    fused = look_at_text()
    fused = fused.gather(1, hidden.expand(-1, -1, fused.shape[-1]))
    vectors = model.masked_patch_head(fused.flatten(0, 1))
    code_logits = model.masked_patch_head.codewords(vectors).float()
    return {
        "image_text_contrastive": contrast / 2,
        "image_text_matching": matching(model, seen, text, padding, similarity.detach().float(), draws),
        "masked_language": masked_language(model, seen, pairs, word_ratio, draws),
        "pixel": F.mse_loss(pixels, model.patches(pairs.images)),
        "masked_image": F.cross_entropy(code_logits, codes.gather(1, patches.hidden).flatten()),
        "codebook": F.mse_loss(all_codewords, all_z.detach()),
        "commitment": F.mse_loss(all_z, all_codewords.detach()),
    }


def quantized(model: CBViLA, patch_vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, what was compared with the codewords, and the nearest codewords."""
    z, codebook = model.code_projector(patch_vectors).float(), model.codebook.weight
    with torch.autocast(z.device.type, enabled=False):
        distances = z.square().sum(-1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(-1)
        codes = distances.argmin(-1)
        return codes, z, F.one_hot(codes, len(codebook)).float() @ codebook


def matching(
    model: CBViLA, seen: Tensor, text: Tensor, padding: Tensor, similarity: Tensor, draws: StepRandom
) -> Tensor:
    """Return whether texts belong to images: three passes, each with keys and values of its own."""
    own = torch.eye(len(text), dtype=torch.bool, device=text.device)
    other_texts = hard_negatives(similarity, own, draws.negatives[:, 0])
    other_images = hard_negatives(similarity.T, own, draws.negatives[:, 1])
    passes = (
        (text, padding, seen),
        (text[other_texts], padding[other_texts], seen),
        (text, padding, seen[other_images]),
    )
    fused = [model.fusion(one, model.image_context(image), pad)[:, 0] for one, pad, image in passes]
    labels = torch.zeros(3 * len(text), dtype=torch.long, device=text.device)
    labels[: len(text)] = 1
    return F.cross_entropy(model.matching_head(torch.cat(fused)).float(), labels)


def masked_language(
    model: CBViLA, seen: Tensor, pairs: ImageTextBatch, ratio: float, draws: StepRandom
) -> Tensor:
    """Return the cross-entropy of hidden words, with the logits of all positions."""
    host, device = pairs.origin or pairs, seen.device
    special = model.tokenizer.special(host.word_ids, host.key_padding)
    masked = mask_words(host.word_ids, special, ratio, model.tokenizer.mask_id, draws.words)
    text = model.encode_text(masked.word_ids.to(device), pairs.key_padding)
    fused = model.fusion(text, model.image_context(seen), pairs.key_padding)
    head = model.masked_word_head
    logits = F.linear(head(fused), model.text_encoder.words.weight, head.bias).float()
    targets = pairs.word_ids.masked_fill(~masked.mask.to(device), IGNORED)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
