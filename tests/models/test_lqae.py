"""LQAE as a whole: words in, words out, the language model outside and untouched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_lqae, tiny_lqae_config, tiny_vqvae

from pixlex.config.lqae import LQAEConfig
from pixlex.models.lqae import LQAE
from pixlex.nn.codebook import straight_through
from pixlex.nn.language_model import load_language_model


@pytest.fixture
def model(language: Path) -> LQAE:
    return tiny_lqae(language)


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_decoding_the_codes_is_the_reconstruction(model: LQAE) -> None:
    """image -> codes -> image through the language model equals the unmasked pass, clipped."""
    expected = model(IMAGES).reconstruction.clamp(0, 1)
    torch.testing.assert_close(model.decode(model.tokenize(IMAGES)), expected)


def test_the_language_model_reads_word_embeddings_at_its_own_positions(model: LQAE) -> None:
    """The hidden states equal those of the language model called with the ids of the words."""
    quantized = model.quantize(IMAGES)
    read = model.encode_text(quantized.values).last
    reference = model.language.model if hasattr(model.language, "model") else None
    ids = model.word_ids(quantized.codes)
    again = model.language(model.language.word_embedding[ids]).last
    torch.testing.assert_close(read, again)
    assert reference is None or ids.max() < model.language.vocab_size


def test_hidden_words_are_unknown_to_everything_after(model: LQAE) -> None:
    """What is masked cannot reach the reconstruction: another word there changes nothing."""
    quantized = model.quantize(IMAGES)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 5] = True
    values = quantized.values.detach().clone()
    values[:, 5] = values[:, 5].roll(1, 0) + 1
    before = model.reconstruct(model.encode_text(quantized.values, mask))
    torch.testing.assert_close(model.reconstruct(model.encode_text(values, mask)), before)
    assert not torch.allclose(model.reconstruct(model.encode_text(values)), before)


def test_masked_words_get_no_gradient_and_seen_ones_do(model: LQAE) -> None:
    """Straight-through reaches the patches that were seen; hidden ones only through the encoder's attention."""
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, :8] = True
    values = model.quantize(IMAGES).values.detach().requires_grad_()
    model.reconstruct(model.encode_text(values, mask)).square().sum().backward()
    assert values.grad is not None
    assert (values.grad[:, :8] == 0).all()
    assert (values.grad[:, 8:].abs().sum(-1) > 0).all()


def test_the_language_model_is_outside_the_saved_tree(model: LQAE) -> None:
    """Neither parameters nor state hold it, yet it follows the model to another dtype."""
    language_sizes = {tuple(p.shape) for p in model.language.parameters()}
    assert (model.language.vocab_size, 32) in language_sizes
    assert all(model.language.vocab_size not in tensor.shape for tensor in model.state_dict().values())
    names = [name for name, _ in model.named_parameters()]
    assert all(name.startswith(("encoder", "projector", "quantizer", "decoder")) for name in names)
    model.double()
    assert next(model.language.parameters()).dtype == torch.float64


def test_training_mode_leaves_the_language_model_alone(model: LQAE) -> None:
    """train() wakes no dropout in the language model."""
    model.train()
    assert not model.language.training
    words = model.language.word_embedding[:16][None]
    assert torch.equal(model.language(words).last, model.language(words).last)


def test_gradients_reach_encoder_and_decoder_but_not_the_language_model(model: LQAE) -> None:
    """One backward pass through masked words."""
    mask = torch.rand(3, 16) < 0.5
    model.train()
    model(IMAGES, mask).reconstruction.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(parameter.grad is None for parameter in model.language.parameters())


def test_words_do_not_depend_on_the_batch(model: LQAE) -> None:
    """At inference the words of an image are the same alone and among others."""
    together = model.tokenize(IMAGES)
    assert torch.equal(torch.cat([model.tokenize(one[None]) for one in IMAGES]), together)


def test_predicted_words_into_the_decoder(language: Path) -> None:
    """Table 3, row F: the decoder reads the embedding of the likeliest codeword, gradient by softmax."""
    config = dataclasses.replace(tiny_lqae_config(language), decoder_input="predicted")
    model = LQAE.build(config).eval()
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    output = model(IMAGES)
    logits = model.language.logits(output.language.last, model.vocabulary.word_ids)
    torch.testing.assert_close(seen[0], model.quantizer.embedding[logits.argmax(-1)])
    expected = straight_through(logits.softmax(-1) @ model.quantizer.embedding, seen[0].detach())
    assert torch.equal(expected.detach(), seen[0].detach())
    output.reconstruction.sum().backward()
    assert model.encoder.patches.weight.grad is not None


def test_mixed_layers_into_the_decoder(language: Path) -> None:
    """The decoder reads the weighted mean of all normalized layers; weights are learned and start even."""
    config = dataclasses.replace(tiny_lqae_config(language), decoder_input="mixed")
    model = LQAE.build(config).eval()
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    layers = model(IMAGES).language.hidden_states
    normalized = [
        (one - one.mean(-1, keepdim=True)) / (one.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        for one in layers
    ]
    torch.testing.assert_close(seen[0], torch.stack(normalized).mean(0))
    with torch.no_grad():
        model.layer_weights[1] = 40.0
    output = model(IMAGES)
    torch.testing.assert_close(seen[1], normalized[1])
    output.reconstruction.square().sum().backward()
    assert model.layer_weights.grad is not None
    assert model.encoder.patches.weight.grad is not None


def test_random_weights_keep_the_words(language: Path) -> None:
    """Table 3, row B: same word embeddings, hence same fingerprint and codebook; another body."""
    config = tiny_lqae_config(language)
    part = dataclasses.replace(config.language, random_weights=True, random_seed=3)
    torch.manual_seed(0)
    trained = LQAE.build(config)
    torch.manual_seed(0)
    untrained = LQAE.build(dataclasses.replace(config, language=part))
    assert torch.equal(trained.quantizer.embedding, untrained.quantizer.embedding)
    assert trained.language.fingerprint == untrained.language.fingerprint
    words = trained.quantizer.embedding[:16][None]
    assert not torch.allclose(trained.encode_text(words).last, untrained.encode_text(words).last)


def test_too_many_patches_for_the_language_model_are_refused(language: Path) -> None:
    """64 positions cannot hold 256 words; the numbers are in the message."""
    config = tiny_lqae_config(language)
    too_fine = LQAEConfig(
        image_size=32, patch_size=2, encoder=config.encoder, decoder=config.decoder, language=config.language,
        quantizer=config.quantizer,
    )  # fmt: skip
    loaded = load_language_model(str(language))
    assert loaded.max_words < 256
    with pytest.raises(ValueError, match=rf"256 words.*at most {loaded.max_words}"):
        LQAE.build(too_fine)


def test_vqvae_decodes_what_it_tokenizes() -> None:
    """The baseline: image -> codes -> image equals its own pass, clipped."""
    model = tiny_vqvae()
    codes = model.tokenize(IMAGES)
    assert codes.max() < model.num_codewords
    torch.testing.assert_close(model.decode(codes), model(IMAGES).reconstruction.clamp(0, 1))
