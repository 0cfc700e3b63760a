"""Captions foretold with the right image and with another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_frozen

from pixlex.batch import ImageTextBatch
from pixlex.eval.captions import evaluate_captions
from pixlex.models.frozen import Frozen

TEXTS = ("for the class", "a", "the statement of a class", "is", "in the")
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(causal_language: Path) -> Frozen:
    return tiny_frozen(causal_language)


def _batches(model: Frozen, size: int) -> Iterator[ImageTextBatch]:
    for first in range(0, 5, size):
        texts = TEXTS[first : first + size]
        words = model.language.encode(texts, 16)
        yield ImageTextBatch(
            IMAGES[first : first + size],
            torch.full((len(texts),), -1),
            texts,
            torch.arange(len(texts)) + first,
            texts=texts,
            image_ids=torch.arange(len(texts)) + first,
            word_ids=words.word_ids,
            key_padding=words.key_padding,
        )


def test_numbers_against_one_caption_at_a_time(model: Frozen) -> None:
    """The same in batches of any size; the other image is the one before in the batch."""

    def mean(images: torch.Tensor) -> float:
        scores, count = 0.0, 0
        for image, text in zip(images, TEXTS, strict=True):
            words = model.language.encode([text], 16)
            prompt = model.prompt(model.prefix(image.unsqueeze(0)))
            scores += float(model.score(prompt, words.word_ids, words.key_padding))
            count += words.word_ids.numel()
        return -scores / count

    whole = evaluate_captions(model, _batches(model, 5), progress=False, max_words=4)
    assert whole.num_images == 5
    assert whole.caption == pytest.approx(mean(IMAGES), rel=1e-4)
    assert whole.other_image_caption == pytest.approx(mean(IMAGES.roll(1, dims=0)), rel=1e-4)
    assert whole.caption != pytest.approx(whole.other_image_caption, rel=1e-4)
    single = evaluate_captions(model, _batches(model, 1), progress=False, max_words=4, save_examples=3)
    assert single.caption == pytest.approx(whole.caption, rel=1e-4)
    assert single.other_image_caption is None
    assert set(single.numbers) == {"eval/num_images", "eval/caption"}
    assert single.texts == TEXTS[:3]
    assert single.written == tuple(model.caption(IMAGES[:3], 4))


def test_no_image_is_an_error(model: Frozen) -> None:
    with pytest.raises(ValueError, match=r"no image to evaluate \(0 could not be read\)"):
        evaluate_captions(model, [], progress=False)
