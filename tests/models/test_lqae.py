"""LQAE as a whole: words in, words out, the language model outside and untouched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_lqae, tiny_lqae_config, tiny_vqvae
from torch import Tensor

from pixlex.config.lqae import LQAEConfig
from pixlex.models.lqae import LQAE
from pixlex.nn.codebook import straight_through
from pixlex.nn.language_model import load_language_model


@pytest.fixture
def model(language: Path) -> LQAE:
    return tiny_lqae(language)


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def rebuilt(model: LQAE, mask: Tensor | None = None) -> Tensor:
    """Image to words, words through the language model, and back to the image."""
    return model.reconstruct(model.encode_text(model.quantize(IMAGES).values, mask))


def test_decoding_the_codes_is_the_reconstruction(model: LQAE) -> None:
    """image -> codes -> image through the language model equals the unmasked pass, clipped; so with VQ-VAE."""
    torch.testing.assert_close(model.decode(model.tokenize(IMAGES)), rebuilt(model).clamp(0, 1))
    other = tiny_vqvae()
    codes = other.tokenize(IMAGES)
    assert codes.max() < other.num_codewords
    torch.testing.assert_close(other.decode(codes), other.decoder(other.quantize(IMAGES).values).clamp(0, 1))


def test_hidden_words_are_unknown_to_everything_after(model: LQAE) -> None:
    """What is masked cannot reach the reconstruction: another word there changes nothing."""
    values = model.quantize(IMAGES).values.detach()
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 5] = True
    before = rebuilt(model, mask)
    values[:, 5] = values[:, 5].roll(1, 0) + 1
    torch.testing.assert_close(model.reconstruct(model.encode_text(values, mask)), before)
    assert not torch.allclose(model.reconstruct(model.encode_text(values)), before)


def test_the_language_model_is_outside_the_saved_tree(model: LQAE) -> None:
    """Neither parameters nor state hold it, train() does not wake it, yet it follows to another dtype."""
    assert all(model.language.vocab_size not in tensor.shape for tensor in model.state_dict().values())
    names = [name for name, _ in model.named_parameters()]
    assert all(name.startswith(("encoder", "projector", "quantizer", "decoder")) for name in names)
    assert not model.train().language.training
    model.double()
    assert next(model.language.parameters()).dtype == torch.float64


def test_gradients_reach_encoder_and_decoder_but_not_the_language_model(model: LQAE) -> None:
    """One backward pass through masked words; straight-through reaches the patches that were seen alone."""
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, :8] = True
    rebuilt(model.train(), mask).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(parameter.grad is None for parameter in model.language.parameters())
    values = model.quantize(IMAGES).values.detach().requires_grad_()
    model.reconstruct(model.encode_text(values, mask)).square().sum().backward()
    assert values.grad is not None
    assert (values.grad[:, :8] == 0).all()
    assert (values.grad[:, 8:].abs().sum(-1) > 0).all()


def test_predicted_words_into_the_decoder(language: Path) -> None:
    """Table 3, row F: the decoder reads the embedding of the likeliest codeword, gradient by softmax."""
    model = LQAE.build(dataclasses.replace(tiny_lqae_config(language), decoder_input="predicted")).eval()
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    text = model.encode_text(model.quantize(IMAGES).values)
    model.reconstruct(text).sum().backward()
    logits = model.language.logits(text.last, model.vocabulary.word_ids)
    torch.testing.assert_close(seen[0], model.quantizer.embedding[logits.argmax(-1)])
    expected = straight_through(logits.softmax(-1) @ model.quantizer.embedding, seen[0].detach())
    assert torch.equal(expected.detach(), seen[0].detach())
    assert model.encoder.patches.weight.grad is not None


def test_mixed_layers_into_the_decoder(language: Path) -> None:
    """The decoder reads the weighted mean of all normalized layers; weights are learned and start even."""
    model = LQAE.build(dataclasses.replace(tiny_lqae_config(language), decoder_input="mixed")).eval()
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    text = model.encode_text(model.quantize(IMAGES).values)
    model.reconstruct(text)
    normalized = [
        (one - one.mean(-1, keepdim=True)) / (one.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        for one in text.hidden_states
    ]
    torch.testing.assert_close(seen[0], torch.stack(normalized).mean(0))
    with torch.no_grad():
        model.layer_weights[1] = 40.0
    model.reconstruct(text).square().sum().backward()
    torch.testing.assert_close(seen[1], normalized[1])
    assert model.layer_weights.grad is not None
    assert model.encoder.patches.weight.grad is not None


def test_too_many_patches_for_the_language_model_are_refused(language: Path) -> None:
    """64 positions cannot hold 256 words; the numbers are in the message."""
    config = tiny_lqae_config(language)
    too_fine = LQAEConfig(
        image_size=32, patch_size=2, encoder=config.encoder, decoder=config.decoder, language=config.language,
        quantizer=config.quantizer,
    )  # fmt: skip
    most = load_language_model(str(language)).max_words
    with pytest.raises(ValueError, match=rf"256 words.*at most {most}"):
        LQAE.build(too_fine)
