"""The linear probe: fits against the equation they minimize; what it may look at, what it chooses and counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from pixlex.eval import linear_probe as module
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.linear_probe import (
    Fit,
    LinearClassifier,
    Method,
    Part,
    Scaling,
    credit,
    fit,
    linear_probe,
    validation_rows,
)

LBFGS, MINIBATCH = Fit(method="lbfgs"), Fit(method="minibatch")


def part_of(num_classes: int, count: int = 240, width: int = 12, *, seed: int = 0) -> Part:
    """Gaussian clouds, of columns with very different means and spreads."""
    same, random = np.random.default_rng(99), np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centers = same.normal(size=(num_classes, width))
    features = centers[labels] + 1.5 * random.normal(size=(count, width))
    features = features * 10.0 ** same.integers(-2, 3, width) + 50 * same.normal(size=width)
    return Part(features.astype(np.float32), np.arange(count), labels)


def fitted(part: Part, penalty: float, method: Method = "lbfgs", repeats: int = 1) -> LinearClassifier:
    classes = int(part.labels.max()) + 1
    (one,) = fit(part, classes, [penalty], Fit(method=method, repeats=repeats))
    return one


def objective(one: LinearClassifier, part: Part) -> float:
    """What is minimized, in nats, of features standardized here."""
    x = (part.features.astype(np.float64) - part.features.mean(0)) / part.features.std(0)
    logits = x @ one.weight.T.astype(np.float64) + one.bias
    loss = -log_softmax(logits, 1)[np.arange(len(x)), part.labels].mean()
    return float(loss + one.penalty / 2 * np.square(one.weight).sum())


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("penalty", [0.3, 0.01])
def test_lbfgs_ends_where_the_gradient_of_the_equation_is_zero(num_classes: int, penalty: float) -> None:
    part = part_of(num_classes)
    one = fitted(part, penalty)
    x = (part.features.astype(np.float64) - part.features.mean(0)) / part.features.std(0)
    error = softmax(x @ one.weight.T.astype(np.float64) + one.bias, 1) - np.eye(num_classes)[part.labels]
    gradient = error.T @ x / len(x) + penalty * one.weight
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(error.mean(0)).max() < 1e-3
    assert one.converged
    assert one.weight.shape == (num_classes, 12)


def test_mini_batches_find_the_same_classifier() -> None:
    num_classes = 5
    part, other = part_of(num_classes, 600), part_of(num_classes, 400, seed=1)
    penalties = [1.0, 0.01]
    exact = list(fit(part, num_classes, penalties, LBFGS))
    drawn = list(fit(part, num_classes, penalties, MINIBATCH))
    for first, second in zip(exact, drawn, strict=True):
        assert first.penalty == second.penalty
        best = objective(first, part)
        assert best - 1e-4 <= objective(second, part) <= 1.01 * best
        same = first.logits(other).argmax(1) == second.logits(other).argmax(1)
        assert same.mean() > 0.98


def test_repeated_columns_are_what_the_paper_writes_side_by_side() -> None:
    part = part_of(4)
    literal = Part(np.tile(part.features, 7), part.rows, part.labels)
    ours, theirs = fitted(part, 0.3, repeats=7), fitted(literal, 0.3)
    plain = fitted(part, 0.3)
    distance = np.abs(ours.logits(part) - theirs.logits(literal)).max()
    assert distance < 0.03
    assert np.abs(plain.logits(part) - theirs.logits(literal)).max() > 10 * distance


@pytest.mark.parametrize("method", ["lbfgs", "minibatch"])
def test_a_column_that_does_not_vary_does_no_harm(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_STEPS", 100)
    part = part_of(3)
    features = part.features.copy()
    features[:, 0] = 12345.678
    # A dead unit: rounding that happens to go with the class.
    features[:, 1] = 1e-32 * (1 + part.labels)
    one = fitted(Part(features, part.rows, part.labels), 0.01, method)
    assert np.isfinite(one.logits(part)).all()
    assert np.abs(one.weight[:, :2]).max() < 1e-3


def test_scaling_measures_the_rows_of_the_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 17)
    whole = part_of(3)
    some = whole.subset(np.arange(5, 200, 3))
    scaling = Scaling.of(some)
    expected = whole.features[5:200:3].astype(np.float64)
    np.testing.assert_allclose(scaling.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaling.scale, expected.std(0), rtol=1e-5)
    scaled = np.concatenate([scaling(chunk) for chunk in some.chunks()])
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)


def test_the_size_decides_how_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    part = part_of(3)
    assert Fit().method_for(part) == "lbfgs"
    monkeypatch.setattr(module, "LBFGS_LIMIT", len(part) * part.width - 1)
    assert Fit().method_for(part) == "minibatch"


def test_test_images_change_the_measure_alone() -> None:
    """Neither their labels nor their features reach the classifier or the choice of the strength."""
    train, test = part_of(6, 300), part_of(6, 120, seed=1)
    result = linear_probe(train, test, 6)
    shuffled = dataclasses.replace(test, labels=np.random.default_rng(3).permutation(test.labels))
    for other in (shuffled, dataclasses.replace(test, features=test.features * 3 + 7)):
        blind = linear_probe(train, other, 6)
        assert blind.classifier.weight.tobytes() == result.classifier.weight.tobytes()
        assert blind.classifier.bias.tobytes() == result.classifier.bias.tobytes()
        assert blind.classifier.scaling.mean.tobytes() == result.classifier.scaling.mean.tobytes()
        assert (blind.penalty, blind.validation_accuracy) == (result.penalty, result.validation_accuracy)
        assert blind.top1 < result.top1


def test_the_last_fit_is_on_all_training_images_with_the_best_strength() -> None:
    """With a part split off them, and with a validation set that is given and not fitted on."""
    train, test, validation = part_of(4, 200), part_of(4, 100, seed=1), part_of(4, 80, seed=2)
    for given, count in ((None, 40), (validation, 80)):
        result = linear_probe(train, test, 4, validation=given)
        best = max(result.validation_accuracy)
        assert result.penalty == result.penalties[result.validation_accuracy.index(best)]
        (expected,) = fit(train, 4, [result.penalty], LBFGS)
        assert result.classifier.weight.tobytes() == expected.weight.tobytes()
        assert (result.num_train, result.num_validation, result.num_test) == (200, count, 100)
    accuracies = [
        credit(one.logits(validation), validation.labels, 1).mean()
        for one in fit(train, 4, result.penalties, LBFGS)
    ]
    assert list(result.validation_accuracy) == accuracies


def test_counts() -> None:
    test = part_of(7, 70, seed=1)
    without_last = test.subset(np.flatnonzero(test.labels != 6))
    result = linear_probe(part_of(7, 140), without_last, 7)
    assert result.confusion.sum(1).tolist() == [10] * 6 + [0]
    np.testing.assert_allclose(result.class_accuracy[:6], np.diag(result.confusion)[:6] / 10)
    assert np.isnan(result.class_accuracy[6])
    assert result.top1 == pytest.approx(np.trace(result.confusion) / 60)
    predictions = result.classifier.logits(without_last)
    five = [label in row.argsort()[-5:] for row, label in zip(predictions, without_last.labels, strict=True)]
    assert result.top5 == pytest.approx(np.mean(five))
    assert result.top1_interval == wilson_interval(result.top1, 60)
    assert (result.width, result.repeats) == (12, 1)


def test_ties_share_the_credit() -> None:
    logits = np.array([[1, 1, 1, 0], [2, 2, 3, 1], [0, 5, 0, 0]], dtype=np.float32)
    labels = np.array([0, 3, 1])
    np.testing.assert_allclose(credit(logits, labels, 1), [1 / 3, 0, 1])
    np.testing.assert_allclose(credit(logits, labels, 3), [1, 0, 1])


def test_the_validation_part_is_drawn_from_every_class() -> None:
    labels = np.repeat(np.arange(4), [2, 3, 50, 101])
    rows = validation_rows(labels, seed=0)
    assert np.bincount(labels[rows]).tolist() == [1, 1, 10, 20]
    assert len(np.unique(rows)) == len(rows)
    assert np.array_equal(rows, validation_rows(labels, seed=0))
    assert not np.array_equal(rows, validation_rows(labels, seed=1))


def test_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = part_of(3), part_of(3, 60, seed=1)
    assert "chosen on 48 images only" in " ".join(linear_probe(train, test, 3).notes)
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 1)
    assert "before it met its tolerance" in " ".join(linear_probe(train, test, 3).notes)
    monkeypatch.setattr(module, "PENALTIES", (0.1,))
    assert "at the edge of the search" in " ".join(linear_probe(train, test, 3).notes)
