"""Codebooks: words of a frozen vocabulary, and codewords that are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from pixlex.messages import not_installed
from pixlex.nn.nearest import Metric, PreparedCodebook, linear_scores, nearest_codewords
from pixlex.nn.transformer import send, take_rows, where_exact

if TYPE_CHECKING:
    from pixlex.config.lqae import QuantizerConfig

# Of finding a matching and a rotation in turn.
_ROUNDS = 30
AllMean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of one batch of vectors."""

    mean: Float[Tensor, " S"]
    covariance: Float[Tensor, "S S"]


@dataclass(frozen=True)
class Quantized:
    """What a codebook made of patch vectors; unpacks as (values, codes, loss).

    Of feature maps (B, D, H, W) values are maps, too, and codes (B, H, W); all else has one row for each place.

    Attributes:
        values: Codewords as they are passed on; their gradient goes to the patch vectors unchanged.
        codes: Index of the nearest codeword, in [0, K).
        z: Patch vectors in the space of the search, with gradient.
        codewords: Their codewords in the same space, with gradient where codewords are learned.
        moments: Statistics of the batch for `Whitening.update`, where the search is whitened.
        vectors: Patch vectors in the space of the values, where these are word embeddings, with gradient.
    """

    values: Float[Tensor, "B N D"] | Float[Tensor, "B D H W"]
    codes: Int[Tensor, "B N"] | Int[Tensor, "B H W"]
    z: Float[Tensor, "B N S"]
    codewords: Float[Tensor, "B N S"]
    moments: Moments | None = None
    vectors: Float[Tensor, "B N D"] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.codes, self.loss))

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Commitment and codebook loss, each at weight 1 (van den Oord et al. 2017, equation 3).

        The second moves codewords where they are learned, and nothing where they are frozen words.
        """
        z, codewords = self.z.float(), self.codewords.float()
        return F.mse_loss(z, codewords.detach()) + F.mse_loss(codewords, z.detach())

    def like(self, given: Tensor) -> Quantized:
        """Return the same with values and codes as maps, if maps were given."""
        if given.ndim != 4:
            return self
        side = given.shape[2:]
        values = self.values.mT.reshape(-1, self.values.shape[2], *side)
        return replace(self, values=values, codes=self.codes.view(-1, *side))


def straight_through(z: Float[Tensor, "B N D"], values: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """Return `values` exactly, with the gradient of `z` (van den Oord et al. 2017, section 3.2)."""
    return values.detach() + (z - z.detach())


def _sequence(vectors: Tensor, width: int) -> Float[Tensor, "B N D"]:
    """Return patch vectors, or maps (B, D, H, W) with their places in a row."""
    rows = vectors.flatten(2).mT if vectors.ndim == 4 else vectors
    if rows.ndim != 3 or rows.shape[-1] != width:
        raise ValueError(
            f"expected vectors (B, N, {width}) or maps (B, {width}, H, W), got {tuple(vectors.shape)}"
        )
    return rows


class Codebook(nn.Module):
    """What is searched; in evaluation mode it is projected and rounded once, until a weight changes or moves."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric: Metric = metric
        self._prepared: tuple[object, PreparedCodebook] | None = None

    def search_codebook(self) -> Float[Tensor, "K S"]:
        """Return the codewords in the space of the search."""
        raise NotImplementedError

    def _before(self) -> tuple[Float64[Tensor, "S D"], Float64[Tensor, " S"]] | None:
        """Weight and bias of what vectors go through before the search, in evaluation; None for nothing."""
        return None

    def extra_repr(self) -> str:
        """Say what the codebook is of."""
        codewords, width = self.search_codebook().shape
        return f"{codewords} codewords of width {width}, {self.metric}"

    @torch.no_grad()
    def scores(self) -> tuple[Float64[Tensor, "K D"], Float64[Tensor, " K"]]:
        """Return weight and bias of all that evaluation amounts to: a vector's nearest codeword scores highest."""
        weight, bias = linear_scores(self.search_codebook(), self.metric)
        before = self._before()
        return (weight, bias) if before is None else (weight @ before[0], bias + weight @ before[1])

    def nearest(self, z: Float[Tensor, "B N S"], top_k: int = 1) -> tuple[Int[Tensor, "B N k"], Tensor]:
        """Return the nearest codes of patch vectors, nearest first, and the codebook (K, S) that was searched."""
        searched: Tensor | PreparedCodebook
        if self.training or z.is_meta or torch.compiler.is_exporting():
            self._prepared = None
            codebook = self.search_codebook()
            searched = codebook.detach()
        else:
            weights = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
            state = [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in weights]
            if self._prepared is None or self._prepared[0] != state:
                self._prepared = state, PreparedCodebook(self.search_codebook(), self.metric)
            searched = self._prepared[1]
            codebook = searched.codebook
        codes = nearest_codewords(z.detach().flatten(0, 1), searched, self.metric, top_k)
        return codes.view(*z.shape[:2], top_k), codebook

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        self._prepared = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}


class WordCodebook(Codebook):
    """Replaces patch vectors by their nearest word embeddings, which stay frozen and unsaved.

    `raw` search compares patch vectors with word embeddings (LQAE, section 3.2). `whitened` search compares
    them in the leading principal directions of the embeddings, both sides at unit covariance, which keeps the
    codebook alive; straight-through then returns along the linear map from those directions to the embedding.
    `assigned` search lets a learned codebook pick the index of the word (LQAE, Table 3, row I).

    With `QuantizerConfig(search="raw")` it quantizes any vectors as wide as the embeddings. Whitened ones are as
    wide as `search_dim`; in a loop of one's own `whitening.update(quantized.moments)` belongs behind each step.

    Args:
        embedding: The word embeddings that may be codewords.
        initialize: False where principal directions are read at once: none are computed.

    Raises:
        ValueError: More codewords or directions asked for than there are.
    """

    embedding: Tensor
    center: Tensor
    directions: Tensor
    scales: Tensor

    def __init__(
        self,
        embedding: Float[Tensor, "K D"],
        config: QuantizerConfig,
        *,
        initialize: bool = True,
    ) -> None:
        super().__init__(config.metric)
        num_codewords, width = embedding.shape
        if config.search == "whitened" and config.search_dim > min(num_codewords, width):
            raise ValueError(
                f"quantizer.search_dim must be at most {min(num_codewords, width)}, the smaller side of the "
                f"{num_codewords} x {width} codebook, got {config.search_dim}"
            )
        if config.top_k > num_codewords:
            raise ValueError(
                f"quantizer.top_k must be at most the {num_codewords} codewords, got {config.top_k}"
            )
        self.config = config
        self.register_buffer("embedding", embedding.detach().float().clone(), persistent=False)
        self.input_dim = config.search_dim if config.search == "whitened" else width
        if config.search == "whitened":
            self.whitening = Whitening(config.search_dim)
            zeros = torch.zeros(width), torch.zeros(width, config.search_dim), torch.ones(config.search_dim)
            found = principal_directions(self.embedding, config.search_dim) if initialize else zeros
            # Saved with the model: signs of principal directions differ between machines, codes must not.
            for name, value in zip(("center", "directions", "scales"), found, strict=True):
                self.register_buffer(name, value)
        elif config.search == "assigned":
            self.to_search = nn.Linear(width, config.search_dim)
            self.learned = nn.Parameter(torch.randn(num_codewords, config.search_dim))

    @property
    def num_codewords(self) -> int:
        """K, the number of codewords."""
        return len(self.embedding)

    def search_codebook(self) -> Float[Tensor, "K S"]:
        """Return the codewords in the space of the search."""
        if self.config.search == "whitened":
            return (self.embedding - self.center) @ self.directions / self.scales
        return self.learned if self.config.search == "assigned" else self.embedding

    def _before(self) -> tuple[Float64[Tensor, "S D"], Float64[Tensor, " S"]] | None:
        if self.config.search == "whitened":
            moments = self.whitening.mean, self.whitening.covariance
            mean, covariance = (where_exact(one).double() for one in moments)
            inverse = _whiten(torch.eye(len(mean)).to(mean), torch.zeros_like(mean), covariance).T
            return inverse, -inverse @ mean
        if self.config.search == "assigned":
            weight, bias = (where_exact(one).double() for one in self.to_search.parameters())
            return weight, bias
        return None

    def forward(
        self,
        vectors: Float[Tensor, "B N D"] | Float[Tensor, "B D H W"],
        generator: torch.Generator | None = None,
        all_mean: AllMean = lambda tensor: tensor,
    ) -> Quantized:
        """Return the nearest words of patch vectors.

        Args:
            vectors: Of width `input_dim`, or maps of so many channels.
            generator: Draws among the k nearest where the configuration asks for it.
            all_mean: Mean over the processes that share the batch, keeping gradients.

        Raises:
            ValueError: Vectors of another width.
        """
        given, vectors = vectors, _sequence(vectors, self.input_dim)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            moments, z, back = None, vectors, vectors
            if self.config.search == "whitened":
                z, moments = self.whitening(vectors, all_mean)
                back = (z * self.scales) @ self.directions.T + self.center
            elif self.config.search == "assigned":
                z = self.to_search(vectors)
            nearest, codebook = self.nearest(z, self.config.top_k)
            if self.config.search == "assigned":
                codebook = self.learned  # with gradient in evaluation too
            candidates = self._drawn(nearest, generator)
            values = self.embedding[candidates].mean(2)
            codewords = take_rows(codebook, candidates).mean(2)
            passed = straight_through(back, values)
            return Quantized(passed, candidates[..., 0], z, codewords, moments, back).like(given)

    def _drawn(
        self, nearest: Int[Tensor, "B N k"], generator: torch.Generator | None
    ) -> Int[Tensor, "B N n"]:
        """The codes whose embeddings are averaged: all k, or one of them."""
        if self.config.top_k == 1 or self.config.top_k_mode != "random":
            return nearest
        if not self.training:
            return nearest[..., :1]
        # One draw for each patch; the released code draws one rank for the whole batch.
        rank = torch.randint(self.config.top_k, (nearest[..., 0].numel(), 1), generator=generator)
        return nearest.gather(2, send(rank, nearest.device).view(*nearest.shape[:2], 1))


class ConceptCodebook(Codebook):
    """Writes an image as the words of its nearest concepts, the nearest first; a word belongs to no place.

    Concepts are clusters of images by a teacher's features: centered, in their leading principal directions, each
    at unit variance, by angle. Each has a word of the vocabulary, concepts that are alike
    have words that are alike (`assign_words`). Nothing of it is trained: `fit` finds all of it.

    Args:
        embedding: The word embeddings that may be codewords.
        config: Width of the search and number of concepts.
        width: Of the features.
    """

    embedding: Tensor
    center: Tensor
    directions: Tensor
    concepts: Tensor
    rows: Tensor

    def __init__(self, embedding: Float[Tensor, "K D"], config: QuantizerConfig, width: int) -> None:
        super().__init__("cosine")
        size, count = min(config.search_dim, width), config.num_concepts
        if count > len(embedding):
            raise ValueError(
                f"quantizer.num_concepts must be at most the {len(embedding)} words of the vocabulary, got {count}"
            )
        self.register_buffer("embedding", embedding.detach().float().clone(), persistent=False)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("directions", torch.eye(width)[:, :size].contiguous())
        # Until they are found, as for an untrained model: any directions, any words.
        self.register_buffer("concepts", F.normalize(torch.randn(count, size), dim=1))
        self.register_buffer("rows", torch.randperm(len(embedding))[:count])

    @property
    def num_codewords(self) -> int:
        """K, the number of words that may be codewords."""
        return len(self.embedding)

    def search_codebook(self) -> Float[Tensor, "C S"]:
        """Return the concepts."""
        return self.concepts

    def _before(self) -> tuple[Float64[Tensor, "S D"], Float64[Tensor, " S"]]:
        directions, center = (where_exact(one).double() for one in (self.directions, self.center))
        return directions.T, -directions.T @ center

    def located(self, features: Float[Tensor, "... D"]) -> Float[Tensor, "... S"]:
        """Return features in the space of the search."""
        return (features.float() - self.center) @ self.directions

    def forward(self, features: Float[Tensor, "B D"], num_words: int) -> Quantized:
        """Return the words of so many nearest concepts of each image."""
        with torch.autocast(features.device.type, enabled=False):
            z = self.located(features)
            nearest, concepts = self.nearest(z.unsqueeze(1), num_words)
            codes = self.rows[nearest[:, 0]]
            return Quantized(
                self.embedding[codes],
                codes,
                z.unsqueeze(1).expand(-1, num_words, -1),
                concepts[nearest[:, 0]],
            )

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "M D"], words: Float[Tensor, "K W"]) -> None:
        """Find the concepts of images and their words.

        Args:
            features: The teacher's, of many images.
            words: A vector for each word that may be given to a concept, the first rows of the vocabulary.

        Raises:
            ValueError: Fewer images than concepts.
        """
        count = len(self.concepts)
        if len(features) < count:
            raise ValueError(f"expected {count} images or more to find {count} concepts, got {len(features)}")
        try:
            from sklearn.cluster import KMeans
        except ImportError as error:
            raise not_installed("model.words", "scikit-learn", "eval") from error
        center, directions, scales = principal_directions(features.detach().cpu(), self.directions.shape[1])
        self.center.copy_(center)
        self.directions.copy_(directions / scales)
        with torch.autocast(features.device.type, enabled=False):
            z = F.normalize(self.located(features), dim=1).cpu()
        found = KMeans(count, n_init=1, max_iter=50, random_state=0).fit(z.numpy()).cluster_centers_
        self.concepts.copy_(F.normalize(torch.from_numpy(found).float(), dim=1))
        self.rows.copy_(assign_words(self.concepts.cpu(), words.cpu()))
        self._prepared = None


def assign_words(
    concepts: Float[Tensor, "C S"], words: Float[Tensor, "K W"], *, restarts: int = 8, seed: int = 0
) -> Int[Tensor, " C"]:
    """Return a row of the words for each concept, each once, so that like concepts have like words.

    Both sides are brought into as many principal directions; then a rotation of the concepts and a matching
    (Jonker and Volgenant 1987) are found in turn until nothing changes, from several signs of the directions. What
    is kept has the highest correlation between the cosines of pairs of concepts and of pairs of their words.
    """
    from scipy.optimize import linear_sum_assignment

    size = min(concepts.shape[1], words.shape[1], len(concepts) - 1)
    ours, theirs = (_principal(one, size) for one in (concepts, words))
    generator = np.random.default_rng(seed)
    above = np.triu_indices(len(ours), 1)
    best, chosen = -np.inf, np.arange(len(ours))
    for number in range(restarts):
        rotation = np.diag(generator.choice([-1.0, 1.0], size)) if number else np.eye(size)
        rows = chosen
        for _ in range(_ROUNDS):
            found = linear_sum_assignment(-(ours @ rotation) @ theirs.T)[1]
            if (found == rows).all():
                break
            rows = found
            left, _, right = np.linalg.svd(ours.T @ theirs[rows])
            rotation = left @ right
        likeness = np.corrcoef((ours @ ours.T)[above], (theirs[rows] @ theirs[rows].T)[above])[0, 1]
        if likeness > best:
            best, chosen = likeness, rows
    return torch.from_numpy(chosen)


def _principal(rows: Float[Tensor, "N D"], size: int) -> np.ndarray:
    """Return rows in their leading principal directions, each skewed to the right, at length 1."""
    centered = rows.double() - rows.double().mean(0)
    left, scales, _ = torch.linalg.svd(centered, full_matrices=False)
    left = left[:, :size] * left[:, :size].pow(3).sum(0).sign()
    return F.normalize(left * scales[:size].sqrt(), dim=1).numpy()


class LearnedCodebook(Codebook):
    """Codewords learned from patch vectors (van den Oord et al. 2017), with restart of dead ones.

    `quantized, codes, loss = LearnedCodebook(512, 64)(vectors)`, as with vector-quantize-pytorch.

    Args:
        num_codewords: K.
        width: S, the width of a codeword.
        metric: Nearest by angle ("cosine") or by distance ("euclidean").
    """

    idle_steps: Tensor

    def __init__(self, num_codewords: int, width: int, metric: Metric = "euclidean") -> None:
        super().__init__(metric)
        self.weight = nn.Parameter(torch.randn(num_codewords, width) / width**0.5)
        self.register_buffer("idle_steps", torch.zeros(num_codewords, dtype=torch.long))

    @property
    def num_codewords(self) -> int:
        """K, the number of codewords."""
        return len(self.weight)

    def search_codebook(self) -> Float[Tensor, "K S"]:
        """Return the codewords in the space of the search."""
        return self.weight

    def forward(self, z: Float[Tensor, "B N S"] | Float[Tensor, "B S H W"]) -> Quantized:
        """Return the nearest codewords, with the gradient of `z`; a `ValueError` refuses another width."""
        given = z
        with torch.autocast(z.device.type, enabled=False):
            z = _sequence(z, self.weight.shape[1]).float()
            codes = self.nearest(z)[0][..., 0]
            codewords = take_rows(self.weight, codes)
            return Quantized(straight_through(z, codewords), codes, z, codewords).like(given)

    def sample(
        self, z: Float[Tensor, "B N S"], temperature: float, noise: Float[Tensor, "B N K"]
    ) -> tuple[Float[Tensor, "B N S"], Float[Tensor, "B N S"]]:
        """Return codewords drawn by the Gumbel-softmax of the distances (Jang et al. 2017), twice.

        The logits are -|z - c|^2 / sqrt(S). The pass forward is hard, a codeword; the gradient is that of the
        soft mixture at the temperature. The square root is ours: without it the draw is an argmin at temperature
        1 already. The first codewords carry gradient to patch vectors and codewords, the second, the same numbers,
        to the patch vectors alone.

        Args:
            temperature: Above 0.
            noise: Draws from Gumbel(0, 1).
        """
        with torch.autocast(z.device.type, enabled=False):
            z, codebook = z.float(), self.weight

            def weights(codewords: Tensor) -> Tensor:
                square = z.square().sum(-1, keepdim=True) + codewords.square().sum(-1)
                logits = (2 * z @ codewords.T - square) / z.shape[-1] ** 0.5
                soft = F.softmax((logits + noise) / temperature, dim=-1)
                hard = F.one_hot(soft.argmax(-1), len(codewords)).to(soft.dtype)
                return straight_through(soft, hard)

            return weights(codebook) @ codebook, weights(codebook.detach()) @ codebook.detach()

    @torch.no_grad()
    def note_usage(self, used: Bool[Tensor, " K"]) -> None:
        """Count one more idle step for each codeword that the last batch did not use."""
        self.idle_steps.add_(1).masked_fill_(used, 0)

    def dead(self, idle_limit: int) -> Bool[Tensor, " K"]:
        """Return which codewords no batch has used for `idle_limit` steps."""
        return self.idle_steps >= idle_limit

    @torch.no_grad()
    def place(
        self, codes: Int[Tensor, " R"], rows: Float[Tensor, "R S"], moves: Bool[Tensor, " R"] | None = None
    ) -> None:
        """Put codewords (each once) on patch vectors, where `moves` is not False; they count as used."""
        rows, idle = rows.to(self.weight.dtype), torch.zeros_like(codes)
        if moves is not None:
            rows = torch.where(moves.unsqueeze(-1), rows, self.weight[codes])
            idle = torch.where(moves, idle, self.idle_steps[codes])
        self.weight[codes] = rows
        self.idle_steps[codes] = idle


class Whitening(nn.Module):
    """Batch whitening by the Cholesky factor of the covariance: z -> L^-1 (z - mean), covariance = L L^T.

    Batch statistics while training, running ones at inference, so that what an image becomes there does not
    depend on its neighbors. `forward` changes nothing: running statistics move when `update` is called, towards
    the newest batch by `momentum`.
    """

    mean: Tensor
    covariance: Tensor
    updates: Tensor

    def __init__(self, width: int, momentum: float = 0.2) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(
        self, z: Float[Tensor, "B N S"], all_mean: AllMean = lambda tensor: tensor
    ) -> tuple[Float[Tensor, "B N S"], Moments | None]:
        """Return the whitened vectors, and the moments of the batch when training (`all_mean`: over processes)."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if not self.training:
                return _whiten(z, self.mean, self.covariance), None
            rows = z.flatten(0, 1)
            mean = all_mean(rows.mean(0))
            centered = rows - mean
            covariance = all_mean(centered.T @ centered / len(rows))
            return _whiten(z, mean, covariance), Moments(mean.detach(), covariance.detach())

    @torch.no_grad()
    def update(self, moments: Moments) -> None:
        """Move the running statistics towards those of a batch; the first batch replaces their start."""
        fraction = torch.where(self.updates == 0, torch.ones_like(self.mean[0]), self.momentum)
        self.mean.lerp_(moments.mean, fraction)
        self.covariance.lerp_(moments.covariance, fraction)
        self.updates += 1


def _whiten(z: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """L^-1 (z - mean), with a ridge relative to the mean variance so that L always exists."""
    ridge = 1e-4 * covariance.diagonal().mean() + 1e-8
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(len(mean), device=z.device))
    # Values that are not finite have no factor: the loss will say so, and nobody waits for a GPU to ask here.
    factor = factor.masked_fill(failed != 0, torch.nan)
    flat = (z - mean).flatten(0, -2)
    solved: Tensor = torch.linalg.solve_triangular(factor, flat.T, upper=False)
    return solved.T.view_as(z)


def principal_directions(embedding: Tensor, num_directions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Center (D), leading directions (D, S) and standard deviations along them (S)."""
    rows = embedding.double()
    center = rows.mean(0)
    covariance = (rows - center).T @ (rows - center) / len(rows)
    variances, directions = torch.linalg.eigh(covariance)
    leading = torch.arange(len(variances) - 1, len(variances) - 1 - num_directions, -1)
    scales = variances[leading].clamp_min(1e-12).sqrt()
    return center.float(), directions[:, leading].float().contiguous(), scales.float()


@torch.no_grad()
def count_codes(codes: Int[Tensor, "..."], num_codewords: int) -> Int[Tensor, " K"]:
    """Return how often each codeword occurs."""
    codes = codes.flatten()  # bincount would read the largest code, for which a GPU has to be waited for
    return codes.new_zeros(num_codewords).scatter_add_(0, codes, torch.ones_like(codes))


@torch.no_grad()
def perplexity(counts: Int[Tensor, " K"] | Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of a usage distribution: the number of codewords in even use."""
    counts = where_exact(counts)
    p = counts.double() / counts.sum().clamp_min(1)
    return torch.exp(-(p * p.clamp_min(1e-30).log()).sum())


@torch.no_grad()
def count_usage(
    codes: Int[Tensor, "..."], num_codewords: int, all_sum: Callable[[Tensor], Tensor]
) -> tuple[Int[Tensor, " K"], dict[str, Tensor | float]]:
    """Return how often the batch of all processes used each codeword; distinct codewords and perplexity."""
    counts = all_sum(count_codes(codes, num_codewords))
    return counts, {"distinct_codewords": (counts > 0).sum(), "perplexity": perplexity(counts)}
