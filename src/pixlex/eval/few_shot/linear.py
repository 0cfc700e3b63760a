"""A linear classifier for each episode, on the features of its support images: the paper's "MAE + linear"."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.answers import Answer
from pixlex.eval.few_shot.episodes import Episode, Setting
from pixlex.eval.few_shot.features import DenseTable, Features, Metric
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.eval.few_shot.nearest import Classes, Values, Vector, Vectors, answer_by
from pixlex.eval.few_shot.readers import read_pixels
from pixlex.messages import not_installed
from pixlex.models.inference import Precision, compute_rows
from pixlex.models.pretrained import Model, fingerprint

# Decision values nearer than this are equal: the solver stops that near to the optimum.
_TIE = 1e-6


class EncoderFeatures:
    """The vision encoder of a model: the mean of its patch vectors, nothing hidden.

    Args:
        model: MAE, or an image tokenizer, of which neither codebook nor words are used; is put into evaluation
            mode on `device`.
        name: what to call it.
        device: where to compute.
        precision: bf16 computes under autocast.
    """

    metric: Metric = "cosine"

    def __init__(
        self, model: Model, *, name: str, device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> None:
        self.device, self.precision = torch.device(device), precision
        self.model = model.eval().to(self.device)
        self.name = f"{name}, encoder"
        self.identity = digest("encoder", fingerprint(model, precision=precision))

    def table(self, images: ImageSource, indices: Sequence[int]) -> DenseTable:
        """Read images and encode each once."""
        vectors: dict[int, np.ndarray] = {}
        config = self.model.config
        for positions, pixels in read_pixels(images, indices, config.image_size, self.name, config.cut):
            rows = compute_rows(
                pixels,
                self.model.embed,
                grid=self.model.grid,
                device=self.device,
                precision=self.precision,
            )
            vectors.update(zip(positions, rows.numpy(), strict=True))
        return DenseTable(vectors)


class LinearPerEpisode:
    """Fits a logistic regression to each episode's support images and classifies its query.

    Vectors are centered on the support's mean and divided by the support's mean distance from it, so that one
    strength fits features of any scale. The loss is that of scikit-learn, 0.5 |w|^2 + strength * sum of
    cross-entropies; the intercept is free. It chooses among the episode's classes, so chance is 1 / ways, and
    equally likely ones share the credit. Names, induction and repeats change nothing.

    The paper's row "MAE + Linear" has numbers near zero without induction and far below chance (LQAE, Tables 1
    and 2): it is scored as generated text, in a way it does not describe. Ours is a closed set; the two must
    not be compared.

    Args:
        features: turns images into vectors.
        strength: inverse of the regularization (scikit-learn's C), above 0.

    Raises:
        ValueError: a strength that is not above 0, or scikit-learn is not installed.
    """

    scorer = "linear"

    def __init__(self, features: Features, *, strength: float = 1.0) -> None:
        if not strength > 0:
            raise ValueError(f"the strength must be above 0, got {strength}")
        _logistic_regression(strength)
        self.features, self.strength = features, strength
        self.name = f"{features.name} + linear"
        self.identity = digest("linear", features.identity, str(strength))

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode."""

        def values(support: Vectors, classes: Classes, query: Vector) -> Values:
            return decision_values(support, classes, query, self.strength)

        yield from answer_by(values, self.features, episodes, images, _TIE)


def decision_values(
    support: Float[np.ndarray, "support D"],
    classes: np.ndarray,
    query: Float[np.ndarray, " D"],
    strength: float,
) -> Float[np.ndarray, " C"]:
    """Return the logit of each class for a query, up to a constant.

    Args:
        support: one row for each labeled image.
        classes: the class of each row, 0 to C - 1, each at least once.
        query: the vector to classify.
        strength: as in `LinearPerEpisode`.
    """
    center = support.mean(0)
    scale = np.linalg.norm(support - center, axis=1).mean()
    if scale == 0:  # all alike: nothing can be told apart
        return np.zeros(classes.max() + 1)
    rows, point = (support - center) / scale, (query - center) / scale
    # The optimum lies in the span of the rows: there it is looked for, in few dimensions, to the same numbers.
    directions = np.linalg.svd(rows, full_matrices=False)[2]
    classifier = _logistic_regression(strength)
    with warnings.catch_warnings():
        # The tolerance is near what rounding allows; where it is not reached, the optimum is near enough.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        classifier.fit(rows @ directions.T, classes)
    values = np.atleast_1d(classifier.decision_function((directions @ point)[None])[0])
    return np.array([-values[0] / 2, values[0] / 2]) if len(values) == 1 else values


def _logistic_regression(strength: float) -> Any:
    """Return an untrained classifier."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as fault:
        raise not_installed("a linear classifier", "scikit-learn", "eval") from fault
    return LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
