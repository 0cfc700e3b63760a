"""The answerers that read words without a large language model, by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from pixlex.eval.few_shot.features import BagOfWords, LayerFeatures, SentenceFeatures
from pixlex.eval.few_shot.nearest import NearestClassMean
from pixlex.eval.few_shot.readers import CachedReader, ModelWords, Shortened, TextReader
from pixlex.models.inference import Precision
from pixlex.models.pretrained import Tokenizer
from pixlex.nn.language import LanguageModel, load_language_model
from pixlex.nn.vocabulary import build_vocabulary

WordAnswerer = Literal["sentence", "layers", "last-layer", "bag"]
WORD_ANSWERERS: tuple[WordAnswerer, ...] = ("sentence", "layers", "last-layer", "bag")


def model_reader(
    model: Tokenizer,
    name: str,
    *,
    code_words: LanguageModel | None = None,
    words: Sequence[str] | None = None,
    keep_share: float = 1.0,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> TextReader:
    """Return the reader of a model's words.

    Args:
        model: an LQAE, or a VQ-VAE whose codes are rendered as words.
        name: what to call it.
        code_words: the language model whose whole words stand for a VQ-VAE's codes, in the order of its
            vocabulary; needed for a VQ-VAE alone.
        words: these words instead.
        keep_share: how much of the words is kept, in (0, 1].
        cache: folder that keeps the words of images; None keeps none.
        device: where to compute.
        precision: bf16 gives other words than fp32 for some patches.

    Raises:
        ValueError: a VQ-VAE without words or with too few, or a share out of range.
    """
    if model.vocabulary is None and code_words is not None:
        words = build_vocabulary(code_words).words
    reader: TextReader = ModelWords(model, name=name, words=words, device=device, precision=precision)
    if cache is not None:
        reader = CachedReader(reader, cache)
    return reader if keep_share == 1 else Shortened(reader, keep_share)


def word_answerers(
    reader: TextReader,
    kinds: Sequence[WordAnswerer],
    *,
    model: Tokenizer | None = None,
    encoder: LanguageModel | None = None,
    device: torch.device | str = "cpu",
) -> list[NearestClassMean]:
    """Return the answerers of some kinds that a reader can have.

    Args:
        reader: turns images into text.
        kinds: `sentence` (a sentence encoder reads the text), `layers` and `last-layer` (the language model
            that the words belong to; left out unless the model is an LQAE), `bag` (counts of words).
        model: whose words they are; None for text of no model.
        encoder: the sentence encoder; None for the embedded one.
        device: where the sentence encoder computes.
    """
    answerers = []
    for kind in kinds:
        if kind == "sentence":
            features = SentenceFeatures(reader, encoder or embedded_encoder(), device=device)
            answerers.append(NearestClassMean(features))
        elif kind == "bag":
            answerers.append(NearestClassMean(BagOfWords(reader)))
        elif model is not None and model.vocabulary is not None:
            layers = LayerFeatures(model, reader, "all" if kind == "layers" else "last")
            answerers.append(NearestClassMean(layers))
    return answerers


@lru_cache(maxsize=1)
def embedded_encoder() -> LanguageModel:
    """Return the embedded sentence encoder, loaded once."""
    return load_language_model()
