"""Images as vectors: words read as text or by their language model, counts of words, pixels, an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8

from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import digest
from pixlex.eval.few_shot.readers import TextReader, compute_images, read_pixels
from pixlex.models.checkpoint import Model, fingerprint
from pixlex.models.inference import Precision, computing
from pixlex.models.lqae import LQAE
from pixlex.nn.language_model import LanguageModel

Metric = Literal["cosine", "euclidean"]

# Texts that go through a language model together.
_BATCH_SIZE = 32


class Features(ABC):
    """Turns images into vectors.

    Attributes:
        name: their name in tables.
        identity: a fingerprint of all that decides the vector of an image besides the image.
        metric: how vectors are compared.
    """

    name: str
    identity: str
    metric: Metric = "cosine"

    @abstractmethod
    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, Any]:
        """Return what is kept of each image, by its position; one that cannot be read is left out."""

    def vectors(self, kept: Sequence[Any]) -> Float64[np.ndarray, "B D"]:
        """Return one vector for each image, comparable within this call."""
        return np.stack(kept).astype(np.float64)


class _TextFeatures(Features):
    """Vectors of texts, each computed once: the settings of a table share most of their images."""

    def __init__(self, reader: TextReader) -> None:
        self.reader = reader
        self._vectors: dict[str, np.ndarray] = {}

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, Float32[np.ndarray, " D"]]:
        """Read the words of images and encode them."""
        texts = self.reader.read(images, indices)
        # By length, so that little of a batch is padding.
        new = sorted(set(texts.values()) - self._vectors.keys(), key=lambda text: (len(text), text))
        for first in range(0, len(new), _BATCH_SIZE):
            chunk = new[first : first + _BATCH_SIZE]
            self._vectors.update(zip(chunk, self.encode(chunk), strict=True))
        return {index: self._vectors[text] for index, text in texts.items()}

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
        """Return the vectors of texts."""


class SentenceFeatures(_TextFeatures):
    """The words of an image read as text by a sentence encoder.

    The text is tokenized as the encoder's tokenizer does it, special words included, and the vector is the
    mean of the last hidden states over all words that are no padding, the special ones included: the pooling
    that the embedded model was trained with. A text longer than the encoder reads is divided into pieces, each
    with special words of its own, whose means are averaged by their number of words.

    Args:
        reader: turns images into text.
        encoder: a masked language model, such as the embedded one.
        device: where to compute.
    """

    def __init__(
        self, reader: TextReader, encoder: LanguageModel, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(reader)
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device)
        self.name = f"{reader.name}, sentence encoder"
        self.identity = digest("sentence", reader.identity, encoder.fingerprint)

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
        sums.index_add_(0, owners, hidden.masked_fill(key_padding.unsqueeze(-1), 0).double().sum(1))
        counts = torch.zeros(len(texts)).index_add_(0, owners, lengths.float())
        return (sums / counts.unsqueeze(1)).float().numpy()


class LayerFeatures(_TextFeatures):
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

    def __init__(self, model: LQAE, reader: TextReader, layers: Literal["last", "all"] = "all") -> None:
        super().__init__(reader)
        self.model, self.layers = model, layers
        which = "last layer" if layers == "last" else "all layers"
        self.name = f"{reader.name}, language model, {which}"
        self.identity = digest("layers", reader.identity, model.language.fingerprint, layers)

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "B D"]:
        """Return the vectors of texts."""
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
            states = self.model.encode_text(
                self.model.quantizer.embedding[codes.to(device)], all_states=True
            ).hidden_states
        if self.layers == "last":
            return states[-1].float().mean(1).cpu().numpy()
        means = [torch.nn.functional.normalize(state.float().mean(1), dim=1) for state in states]
        return torch.cat(means, dim=1).cpu().numpy()


class BagOfWords(Features):
    """How often each word occurs in an image; where it stands does not matter.

    Args:
        reader: turns images into text; words are what blanks and line ends separate.
    """

    def __init__(self, reader: TextReader) -> None:
        self.reader = reader
        self.name = f"{reader.name}, bag of words"
        self.identity = digest("bag", reader.identity)

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, str]:
        """Read the words of images."""
        return self.reader.read(images, indices)

    def vectors(self, kept: Sequence[str]) -> Float64[np.ndarray, "B D"]:
        """Return counts of the words of this call: those of a whole vocabulary would be mostly zeros."""
        words = [text.split() for text in kept]
        columns = {word: column for column, word in enumerate(sorted({w for row in words for w in row}))}
        counts = np.zeros((len(words), max(len(columns), 1)))
        for row, found in zip(counts, words, strict=True):
            np.add.at(row, [columns[word] for word in found], 1)
        return counts


class PixelFeatures(Features):
    """The pixels themselves, cropped to a square: what is there before any word.

    Args:
        size: side of the square in pixels.
    """

    metric: Metric = "euclidean"

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.name = f"pixels, {size} x {size}"
        self.identity = digest("pixels", str(size))

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, UInt8[np.ndarray, "3 H W"]]:
        """Read images, as bytes: a quarter of the memory, for pixels come from bytes."""
        rows: dict[int, np.ndarray] = {}
        for positions, pixels in read_pixels(images, indices, self.size, self.name):
            rows.update(zip(positions, pixels.mul(255).round().byte().numpy(), strict=True))
        return rows

    def vectors(self, kept: Sequence[UInt8[np.ndarray, "3 H W"]]) -> Float64[np.ndarray, "B D"]:
        """Return pixels in [0, 1]."""
        return np.stack([one.reshape(-1) for one in kept]) / 255.0


class EncoderFeatures(Features):
    """The vision encoder of a model: the mean of its patch vectors, nothing hidden.

    Args:
        model: neither its codebook nor its words are used; is put into evaluation mode on `device`.
        name: its name in tables.
        device: where to compute.
        precision: bf16 computes under autocast.
    """

    def __init__(
        self, model: Model, *, name: str, device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> None:
        self.model, self.precision = model.eval().to(device), precision
        self.name = f"{name}, encoder"
        self.identity = digest("encoder", fingerprint(model, precision=precision))

    def read(self, images: ImageSource, indices: Sequence[int]) -> dict[int, Float[np.ndarray, " D"]]:
        """Read images and encode each once."""
        rows = compute_images(images, indices, self.model, self.model.embed, self.name, self.precision)
        return {index: row.numpy() for index, row in rows.items()}
