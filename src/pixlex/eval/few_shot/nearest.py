"""Answers without a large language model: the class whose mean is nearest, and chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.answers import Answer, fair_credit
from pixlex.eval.few_shot.episodes import Episode, Setting, images_of
from pixlex.eval.few_shot.features import Features, Metric
from pixlex.eval.few_shot.fingerprints import digest

Vectors = Float64[np.ndarray, "support D"]
Vector = Float64[np.ndarray, " D"]
Classes = Int64[np.ndarray, " support"]
Values = Float64[np.ndarray, " C"]

# Similarities nearer than this are equal: means of the same vectors summed in another order.
_TIE = 1e-9


class NearestClassMean:
    """Answers with the class whose mean support vector is nearest to the query's (Snell et al. 2017).

    It never sees the names: induction, repeats and nonsense names change nothing. It always answers with one
    of the episode's names, so chance is 1 / ways; equally near classes share the credit.

    Args:
        features: turns images into vectors.
    """

    scorer = "nearest"

    def __init__(self, features: Features) -> None:
        self.features = features
        self.name = features.name
        self.identity = digest("nearest", features.identity, features.metric)

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode."""

        def values(support: Vectors, classes: Classes, query: Vector) -> Values:
            means = np.stack([support[classes == name].mean(0) for name in range(setting.ways)])
            return similarities(means, query, self.features.metric)

        yield from answer_by(values, self.features, episodes, images, _TIE)


def answer_by(
    values: Callable[[Vectors, Classes, Vector], Values],
    features: Features,
    episodes: Sequence[Episode],
    images: ImageSource,
    tolerance: float,
) -> Iterator[Answer]:
    """Yield the answers of whoever gives each class a value: the highest wins, equally high ones share.

    Args:
        values: given support vectors, the class of each and the query's vector, one value for each class.
        features: turns images into vectors.
        episodes: the questions.
        images: what they are about; an episode with one that cannot be read fails.
        tolerance: values nearer to each other are equal.
    """
    table = features.table(images, images_of(episodes))
    for episode in episodes:
        if not all(image in table for image in episode.images):
            yield Answer(episode=episode.number, credit=None, detail="an image cannot be read")
            continue
        rows = table.rows(episode.images).astype(np.float64)
        classes = np.array([shown.name for shown in episode.support])
        found = values(rows[:-1], classes, rows[-1])
        yield fair_credit(episode, found.tolist(), tolerance=tolerance)


def similarities(
    means: Float[np.ndarray, "C D"], query: Float[np.ndarray, " D"], metric: Metric
) -> Float64[np.ndarray, " C"]:
    """Return how near a vector is to each mean: the cosine (0 with a zero vector), or minus the distance."""
    if metric == "euclidean":
        distances: Float64[np.ndarray, " C"] = np.linalg.norm(means - query, axis=1)
        return -distances
    lengths = np.linalg.norm(means, axis=1) * np.linalg.norm(query)
    cosines: Float64[np.ndarray, " C"] = means @ query / np.where(lengths > 0, lengths, 1.0)
    return cosines


class Chance:
    """Guesses among the names; its credit is what guessing has on average, without luck."""

    name = "chance"
    scorer = "exact"
    identity = digest("chance")

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield 1 / ways for each episode."""
        for episode in episodes:
            yield Answer(episode=episode.number, credit=1 / setting.ways)
