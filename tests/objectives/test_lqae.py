"""The objectives: untrained values, routing of gradients, terms that are off cost nothing, housekeeping."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_frozen, tiny_lqae, tiny_mae, tiny_vqvae

from pixlex.batch import ImageBatch, ImageTextBatch
from pixlex.config.lqae import LQAEObjectiveConfig, MAEObjectiveConfig, VQVAEObjectiveConfig
from pixlex.models.lqae import LQAE
from pixlex.objectives import lqae as module
from pixlex.objectives.lqae import FrozenObjective, LQAEObjective, MAEObjective, VQVAEObjective
from pixlex.objectives.phase import LossTerms, Objective, Step

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BATCH = ImageBatch(IMAGES, torch.zeros(4, dtype=torch.long), ("a", "b", "c", "d"), torch.arange(4))


def _step(number: int = 0) -> Step:
    return Step(number, torch.Generator().manual_seed(number))


def _loss(model: LQAE, **weights: float) -> LossTerms:
    objective = LQAEObjective(model, LQAEObjectiveConfig(**weights), 10)
    objective.train()
    return objective(BATCH, objective.phases[0], _step())


def test_untrained_masked_words_are_near_the_log_of_the_vocabulary(language: Path) -> None:
    """A random language model with small logits knows nothing: ln V within a nat."""
    model = tiny_lqae(language)
    loss = _loss(model, masked_language_weight=1.0)
    assert float(loss.terms["masked_language"].detach()) == pytest.approx(
        math.log(model.language.vocab_size), abs=1.0
    )


def test_terms_with_weight_zero_are_not_computed(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight 0 calls nothing; that is why a language model without a head may serve."""

    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("computed to be multiplied by zero")

    for name in ("masked_word_loss", "commitment_loss", "entropy_regularization"):
        monkeypatch.setattr(module, name, fail)
    loss = _loss(tiny_lqae(language), commitment_weight=0.0, masked_language_weight=0.0)
    assert set(loss.terms) == {"reconstruction"}


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_extreme_mask_ratios_stay_finite(language: Path, ratio: float) -> None:
    """Nothing hidden was 0/0 in the released code; everything hidden leaves nothing to read."""
    loss = _loss(tiny_lqae(language), mask_ratio_min=ratio, mask_ratio_max=ratio, masked_language_weight=1.0)
    assert torch.isfinite(loss.total)
    assert (float(loss.terms["masked_language"].detach()) == 0) == (ratio == 0)
    loss.total.backward()


ROUTES = {
    "reconstruction": {"encoder": True, "decoder": True},
    "commitment": {"encoder": True, "decoder": False},
    "masked_language": {"encoder": True, "decoder": False},
    "entropy": {"encoder": True, "decoder": False},
}


@pytest.mark.parametrize("term", ROUTES)
def test_gradient_routing(language: Path, term: str) -> None:
    """Which part each term moves; the language model none."""
    model = tiny_lqae(language, search="raw")
    loss = _loss(model, commitment_weight=1.0, masked_language_weight=1.0, entropy_weight=1.0)
    loss.terms[term].backward()
    for part, moved in ROUTES[term].items():
        gradients = [p.grad for p in getattr(model, part).parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == moved, part
    assert all(p.grad is None for p in model.language.parameters())


def test_housekeeping_moves_running_statistics_and_counts(language: Path) -> None:
    """forward changes no buffer, after_step does; counts are those of the batch."""
    model = tiny_lqae(language)
    objective = LQAEObjective(model, LQAEObjectiveConfig(), 10)
    objective.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = objective(BATCH, objective.phases[0], _step())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    measures = objective.after_step(_step(), loss)
    assert not torch.equal(model.quantizer.whitening.mean, before["quantizer.whitening.mean"])
    assert 1 <= measures["perplexity"] <= measures["distinct_codewords"] <= 64


def test_a_language_model_without_a_head(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting."""
    model = tiny_lqae(language)
    monkeypatch.setattr(model.language, "has_head", False)
    with pytest.raises(ValueError, match="masked_language_weight=0"):
        LQAEObjective(model, LQAEObjectiveConfig(), 10)
    LQAEObjective(model, LQAEObjectiveConfig(masked_language_weight=0.0), 10)


def test_vqvae_objective_restarts_dead_codewords() -> None:
    """A planted dead codebook comes back to life, and every codeword of the model can be reached."""
    model = tiny_vqvae()
    with torch.no_grad():
        model.codebook.weight[8:] = 1e6
    objective = VQVAEObjective(model, VQVAEObjectiveConfig(restart_after=3), 10)
    objective.train()
    restarted = 0.0
    for number in range(3):
        loss = objective(BATCH, objective.phases[0], _step(number))
        assert set(loss.terms) == {"reconstruction", "codebook", "commitment"}
        restarted += objective.after_step(_step(number), loss)["restarted"]
    assert restarted >= 56
    assert model.codebook.weight.abs().max() < 1e3


def test_raw_commitment_is_to_the_words_themselves(language: Path) -> None:
    """Where a learned codebook picks words, the released code also ties patch vectors to their embeddings."""
    model = tiny_lqae(language, search="assigned")
    loss = _loss(model, raw_commitment_weight=0.5, masked_language_weight=0.0)
    patches = model.projector(model.encoder(IMAGES))
    words = model.quantizer.embedding[model.tokenize(IMAGES)]
    torch.testing.assert_close(loss.terms["raw_commitment"], (patches - words).square().mean())
    rest = loss.terms["reconstruction"] + 0.005 * loss.terms["commitment"] + loss.terms["codebook"]
    torch.testing.assert_close(loss.total, rest + 0.5 * loss.terms["raw_commitment"])


PARTS = (IMAGES, torch.zeros(4, dtype=torch.long), ("a", "b", "c", "d"), torch.arange(4))


def _loss_of(objective: Objective, batch: ImageBatch | None = None, number: int = 0) -> LossTerms:
    step = Step(number, torch.Generator().manual_seed(number))
    loss: LossTerms = objective(batch or ImageBatch(*PARTS), objective.phases[0], step)
    assert objective.after_step(step, loss) == {}
    return loss


def _captions(objective: FrozenObjective, *texts: str) -> ImageTextBatch:
    words, count = objective.model.language.encode(texts, 16), len(texts)
    return ImageTextBatch(
        *(part[:count] for part in PARTS), texts=texts, image_ids=torch.arange(count),
        word_ids=words.word_ids, key_padding=words.key_padding,
    )  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_of_mae_is_that_of_transformers(normalize: bool) -> None:
    """With the same noise, normalized targets, which small predictions explain nothing of, or pixels."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(normalize_targets=normalize), 10)
    loss = _loss_of(objective)
    network = objective.model.network
    network.config.norm_pix_loss = normalize
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    expected = network((IMAGES - objective.model.mean) / objective.model.std, noise=noise).loss
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["masked_patches"], expected)
    assert not normalize or float(expected.detach()) == pytest.approx(1.0, abs=0.15)


def test_masks_of_mae_follow_the_step_and_nothing_else() -> None:
    """Not the global generator."""
    objective = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
    torch.manual_seed(1)
    one = _loss_of(objective, number=3).total
    torch.manual_seed(2)
    assert torch.equal(_loss_of(objective, number=3).total, one)
    assert not torch.equal(_loss_of(objective, number=4).total, one)


def test_the_loss_of_frozen_is_the_mean_over_all_words_and_ends(causal_language: Path) -> None:
    """A long caption counts more than a short one; each is scored behind its own image."""
    objective = FrozenObjective(tiny_frozen(causal_language), 10)
    batch, model = _captions(objective, "for the class statement", "a"), objective.model
    scores = model.score(model.prompt(model.prefix(batch.images)), batch.word_ids, batch.key_padding)
    expected = -float(scores.sum()) / int((~batch.key_padding).sum())
    loss = _loss_of(objective, batch)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert set(loss.terms) == {"caption"}


def test_an_untrained_language_model_is_near_the_log_of_its_vocabulary(causal_language: Path) -> None:
    """With its output weights made small it knows nothing: ln V."""
    objective = FrozenObjective(tiny_frozen(causal_language), 10)
    head = objective.model.language.body.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(1e-3)
    loss = _loss_of(objective, _captions(objective, "for", "the class"))
    assert float(loss.total.detach()) == pytest.approx(math.log(len(head)), abs=0.01)


@pytest.mark.parametrize("family", ["mae", "frozen"])
def test_every_parameter_gets_a_gradient_and_a_frozen_one_none(family: str, causal_language: Path) -> None:
    """Two processes could not average gradients that one of them lacks."""
    if family == "mae":
        mae = MAEObjective(tiny_mae(), MAEObjectiveConfig(), 10)
        objective, loss = mae, _loss_of(mae)
    else:
        frozen = FrozenObjective(tiny_frozen(causal_language), 10)
        objective, loss = frozen, _loss_of(frozen, _captions(frozen, "for"))
    loss.total.backward()
    assert [name for name, one in objective.named_parameters() if one.grad is None] == []
    assert not [name for name, _ in objective.named_parameters() if "language" in name]
