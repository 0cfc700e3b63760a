"""Who answers episodes: the class whose mean is nearest, a linear classifier for each episode, chance."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import Episode, Setting, digest, images_of
from pixlex.eval.few_shot.features import BagOfWords, Features, LayerFeatures, Metric, SentenceFeatures
from pixlex.eval.few_shot.readers import TextReader
from pixlex.eval.llm.client import DOES_NOT_FIT, NO_TEXT
from pixlex.messages import not_installed
from pixlex.models.checkpoint import Tokenizer
from pixlex.nn.language_model import LanguageModel, load_language_model

Vectors = Float64[np.ndarray, "support D"]
Vector = Float64[np.ndarray, " D"]
Classes = Int64[np.ndarray, " support"]
Values = Float64[np.ndarray, " C"]
WordClassifier = Literal["sentence", "layers", "last-layer", "bag"]
WORD_CLASSIFIERS: tuple[WordClassifier, ...] = get_args(WordClassifier)

# The detail of an answer that the limit of tokens cut off, and of one about an image that cannot be read.
NOT_ENDED = "it did not end"
UNREADABLE = "an image cannot be read"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one episode.

    Attributes:
        episode: its number.
        credit: 1 for right, 0 for wrong, 1 / t where t names are equally good and the right one is among
            them; None where no answer came, which is a failure and no wrong answer.
        text: what was answered: a name, or the text that a language model wrote.
        detail: why there is no answer, or what else is worth keeping.
    """

    episode: int
    credit: float | None
    text: str = ""
    detail: str = ""

    @property
    def is_cut_off(self) -> bool:
        """Whether it was cut off before its end, or is empty."""
        empty = self.credit == 0 and not self.text.strip()
        return empty or self.detail.startswith((NOT_ENDED, NO_TEXT))

    @property
    def does_not_fit(self) -> bool:
        """Whether there is none because the episode is longer than what the language model reads."""
        return self.credit is None and self.detail.startswith(DOES_NOT_FIT)


class Classifier(ABC):
    """Answers episodes: a classifier of features, or a language model that reads images as words.

    Attributes:
        name: its row in the table: where the words come from, and who reads them.
        scorer: how an answer is judged: `strict`, `likelihood`, `constrained` ...; `nearest`, `linear`, `exact`.
        identity: a fingerprint of all that decides the answers besides episodes and images.
    """

    name: str
    scorer: str
    identity: str

    @abstractmethod
    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield one answer for each episode, in any order, each as soon as it is there.

        An episode that fails yields an answer without credit; it never ends the others. What makes all of
        them fail (a wrong key, an endpoint that is down) raises `ValueError`.
        """

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why episodes cannot be answered, with the numbers, or an empty text; nothing is sent."""
        return ""


def fair_credit(episode: Episode, values: Sequence[float], *, tolerance: float) -> Answer:
    """Return the answer of whoever gives each name of an episode a value and takes the largest.

    Names whose values differ from the largest by no more than `tolerance` (what rounding can make of equal
    values) share the credit: who sees no difference scores exactly 1 / ways, where the first of the largest
    would score what the order of the names makes of it.
    """
    best = max(values)
    chosen = [name for name, value in enumerate(values) if value >= best - tolerance]
    credit = 1 / len(chosen) if episode.answer in chosen else 0.0
    text = " | ".join(episode.names[name] for name in chosen)
    return Answer(episode=episode.number, credit=credit, text=text)


class _FeatureClassifier(Classifier):
    """Gives each class of an episode a value by the vectors of its images; equally high ones share the credit.

    It never sees the names: induction, repeats and nonsense names change nothing. It always answers with one
    of the episode's names, so chance is 1 / ways.
    """

    features: Features
    tolerance: float  # values nearer to each other are equal

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode."""
        kept = self.features.read(images, images_of(episodes))
        for episode in episodes:
            if not all(image in kept for image in episode.images):
                yield Answer(episode=episode.number, credit=None, detail=UNREADABLE)
                continue
            rows = self.features.vectors([kept[image] for image in episode.images])
            classes = np.array([shown.name for shown in episode.support])
            values = self.values(rows[:-1], classes, rows[-1])
            yield fair_credit(episode, values.tolist(), tolerance=self.tolerance)

    @abstractmethod
    def values(self, support: Vectors, classes: Classes, query: Vector) -> Values:
        """Return a value for each class, given support vectors, the class of each, and the query's vector."""


class NearestClassMean(_FeatureClassifier):
    """Answers with the class whose mean support vector is nearest to the query's (Snell et al. 2017).

    Args:
        features: turns images into vectors.
    """

    scorer = "nearest"
    tolerance = 1e-9  # means of the same vectors summed in another order

    def __init__(self, features: Features) -> None:
        self.features, self.name = features, features.name
        self.identity = digest("nearest", features.identity, features.metric)

    def values(self, support: Vectors, classes: Classes, query: Vector) -> Values:
        """Return how near the query is to the mean of each class."""
        means = np.stack([support[classes == name].mean(0) for name in range(classes.max() + 1)])
        return similarities(means, query, self.features.metric)


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


class LinearPerEpisode(_FeatureClassifier):
    """Fits a logistic regression to each episode's support images and classifies its query.

    Vectors are centered on the support's mean and divided by the support's mean distance from it, so that one
    strength fits features of any scale. The loss is that of scikit-learn, 0.5 |w|^2 + strength * sum of
    cross-entropies; the intercept is free.

    The paper's row "MAE + Linear" has numbers near zero without induction and far below chance (LQAE, Tables 1
    and 2): it is scored as generated text, in a way it does not describe. Ours is a closed set; the two must
    not be compared.

    Args:
        features: turns images into vectors.
        strength: inverse of the regularization (scikit-learn's C), above 0.

    Raises:
        ValueError: a strength that is not above 0.
        ModuleNotFoundError: scikit-learn is not installed.
    """

    scorer = "linear"
    tolerance = 1e-6  # the solver stops that near to the optimum

    def __init__(self, features: Features, *, strength: float = 1.0) -> None:
        if not strength > 0:
            raise ValueError(f"the strength must be above 0, got {strength}")
        _logistic_regression(strength)
        self.features, self.strength = features, strength
        self.name = f"{features.name} + linear"
        self.identity = digest("linear", features.identity, str(strength))

    def values(self, support: Vectors, classes: Classes, query: Vector) -> Values:
        """Return the logit of each class for the query, up to a constant."""
        center = support.mean(0)
        scale = np.linalg.norm(support - center, axis=1).mean()
        if scale == 0:  # all alike: nothing can be distinguished
            return np.zeros(classes.max() + 1)
        rows, point = (support - center) / scale, (query - center) / scale
        # The optimum lies in the span of the rows: there it is looked for, in few dimensions, to the same numbers.
        directions = np.linalg.svd(rows, full_matrices=False)[2]
        classifier = _logistic_regression(self.strength)
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


class Chance(Classifier):
    """Guesses among the names; its credit is what guessing has on average, without luck."""

    name = "chance"
    scorer = "exact"
    identity = digest("chance")

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield 1 / ways for each episode."""
        for episode in episodes:
            yield Answer(episode=episode.number, credit=1 / setting.ways)


def word_classifiers(
    reader: TextReader,
    kinds: Sequence[WordClassifier],
    *,
    model: Tokenizer | None = None,
    encoder: LanguageModel | None = None,
    device: torch.device | str = "cpu",
) -> list[NearestClassMean]:
    """Return the classifiers of some kinds that a reader can have.

    Args:
        reader: turns images into text.
        kinds: `sentence` (a sentence encoder reads the text), `layers` and `last-layer` (the language model
            that the words belong to; left out unless the model has words), `bag` (counts of words).
        model: whose words they are; None for text of no model.
        encoder: the sentence encoder, on `device`; None for the embedded one.
        device: where it computes.
    """
    features: list[Features] = []
    for kind in kinds:
        if kind == "sentence":
            features.append(SentenceFeatures(reader, encoder or embedded_encoder(), device=device))
        elif kind == "bag":
            features.append(BagOfWords(reader))
        elif model is not None and model.vocabulary is not None:
            features.append(LayerFeatures(model, reader, "all" if kind == "layers" else "last"))
    return [NearestClassMean(one) for one in features]


@lru_cache(maxsize=1)
def embedded_encoder() -> LanguageModel:
    """Return the embedded sentence encoder, loaded once."""
    return load_language_model()
