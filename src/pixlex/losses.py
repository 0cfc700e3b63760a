"""The formulas of all losses: tensors in, one scalar out; weights and moments stand in `objectives`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # label of what does not count
_ROWS = 128


def pixel_loss(
    reconstruction: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, ""]:
    """Return the mean squared error over batch, channels and pixels (LQAE, equation 1, first term).

    The paper writes a squared norm; the released code and we take the mean.

    Args:
        reconstruction: Decoded pixels, not clipped.
        images: Pixels in [0, 1].
    """
    return (reconstruction.float() - images).square().mean()


def masked_patch_loss(
    predicted: Float[Tensor, "B N pixels"], patches: Float[Tensor, "B N pixels"], mask: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Return the mean squared error over the pixels of hidden patches (He et al. 2021, section 3).

    Args:
        predicted: What the decoder predicts, in the space of `patches`.
        patches: The pixels of each patch.
        mask: True where a patch was hidden; one or more.
    """
    errors = (predicted.float() - patches).square().mean(-1)
    return errors.masked_fill(~mask, 0.0).sum() / mask.sum()


def normalized_patches(patches: Float[Tensor, "B N pixels"]) -> Float[Tensor, "B N pixels"]:
    """Return each patch minus its mean, over its standard deviation (He et al. 2021, section 3).

    Mean and unbiased variance are over the patch's pixels and channels together; 1e-6 is added to the variance.
    """
    return (patches - patches.mean(-1, keepdim=True)) / _deviation(patches)


def restored_patches(
    normalized: Float[Tensor, "B N pixels"], patches: Float[Tensor, "B N pixels"]
) -> Float[Tensor, "B N pixels"]:
    """Return normalized patches with mean and standard deviation of `patches` put back, to look at them."""
    return normalized.float() * _deviation(patches) + patches.mean(-1, keepdim=True)


def _deviation(patches: Tensor) -> Tensor:
    return (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def commitment_loss(z: Float[Tensor, "*shape"], codewords: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return mean((z - sg(codeword))^2): moves patch vectors only (LQAE, equation 1, third term).

    Args:
        z: Patch vectors in the space of the search, or maps of them.
        codewords: Their nearest codewords in the same space.
    """
    return (z.float() - codewords.detach().float()).square().mean()


def codebook_loss(z: Float[Tensor, "*shape"], codewords: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return mean((sg(z) - codeword)^2): moves codewords only (LQAE, equation 1, second term).

    Args:
        z: As for `commitment_loss`.
        codewords: As there, with gradient.
    """
    return (z.detach().float() - codewords.float()).square().mean()


def entropy_regularization(
    z: Float[Tensor, "M S"],
    codebook: Float[Tensor, "K S"],
    temperature: float,
    metric: Literal["cosine", "euclidean"] = "cosine",
    all_mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    block: int = 512,
) -> Float[Tensor, ""]:
    """Return the mean entropy of the soft codes less the entropy of their mean (LQAE, Table 3, row D).

    p = softmax(-|z - codebook|^2 / temperature) over vectors of length 1 where the search is by angle, as in the
    released code: twice the cosine over the temperature. The value is E[H(p)] - H(E[p]) in nats: low when each
    patch is sure of its codeword and all codewords are in use. The released code counts the term twice; we do not.

    Args:
        z: Patch vectors in the space of the search.
        codebook: All K codewords in the same space.
        temperature: Divides the distances; above 0.
        all_mean: Mean of a tensor over all processes, keeping gradients.
        block: Number of rows per block; each is recomputed in the backward pass.
    """

    def located(vectors: Tensor) -> Tensor:
        return F.normalize(vectors.float(), dim=-1) if metric == "cosine" else vectors.float()

    codewords = located(codebook)
    lengths = codewords.square().sum(-1)

    def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        # Of the squared distance, what is the same for all codewords of a row is left out.
        log_p = F.log_softmax((2 * located(rows) @ codewords.T - lengths) / temperature, dim=-1)
        p = log_p.exp()
        return -(p * log_p).sum(), p.sum(0)

    blocks = (checkpoint(sums, rows, use_reentrant=False) for rows in torch.split(z, block))
    entropies, sums_of_p = zip(*blocks, strict=True)
    mean_p = all_mean(torch.stack(sums_of_p).sum(0) / len(z))
    of_mean = -(mean_p * mean_p.clamp_min(1e-12).log()).sum()
    return torch.stack(entropies).sum() / len(z) - of_mean


def masked_word_loss(
    vectors: Float[Tensor, "M D"],
    word_ids: Int[Tensor, " M"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    *,
    total: float | Float[Tensor, ""] | None = None,
    factors: Float[Tensor, " M"] | None = None,
    block: int = 512,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of hidden words in nats, -log p(z | z_m) (LQAE, equation 2); 0 without any.

    The paper prints `+ alpha log p`, which would maximize surprise. Logits exist once, for a block of positions
    at a time: their gradients are made in the forward pass and wait in the size of vectors and weights. Under
    autocast products are in low precision, the softmax in float32. torch's chunked linear cross-entropy was
    several times as slow here (docs/decisions.md).

    Args:
        vectors: What the language model's head compares with word embeddings, hidden positions only.
        word_ids: The hidden words, in [0, V).
        total: Divides the sum; None = the hidden words here. With several processes, those of the whole batch over
            the number of processes makes their mean exact.
        factors: Weight of each word; None = 1.
        block: Positions whose logits exist at the same time.
    """
    total = len(word_ids) if total is None else total
    # Nothing hidden: a sum of nothing over one.
    total = total.masked_fill(total == 0, 1.0) if isinstance(total, Tensor) else total or 1
    device = vectors.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    if factors is None:
        factors = torch.ones(len(word_ids), device=vectors.device)
    if not torch.is_grad_enabled():  # so that no gradients are made
        vectors, weight, bias = vectors.detach(), weight.detach(), None if bias is None else bias.detach()
    # The CPU's matrix library keeps a packed copy of the matrix for every shape: rows are filled up to few shapes.
    missing = -len(word_ids) % _ROWS
    vectors = F.pad(vectors.float(), (0, 0, 0, missing))
    word_ids, factors = F.pad(word_ids, (0, missing)), F.pad(factors, (0, missing))
    with torch.autocast(device, enabled=False):
        summed: Tensor = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            vectors, weight, bias, word_ids, factors, block, dtype
        )
    return summed / total


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum of weighted cross-entropies, whose gradients are computed beside it, block by block.

    With p the softmax of a row's logits and y the word behind it, the gradient with respect to the logits is
    factor * (p - y): two more products give those of vectors and weights, and the logits can go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        word_ids: Tensor,
        factors: Tensor,
        block: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        total = vectors.new_zeros(())
        of_vectors, of_weight, of_bias = (
            torch.zeros_like(one, dtype=torch.float32) if wants and one is not None else None
            for one, wants in zip((vectors, weight, bias), wanted, strict=True)
        )
        for start in range(0, len(vectors), block):
            part = slice(start, start + block)
            rows, targets = vectors[part].to(dtype), word_ids[part].unsqueeze(1)
            logits = F.linear(rows, matrix, offset).float()
            sums = logits.logsumexp(1, keepdim=True)
            total += (factors[part] * (sums - logits.gather(1, targets)).squeeze(1)).sum()
            if not any(wanted):
                continue
            # In place: nothing else holds the logits.
            slopes = logits.sub_(sums).exp_()
            slopes.scatter_add_(1, targets, slopes.new_full(targets.shape, -1.0))
            slopes.mul_(factors[part].unsqueeze(1))
            if of_bias is not None:
                of_bias += slopes.sum(0)
            slopes = slopes.to(dtype)
            if of_vectors is not None:
                of_vectors[part] = slopes @ matrix
            if of_weight is not None and dtype == torch.float32:
                of_weight.addmm_(slopes.T, rows)
            elif of_weight is not None:
                of_weight += slopes.T @ rows
        ctx.save_for_backward(of_vectors, of_weight, of_bias)
        ctx.dtypes = [None if one is None else one.dtype for one in (vectors, weight, bias)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = (
            None if one is None else (gradient * one).to(dtype)
            for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*found, None, None, None, None)


def caption_loss(
    logits: Float[Tensor, "B T V"],
    word_ids: Int[Tensor, "B T"],
    key_padding: Bool[Tensor, "B T"],
    *,
    total: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of caption words in nats (Tsimpoukelli et al. 2021, section 3).

    The paper sums over a caption's words; this is the mean over all words of the batch, the end included.

    Args:
        logits: Of each word, given the image and the words before it.
        word_ids: The words, in [0, V); anything where padded.
        key_padding: True = padding, which does not count.
        total: As in `masked_word_loss`.
    """
    targets = word_ids.masked_fill(key_padding, IGNORED).flatten()
    summed = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum", ignore_index=IGNORED)
    return summed / ((~key_padding).sum() if total is None else total)


def feature_loss(predicted: Float[Tensor, "B D"], features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return one minus the mean cosine between features and what is predicted of them (BEiT v2, equation 4)."""
    return 1 - F.cosine_similarity(predicted.float(), features.float(), dim=-1).mean()


def relation_loss(predicted: Float[Tensor, "B D"], features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return the mean squared difference of the cosines of all pairs of images, each side centered on its mean.

    Relational distillation (Park et al. 2019, section 3) with cosines for distances.
    """
    ours, theirs = (F.normalize(one.float() - one.float().mean(0), dim=-1) for one in (predicted, features))
    return (ours @ ours.T - theirs @ theirs.T).square().mean()


def image_text_contrastive_loss(
    image_to_text: Float[Tensor, "B A"], text_to_image: Float[Tensor, "B A"], same: Bool[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """Return the mean of both cross-entropies over the batch in nats (Li et al. 2021, ALBEF, equation 2).

    Without the momentum encoders and queue of ALBEF; the target is spread evenly over all pairs that are the same.

    Args:
        image_to_text: Similarity of each image of this process to each text of all, over the temperature.
        text_to_image: Similarity of each text of this process to each image of all, over the temperature.
        same: True where they belong together: the pair itself, other captions of the image, the same caption.
    """
    return (_spread_cross_entropy(image_to_text, same) + _spread_cross_entropy(text_to_image, same)) / 2


def image_contrastive_loss(
    vectors: Float[Tensor, "V D"],
    every: Float[Tensor, "A D"],
    same: Bool[Tensor, "V A"],
    own: Bool[Tensor, "V A"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of finding the other views of an image, in nats (Chen et al. 2020, equation 1).

    With more than one right answer the target is spread evenly over them (Khosla et al. 2020, equation 2).

    Args:
        vectors: Of the views of this process.
        every: Of the views of all processes.
        same: True where two views are of one image, or of images that belong together.
        own: True where a view meets itself, which does not count.
        temperature: Divides the cosines; above 0.
    """
    cosines = F.normalize(vectors.float(), dim=-1) @ F.normalize(every.float(), dim=-1).T
    return _spread_cross_entropy((cosines / temperature).float().masked_fill(own, -1e9), same & ~own)


def _spread_cross_entropy(logits: Float[Tensor, "B A"], same: Bool[Tensor, "B A"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy with targets spread evenly over the columns that are the same."""
    targets = same.float() / same.float().sum(1, keepdim=True)
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


@torch.no_grad()
def hard_negatives(
    similarity: Float[Tensor, "B A"], same: Bool[Tensor, "B A"], chance: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """Return for each row one column that is not the same, more similar ones more often, by its number.

    Drawn from softmax(similarity) plus 1e-4 (CB-ViLA, section III-C: "based on the contrastive similarity
    distribution"), evenly where similarities are not finite; -1 for a row all of whose columns are the same.

    Args:
        similarity: Over the temperature.
        same: True where a column may not be drawn.
        chance: Uniform in [0, 1), one draw for each row.
    """
    weights = F.softmax(similarity.float(), dim=1) + 1e-4
    weights = torch.where(weights.isfinite().all(1, keepdim=True), weights, torch.ones_like(weights))
    weights = weights.masked_fill(same, 0.0).double()
    total = weights.cumsum(1)
    drawn = torch.searchsorted(total, chance.double().unsqueeze(1) * total[:, -1:], right=True).squeeze(1)
    # Rounding may lead behind the last column that can be drawn.
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(1)
    return torch.where((~same).any(1), torch.minimum(drawn, last), -1)


def image_text_matching_loss(
    logits: Float[Tensor, "R 2"], labels: Int[Tensor, " R"], *, total: float | Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of "does not belong" and "belongs" in nats (CB-ViLA, equation 5).

    Args:
        logits: For each image with a text.
        labels: 1 where they belong together, 0 where not, `IGNORED` where a row does not count; not all.
        total: As in `masked_word_loss`, of the rows that count.
    """
    summed = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return summed / ((labels != IGNORED).sum() if total is None else total)
