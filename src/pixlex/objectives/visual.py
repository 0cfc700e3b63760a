"""Terms with the image as the query: pixels, codes of hidden patches, and what ties patches to codewords."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex.batch import ImageTextBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.losses.cross_entropy import masked_word_loss
from pixlex.losses.quantization import codebook_loss, commitment_loss
from pixlex.losses.reconstruction import masked_patch_loss
from pixlex.models.cbvila import CBViLA
from pixlex.nn.codebook import Quantized
from pixlex.nn.vit import take
from pixlex.objectives.compared import TextStates
from pixlex.objectives.draws import Draws


def predicted_terms(
    model: CBViLA,
    config: CBViLAObjectiveConfig,
    active: Collection[str],
    batch: ImageTextBatch,
    states: tuple[Float[Tensor, "B M I"], TextStates],
    codes: Int[Tensor, "B N"],
    draws: Draws,
    temperature: float,
) -> tuple[dict[str, Tensor], Quantized]:
    """Return pixel loss and cross-entropy of hidden codes, where active, and the visible patches quantized.

    One pass of the fusion encoder serves both; two with the Gumbel-softmax, whose codewords learn from pixels and
    not from codes.

    Args:
        model: the network.
        config: what is hidden, which pixels count.
        active: names of the terms.
        batch: the images.
        states: images, nothing hidden, and texts after their encoders.
        codes: of the whole images, to be foretold.
        draws: of this step.
        temperature: of the Gumbel-softmax.
    """
    (seen, text), split = states, draws.patches
    if config.mask_stage == "input":
        visible = model.encode_image(batch.images, split.visible)
    else:
        visible = torch.cat([seen[:, :1], take(seen[:, 1:], split.visible)], dim=1)
    quantized = model.quantize_vectors(visible[:, 1:])
    class_vectors = model.image_projector(visible[:, 0])
    # Drawn in training only: what is measured is what the codes stand for.
    if model.config.codebook.estimator == "gumbel" and model.training:
        noise = draws.gumbel(split.visible.shape[1], model.num_codewords, seen.device)
        pair = model.codebook.sample(quantized.z, temperature, noise)
    else:
        pair = (quantized.values, quantized.values)
    context = model.text_context(text.vectors, text.key_padding)
    values = [value for value, term in zip(pair, ("pixel", "masked_image"), strict=True) if term in active]
    queries = [model.query(value, class_vectors, split.visible) for value in dict.fromkeys(values)]
    fused = model.fusion(torch.cat(queries), context)
    for_pixels, for_codes = fused[: len(seen)], fused[-len(seen) :]
    terms = {}
    if "pixel" in active:
        terms["pixel"] = _pixel(model, config, batch.images, for_pixels, draws)
    if "masked_image" in active:
        vectors, weight, bias = model.masked_codes_head(for_codes, split.hidden)
        targets = codes.gather(1, split.hidden).flatten()
        terms["masked_image"] = masked_word_loss(vectors, targets, weight, bias)
    return terms, quantized


def _pixel(
    model: CBViLA, config: CBViLAObjectiveConfig, images: Tensor, fused: Tensor, draws: Draws
) -> Float[Tensor, ""]:
    """Return the mean squared error of the normalized pixels of the patches that count (equation 3)."""
    patches = model.patches(images.float())
    counts = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    if config.pixel_patches == "masked":
        counts.scatter_(1, draws.patches.visible, False)
    elif config.pixel_patches == "visible":
        counts.scatter_(1, draws.patches.hidden, False)
    return masked_patch_loss(model.pixel_head(fused[:, 1:]), patches, counts)


def codebook_terms(
    active: Collection[str], full: Quantized, visible: Quantized | None
) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
    """Return the second and third term of equation 3, where active, over the patches of both passes; and measures.

    Args:
        active: names of the terms.
        full: the whole images quantized.
        visible: their visible parts quantized; None where that pass was not made.
    """
    parts = [full] if visible is None else [full, visible]
    z = torch.cat([part.z for part in parts], dim=1)
    codewords = torch.cat([part.codewords for part in parts], dim=1)
    terms = {}
    if "codebook" in active:
        terms["codebook"] = codebook_loss(z, codewords)
    if "commitment" in active:
        terms["commitment"] = commitment_loss(z, codewords)
    with torch.no_grad():
        rows = full.z.float().flatten(0, 1)
        error = (full.z.float() - full.codewords.float()).square().mean()
        # 1 says that the codewords tell no more than the mean patch vector does.
        share = error / rows.var(0, unbiased=False).mean().clamp_min(1e-12)
    return terms, {"quantization_error_share": share}
