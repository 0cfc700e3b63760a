"""The evaluation of reconstructions: against a slow reference, for any batches, without side effects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tiny import batches_of, tiny_lqae
from torch import Tensor

from pixlex.eval.evaluate import Evaluation, Pass
from pixlex.eval.metrics import psnr, score_words, ssim, word_folds
from pixlex.eval.pretraining import ExampleSample, evaluate_reconstruction
from pixlex.models.baselines import VQVAE
from pixlex.models.lqae import LQAE

TIMING = "images_per_second"
QUIET = Pass(progress=False)


def numbers(result: Evaluation) -> dict[str, float]:
    """The numbers that do not depend on the clock."""
    return {name: value for name, value in result.values.items() if name != TIMING}


@torch.no_grad()
def slow_reference(model: LQAE, images: Tensor) -> dict[str, float]:
    """One image at a time, straight from the definitions."""
    model.eval()
    rebuilt, masked, codes, log_probability, correct = [], [], [], 0.0, 0
    for row, image in enumerate(images):
        quantized = model.quantize(image[None])
        output = model.reconstruct(model.encode_text(quantized.values))
        mask = torch.from_numpy(np.random.default_rng((9, 0, 100 + row)).random(16) < 0.5)[None]
        codes.append(quantized.codes)
        rebuilt.append(output.clamp(0, 1))
        masked.append(model.reconstruct(model.encode_text(quantized.values, mask)).clamp(0, 1))
        folds = word_folds([100 + row], 16, 2, seed=9)
        scores = score_words(model.language, model.vocabulary.word_ids[quantized.codes], folds)
        log_probability += scores.log_probability
        correct += scores.correct
    copies, flat = torch.cat(rebuilt), torch.cat(codes).numpy()
    values, counts = np.unique(flat, return_counts=True)
    shares = counts / counts.sum()
    return {
        "num_images": len(images),
        "words_per_image": 16,
        "mse": ((images - copies) ** 2).mean().item(),
        "psnr": psnr(images, copies).mean().item(),
        "ssim": ssim(images, copies).mean().item(),
        "masked_mse": ((images - torch.cat(masked)) ** 2).mean().item(),
        "mean_image_mse": ((images - images.mean(0)) ** 2).mean().item(),
        "mean_color_mse": ((images - images.mean((2, 3), keepdim=True)) ** 2).mean().item(),
        "patch_color_mse": (images - F.interpolate(F.avg_pool2d(images, 8), scale_factor=8))
        .square()
        .mean()
        .item(),
        "distinct_codewords": len(values),
        "codebook_usage": len(values) / model.num_codewords,
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        "most_frequent_share": float(shares.max()),
        "distinct_words_per_image": float(np.mean([len(np.unique(row)) for row in flat])),
        "masked_word_accuracy": correct / flat.size,
        "pseudo_perplexity": float(np.exp(-log_probability / flat.size)),
        "text_round_trip_rate": 1.0,
        "word_round_trip_rate": 1.0,
        "tokenizer_round_trip_rate": 1.0,
    }


def test_numbers_equal_a_slow_reference(lqae: LQAE, images: Tensor) -> None:
    expected = slow_reference(lqae, images)
    assert expected["distinct_codewords"] > 2  # else the comparison shows little
    result = evaluate_reconstruction(lqae, batches_of(images, 4), QUIET, seed=9)
    assert numbers(result) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["lqae", "vqvae"])
def test_numbers_and_examples_do_not_depend_on_the_batches(
    kind: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    results = [
        evaluate_reconstruction(model, batches_of(images, size), Pass(progress=False, save_examples=4))
        for size in (1, 3, 10)
    ]
    for result in results[1:]:
        assert numbers(result) == pytest.approx(numbers(results[0]), rel=1e-4)
        assert result.examples["keys"] == results[0].examples["keys"]
        assert result.examples["words"] == results[0].examples["words"]
        assert torch.equal(result.examples["originals"], results[0].examples["originals"])


def test_a_model_in_training_is_measured_as_it_will_be_used(language: Path, images: Tensor) -> None:
    """Whitening takes its running statistics then, not those of the batch, and leaves them alone."""
    model = tiny_lqae(language, search="whitened")
    model.eval()
    expected = evaluate_reconstruction(model, batches_of(images, 4), QUIET)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate_reconstruction(model, batches_of(images, 4), QUIET)
    assert numbers(found) == numbers(expected)
    assert found.examples["words"] == expected.examples["words"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_and_everything_hidden(lqae: LQAE, images: Tensor) -> None:
    """Hiding nothing is the deployed path; hiding everything leaves nothing that depends on the image."""
    shown = evaluate_reconstruction(lqae, batches_of(images, 4), QUIET, mask_ratio=0.0)
    assert shown.values["masked_mse"] == pytest.approx(shown.values["mse"], rel=1e-6)
    hidden = evaluate_reconstruction(lqae, batches_of(images, 4), QUIET, mask_ratio=1.0)
    with torch.no_grad():
        some = lqae.quantizer.embedding[torch.zeros(1, 16, dtype=torch.long)]
        nothing = lqae.reconstruct(lqae.encode_text(some, torch.ones(1, 16, dtype=torch.bool)))
    expected = (images - nothing.clamp(0, 1)).square().mean().item()
    assert hidden.values["masked_mse"] == pytest.approx(expected, rel=1e-5)


def test_examples_are_the_images_and_what_became_of_them(lqae: LQAE, images: Tensor) -> None:
    examples = evaluate_reconstruction(
        lqae, batches_of(images, 3), Pass(progress=False, save_examples=4)
    ).examples
    rows = [int(key.removeprefix("image-")) for key in examples["keys"]]
    assert rows == sorted(set(rows))
    assert len(rows) == 4
    assert torch.equal(examples["originals"], images[rows])
    lqae.eval()
    assert torch.allclose(examples["reconstructions"], lqae.decode(examples["codes"]), atol=1e-5)
    assert examples["words"] is not None
    texts = [" ".join(words) for words in examples["words"]]
    assert [lqae.vocabulary.from_text(text) for text in texts] == examples["codes"].tolist()


def test_every_image_has_the_same_chance_to_be_an_example(images: Tensor) -> None:
    counts: dict[str, int] = dict.fromkeys((f"image-{row}" for row in range(10)), 0)
    codes = torch.zeros(10, 16, dtype=torch.long)
    for seed in range(300):
        sample = ExampleSample(3, seed)
        sample.update(batches_of(images, 10)[0], images, codes)
        for key in sample.result(None)["keys"]:
            counts[key] += 1
    # 90 expected of each, 7.9 the deviation of one count.
    assert sum(counts.values()) == 900
    assert 60 <= min(counts.values()) <= max(counts.values()) <= 120


def test_what_a_model_does_not_have_is_not_measured(lqae: LQAE, vqvae: VQVAE, images: Tensor) -> None:
    """No words; no head, which is noted; nothing asked for; networks for rFID and LPIPS missing."""
    words = {"masked_mse", "masked_word_accuracy", "pseudo_perplexity", "text_round_trip_rate"}
    result = evaluate_reconstruction(vqvae, batches_of(images, 4), QUIET)
    assert not words & result.values.keys()
    assert [note.split()[0] for note in result.notes] == ["rFID", "LPIPS"]
    assert result.examples["words"] is None
    assert result.examples["codes"].shape == (8, 16)
    assert 0 < result.values["codebook_usage"] <= 1
    bare = Pass(progress=False, save_examples=0)
    result = evaluate_reconstruction(lqae, batches_of(images, 4), bare, mask_ratio=None, num_folds=0)
    assert words & result.values.keys() == {"text_round_trip_rate"}
    assert result.examples["keys"] == ()
    lqae.language.has_head = False
    result = evaluate_reconstruction(lqae, batches_of(images, 4), QUIET)
    assert words & result.values.keys() == {"text_round_trip_rate", "masked_mse"}
    assert "has no masked-language-model head" in result.notes[-1]
