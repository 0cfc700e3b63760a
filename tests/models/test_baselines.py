"""MAE: transformers' network with positions of ours. Frozen: an image as embeddings before a caption's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.eval.llm.tiny_causal import tiny_causal
from tests.tiny import tiny_frozen, tiny_mae

from pixlex.config.lqae import FrozenConfig, MAEConfig, VisionConfig
from pixlex.models import checkpoint
from pixlex.models.baselines import Frozen
from pixlex.nn.transformer import sine_positions

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NOISE = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))


def test_the_largest_noise_is_hidden_and_hidden_patches_are_not_read() -> None:
    """Three quarters of 16 patches; other pixels there change no prediction."""
    model = tiny_mae()
    output = model(IMAGES, NOISE)
    assert output.mask.sum(1).tolist() == [12] * 3
    assert all(NOISE[i][output.mask[i]].min() > NOISE[i][~output.mask[i]].max() for i in range(3))
    patches, hidden = model.patches(IMAGES), output.mask.unsqueeze(-1)
    again = model(model.images(patches.masked_fill(hidden, 7.0)), NOISE)
    torch.testing.assert_close(again.predicted, output.predicted, atol=1e-5, rtol=1e-5)
    other = model(model.images(patches.masked_fill(~hidden, 7.0)), NOISE)
    assert not torch.allclose(other.predicted, output.predicted, atol=1e-3)


def test_features_are_those_of_the_network_with_nothing_hidden() -> None:
    """Against transformers' own forward at mask ratio 0, which shuffles and keeps all."""
    model = tiny_mae()
    features = model.embed(IMAGES)
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
    """A network built by transformers has zeros there; draws come from the global seed alone."""
    model, network = tiny_mae(), tiny_mae().network
    for owner, name in (
        (network.vit.embeddings, "position_embeddings"),
        (network.decoder, "decoder_pos_embed"),
    ):
        positions = getattr(owner, name)[0]
        assert name not in dict(owner.named_parameters())
        assert not positions[0].any()
        assert len(positions[1:].unique(dim=0)) == 16
    assert network.vit.embeddings.cls_token.std() > 0.01
    assert network.decoder.mask_token.std() > 0.01
    again = network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.network.state_dict().items())


def test_sine_positions_are_those_of_the_equation() -> None:
    """sin and cos of the column, then of the row, divided by 10000^(4 i / D)."""
    row, column, expected = 2, 1, []
    for place in (column, row):
        angles = torch.tensor([place / 10000 ** (4 * i / 8) for i in range(2)])
        expected += [*angles.sin(), *angles.cos()]
    torch.testing.assert_close(sine_positions(3, 8)[0, 1 + row * 3 + column], torch.stack(expected))


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


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_are_those_of_the_language_model_behind_the_prefix(tmp_path: Path, family: str) -> None:
    """Row by row without padding: start word, two embeddings, the words before."""
    model = tiny_frozen(tiny_causal(tmp_path, family=family))
    language = model.language
    words = language.encode(["for the class", "a"], max_words=16)
    logits, prefix = model(IMAGES[:2], words.word_ids, words.key_padding), model.prefix(IMAGES[:2])
    assert prefix.shape == (2, 2, 32)
    assert not torch.allclose(prefix[0], prefix[1])
    for row in range(2):
        ids = words.word_ids[row][~words.key_padding[row]]
        start = language.embed(torch.tensor(language.start_ids, dtype=torch.long))
        read = torch.cat([start, prefix[row], language.embed(ids)]).unsqueeze(0)
        expected = language.body(inputs_embeds=read).logits[0, -len(ids) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(ids)], expected, atol=1e-4, rtol=1e-4)
    of_first = model(IMAGES[:1].expand(2, -1, -1, -1), words.word_ids, words.key_padding)
    for of_all, prompts in ((logits, prefix), (of_first, prefix[:1])):
        scores = model.score(model.prompt(prompts), words.word_ids, words.key_padding)
        chosen = of_all.double().log_softmax(-1).gather(-1, words.word_ids.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(scores, (chosen * ~words.key_padding).sum(1), atol=1e-4, rtol=1e-4)


def test_saved_without_the_language_model_and_loaded_with_it(tmp_path: Path, causal_language: Path) -> None:
    """Name and hash stay; another language model is refused; it may lie elsewhere."""
    model, folder = tiny_frozen(causal_language), tmp_path / "model"
    checkpoint.save(model, folder)
    parts = {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
    assert parts == {"encoder", "projector"}
    config = json.loads((folder / "config.json").read_text())
    assert config["language"] == {"name": str(causal_language), "fingerprint": model.language.fingerprint}
    same, other = tiny_causal(tmp_path / "same"), tiny_causal(tmp_path / "other", seed=1)
    loaded = checkpoint.load_any(str(folder), language_model=str(same))
    assert isinstance(loaded, Frozen)
    assert loaded.caption(IMAGES, 5) == model.caption(IMAGES, 5)
    with pytest.raises(ValueError, match=r"trained with weights .* mean nothing to another language model"):
        checkpoint.load_any(str(folder), language_model=str(other))
    with pytest.raises(ValueError, match="family frozen, which writes no codes"):
        checkpoint.load(str(folder))


def test_more_embeddings_than_the_language_model_reads_are_refused(causal_language: Path) -> None:
    model = tiny_frozen(causal_language)
    with pytest.raises(ValueError, match=r"num_prefix_tokens is 256, but .* reads at most 256 words"):
        Frozen(FrozenConfig(num_prefix_tokens=256), model.language)
    with pytest.raises(ValueError, match="num_prefix_tokens must be above 0, got 0"):
        FrozenConfig(num_prefix_tokens=0)
