"""Errors of hidden patches: the same for any batch size, and compared with a constant."""

from __future__ import annotations

import pytest
import torch
from tests.eval.batches import batches_of
from tests.tiny import tiny_mae

from pixlex.batch import ImageBatch, Skipped
from pixlex.eval.masked_patches import evaluate_masked_patches

IMAGES = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("normalize", [True, False])
def test_numbers_do_not_depend_on_the_batches(normalize: bool) -> None:
    """One by one, in threes, all at once."""
    model = tiny_mae().train()
    results = [
        evaluate_masked_patches(model, batches_of(IMAGES, size), normalize=normalize, progress=False)
        for size in (1, 3, 7)
    ]
    for result in results[1:]:
        assert result.numbers == pytest.approx(results[0].numbers, rel=1e-5)
        torch.testing.assert_close(result.rebuilt, results[0].rebuilt)
    assert model.training
    other = evaluate_masked_patches(model, batches_of(IMAGES, 7), normalize=normalize, seed=1, progress=False)
    assert other.masked_patches != pytest.approx(results[0].masked_patches, rel=1e-5)


def test_a_perfect_prediction_has_no_error_and_a_flat_one_that_of_the_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The patches themselves; their means; and the pictures that come of the first."""
    model = tiny_mae()
    forward = model.forward

    def replaced(images: torch.Tensor, noise: torch.Tensor) -> object:
        output = forward(images, noise)
        patches = model.patches(images)
        output.predicted.copy_(patches if perfect else patches.mean(-1, keepdim=True).expand_as(patches))
        return output

    monkeypatch.setattr(model, "forward", replaced)
    perfect = True
    result = evaluate_masked_patches(
        model, batches_of(IMAGES, 4), normalize=False, progress=False, save_examples=5
    )
    assert result.masked_patches == 0
    assert result.flat_patches > 0.1
    torch.testing.assert_close(result.rebuilt, IMAGES[:5])
    hidden = ((result.seen - result.originals).abs() > 1e-5).any(1).float().mean()
    assert float(hidden) == pytest.approx(0.75, abs=0.01)
    perfect = False
    result = evaluate_masked_patches(model, batches_of(IMAGES, 4), normalize=False, progress=False)
    assert result.masked_patches == pytest.approx(result.flat_patches)


def test_no_image_is_an_error() -> None:
    empty = ImageBatch(
        torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long), (), torch.empty(0, dtype=torch.long),
        (Skipped("a", "broken"),),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"no image to evaluate \(1 could not be read\)"):
        evaluate_masked_patches(tiny_mae(), [empty], normalize=True, progress=False)
