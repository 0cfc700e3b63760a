"""Tiny language models of real families: random weights, a tokenizer trained on Python's own manual."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pixlex.nn.language_model import LanguageModel, load_language_model

WORDPIECE = ("bert", "distilbert", "electra", "albert")
FAMILIES = ("bert", "roberta", "distilbert", "modernbert")

BODY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
# Embeddings 24 wide, hidden states 32 wide.
NARROW = {**BODY, "embedding_size": 24}
DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 64}


@cache
def english() -> tuple[str, ...]:
    """Lines of English prose and code from Python's own manual."""
    return tuple(line for _, text in sorted(topics.items()) for line in text.splitlines() if line.strip())[
        :6000
    ]


@cache
def wordpiece() -> Tokenizer:
    """Uncased WordPiece, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return _trained(tokenizer, trainers.WordPieceTrainer, special)


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE with case, as RoBERTa's: words carry the space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "madeupword"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer, special, initial_alphabet=alphabet)


def _trained(tokenizer: Tokenizer, trainer: Any, special: list[str], **options: Any) -> Tokenizer:
    settings = {"vocab_size": 1500, "special_tokens": special, "show_progress": False, **options}
    tokenizer.train_from_iterator(english(), trainer(**settings))
    return tokenizer


def tokenizer_of(family: str) -> Any:
    """The family's tokenizer, with its mask word."""
    if family in WORDPIECE:
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=wordpiece(), **names)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "bos_token": "<s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **names)
    if family == "modernbert":
        tokenizer.add_tokens(["  ", "    "])  # its vocabulary has runs of spaces
    return tokenizer


def configuration(family: str, tokenizer: Any) -> Any:
    """A tiny body; ModernBERT's matrix has more rows than its tokenizer has words, as the real one."""
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    classes: dict[str, Callable[[], Any]] = {
        "bert": lambda: transformers.BertConfig(**BODY, **words),
        "roberta": lambda: transformers.RobertaConfig(**{**BODY, "max_position_embeddings": 66}, **words),
        "distilbert": lambda: transformers.DistilBertConfig(**DISTIL, **words),
        "modernbert": lambda: transformers.ModernBertConfig(
            **BODY, local_attention=8, **{**words, "vocab_size": len(tokenizer) + 7}
        ),
        "electra": lambda: transformers.ElectraConfig(**NARROW, **words),
        "albert": lambda: transformers.AlbertConfig(**NARROW, **words),
    }
    return classes[family]()


@pytest.fixture(scope="session")
def embedded() -> LanguageModel:
    """The embedded language model with its shipped head; a test that changes it loads its own."""
    return load_language_model()


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a tiny masked language model of a family ("bert", "roberta", ...), made once a session."""

    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        tokenizer = tokenizer_of(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = transformers.AutoModelForMaskedLM.from_config(configuration(family, tokenizer))
            with torch.no_grad():  # far from the initial values, where biases are 0 and norms 1
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
