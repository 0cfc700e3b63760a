"""What the features of an image are, and that computing them changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_lqae
from tests.train.running import digest
from torch import Tensor

from pixlex.eval.probe.features import (
    columns_of,
    default_repeats,
    image_features,
    kinds_of,
    weights_fingerprint,
)
from pixlex.eval.probe.study import planned_kinds
from pixlex.models.lqae import LQAE
from pixlex.models.pretrained import build
from pixlex.models.untrained import untrained_copy
from pixlex.models.vqvae import VQVAE


@torch.no_grad()
def test_every_patch_of_every_layer_counts(lqae: LQAE, images: Tensor) -> None:
    """The released code leaves the first patch out."""
    hidden = lqae.encode_text(lqae.quantizer.embedding[lqae.tokenize(images)]).hidden_states
    features = image_features(lqae, images)
    assert len(hidden) == 2
    for number, states in enumerate(hidden):
        assert states.shape[1] == 16
        torch.testing.assert_close(features[f"layer {number}"], states.mean(1), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(features[f"layer {number}"], states[:, 1:].mean(1), atol=1e-3)
    torch.testing.assert_close(features["encoder"], lqae.encoder(images).mean(1))
    torch.testing.assert_close(features["codes"], lqae.quantizer.embedding[lqae.tokenize(images)].mean(1))
    assert (features["pixels"].mean(1) - images.mean((1, 2, 3))).abs().max() < 1e-6


@torch.no_grad()
def test_features_of_a_vqvae(vqvae: VQVAE, images: Tensor) -> None:
    features = image_features(vqvae, images)
    assert list(features) == ["encoder", "codes", "pixels"]
    torch.testing.assert_close(features["codes"], vqvae.codebook.weight[vqvae.tokenize(images)].mean(1))


def test_columns() -> None:
    columns = columns_of({"layer 0": 3, "layer 1": 3, "layer 2": 3, "encoder": 5, "codes": 2})
    assert columns["layers"] == slice(0, 9)
    assert columns["last"] == columns["layer 2"] == slice(6, 9)
    assert columns["encoder"] == slice(9, 14)
    assert columns["codes"] == slice(14, 16)
    assert "layers" not in columns_of({"encoder": 5, "codes": 2})


def test_the_fingerprint_knows_every_weight(lqae: LQAE, language_folder: Path) -> None:
    same = tiny_lqae(language_folder, search="raw")
    assert weights_fingerprint(same) == weights_fingerprint(lqae)
    assert weights_fingerprint(same, "bf16") != weights_fingerprint(lqae)
    with torch.no_grad():
        next(same.language.body.encoder.parameters()).view(-1)[0] += 1
    assert weights_fingerprint(same) != weights_fingerprint(lqae)
    again = tiny_lqae(language_folder, search="raw")
    with torch.no_grad():
        again.encoder.patches.weight.view(-1)[0] += 1
    assert weights_fingerprint(again) != weights_fingerprint(lqae)


@pytest.mark.parametrize("search", ["raw", "whitened"])
def test_an_untrained_copy_has_fresh_weights_and_the_same_language(
    language_folder: Path, images: Tensor, search: str
) -> None:
    model = tiny_lqae(language_folder, search=search)
    before, state = digest(model), torch.random.get_rng_state()
    fresh = untrained_copy(model, images, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert digest(model) == before
    assert not fresh.training
    assert isinstance(fresh, LQAE)
    assert digest(fresh.language) == digest(model.language)
    assert not torch.equal(fresh.encoder.patches.weight, model.encoder.patches.weight)
    assert digest(untrained_copy(model, images, seed=3)) == digest(fresh)
    assert digest(untrained_copy(model, images, seed=4)) != digest(fresh)
    if search == "whitened":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            unmeasured = build(model.config).eval()
        assert fresh.tokenize(images).unique().numel() > unmeasured.tokenize(images).unique().numel()


def test_repeats_make_a_vqvae_as_wide_as_the_layers(lqae: LQAE, vqvae: VQVAE) -> None:
    """The number of layers where both are equally wide: here 2 of 32, at the paper's sizes 13 of 768."""
    assert default_repeats(vqvae, lqae) == {"encoder": 2, "codes": 2 * 32 // 8}
    assert default_repeats(vqvae, None) == default_repeats(lqae, lqae) == {}


def test_which_features_are_probed(lqae: LQAE, vqvae: VQVAE) -> None:
    assert planned_kinds([lqae, vqvae], None) == [("layers",), ("encoder", "codes")]
    asked = planned_kinds([lqae, vqvae], ["layers", "codes", "pixels", "codes"])
    assert asked == [("layers", "codes", "pixels"), ("codes",)]
    assert set(kinds_of(vqvae)) < set(kinds_of(lqae))
    with pytest.raises(
        ValueError, match="no model has the features 'layers': expected codes, encoder, pixels of a VQ"
    ):
        planned_kinds([vqvae], ["codes", "layers"])
    with pytest.raises(
        ValueError, match="a VQ-VAE has none of layers, last: expected codes, encoder, pixels"
    ):
        planned_kinds([lqae, vqvae], ["layers", "last"])
