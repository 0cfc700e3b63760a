"""Classifiers without a language model: images as vectors, the nearest class mean, a linear classifier, chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8

from pixlex.data.sources import ImageSource
from pixlex.data.text import clean_caption
from pixlex.eval.evaluate import read_pixels
from pixlex.eval.few_shot.episodes import digest
from pixlex.eval.few_shot.prompts import (
    NEEDS_EXAMPLE,
    UNREADABLE,
    Answer,
    Episode,
    Setting,
    WordClassifier,
    failed,
    fair_credit,
    images_of,
)
from pixlex.eval.few_shot.readers import TextReader, compute_images
from pixlex.eval.few_shot.run import Classifier
from pixlex.messages import not_installed
from pixlex.models import Precision, computing
from pixlex.models.baselines import DualEncoder
from pixlex.models.cbvila import CBViLA
from pixlex.models.checkpoint import Model, Tokenizer, fingerprint
from pixlex.models.lqae import LQAE
from pixlex.nn.language_model import LanguageModel, load_language_model

Metric = Literal["cosine", "euclidean"]
Vectors = Float64[np.ndarray, "support D"]
Vector = Float64[np.ndarray, " D"]
Classes = Int64[np.ndarray, " support"]
Values = Float64[np.ndarray, " C"]

# Texts that go through a language model together.
_BATCH_SIZE = 32


def _stacked(kept: Sequence[np.ndarray]) -> Float64[np.ndarray, "B D"]:
    return np.stack(kept).astype(np.float64)


@dataclass(frozen=True)
class Features:
    """Vectors of images, compared by a metric.

    `read` returns what is kept of each image that can be read, by its position; `vectors` makes of that one vector
    for each image of an episode. `identity` is a fingerprint of all that decides a vector besides the image.
    `names` returns the vectors of class names, where they lie among those of images: without an example they
    stand for the classes.
    """

    name: str
    identity: str
    read: Callable[[ImageSource, Sequence[int]], Mapping[int, Any]]
    vectors: Callable[[Sequence[Any]], Float64[np.ndarray, "B D"]] = _stacked
    metric: Metric = "cosine"
    names: Callable[[Sequence[str]], Float[np.ndarray, "ways D"]] | None = None


class _TextVectors:
    """Vectors of a reader's texts, each computed once: the settings of a table share most of their images."""

    def __init__(self, reader: TextReader, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        self.reader, self.encode = reader, encode
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, images: ImageSource, indices: Sequence[int]) -> dict[int, np.ndarray]:
        texts = self.reader.read(images, indices)
        self._compute(texts.values())
        return {index: self._known[text] for index, text in texts.items()}

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """Return the vectors of texts that no image has to have."""
        self._compute(texts)
        return np.stack([self._known[text] for text in texts])

    def _compute(self, texts: Iterable[str]) -> None:
        # By length, so that little of a batch is padding.
        new = sorted(set(texts) - self._known.keys(), key=lambda text: (len(text), text))
        for first in range(0, len(new), _BATCH_SIZE):
            chunk = new[first : first + _BATCH_SIZE]
            self._known.update(zip(chunk, self.encode(chunk), strict=True))


def sentence_features(
    reader: TextReader, encoder: LanguageModel, device: torch.device | str = "cpu"
) -> Features:
    """Return the vectors of `sentence_vectors`, of a reader's texts and of names."""
    identity = digest("sentence", reader.identity, encoder.fingerprint)
    vectors = _TextVectors(reader, partial(sentence_vectors, encoder.to(device)))
    return Features(f"{reader.name}, sentence encoder", identity, vectors, names=vectors.of)


def sentence_vectors(encoder: LanguageModel, texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
    """Return the vectors of texts that a sentence encoder, a masked language model, reads.

    A text is tokenized as the encoder's tokenizer does it, special words included, and the vector is the
    mean of the last hidden states over all words that are no padding, the special ones included: the pooling
    that the embedded model was trained with. A text longer than the encoder reads is divided into pieces, each
    with special words of its own, whose means are averaged by their number of words.
    """
    pieces = encoder.tokenizer(
        list(texts),
        truncation=True,
        max_length=encoder.max_words,
        return_overflowing_tokens=True,
        verbose=False,
    )
    rows: list[list[int]] = pieces["input_ids"]
    owners = torch.tensor(pieces["overflow_to_sample_mapping"])
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    key_padding = torch.arange(padded.shape[1]) >= lengths.unsqueeze(1)
    sums = torch.zeros(len(texts), encoder.hidden_width, dtype=torch.float64)
    device = encoder.word_embedding.device
    with computing(device, "fp32"):
        hidden = encoder(encoder.word_embedding[padded.to(device)], key_padding.to(device)).last.cpu()
    sums.index_add_(0, owners, hidden.masked_fill(key_padding.unsqueeze(-1), 0).double().sum(1))
    counts = torch.zeros(len(texts)).index_add_(0, owners, lengths.float())
    return (sums / counts.unsqueeze(1)).float().numpy()


def layer_features(model: LQAE, reader: TextReader, layers: Literal["last", "all"] = "all") -> Features:
    """Return the words of an image in the frozen language model that they belong to: means over words of a layer.

    The words go in as they do in LQAE (with vocabulary "all" as the tokenizer divides the text), raw embeddings
    without special words, nothing hidden. With `layers="all"` the means of the embedding layer and of every
    layer, each of length 1, stand one after the other, so that no layer outweighs another; `last` is the last
    layer alone.
    """

    def means(rows: list[list[int]]) -> Float32[np.ndarray, "B D"]:
        codes = torch.tensor(rows, dtype=torch.long)
        device = next(model.parameters()).device
        with computing(device, "fp32"):
            embeddings = model.quantizer.embedding[codes.to(device)]
            states = model.encode_text(embeddings, all_states=True).hidden_states
        if layers == "last":
            return states[-1].float().mean(1).cpu().numpy()
        parts = [torch.nn.functional.normalize(state.float().mean(1), dim=1) for state in states]
        return torch.cat(parts, dim=1).cpu().numpy()

    def encode(texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
        most = model.language.max_words
        # A text of blanks has no words; only "all" writes one, whose codes are word ids.
        rows = [model.vocabulary.from_text(text)[:most] or [model.language.mask_id] for text in texts]
        found: dict[int, np.ndarray] = {}
        # Of one length, but for vocabulary "all", where the tokenizer divides the text anew.
        for length in {len(row) for row in rows}:
            places = [place for place, row in enumerate(rows) if len(row) == length]
            found.update(zip(places, means([rows[place] for place in places]), strict=True))
        return np.stack([found[place] for place in range(len(rows))])

    name = f"{reader.name}, language model, {'last layer' if layers == 'last' else 'all layers'}"
    identity = digest("layers", reader.identity, model.language.fingerprint, layers)
    return Features(name, identity, _TextVectors(reader, encode))


def bag_of_words(reader: TextReader) -> Features:
    """Return how often each word, what blanks and line ends separate, occurs in an image, wherever."""
    return Features(f"{reader.name}, bag of words", digest("bag", reader.identity), reader.read, _counts)


def _counts(texts: Sequence[str]) -> Float64[np.ndarray, "B D"]:
    """Return counts of the words of these texts: those of a whole vocabulary would be mostly zeros."""
    words = [text.split() for text in texts]
    columns = {word: column for column, word in enumerate(sorted({w for row in words for w in row}))}
    counts = np.zeros((len(words), max(len(columns), 1)))
    for row, found in zip(counts, words, strict=True):
        np.add.at(row, [columns[word] for word in found], 1)
    return counts


def pixel_features(size: int = 64) -> Features:
    """Return the pixels themselves, cropped to a square of that side: what is there before any word."""
    name = f"pixels, {size} x {size}"

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, UInt8[np.ndarray, "3 H W"]]:
        rows: dict[int, np.ndarray] = {}
        for positions, pixels in read_pixels(images, indices, size, name):
            # As bytes: a quarter of the memory, for pixels come from bytes.
            rows.update(zip(positions, pixels.mul(255).round().byte().numpy(), strict=True))
        return rows

    def vectors(kept: Sequence[UInt8[np.ndarray, "3 H W"]]) -> Float64[np.ndarray, "B D"]:
        return np.stack([one.reshape(-1) for one in kept]) / 255.0

    return Features(name, digest("pixels", str(size)), read, vectors, "euclidean")


def encoder_features(
    model: Model, *, name: str, device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> Features:
    """Return the vision encoder of a model, neither codebook nor words: the mean of its patch vectors."""
    model.eval().to(device)
    name = f"{name}, encoder"

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, Float[np.ndarray, " D"]]:
        rows = compute_images(images, indices, model, model.embed, name, precision)
        return {index: row.numpy() for index, row in rows.items()}

    return Features(name, digest("encoder", fingerprint(model, precision=precision)), read)


def compared_features(
    model: CBViLA | DualEncoder,
    *,
    name: str,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> Features:
    """Return the vectors of images and names that a CB-ViLA, CLIP or SigLIP compares.

    The nearest class mean of them is, without an example, the zero-shot classification of CLIP (Radford et al.
    2021, section 3.1.2): the name whose vector is nearest to the image's. We give a name as it is, as captions of
    drawings are; CLIP writes "A photo of a NAME.". A model that was trained without contrast (`CBViLA.compares`)
    raises `ValueError`.
    """
    if not model.compares:
        raise ValueError(f"{name} was trained without contrast: its similarities are those of random maps")
    model.eval().to(device)
    name = f"{name}, images and names compared"

    def read(images: ImageSource, indices: Sequence[int]) -> dict[int, Float[np.ndarray, " D"]]:
        rows = compute_images(images, indices, model, model.joint_images, name, precision)
        return {index: row.numpy() for index, row in rows.items()}

    @cache
    def vector(text: str) -> Float[np.ndarray, " D"]:
        caption = clean_caption(text) or text if model.fuses else text
        return np.asarray(model.joint_texts([caption])[0].numpy())

    identity = digest("compared", fingerprint(model, precision=precision))
    return Features(name, identity, read, names=lambda texts: np.stack([vector(text) for text in texts]))


@dataclass(eq=False)
class FeatureClassifier(Classifier):
    """Gives each class of an episode a value by the vectors of its images; equally high ones share the credit.

    Where there are images it never sees the names: induction, repeats and nonsense names change nothing. Without
    an example the vectors of the names stand for the classes, where its features have some. It always answers with
    one of the episode's names, so chance is 1 / ways. Values nearer to each other than `tolerance` are equal.
    """

    name: str
    scorer: str
    identity: str
    features: Features
    values: Callable[[Vectors, Classes, Vector], Values]  # of support, its classes, the query
    tolerance: float

    def check(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> str:
        """Return why there is no answer without an example, or an empty text."""
        if setting.shots or self.features.names is not None:
            return ""
        return f"{NEEDS_EXAMPLE}: {setting.label}: {self.name} knows classes by their labeled images alone"

    def answer(self, setting: Setting, episodes: Sequence[Episode], images: ImageSource) -> Iterator[Answer]:
        """Yield an answer for each episode that `check` lets pass."""
        names, kept = self.features.names, self.features.read(images, images_of(episodes))
        for episode in episodes:
            if not all(image in kept for image in episode.images):
                yield failed(episode, UNREADABLE)
                continue
            rows = self.features.vectors([kept[image] for image in episode.images])
            support, classes = rows[:-1], np.array([shown.name for shown in episode.support])
            if names is not None and not setting.shots:
                support, classes = names(episode.names).astype(np.float64), np.arange(setting.ways)
            values = self.values(support, classes, rows[-1])
            yield fair_credit(episode, values.tolist(), tolerance=self.tolerance)


def nearest_class_mean(features: Features) -> FeatureClassifier:
    """Return what answers with the class whose mean vector is nearest to the query's (Snell et al. 2017).

    Without an example it is the class whose name's vector is nearest.
    """

    def values(support: Vectors, classes: Classes, query: Vector) -> Values:
        means = np.stack([support[classes == name].mean(0) for name in range(classes.max() + 1)])
        return similarities(means, query, features.metric)

    identity = digest("nearest", features.identity, features.metric)
    # Means of the same vectors are summed in another order.
    return FeatureClassifier(features.name, "nearest", identity, features, values, tolerance=1e-9)


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


def linear_per_episode(features: Features, *, strength: float = 1.0) -> FeatureClassifier:
    """Return what fits a logistic regression to each episode's support images and classifies its query.

    Vectors are centered on the support's mean and divided by the support's mean distance from it, so that one
    strength fits features of any scale. The loss is that of scikit-learn, 0.5 |w|^2 + strength * sum of
    cross-entropies; the intercept is free.

    The paper's row "MAE + Linear" has numbers near zero without induction and far below chance (LQAE, Tables 1
    and 2): it is scored as generated text, in a way it does not describe. Ours is a closed set; the two must
    not be compared. The strength is scikit-learn's C, the inverse of the regularization, above 0.
    """
    if not strength > 0:
        raise ValueError(f"the strength must be above 0, got {strength}")
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as fault:
        raise not_installed("a linear classifier", "scikit-learn", "eval") from fault

    def values(support: Vectors, classes: Classes, query: Vector) -> Values:
        center = support.mean(0)
        scale = np.linalg.norm(support - center, axis=1).mean()
        if scale == 0:  # all alike: nothing can be distinguished
            return np.zeros(classes.max() + 1)
        rows, point = (support - center) / scale, (query - center) / scale
        # The optimum lies in the span of the rows: there it is looked for, in few dimensions, to the same numbers.
        directions = np.linalg.svd(rows, full_matrices=False)[2]
        classifier = LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
        with warnings.catch_warnings():
            # The tolerance is near what rounding allows; where it is not reached, the optimum is near enough.
            warnings.filterwarnings("ignore", message="lbfgs failed to converge")
            classifier.fit(rows @ directions.T, classes)
        logits = np.atleast_1d(classifier.decision_function((directions @ point)[None])[0])
        return np.array([-logits[0] / 2, logits[0] / 2]) if len(logits) == 1 else logits

    identity = digest("linear", features.identity, str(strength))
    # The solver stops that near to the optimum.
    return FeatureClassifier(
        f"{features.name} + linear", "linear", identity, features, values, tolerance=1e-6
    )


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
) -> list[FeatureClassifier]:
    """Return the classifiers of some kinds that a reader can have.

    Args:
        kinds: `sentence` (a sentence encoder reads the text), `layers` and `last-layer` (the language model
            that the words belong to; left out unless the model has words), `bag` (counts of words).
        model: whose words they are; None for text of no model.
        encoder: the sentence encoder; None for the embedded one.
    """
    features: list[Features] = []
    for kind in kinds:
        if kind == "sentence":
            features.append(sentence_features(reader, encoder or embedded_encoder(), device))
        elif kind == "bag":
            features.append(bag_of_words(reader))
        elif model is not None and model.vocabulary is not None:
            features.append(layer_features(model, reader, "all" if kind == "layers" else "last"))
    return [nearest_class_mean(one) for one in features]


@lru_cache(maxsize=1)
def embedded_encoder() -> LanguageModel:
    """Return the embedded sentence encoder, loaded once."""
    return load_language_model()
