"""The linear probe: choose the strength of regularization, fit, measure on images never looked at before."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from pixlex.eval.intervals import wilson_interval
from pixlex.eval.probe.classifier import (
    Labels,
    LinearClassifier,
    Matrix,
    Method,
    Part,
    fit,
    method_for,
)

# Strengths tried, from strong to weak, two for each power of ten (see `classifier` for the unit).
PENALTIES = tuple(float(f"{10 ** (exponent / 2):.2g}") for exponent in range(2, -11, -1))

# The search ends after so many strengths in a row below the best accuracy: the weakest ones fit slowest.
_PATIENCE = 3

# Of the training images, those that the strength is chosen on where no validation set is given.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a linear classifier found in features.

    Attributes:
        num_train: images fitted on in the end; where a validation part was split off, with it.
        num_validation: images that the strength was chosen on.
        num_test: images measured on.
        num_classes: C.
        width: columns of the features, repeats counted.
        repeats: how often the columns stand side by side (see `Scaling.of`).
        top1: share of test images whose class has the highest score; a tie gives its share of the credit.
        top1_interval: 95 % Wilson interval of it.
        top5: share whose class is among the five highest scores; None with five classes or fewer.
        top5_interval: 95 % Wilson interval of it.
        class_accuracy: top-1 of each class's test images; NaN for a class without any.
        confusion: test images by class (rows) and by the class of the highest score (columns).
        chance: 1 / C.
        majority: accuracy of always saying the most frequent training class.
        penalty: the strength chosen.
        penalties: the strengths tried.
        validation_accuracy: top-1 on the validation images with each of them.
        method: `lbfgs` or `minibatch`.
        seconds: time of choosing and fitting.
        notes: what is to be known before a number is compared.
        classifier: the fitted classifier.
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
    train: Part,
    test: Part,
    num_classes: int,
    *,
    validation: Part | None = None,
    repeats: int = 1,
    seed: int = 0,
    method: Method | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> ProbeResult:
    """Fit a linear classifier on training features and measure it on test features (LQAE, section 4).

    The strength of regularization is the one with the highest accuracy on the validation images, of equal
    ones the strongest. They are a share of the training images, drawn from every class, unless given; then
    the classifier is fitted anew on all training images. Test images are looked at once, at the end. The
    released code has no such search and trains for a fixed number of epochs with LARS, whose decay of all
    weights shrinks the frozen networks too.

    Args:
        train: every class at least twice, or once with a validation part.
        test: what is measured on.
        num_classes: C; labels lie in [0, C).
        validation: what the strength is chosen on.
        repeats: how often the columns are meant to stand side by side.
        seed: of the split and of the order of mini-batches.
        method: how to fit; None chooses by size (see `method_for`).
        device: where mini-batches compute.
        progress: show a bar (mini-batches).
    """
    started = time.perf_counter()
    how = method or method_for(train)
    fitted, chosen_on = (train, validation) if validation is not None else _split(train, seed)

    def fits(part: Part, penalties: Sequence[float]) -> Iterator[LinearClassifier]:
        return fit(
            part,
            num_classes,
            penalties,
            method=how,
            repeats=repeats,
            seed=seed,
            device=device,
            progress=progress,
        )

    tried: list[LinearClassifier] = []
    accuracies: list[float] = []
    unconverged = 0
    for candidate in fits(fitted, PENALTIES):
        tried.append(candidate)
        accuracies.append(float(credit(candidate.logits(chosen_on), chosen_on.labels, 1).mean()))
        unconverged += not candidate.converged
        if how == "lbfgs" and len(tried) - 1 - int(np.argmax(accuracies)) >= _PATIENCE:
            break
    best = tried[int(np.argmax(accuracies))]
    (final,) = fits(train, [best.penalty])
    return _result(
        final,
        train,
        test,
        num_validation=len(chosen_on),
        repeats=repeats,
        method=how,
        penalties=tuple(one.penalty for one in tried),
        validation_accuracy=tuple(accuracies),
        seconds=time.perf_counter() - started,
        notes=tuple(_notes(final, unconverged, len(chosen_on))),
    )


def _result(
    classifier: LinearClassifier, train: Part, test: Part, *, repeats: int, **found: object
) -> ProbeResult:
    """Measure a classifier on the test images."""
    num_classes = len(classifier.bias)
    logits = classifier.logits(test)
    credits = credit(logits, test.labels, 1)
    top1, count = float(credits.mean()), len(credits)
    top5 = float(credit(logits, test.labels, 5).mean()) if num_classes > 5 else None
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (test.labels, logits.argmax(1)), 1)
    per_class = np.bincount(test.labels, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        class_accuracy = np.bincount(test.labels, credits, minlength=num_classes) / per_class
    majority = np.bincount(train.labels, minlength=num_classes).argmax()
    return ProbeResult(
        num_train=len(train),
        num_test=count,
        num_classes=num_classes,
        width=test.width * repeats,
        repeats=repeats,
        top1=top1,
        top1_interval=wilson_interval(top1, count),
        top5=top5,
        top5_interval=None if top5 is None else wilson_interval(top5, count),
        class_accuracy=class_accuracy,
        confusion=confusion,
        chance=1 / num_classes,
        majority=float((test.labels == majority).mean()),
        penalty=classifier.penalty,
        classifier=classifier,
        **found,  # type: ignore[arg-type]
    )


def _notes(final: LinearClassifier, unconverged: int, num_validation: int) -> list[str]:
    """Say what limits the result."""
    notes = []
    if not final.converged:
        notes.append("the last fit ended before it met its tolerance: the accuracy may be a little low")
    elif unconverged:
        notes.append(f"{unconverged} of the fits that were not chosen ended before they met their tolerance")
    if final.penalty in (PENALTIES[0], PENALTIES[-1]):
        notes.append(
            f"the chosen strength {final.penalty:g} is at the edge of the search "
            f"({PENALTIES[0]:g} to {PENALTIES[-1]:g})"
        )
    if num_validation < 100:
        notes.append(f"the strength was chosen on {num_validation} images only")
    return notes


def _split(train: Part, seed: int) -> tuple[Part, Part]:
    """Return the images fitted on and those the strength is chosen on, both of every class."""
    validation = validation_rows(train.labels, seed)
    rest = np.setdiff1d(np.arange(len(train)), validation)
    return train.chosen(rest), train.chosen(validation)


def validation_rows(labels: Labels, seed: int) -> Int64[np.ndarray, " rows"]:
    """Return the validation rows: of every class a fifth, at least one and never all.

    Args:
        labels: every class at least twice.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, round(VALIDATION_SHARE * len(rows)))])
    return np.sort(np.concatenate(chosen))


def credit(logits: Matrix, labels: Labels, k: int) -> Float64[np.ndarray, " images"]:
    """Return for each image whether its class is among the k highest scores.

    Where the class is tied with others over fewer places than there are of them, it gets its share: a
    classifier that scores all classes alike is right by chance, whatever the order of the classes.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    higher, equal = (logits > own).sum(1), (logits == own).sum(1)
    credits: Float64[np.ndarray, " images"] = np.clip((k - higher) / equal, 0.0, 1.0)
    return credits
