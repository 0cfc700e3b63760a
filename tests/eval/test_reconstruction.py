"""The evaluation of reconstructions: against a slow reference, for any batches, without side effects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.eval.batches import batches_of
from tests.tiny import IMAGE_SIZE, tiny_lqae
from torch import Tensor, nn

from pixlex.batch import ImageBatch, Skipped
from pixlex.eval.examples import ExampleSample
from pixlex.eval.metrics import psnr, ssim
from pixlex.eval.reconstruction import ReconstructionResult, evaluate_reconstruction
from pixlex.eval.words import score_words, word_folds
from pixlex.models.lqae import LQAE
from pixlex.models.vqvae import VQVAE
from pixlex.nn.vocabulary import Vocabulary

TIMING = "eval/images_per_second"


def numbers(result: ReconstructionResult) -> dict[str, float]:
    """The numbers that do not depend on the clock."""
    return {name: value for name, value in result.numbers.items() if name != TIMING}


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
        "eval/num_images": len(images),
        "eval/words_per_image": 16,
        "eval/mse": ((images - copies) ** 2).mean().item(),
        "eval/psnr": psnr(images, copies).mean().item(),
        "eval/ssim": ssim(images, copies).mean().item(),
        "eval/masked_mse": ((images - torch.cat(masked)) ** 2).mean().item(),
        "eval/mean_image_mse": ((images - images.mean(0)) ** 2).mean().item(),
        "eval/mean_color_mse": ((images - images.mean((2, 3), keepdim=True)) ** 2).mean().item(),
        "eval/distinct_codewords": len(values),
        "eval/codebook_usage": len(values) / model.num_codewords,
        "eval/perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        "eval/most_frequent_share": float(shares.max()),
        "eval/distinct_words_per_image": float(np.mean([len(np.unique(row)) for row in flat])),
        "eval/masked_word_accuracy": correct / flat.size,
        "eval/pseudo_perplexity": float(np.exp(-log_probability / flat.size)),
        "eval/text_round_trip_rate": 1.0,
        "eval/word_round_trip_rate": 1.0,
        "eval/tokenizer_round_trip_rate": 1.0,
    }


def test_numbers_equal_a_slow_reference(lqae: LQAE, images: Tensor) -> None:
    expected = slow_reference(lqae, images)
    assert expected["eval/distinct_codewords"] > 2  # else the comparison shows little
    result = evaluate_reconstruction(lqae, batches_of(images, 4), seed=9, progress=False)
    assert numbers(result) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["lqae", "vqvae"])
def test_numbers_and_examples_do_not_depend_on_the_batches(
    kind: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    results = [
        evaluate_reconstruction(model, batches_of(images, size), progress=False, save_examples=4)
        for size in (1, 3, 10)
    ]
    for result in results[1:]:
        assert numbers(result) == pytest.approx(numbers(results[0]), rel=1e-4)
        assert result.examples.keys == results[0].examples.keys
        assert result.examples.words == results[0].examples.words
        assert torch.equal(result.examples.originals, results[0].examples.originals)


def test_the_strongest_constant_has_the_error_that_is_reported(lqae: LQAE, images: Tensor) -> None:
    """A decoder that paints the mean image has exactly `mean_image_mse`."""
    mean = images.mean(0)

    class Constant(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return mean.expand(len(hidden), -1, -1, -1)

    lqae.decoder = Constant()  # type: ignore[assignment]
    result = evaluate_reconstruction(lqae, batches_of(images, 4), progress=False)
    assert result.mse == pytest.approx(result.mean_image_mse, rel=1e-5)
    assert result.masked_mse == pytest.approx(result.mean_image_mse, rel=1e-5)


def test_a_given_mean_image_is_what_is_guessed(vqvae: VQVAE, images: Tensor) -> None:
    guess = torch.full((3, IMAGE_SIZE, IMAGE_SIZE), 0.25)
    result = evaluate_reconstruction(vqvae, batches_of(images, 4), mean_image=guess, progress=False)
    assert result.mean_image_mse == pytest.approx(((images - guess) ** 2).mean().item(), rel=1e-5)


def test_a_vqvae_has_no_measures_of_words(vqvae: VQVAE, images: Tensor) -> None:
    result = evaluate_reconstruction(vqvae, batches_of(images, 4), progress=False)
    words = ("masked_mse", "masked_word_accuracy", "pseudo_perplexity", "text_round_trip_rate")
    assert [getattr(result, name) for name in words] == [None] * 4
    assert not {f"eval/{name}" for name in words} & result.numbers.keys()
    assert result.examples.words is None
    assert result.examples.codes.shape == (10, 16)
    assert 0 < result.codebook_usage <= 1


def test_words_unknown_to_the_tokenizer_lower_its_round_trip_alone(lqae: LQAE, images: Tensor) -> None:
    used = lqae.tokenize(images)[0, 0]
    names = list(lqae.vocabulary.words)
    names[used] = "qzqzq"
    lqae.vocabulary = Vocabulary("all", lqae.vocabulary.word_ids, names)
    result = evaluate_reconstruction(lqae, batches_of(images, 4), progress=False)
    assert result.text_round_trip_rate == 1.0
    assert result.tokenizer_round_trip_rate is not None
    assert result.tokenizer_round_trip_rate < 1.0


def test_measures_can_be_left_out(lqae: LQAE, images: Tensor) -> None:
    result = evaluate_reconstruction(
        lqae, batches_of(images, 4), mask_ratio=None, num_folds=0, save_examples=0, progress=False
    )
    assert result.masked_mse is None
    assert result.pseudo_perplexity is None
    assert result.masked_word_accuracy is None
    assert result.examples.originals.shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert result.text_round_trip_rate == 1.0


def test_a_language_model_without_head_leaves_a_note(lqae: LQAE, images: Tensor) -> None:
    lqae.language.has_head = False
    result = evaluate_reconstruction(lqae, batches_of(images, 4), progress=False)
    assert result.pseudo_perplexity is None
    assert any("has no masked-language-model head" in note for note in result.notes)
    assert result.masked_mse is not None


def test_missing_networks_are_noted(lqae: LQAE, images: Tensor, tmp_path: Path) -> None:
    result = evaluate_reconstruction(lqae, batches_of(images, 4), progress=False)
    assert (result.rfid, result.lpips) == (None, None)
    assert [note.split()[0] for note in result.notes] == ["rFID", "LPIPS"]
    with pytest.raises(ValueError, match="no network at"):
        evaluate_reconstruction(lqae, batches_of(images, 4), fid_features=tmp_path / "absent.pt")


def test_every_part_of_the_model_is_left_in_the_mode_it_was_in(lqae: LQAE, images: Tensor) -> None:
    lqae.train()
    lqae.encoder.eval()
    before = {name: part.training for name, part in lqae.named_modules()}
    evaluate_reconstruction(lqae, batches_of(images, 4), progress=False)
    assert {name: part.training for name, part in lqae.named_modules()} == before
    with pytest.raises(ValueError, match="expected images of 3 x 32 x 32"):
        evaluate_reconstruction(lqae, batches_of(images[..., :8, :8], 4), progress=False)
    assert {name: part.training for name, part in lqae.named_modules()} == before


def test_a_model_in_training_is_measured_as_it_will_be_used(language_folder: Path, images: Tensor) -> None:
    """Whitening takes its running statistics then, not those of the batch, and leaves them alone."""
    model = tiny_lqae(language_folder, search="whitened")
    model.eval()
    expected = evaluate_reconstruction(model, batches_of(images, 4), progress=False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate_reconstruction(model, batches_of(images, 4), progress=False)
    assert numbers(found) == numbers(expected)
    assert found.examples.words == expected.examples.words
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_goes_on_after_an_evaluation_and_weights_are_untouched(lqae: LQAE, images: Tensor) -> None:
    before = {name: value.clone() for name, value in lqae.state_dict().items()}
    evaluate_reconstruction(lqae, batches_of(images, 4), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in lqae.state_dict().items())
    lqae.train()
    (lqae(images).reconstruction - images).square().mean().backward()
    assert all(weight.grad is not None for weight in lqae.decoder.parameters())


def test_a_limit_counts_images_and_stops_reading(vqvae: VQVAE, images: Tensor) -> None:
    read = []

    def counted() -> object:
        for batch in batches_of(images, 4):
            read.append(len(batch.images))
            yield batch

    result = evaluate_reconstruction(vqvae, counted(), limit=6, progress=False)  # type: ignore[arg-type]
    assert read == [4, 4]
    assert numbers(result) == pytest.approx(
        numbers(evaluate_reconstruction(vqvae, batches_of(images[:6], 6), progress=False)), rel=1e-5
    )


def test_skipped_images_are_passed_on(vqvae: VQVAE, images: Tensor) -> None:
    broken = Skipped("torn.png", "truncated")
    batches = [dataclasses.replace(batch, skipped=(broken,)) for batch in batches_of(images, 5)]
    assert evaluate_reconstruction(vqvae, batches, progress=False).skipped == (broken, broken)


def test_no_image_at_all_is_refused(vqvae: VQVAE) -> None:
    none = torch.empty(0, dtype=torch.long)
    torn = (Skipped("torn.png", "truncated"),)
    nothing = ImageBatch(torch.empty(0, 3, IMAGE_SIZE, IMAGE_SIZE), none, (), none, torn)
    with pytest.raises(ValueError, match=r"no image to evaluate \(1 could not be read\)"):
        evaluate_reconstruction(vqvae, [nothing], progress=False)


def test_a_mask_ratio_out_of_range_is_refused(lqae: LQAE, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask_ratio must lie in \[0, 1\], got 1.5"):
        evaluate_reconstruction(lqae, batches_of(images, 4), mask_ratio=1.5)


def test_nothing_and_everything_hidden(lqae: LQAE, images: Tensor) -> None:
    """Hiding nothing is the deployed path; hiding everything leaves nothing that depends on the image."""
    shown = evaluate_reconstruction(lqae, batches_of(images, 4), mask_ratio=0.0, progress=False)
    assert shown.masked_mse == pytest.approx(shown.mse, rel=1e-6)
    hidden = evaluate_reconstruction(lqae, batches_of(images, 4), mask_ratio=1.0, progress=False)
    with torch.no_grad():
        some = lqae.quantizer.embedding[torch.zeros(1, 16, dtype=torch.long)]
        nothing = lqae.reconstruct(lqae.encode_text(some, torch.ones(1, 16, dtype=torch.bool)))
    expected = (images - nothing.clamp(0, 1)).square().mean().item()
    assert hidden.masked_mse == pytest.approx(expected, rel=1e-5)


def test_examples_are_the_images_and_what_became_of_them(lqae: LQAE, images: Tensor) -> None:
    examples = evaluate_reconstruction(lqae, batches_of(images, 3), progress=False, save_examples=4).examples
    rows = [int(key.removeprefix("image-")) for key in examples.keys]
    assert rows == sorted(set(rows))
    assert len(rows) == 4
    assert torch.equal(examples.originals, images[rows])
    lqae.eval()
    assert torch.allclose(examples.reconstructions, lqae.decode(examples.codes), atol=1e-5)
    assert examples.words is not None
    texts = [" ".join(words) for words in examples.words]
    assert [lqae.vocabulary.from_text(text) for text in texts] == examples.codes.tolist()


def test_every_image_has_the_same_chance_to_be_an_example(vqvae: VQVAE, images: Tensor) -> None:
    counts: dict[str, int] = dict.fromkeys((f"image-{row}" for row in range(10)), 0)
    codes = torch.zeros(10, 16, dtype=torch.long)
    for seed in range(300):
        sample = ExampleSample(3, seed)
        sample.update(batches_of(images, 10)[0], images, codes)
        for key in sample.result(vqvae).keys:
            counts[key] += 1
    # 90 expected of each, 7.9 the deviation of one count.
    assert sum(counts.values()) == 900
    assert 60 <= min(counts.values()) <= max(counts.values()) <= 120


def test_half_precision_gives_nearly_the_same(lqae: LQAE, images: Tensor) -> None:
    full = evaluate_reconstruction(lqae, batches_of(images, 5), progress=False)
    half = evaluate_reconstruction(lqae, batches_of(images, 5), precision="bf16", progress=False)
    assert half.mse == pytest.approx(full.mse, rel=0.05)
    assert half.mse != full.mse
    assert half.examples.reconstructions.dtype == torch.float32


def test_progress_shows_count_and_total(
    vqvae: VQVAE, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_reconstruction(vqvae, batches_of(images, 5), total=10)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "images/s" in shown
