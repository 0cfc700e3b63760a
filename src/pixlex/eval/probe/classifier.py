"""Multinomial logistic regression with an L2 penalty, for sets that fit into memory and for those that do not.

With standardized features x of n images, weights W and biases b, both ways minimize

    mean over images of -log softmax(W x + b)[label]  +  penalty / 2 * |W|^2          (nats; b is free).

`penalty` = 1 / (C n) in the words of scikit-learn: the larger, the stronger; it does not depend on n.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch.nn import functional

from pixlex.messages import not_installed
from pixlex.progress import bar_or_lines

# Numbers in the training features (images x width) up to which L-BFGS works on a copy in memory: 0.8 GB in
# float32, three times the 25,000 images x 2,688 columns of MiniLM's layers.
LBFGS_LIMIT = 200_000_000

_MAX_ITERATIONS = 300
_TOLERANCE = 1e-4  # of the largest entry of the gradient

_EPOCHS = 20
_MIN_STEPS = 1500
_BATCH = 512
_LEARNING_RATE = 5e-3

# Rows of features in memory at once where a whole set is visited.
_ROWS_AT_ONCE = 8192

Method = Literal["lbfgs", "minibatch"]
Matrix = Float32[np.ndarray, "images width"]
Labels = Int64[np.ndarray, " images"]


@dataclass(frozen=True)
class Part:
    """Features of training, validation or test images, read where they lie: they may exceed the memory.

    Attributes:
        features: one row for each image, of other parts too.
        rows: those of this part.
        labels: their classes.
    """

    features: Matrix
    rows: Int64[np.ndarray, " some"]
    labels: Int64[np.ndarray, " some"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Columns of the features."""
        width: int = self.features.shape[1]
        return width

    def chosen(self, which: Int64[np.ndarray, " fewer"]) -> Part:
        """Return the images at some places of this part."""
        return Part(self.features, self.rows[which], self.labels[which])

    def chunks(self) -> Iterator[Matrix]:
        """Yield the features in parts that fit into memory."""
        for first in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield self.features[self.rows[first : first + _ROWS_AT_ONCE]]


@dataclass(frozen=True)
class Scaling:
    """What standardizes features: mean and standard deviation of each column over the training images.

    Attributes:
        mean: subtracted.
        scale: divided by; 1 for a column that does not vary.
    """

    mean: Float32[np.ndarray, " width"]
    scale: Float32[np.ndarray, " width"]

    @classmethod
    def of(cls, part: Part, repeats: int = 1) -> Scaling:
        """Measure the columns.

        Args:
            part: the training images alone.
            repeats: how often the columns are meant to stand side by side. A penalized classifier spreads a
                weight evenly over equal columns, so r copies of x act as one column sqrt(r) x: that is what
                is computed.
        """
        sums = np.zeros(part.width)
        for chunk in part.chunks():
            sums += chunk.sum(0, dtype=np.float64)
        mean = sums / len(part)
        squares = np.zeros_like(sums)
        for chunk in part.chunks():
            squares += np.square(chunk - mean).sum(0)
        deviation = np.sqrt(squares / len(part))
        # What varies by rounding alone (a dead unit of a language model, around 1e-32) is no information.
        constant = deviation <= 1e-6 * np.maximum(np.abs(mean), deviation.max())
        scale = np.where(constant, 1.0, deviation) / math.sqrt(repeats)
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def __call__(self, features: Matrix) -> Matrix:
        """Return standardized features."""
        scaled: Matrix = (features - self.mean) / self.scale
        return scaled


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier.

    Attributes:
        weight: one row for each class, for standardized features.
        bias: one number for each class.
        scaling: standardizes features.
        penalty: the strength of regularization it was fitted with.
        converged: whether the fit met its tolerance before its last iteration.
    """

    weight: Float32[np.ndarray, "classes width"]
    bias: Float32[np.ndarray, " classes"]
    scaling: Scaling
    penalty: float
    converged: bool = True

    def logits(self, part: Part) -> Float32[np.ndarray, "images classes"]:
        """Return the score of every class, in nats up to a constant of each image."""
        parts = [self.scaling(chunk) @ self.weight.T + self.bias for chunk in part.chunks()]
        return np.concatenate(parts).astype(np.float32)


def method_for(part: Part) -> Method:
    """Return how features are fitted: L-BFGS up to `LBFGS_LIMIT` numbers, mini-batches above."""
    return "lbfgs" if len(part) * part.width <= LBFGS_LIMIT else "minibatch"


def fit(
    part: Part,
    num_classes: int,
    penalties: Sequence[float],
    *,
    method: Method,
    repeats: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Iterator[LinearClassifier]:
    """Yield a classifier for each strength of regularization.

    L-BFGS fits one after the other, each from the weights of the one before; whoever stops asking saves the
    rest. Mini-batches fit all of them in the same passes over the features.

    Args:
        part: the training images, every class at least once.
        num_classes: C.
        penalties: strengths, best from strong to weak.
        method: `lbfgs` (scikit-learn) or `minibatch` (PyTorch).
        repeats: see `Scaling.of`.
        seed: of the order of the mini-batches.
        device: where mini-batches compute.
        progress: show a bar (mini-batches).
    """
    assert len(np.unique(part.labels)) == num_classes
    scaling = Scaling.of(part, repeats)
    if method == "lbfgs":
        yield from _lbfgs(part, scaling, penalties)
        return
    fitting = _MiniBatches(part, num_classes, scaling, penalties, seed, torch.device(device))
    yield from fitting.run(progress)


def _lbfgs(part: Part, scaling: Scaling, penalties: Sequence[float]) -> Iterator[LinearClassifier]:
    """Fit with scikit-learn."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as fault:
        raise not_installed("a linear classifier", "scikit-learn", "eval") from fault

    x, labels = np.concatenate([scaling(chunk) for chunk in part.chunks()]), part.labels
    two = labels.max() == 1
    model = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    for penalty in penalties:
        # Of two classes scikit-learn fits the difference w, and penalizes |w|^2 where |w/2|^2 + |-w/2|^2 is
        # meant.
        model.C = (2.0 if two else 1.0) / (penalty * len(labels))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(x, labels)
        weight, bias = model.coef_, model.intercept_
        if two:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
        yield LinearClassifier(
            weight.astype(np.float32), bias.astype(np.float32), scaling, penalty, converged
        )


class _MiniBatches:
    """Adam on all strengths at once, the learning rate falling to zero along a cosine."""

    def __init__(
        self,
        part: Part,
        num_classes: int,
        scaling: Scaling,
        penalties: Sequence[float],
        seed: int,
        device: torch.device,
    ) -> None:
        self.part, self.scaling = part, scaling
        self.penalties = list(penalties)
        self.random, self.device = np.random.default_rng(seed), device
        shape = (len(self.penalties), num_classes)
        self.weight = torch.zeros(*shape, part.width, device=device, requires_grad=True)
        self.bias = torch.zeros(*shape, device=device, requires_grad=True)

    def run(self, progress: bool) -> Iterator[LinearClassifier]:
        """Train, then yield the classifiers."""
        steps = max(_MIN_STEPS, _EPOCHS * math.ceil(len(self.part) / _BATCH))
        optimizer = torch.optim.Adam([self.weight, self.bias], lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        strengths = torch.tensor(self.penalties, device=self.device)
        batches = self._batches()
        for _ in bar_or_lines(range(steps), unit=" steps", desc="fit", disable=not progress):
            x, labels = next(batches)
            logits = torch.einsum("nd,scd->snc", x, self.weight) + self.bias.unsqueeze(1)
            loss = functional.cross_entropy(
                logits.flatten(0, 1), labels.repeat(len(strengths)), reduction="sum"
            ) / len(x)
            penalty = (strengths * self.weight.square().sum((1, 2))).sum() / 2
            optimizer.zero_grad()
            (loss + penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        weight, bias = self.weight.detach().cpu().numpy(), self.bias.detach().cpu().numpy()
        for row, strength in enumerate(self.penalties):
            yield LinearClassifier(weight[row], bias[row], self.scaling, strength)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield random batches without end, each image once in each pass."""
        while True:
            order = self.random.permutation(len(self.part))
            for first in range(0, len(order), _BATCH):
                # In the order of the file: neighbors on the disk are read together.
                some = self.part.chosen(np.sort(order[first : first + _BATCH]))
                x = torch.from_numpy(self.scaling(some.features[some.rows]))
                yield x.to(self.device), torch.from_numpy(some.labels).to(self.device)


def objective(classifier: LinearClassifier, part: Part) -> float:
    """Return what is minimized, in nats."""
    logits = torch.from_numpy(classifier.logits(part)).double()
    loss = functional.cross_entropy(logits, torch.from_numpy(part.labels))
    return float(loss) + classifier.penalty / 2 * float(np.square(classifier.weight.astype(np.float64)).sum())
