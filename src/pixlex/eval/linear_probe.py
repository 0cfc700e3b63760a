"""The linear probe: how much of an image's class a linear classifier finds in frozen features.

With standardized features x of n images, weights W and biases b, a classifier minimizes

    mean over images of -log softmax(W x + b)[label]  +  penalty / 2 * |W|^2          (nats; b is free),

by scikit-learn's L-BFGS, or in mini-batches where features are beyond memory. `penalty` = 1 / (C n) in the words
of scikit-learn: the larger, the stronger; it does not depend on n.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch.nn import functional

from pixlex.eval.evaluate import wilson_interval
from pixlex.messages import not_installed
from pixlex.progress import bar_or_lines

Method = Literal["lbfgs", "minibatch"]
Matrix = Float32[np.ndarray, "images width"]
Labels = Int64[np.ndarray, " images"]

# Rows of features in memory at once where a whole set is visited.
_ROWS_AT_ONCE = 8192

# Strengths tried, from strong to weak, two for each power of ten.
PENALTIES = tuple(float(f"{10 ** (exponent / 2):.2g}") for exponent in range(2, -11, -1))
# The search ends after so many strengths in a row below the best accuracy: the weakest ones fit slowest.
_PATIENCE = 3
# Fraction of the training images that the strength is chosen on where no validation set is given.
VALIDATION_RATIO = 0.2

# Numbers in the training features (images x width) up to which L-BFGS works on a copy in memory: 0.8 GB in
# float32, three times the 25,000 images x 2,688 columns of MiniLM's layers.
LBFGS_LIMIT = 200_000_000
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-4  # of the largest entry of the gradient

_EPOCHS = 20
_MIN_STEPS = 1500
_BATCH = 512
_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Part:
    """Features of training, validation or test images, which may lie on the disk and exceed the memory.

    `rows` are the rows of the part in `features`, which may hold other parts too; `labels` are their classes.
    """

    features: Matrix
    rows: Int64[np.ndarray, " some"]
    labels: Int64[np.ndarray, " some"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Columns of the features."""
        return int(self.features.shape[1])

    def subset(self, which: Int64[np.ndarray, " fewer"]) -> Part:
        """Return the images at some places of this part."""
        return Part(self.features, self.rows[which], self.labels[which])

    def chunks(self) -> Iterator[Matrix]:
        """Yield the features in chunks that fit into memory."""
        for first in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield self.features[self.rows[first : first + _ROWS_AT_ONCE]]


@dataclass(frozen=True)
class Scaling:
    """What standardizes features: mean and standard deviation of each column, 1 for one that does not vary."""

    mean: Float32[np.ndarray, " width"]
    scale: Float32[np.ndarray, " width"]

    @classmethod
    def of(cls, part: Part, repeats: int = 1) -> Scaling:
        """Measure the columns of the training images, meant to stand side by side so many times.

        A penalized classifier spreads a weight evenly over equal columns, so r copies of x act as one column
        sqrt(r) x: that is what is computed.
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
    """A fitted classifier of standardized features, and whether its fit met its tolerance."""

    weight: Float32[np.ndarray, "classes width"]
    bias: Float32[np.ndarray, " classes"]
    scaling: Scaling
    penalty: float
    converged: bool = True

    def logits(self, part: Part) -> Float32[np.ndarray, "images classes"]:
        """Return the score of every class, in nats up to a constant of each image."""
        parts = [self.scaling(chunk) @ self.weight.T + self.bias for chunk in part.chunks()]
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How classifiers are fitted.

    Attributes:
        method: `lbfgs` (scikit-learn) or `minibatch` (PyTorch); None for L-BFGS up to `LBFGS_LIMIT` numbers.
        repeats: How often the columns are meant to stand side by side (see `Scaling.of`).
        seed: Of the validation split and of the order of mini-batches.
        device, progress: Of mini-batches.
    """

    method: Method | None = None
    repeats: int = 1
    seed: int = 0
    device: torch.device | str = "cpu"
    progress: bool = False

    def method_for(self, part: Part) -> Method:
        """Return how features are fitted."""
        return self.method or ("lbfgs" if len(part) * part.width <= LBFGS_LIMIT else "minibatch")


DEFAULT_FIT = Fit()


def fit(part: Part, num_classes: int, penalties: Sequence[float], how: Fit) -> Iterator[LinearClassifier]:
    """Yield a classifier for each strength of regularization, of a part with every class at least once.

    L-BFGS fits one after the other, from strong to weak, each from the weights of the one before; whoever stops
    asking saves the rest. Mini-batches fit all of them in the same passes over the features.
    """
    assert len(np.unique(part.labels)) == num_classes
    scaling = Scaling.of(part, how.repeats)
    if how.method_for(part) == "lbfgs":
        return _lbfgs(part, scaling, penalties)
    return _minibatch(part, scaling, penalties, num_classes, how)


def _lbfgs(part: Part, scaling: Scaling, penalties: Sequence[float]) -> Iterator[LinearClassifier]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as fault:
        raise not_installed("a linear classifier", "scikit-learn", "eval") from fault

    x, labels = np.concatenate([scaling(chunk) for chunk in part.chunks()]), part.labels
    two = labels.max() == 1
    model = LogisticRegression(solver="lbfgs", warm_start=True, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    for penalty in penalties:
        # Of two classes scikit-learn fits the difference w, and penalizes |w|^2 where |w/2|^2 + |-w/2|^2 is meant.
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


def _minibatch(
    part: Part, scaling: Scaling, penalties: Sequence[float], num_classes: int, how: Fit
) -> Iterator[LinearClassifier]:
    """Fit with Adam all strengths at once, the learning rate falling to zero along a cosine."""
    shape, device = (len(penalties), num_classes), torch.device(how.device)
    weight = torch.zeros(*shape, part.width, device=device, requires_grad=True)
    bias = torch.zeros(*shape, device=device, requires_grad=True)
    strengths = torch.tensor(penalties, device=device)
    steps = max(_MIN_STEPS, _EPOCHS * math.ceil(len(part) / _BATCH))
    optimizer = torch.optim.Adam([weight, bias], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random, order = np.random.default_rng(how.seed), np.empty(0, np.int64)
    for _ in bar_or_lines(range(steps), unit=" steps", desc="fit", disable=not how.progress):
        if not len(order):
            order = random.permutation(len(part))
        # In the order of the file: neighbors on the disk are read together.
        some, order = part.subset(np.sort(order[:_BATCH])), order[_BATCH:]
        x = torch.from_numpy(scaling(some.features[some.rows])).to(device)
        labels = torch.from_numpy(some.labels).to(device)
        logits = torch.einsum("nd,scd->snc", x, weight) + bias.unsqueeze(1)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(strengths)), reduction="sum")
        penalty = (strengths * weight.square().sum((1, 2))).sum() / 2
        optimizer.zero_grad()
        (loss / len(x) + penalty).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    for row, strength in enumerate(penalties):
        yield LinearClassifier(
            weight[row].detach().cpu().numpy(), bias[row].detach().cpu().numpy(), scaling, strength
        )


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a linear classifier found in features.

    Attributes:
        num_train, num_validation, num_test: Images fitted on in the end (with a validation part that was split
            off), images that the strength was chosen on, and images measured on.
        width: Columns of the features, `repeats` counted.
        top1, top5: Fraction of test images whose class is among the highest scores, ties giving part of the
            credit, with 95 % Wilson intervals; top-5 is None with five classes or fewer.
        class_accuracy: Top-1 of each class's test images; NaN for a class without any.
        confusion: Test images by class (rows) and by the class of the highest score (columns).
        majority: Accuracy of always saying the most frequent training class.
        penalty, penalties, validation_accuracy: The strength chosen of those tried, and top-1 with each.
        notes: What must be known before a number is compared.
    """

    num_train: int
    num_validation: int
    num_test: int
    num_classes: int
    width: int
    repeats: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float | None
    top5_interval: tuple[float, float] | None
    class_accuracy: Float64[np.ndarray, " classes"]
    confusion: Int64[np.ndarray, "classes classes"]
    chance: float
    majority: float
    penalty: float
    penalties: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    method: Method
    seconds: float
    notes: tuple[str, ...]
    classifier: LinearClassifier


def linear_probe(
    train: Part, test: Part, num_classes: int, how: Fit = DEFAULT_FIT, *, validation: Part | None = None
) -> ProbeResult:
    """Fit a linear classifier on training features and measure it on test features (LQAE, section 4).

    The strength of regularization is the one with the highest accuracy on the validation images, of equal ones the
    strongest. They are a part of the training images, drawn from every class, unless given; then the classifier is
    fitted anew on all training images. Test images are looked at once, at the end. The released code has no such
    search and trains for a fixed number of epochs with LARS, whose decay of all weights shrinks the frozen
    networks too. Labels lie in [0, num_classes), each in the training part twice, or once with a validation part.
    """
    started = time.perf_counter()
    how = replace(how, method=how.method_for(train))
    fitted, chosen_on = train, validation
    if chosen_on is None:
        rows = validation_rows(train.labels, how.seed)
        fitted, chosen_on = train.subset(np.setdiff1d(np.arange(len(train)), rows)), train.subset(rows)
    tried: list[LinearClassifier] = []
    accuracies: list[float] = []
    for candidate in fit(fitted, num_classes, PENALTIES, how):
        tried.append(candidate)
        accuracies.append(float(credit(candidate.logits(chosen_on), chosen_on.labels, 1).mean()))
        if how.method == "lbfgs" and len(tried) - 1 - int(np.argmax(accuracies)) >= _PATIENCE:
            break
    (final,) = fit(train, num_classes, [tried[int(np.argmax(accuracies))].penalty], how)
    seconds = time.perf_counter() - started

    logits, count = final.logits(test), len(test)
    credits = credit(logits, test.labels, 1)
    top1 = float(credits.mean())
    top5 = float(credit(logits, test.labels, 5).mean()) if num_classes > 5 else None
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (test.labels, logits.argmax(1)), 1)
    with np.errstate(invalid="ignore"):
        per_class = np.bincount(test.labels, minlength=num_classes)
        class_accuracy = np.bincount(test.labels, credits, minlength=num_classes) / per_class
    majority = np.bincount(train.labels, minlength=num_classes).argmax()
    return ProbeResult(
        num_train=len(train),
        num_validation=len(chosen_on),
        num_test=count,
        num_classes=num_classes,
        width=test.width * how.repeats,
        repeats=how.repeats,
        top1=top1,
        top1_interval=wilson_interval(top1, count),
        top5=top5,
        top5_interval=None if top5 is None else wilson_interval(top5, count),
        class_accuracy=class_accuracy,
        confusion=confusion,
        chance=1 / num_classes,
        majority=float((test.labels == majority).mean()),
        penalty=final.penalty,
        penalties=tuple(one.penalty for one in tried),
        validation_accuracy=tuple(accuracies),
        method=how.method_for(train),
        seconds=seconds,
        notes=tuple(_notes(final, sum(not one.converged for one in tried), len(chosen_on))),
        classifier=final,
    )


def _notes(final: LinearClassifier, unconverged: int, num_validation: int) -> Iterator[str]:
    if not final.converged:
        yield "the last fit ended before it met its tolerance: the accuracy may be a little low"
    elif unconverged:
        yield f"{unconverged} of the fits that were not chosen ended before they met their tolerance"
    if final.penalty in (PENALTIES[0], PENALTIES[-1]):
        edges = f"{PENALTIES[0]:g} to {PENALTIES[-1]:g}"
        yield f"the chosen strength {final.penalty:g} is at the edge of the search ({edges})"
    if num_validation < 100:
        yield f"the strength was chosen on {num_validation} images only"


def validation_rows(labels: Labels, seed: int) -> Int64[np.ndarray, " rows"]:
    """Return the validation rows: of every class a fifth, at least one and never all."""
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, round(VALIDATION_RATIO * len(rows)))])
    return np.sort(np.concatenate(chosen))


def credit(logits: Matrix, labels: Labels, k: int) -> Float64[np.ndarray, " images"]:
    """Return for each image whether its class is among the k highest scores.

    Where the class is tied with others over fewer places than there are of them, it gets its part: a classifier
    that scores all classes alike is right by chance, whatever the order of the classes.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    higher, equal = (logits > own).sum(1), (logits == own).sum(1)
    credits: Float64[np.ndarray, " images"] = np.clip((k - higher) / equal, 0.0, 1.0)
    return credits
