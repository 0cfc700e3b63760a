"""The tokenizer of a BERT: texts to word ids with start and end, and which word hides another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AutoTokenizer

from pixlex.batch import Words
from pixlex.nn.embedded import EMBEDDED, embedded_directory
from pixlex.nn.texts import KeptTexts, padded


class TextTokenizer:
    """Texts as a BERT reads them.

    Args:
        tokenizer: a transformers tokenizer.
        name: how `load_tokenizer` found it.

    Raises:
        ValueError: it lacks the words for start, end, padding or hiding.
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
        self._bare = KeptTexts(tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: word vectors mean nothing under another one."""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def encode(self, texts: Sequence[str], max_words: int) -> Words:
        """Return texts with start and end, padded on the right to the longest.

        Args:
            texts: one or more.
            max_words: longest text with its start and end, 3 or more; longer ones are cut before their end.
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
        ValueError: nothing to load under that name, or no tokenizer of a BERT.
    """
    embedded = name == EMBEDDED
    source = str(embedded_directory()) if embedded else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=embedded, trust_remote_code=False)
    except (OSError, ValueError) as reason:
        raise ValueError(f"tokenizer {source!r} cannot be loaded: {reason}") from reason
    return TextTokenizer(tokenizer, name=name)
