"""The masked autoencoder: transformers' network, positions that it leaves out, features of whole images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_mae, tiny_mae_config, tiny_vqvae

from pixlex.config.lqae import MAEConfig, VisionConfig
from pixlex.models import checkpoint
from pixlex.models.mae import MAE, sine_positions

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NOISE = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))


def test_the_largest_noise_is_hidden_and_hidden_patches_are_not_read() -> None:
    """Three quarters of 16 patches; other pixels there change no prediction."""
    model = tiny_mae()
    output = model(IMAGES, NOISE)
    assert output.mask.sum(1).tolist() == [12] * 3
    assert all(NOISE[i][output.mask[i]].min() > NOISE[i][~output.mask[i]].max() for i in range(3))
    patches = model.patches(IMAGES).masked_fill(output.mask.unsqueeze(-1), 7.0)
    again = model(model.images(patches), NOISE)
    torch.testing.assert_close(again.predicted, output.predicted, atol=1e-5, rtol=1e-5)
    patches = model.patches(IMAGES).masked_fill(~output.mask.unsqueeze(-1), 7.0)
    assert not torch.allclose(model(model.images(patches), NOISE).predicted, output.predicted, atol=1e-3)


def test_features_are_those_of_the_network_with_nothing_hidden() -> None:
    """Against transformers' own forward at mask ratio 0, which shuffles and keeps all."""
    model = tiny_mae()
    features = model.embed(IMAGES)
    assert features.shape == (3, 32)
    model.network.vit.embeddings.config.mask_ratio = 0.0
    hidden = model.network.vit((IMAGES - model.mean) / model.std, noise=NOISE).last_hidden_state
    torch.testing.assert_close(features, hidden[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_patches_and_images_undo_each_other() -> None:
    """Pixels in [0, 1] come back."""
    model = tiny_mae()
    torch.testing.assert_close(model.images(model.patches(IMAGES)), IMAGES)
    first = (IMAGES[0, 2, :8, :8] - 0.406) / 0.225
    torch.testing.assert_close(model.patches(IMAGES)[0, 0].view(8, 8, 3)[..., 2], first)


def test_positions_are_set_fixed_and_different_at_every_place() -> None:
    """A network built by transformers has zeros there, and could not tell where a patch lies."""
    model = tiny_mae()
    for owner, name in (
        (model.network.vit.embeddings, "position_embeddings"),
        (model.network.decoder, "decoder_pos_embed"),
    ):
        positions = getattr(owner, name)[0]
        assert name not in dict(owner.named_parameters())
        assert not positions[0].any()
        assert len(positions[1:].unique(dim=0)) == 16
    assert model.network.vit.embeddings.cls_token.std() > 0.01
    assert model.network.decoder.mask_token.std() > 0.01


def test_sine_positions_are_those_of_the_equation() -> None:
    """sin and cos of the column, then of the row, divided by 10000^(4 i / D)."""
    positions = sine_positions(3, 8)[0]
    row, column = 2, 1
    expected = []
    for place in (column, row):
        angles = torch.tensor([place / 10000 ** (4 * i / 8) for i in range(2)])
        expected += [*angles.sin(), *angles.cos()]
    torch.testing.assert_close(positions[1 + row * 3 + column], torch.stack(expected))


def test_saved_and_loaded_gives_the_same_features(tmp_path: Path) -> None:
    """A model directory like that of a tokenizer; who wants codes is told what it is."""
    model = tiny_mae(seed=3)
    checkpoint.save(model, tmp_path)
    loaded = checkpoint.load_any(str(tmp_path))
    assert isinstance(loaded, MAE)
    assert loaded.config == tiny_mae_config()
    assert torch.equal(loaded.embed(IMAGES), model.embed(IMAGES))
    assert not torch.equal(tiny_mae(seed=4).embed(IMAGES), model.embed(IMAGES))
    with pytest.raises(
        ValueError, match=r"family mae, which writes no codes: expected .* lqae, vqvae or cbvila"
    ):
        checkpoint.load(str(tmp_path))
    checkpoint.save(tiny_vqvae(), tmp_path / "codes")
    assert checkpoint.load(str(tmp_path / "codes")).num_codewords == 64


def test_a_fresh_network_is_drawn_from_the_global_seed_alone() -> None:
    """Two builds after one seed are equal, to the bit."""
    one, other = tiny_mae().state_dict(), tiny_mae().state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must leave some of the 16 patches"),
        ({"mask_ratio": 0.0}, "mask_ratio must leave some"),
        ({"mask_ratio": 0.97}, "mask_ratio must leave some"),
        ({"encoder": VisionConfig(width=30, heads=2)}, "encoder must have a width that 4 divides"),
        ({"decoder": VisionConfig(block="official")}, "decoder must have standard blocks"),
        ({"patch_size": 7}, "multiple of the patch size 7"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAEConfig(**{"image_size": 32, "patch_size": 8, **changes})  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked_shapes")
def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of 3 x 32 x 32, got \(3, 16, 16\)"):
        tiny_mae().embed(torch.rand(1, 3, 16, 16))
