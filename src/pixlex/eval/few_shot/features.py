"""Images as vectors: the words read as text, the words in the language model, counts of words, pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.fingerprints import digest
from pixlex.eval.few_shot.readers import TextReader, read_pixels
from pixlex.models.inference import computing
from pixlex.models.lqae import LQAE
from pixlex.nn.language import LanguageModel

Vectors = Float[np.ndarray, "B D"]
Metric = Literal["cosine", "euclidean"]

# Texts that go through a language model together.
_BATCH_SIZE = 32


@runtime_checkable
class Table(Protocol):
    """The vectors of images that were read."""

    def __contains__(self, image: int) -> bool:
        """Whether an image could be read."""

    def rows(self, images: Sequence[int]) -> Vectors:
        """Return one vector for each image, comparable within this call."""


@runtime_checkable
class Features(Protocol):
    """Turns images into vectors."""

    @property
    def name(self) -> str:
        """What to call them in tables."""

    @property
    def identity(self) -> str:
        """A fingerprint of all that decides the vector of an image besides the image."""

    @property
    def metric(self) -> Metric:
        """How vectors are compared."""

    def table(self, images: ImageSource, indices: Sequence[int]) -> Table:
        """Read images."""


class DenseTable:
    """Vectors that are kept as they are."""

    def __init__(self, vectors: Mapping[int, np.ndarray]) -> None:
        self._vectors = vectors

    def __contains__(self, image: int) -> bool:
        return image in self._vectors

    def rows(self, images: Sequence[int]) -> Vectors:
        """Return the vectors of images."""
        return np.stack([self._vectors[image] for image in images]).astype(np.float64)


class _Memory:
    """The vectors of texts, each computed once: the settings of a table share most of their images."""

    def __init__(self) -> None:
        self._vectors: dict[str, np.ndarray] = {}

    def table(
        self, texts: Mapping[int, str], encode: Callable[[Sequence[str]], Float32[np.ndarray, "B D"]]
    ) -> DenseTable:
        """Return the vectors of images by their texts."""
        # By length, so that little of a batch is padding.
        new = sorted(set(texts.values()) - self._vectors.keys(), key=lambda text: (len(text), text))
        for first in range(0, len(new), _BATCH_SIZE):
            chunk = new[first : first + _BATCH_SIZE]
            self._vectors.update(zip(chunk, encode(chunk), strict=True))
        return DenseTable({index: self._vectors[text] for index, text in texts.items()})


class SentenceFeatures:
    """The words of an image read as text by a sentence encoder.

    The text is tokenized as the encoder's tokenizer does it, special words included, and the vector is the
    mean of the last hidden states over all words that are no padding, the special ones included: the pooling
    that the embedded model was trained with. A text longer than the encoder reads is cut into pieces, each
    with special words of its own, whose means are averaged by their number of words.

    Args:
        reader: turns images into text.
        encoder: a masked language model, such as the embedded one.
        device: where to compute.
    """

    metric: Metric = "cosine"

    def __init__(
        self, reader: TextReader, encoder: LanguageModel, *, device: torch.device | str = "cpu"
    ) -> None:
        self.reader, self.device = reader, torch.device(device)
        self.encoder = encoder.to(self.device)
        self.name = f"{reader.name}, sentence encoder"
        self._memory = _Memory()
        self.identity = digest("sentence", reader.identity, encoder.fingerprint)

    def table(self, images: ImageSource, indices: Sequence[int]) -> DenseTable:
        """Read the words of images and encode them."""
        texts = self.reader.read(images, indices)
        return self._memory.table(texts, self.encode)

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
        """Return the vectors of texts."""
        pieces = self.encoder.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.encoder.max_words,
            return_overflowing_tokens=True,
            verbose=False,
        )
        rows: list[list[int]] = pieces["input_ids"]
        owners = torch.tensor(pieces["overflow_to_sample_mapping"])
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        key_padding = torch.arange(padded.shape[1]) >= lengths.unsqueeze(1)
        sums = torch.zeros(len(texts), self.encoder.hidden_width, dtype=torch.float64)
        with computing(self.device, "fp32"):
            embeddings = self.encoder.word_embedding[padded.to(self.device)]
            hidden = self.encoder(embeddings, key_padding.to(self.device)).last.cpu()
        hidden = hidden.masked_fill(key_padding.unsqueeze(-1), 0).double().sum(1)
        sums.index_add_(0, owners, hidden)
        counts = torch.zeros(len(texts)).index_add_(0, owners, lengths.float())
        return (sums / counts.unsqueeze(1)).float().numpy()


class LayerFeatures:
    """The words of an image in the frozen language model that they belong to: the mean over words of a layer.

    The words go in as they do in LQAE (with vocabulary "all" as the tokenizer divides the text), raw embeddings
    without special words, nothing hidden. With `layers="all"` the means of the embedding layer and of every
    layer, each of length 1, stand one after the other, so that no layer outweighs another; `last` is the last
    layer alone.

    Args:
        model: whose vocabulary and language model read the words.
        reader: turns images into words of that vocabulary.
        layers: which hidden states.
    """

    metric: Metric = "cosine"

    def __init__(self, model: LQAE, reader: TextReader, layers: Literal["last", "all"] = "all") -> None:
        self.model, self.reader, self.layers = model, reader, layers
        which = "last layer" if layers == "last" else "all layers"
        self.name = f"{reader.name}, language model, {which}"
        self._memory = _Memory()
        self.identity = digest("layers", reader.identity, model.language.fingerprint, layers)

    def table(self, images: ImageSource, indices: Sequence[int]) -> DenseTable:
        """Read the words of images and run the language model over them."""
        texts = self.reader.read(images, indices)
        return self._memory.table(texts, self._encode)

    def _encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
        most = self.model.language.max_words
        # A text of blanks has no words; only "all" writes one, whose codes are word ids.
        rows = [
            self.model.vocabulary.from_text(text)[:most] or [self.model.language.mask_id] for text in texts
        ]
        found: dict[int, np.ndarray] = {}
        # Of one length, but for vocabulary "all", where the tokenizer divides the text anew.
        for length in {len(row) for row in rows}:
            places = [place for place, row in enumerate(rows) if len(row) == length]
            found.update(zip(places, self._means([rows[place] for place in places]), strict=True))
        return np.stack([found[place] for place in range(len(rows))])

    def _means(self, rows: list[list[int]]) -> Float32[np.ndarray, "B D"]:
        """Return the mean vectors of so many rows of codes of one length."""
        codes = torch.tensor(rows, dtype=torch.long)
        device = next(self.model.parameters()).device
        with computing(device, "fp32"):
            states = self.model.encode_text(self.model.quantizer.embedding[codes.to(device)]).hidden_states
        if self.layers == "last":
            return states[-1].float().mean(1).cpu().numpy()
        means = [torch.nn.functional.normalize(state.float().mean(1), dim=1) for state in states]
        return torch.cat(means, dim=1).cpu().numpy()


class BagOfWords:
    """How often each word occurs in an image; where it stands does not matter.

    Args:
        reader: turns images into text; words are what blanks and line ends separate.
    """

    metric: Metric = "cosine"

    def __init__(self, reader: TextReader) -> None:
        self.reader = reader
        self.name = f"{reader.name}, bag of words"
        self.identity = digest("bag", reader.identity)

    def table(self, images: ImageSource, indices: Sequence[int]) -> BagTable:
        """Read the words of images."""
        return BagTable(self.reader.read(images, indices))


class BagTable:
    """Texts whose words are counted over the words of each call: a whole vocabulary would be mostly zeros."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts

    def __contains__(self, image: int) -> bool:
        return image in self._texts

    def rows(self, images: Sequence[int]) -> Vectors:
        """Return counts of words."""
        words = [self._texts[image].split() for image in images]
        columns = {word: column for column, word in enumerate(sorted({w for row in words for w in row}))}
        counts = np.zeros((len(words), max(len(columns), 1)))
        for row, found in zip(counts, words, strict=True):
            np.add.at(row, [columns[word] for word in found], 1)
        return counts


class PixelFeatures:
    """The pixels themselves, cut to a square: what is there before any word.

    Args:
        size: side of the square in pixels.
    """

    metric: Metric = "euclidean"

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.name = f"pixels, {size} x {size}"
        self.identity = digest("pixels", str(size))

    def table(self, images: ImageSource, indices: Sequence[int]) -> PixelTable:
        """Read images."""
        rows: dict[int, np.ndarray] = {}
        for positions, pixels in read_pixels(images, indices, self.size, self.name):
            # Bytes: a quarter of the memory, for pixels come from bytes.
            rows.update(zip(positions, pixels.mul(255).round().byte().numpy(), strict=True))
        return PixelTable(rows)


class PixelTable:
    """Pixels kept as bytes."""

    def __init__(self, images: Mapping[int, UInt8[np.ndarray, "3 H W"]]) -> None:
        self._images = images

    def __contains__(self, image: int) -> bool:
        return image in self._images

    def rows(self, images: Sequence[int]) -> Vectors:
        """Return pixels in [0, 1]."""
        return np.stack([self._images[image].reshape(-1) for image in images]) / 255.0
