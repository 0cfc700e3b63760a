"""Logistic regression: both ways against the equation they claim to minimize, and against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from pixlex.eval.probe import classifier
from pixlex.eval.probe.classifier import (
    LinearClassifier,
    Method,
    Part,
    Scaling,
    fit,
    method_for,
    objective,
)


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
    (one,) = fit(part, classes, [penalty], method=method, repeats=repeats)
    return one


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("penalty", [0.3, 0.01])
def test_lbfgs_ends_where_the_gradient_of_the_equation_is_zero(num_classes: int, penalty: float) -> None:
    part = part_of(num_classes)
    one = fitted(part, penalty)
    x = (part.features.astype(np.float64) - part.features.mean(0)) / part.features.std(0)
    logits = x @ one.weight.T.astype(np.float64) + one.bias
    loss = -log_softmax(logits, 1)[np.arange(len(x)), part.labels].mean()
    assert objective(one, part) == pytest.approx(loss + penalty / 2 * np.square(one.weight).sum(), rel=1e-4)
    error = softmax(logits, 1) - np.eye(num_classes)[part.labels]
    gradient = error.T @ x / len(x) + penalty * one.weight
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(error.mean(0)).max() < 1e-3
    assert one.converged
    assert one.weight.shape == (num_classes, 12)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_mini_batches_find_the_same_classifier(num_classes: int) -> None:
    part, other = part_of(num_classes, 600), part_of(num_classes, 400, seed=1)
    penalties = [1.0, 0.1, 0.01]
    exact = list(fit(part, num_classes, penalties, method="lbfgs"))
    drawn = list(fit(part, num_classes, penalties, method="minibatch"))
    for first, second in zip(exact, drawn, strict=True):
        assert first.penalty == second.penalty
        best = objective(first, part)
        assert best - 1e-4 <= objective(second, part) <= 1.01 * best
        same = first.logits(other).argmax(1) == second.logits(other).argmax(1)
        assert same.mean() > 0.98


def test_mini_batches_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_MIN_STEPS", 30)
    monkeypatch.setattr(classifier, "_EPOCHS", 1)
    monkeypatch.setattr(classifier, "_BATCH", 64)
    part = part_of(3)
    weights = [
        next(fit(part, 3, [0.1], method="minibatch", seed=seed)).weight.tobytes() for seed in (0, 0, 1)
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("method", ["lbfgs", "minibatch"])
def test_repeated_columns_are_what_the_paper_writes_side_by_side(method: Method) -> None:
    part = part_of(4)
    literal = Part(np.tile(part.features, 7), part.rows, part.labels)
    ours, theirs = fitted(part, 0.3, method, repeats=7), fitted(literal, 0.3, method)
    plain = fitted(part, 0.3, method)
    distance = np.abs(ours.logits(part) - theirs.logits(literal)).max()
    assert distance < 0.03
    assert np.abs(plain.logits(part) - theirs.logits(literal)).max() > 10 * distance


@pytest.mark.parametrize("method", ["lbfgs", "minibatch"])
def test_a_column_that_does_not_vary_does_no_harm(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_MIN_STEPS", 100)
    part = part_of(3)
    features = part.features.copy()
    features[:, 0] = 12345.678
    # A dead unit: rounding that happens to go with the class.
    features[:, 1] = 1e-32 * (1 + part.labels)
    one = fitted(Part(features, part.rows, part.labels), 0.01, method)
    assert np.isfinite(one.logits(part)).all()
    assert np.abs(one.weight[:, :2]).max() < 1e-3


def test_scaling_measures_the_rows_of_the_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_ROWS_AT_ONCE", 17)
    whole = part_of(3)
    some = whole.chosen(np.arange(5, 200, 3))
    scaling = Scaling.of(some)
    expected = whole.features[5:200:3].astype(np.float64)
    np.testing.assert_allclose(scaling.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaling.scale, expected.std(0), rtol=1e-5)
    scaled = np.concatenate([scaling(chunk) for chunk in some.chunks()])
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)


def test_features_on_the_disk_give_the_same_classifier(tmp_path: Path) -> None:
    part = part_of(3)
    np.save(tmp_path / "x.npy", part.features)
    mapped = Part(np.load(tmp_path / "x.npy", mmap_mode="r"), part.rows, part.labels)
    assert fitted(mapped, 0.1).weight.tobytes() == fitted(part, 0.1).weight.tobytes()


def test_the_size_decides_how_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    part = part_of(3)
    assert method_for(part) == "lbfgs"
    monkeypatch.setattr(classifier, "LBFGS_LIMIT", len(part) * part.width - 1)
    assert method_for(part) == "minibatch"


def test_a_fit_that_was_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_MAX_ITERATIONS", 1)
    assert not fitted(part_of(3), 0.01).converged
