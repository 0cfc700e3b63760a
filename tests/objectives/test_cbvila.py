"""CB-ViLA's objective: untrained values, what each term trains, phases, negatives, the codebook's health."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import pair_batch, tiny_cbvila, tiny_cbvila_config

from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.config.fields import TeacherConfig
from pixlex.distributed import ALONE
from pixlex.losses import hard_negatives
from pixlex.models.cbvila import CBViLA, split_patches
from pixlex.nn.vision import needs_statistics
from pixlex.objectives import cbvila as module
from pixlex.objectives.cbvila import BURN_IN, CODEBOOK, ENCODERS, JOINT, TRAINS, CBViLAObjective, same_pairs
from pixlex.objectives.phase import TEACHER, LossTerms, Phase, Step

TEXTS = ("about the class", "and all", "class and any other", "also")


def _objective(model: CBViLA, steps: int = 10, **settings: Any) -> CBViLAObjective:
    values = {"burn_in_steps": 0, **settings}
    return CBViLAObjective(model, CBViLAObjectiveConfig(**values), steps, 12)


def _step(number: int = 0, seed: int = 0) -> Step:
    return Step(number, torch.Generator().manual_seed(seed))


def _loss(
    objective: CBViLAObjective, phase: str = JOINT, texts: Sequence[str] = TEXTS, seed: int = 0
) -> LossTerms:
    objective.train()
    return objective(pair_batch(objective.model, texts), Phase(phase, 10), _step(seed=seed))


def test_untrained_terms_are_the_logarithms_of_what_is_chosen_from(language: Path) -> None:
    """ln K, ln V, ln 2 and ln B, as the heads' outputs start small (Guo et al. have K = 3,000, V = 30,522)."""
    model = tiny_cbvila(language, num_codewords=64, dim=32)
    with torch.no_grad():
        model.log_scale.zero_()  # similarities of noise, not divided by 0.07
    loss = _loss(_objective(model, masked_language_ratio=0.6), texts=TEXTS * 4)
    terms = {name: float(value.detach()) for name, value in loss.terms.items()}
    assert terms["masked_image"] == pytest.approx(math.log(64), abs=0.1)
    assert terms["masked_language"] == pytest.approx(math.log(model.tokenizer.vocab_size), abs=0.1)
    assert terms["image_text_matching"] == pytest.approx(math.log(2), abs=0.1)
    same = same_pairs(pair_batch(model, TEXTS * 4), ALONE)
    assert same.sum(1).tolist() == [4] * 16  # the same caption belongs to four
    assert terms["image_text_contrastive"] == pytest.approx(math.log(16), abs=0.2)
    assert set(terms) == set(TRAINS)


# Term -> the parts of the model that its gradient reaches (spec 1.2); what is not named must get none.
@pytest.mark.parametrize("term", list(TRAINS))
@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
def test_gradient_routing(language: Path, term: str, estimator: str) -> None:
    """Each term moves what the table says and nothing else; with Gumbel pixels move codewords, codes do not."""
    model = tiny_cbvila(language, estimator=estimator)
    objective = _objective(model, masked_language_ratio=0.6)
    _loss(objective).terms[term].backward()
    reached = {
        name.split(".")[0]
        for name, one in model.named_parameters()
        if one.grad is not None and one.grad.abs().sum() > 0
    }
    expected = set(TRAINS[term]) & {name.split(".")[0] for name, _ in model.named_parameters()}
    if term == "pixel" and estimator == "gumbel":
        expected.add("codebook")
    assert reached == expected


@pytest.mark.parametrize(
    ("estimator", "head", "stage", "patches"),
    [
        ("straight_through", "patch", "input", "all"),
        ("straight_through", "tied", "input", "masked"),
        ("straight_through", "class", "latent", "visible"),
        ("gumbel", "patch", "latent", "visible"),
        ("gumbel", "tied", "latent", "masked"),
        ("gumbel", "class", "input", "all"),
    ],
)
def test_a_phase_trains_exactly_what_gets_a_gradient(
    language: Path, estimator: str, head: str, stage: str, patches: str
) -> None:
    """In every phase and variant: the parameters named by the phase have a gradient, others none."""
    model = tiny_cbvila(language, estimator=estimator, masked_image_head=head, dim=8)
    objective = _objective(
        model, steps=9, burn_in_steps=3, alternate_every=3, mask_stage=stage, pixel_patches=patches,
        masked_language_ratio=0.6,
    )  # fmt: skip
    assert [phase.name for phase in objective.phases] == [BURN_IN, CODEBOOK, ENCODERS]
    for phase in (*objective.phases, Phase(JOINT, 0, objective.trained_in(JOINT))):
        for name, one in objective.named_parameters():
            one.requires_grad_(name.startswith(phase.trains))
            one.grad = None
        objective.train()
        objective(pair_batch(model, TEXTS), phase, _step()).total.backward()
        with_gradient = {name for name, one in objective.named_parameters() if one.grad is not None}
        assert with_gradient == {
            name for name, _ in objective.named_parameters() if name.startswith(phase.trains)
        }, phase.name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"burn_in_steps": 3}, [(BURN_IN, 3), (JOINT, 10)]),
        ({"burn_in_steps": 30}, [(BURN_IN, 10)]),
        (
            {"burn_in_steps": 2, "alternate_every": 3},
            [(BURN_IN, 2), (CODEBOOK, 5), (ENCODERS, 8), (CODEBOOK, 10)],
        ),
        ({"alternate_every": 5, "pixel_weight": 0.0, "masked_image_weight": 0.0}, [(JOINT, 10)]),
    ],
)
def test_phases(language: Path, settings: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    objective = _objective(tiny_cbvila(language), **settings)
    assert [(phase.name, phase.last_step) for phase in objective.phases] == expected


@pytest.mark.parametrize(("views", "captions"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_contrast_of_views_comes_first(language: Path, views: float, captions: float) -> None:
    """It trains what it compares; then norms are measured once, codewords found, and nothing forgets the phase."""
    model = tiny_cbvila(language, convolutional=True)
    changes = {"image_text_contrastive_weight": captions, "image_contrastive_weight": views}
    teacher = TeacherConfig(steps=4, views="drawings", view_size=16)
    objective = _objective(model, burn_in_steps=2, teacher=teacher, mask_stage="latent", **changes).train()
    assert [(one.name, one.first_step, one.last_step) for one in objective.phases] == [
        (TEACHER, 0, 4), (BURN_IN, 4, 6), (JOINT, 4, 10),
    ]  # fmt: skip
    batch, (first, burn_in, _) = pair_batch(model, TEXTS), objective.phases
    loss = objective(batch, first, _step())
    weights = {"contrast": views, "image_text_contrastive": captions}
    assert set(loss.terms) == {name for name, weight in weights.items() if weight}
    loss.total.backward()
    moved = {name for name, one in objective.named_parameters() if one.grad is not None}
    assert moved == {name for name, _ in objective.named_parameters() if name.startswith(first.trains)}
    assert objective.after_step(_step(), loss) == {}
    assert needs_statistics(model.image_encoder)
    objective.eval().prepare(burn_in, lambda: iter([batch] * 3))
    before = model.image_encoder.first.norm.mean.clone()
    objective.prepare(burn_in, lambda: iter([pair_batch(model, TEXTS * 2)]))
    assert torch.equal(model.image_encoder.first.norm.mean, before)
    assert before.any()
    codewords = model.codebook.weight.clone()
    objective.train().after_step(_step(4), objective(batch, burn_in, _step(4)))
    assert not torch.equal(model.codebook.weight, codewords)
    # Where another run goes on from the model with a first phase of its own, its norms are measured anew.
    objective.prepare(first, lambda: iter([batch]))
    assert needs_statistics(model.image_encoder)


def test_locked_images_are_whitened_once_and_stay(language: Path) -> None:
    """The encoder gets no gradient; vectors vary alike in all directions; texts say of each what they said."""
    model = tiny_cbvila(language, convolutional=True)
    objective = _objective(model, lock_images=True, mask_stage="latent").eval()
    batches = [pair_batch(model, TEXTS * 16, seed=seed) for seed in range(3)]
    with torch.no_grad():
        text = model.encode_text(batches[0].word_ids, batches[0].key_padding)[:, 0]
        weight, said = model.image_contrast.weight.clone(), model.text_contrast(text)
        objective.prepare(objective.phases[0], lambda: iter(batches))
        seen = torch.cat([model.encode_image(batch.images)[:, 0] for batch in batches])
        vectors, texts = model.image_contrast(seen), model.text_contrast(text)
    _, scales, directions = torch.linalg.svd(seen - seen.mean(0), full_matrices=False)
    leading, variances = directions[: vectors.shape[1]], scales[: vectors.shape[1]].square()
    expected = variances / (variances + 1e-3 * variances[0])
    torch.testing.assert_close(vectors.T @ vectors / len(seen), expected.diag(), rtol=0, atol=1e-3)
    along = (seen - seen.mean(0)) @ leading.T @ leading
    torch.testing.assert_close(vectors @ texts.T, along @ weight.T @ said.T, rtol=0, atol=1e-5)
    trained = set(objective.trained_in(JOINT))
    assert not trained & {"model.image_encoder.", "model.image_contrast."}
    assert trained > {"model.image_projector.", "model.text_encoder.", "model.text_contrast."}


def test_alike_pictures_attract_each_other(language: Path) -> None:
    """Pictures of one caption are right answers to each other: as if they were views of one picture."""
    model = tiny_cbvila(language, convolutional=True)
    objective = _objective(model, teacher=TeacherConfig(steps=4), mask_stage="latent").train()
    batch, phase = pair_batch(model, ("about", "and", "about", "also")), objective.phases[0]
    shown = replace(batch, image_ids=torch.tensor([7, 1, 7, 3]), texts=("about", "and", "any", "also"))
    found, same = (float(objective(one, phase, _step()).terms["contrast"].detach()) for one in (batch, shown))
    apart = replace(batch, texts=("about", "and", "any", "also"))
    assert found == pytest.approx(same)
    assert float(objective(apart, phase, _step()).terms["contrast"].detach()) != pytest.approx(found)


def test_a_first_phase_that_leaves_no_step_is_refused(language: Path) -> None:
    model = tiny_cbvila(language)
    with pytest.raises(
        ValueError, match=r"objective.teacher.steps must be less than train.steps, 10, got 10"
    ):
        _objective(model, teacher=TeacherConfig(steps=10))
    with pytest.raises(
        ValueError, match=r"view_size must be a multiple of 8, .* with convolutions, and 0 without"
    ):
        _objective(model, teacher=TeacherConfig(steps=2, view_size=16))


def test_terms_without_weight_are_not_computed(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching and masked words alone, row 1 of Table IV: nothing is quantized, no second pass is made."""
    model = tiny_cbvila(language)

    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("computed to be multiplied by zero")

    monkeypatch.setattr(model, "quantize_vectors", fail)
    monkeypatch.setattr(module, "image_text_contrastive_loss", fail)
    objective = _objective(
        model, pixel_weight=0.0, masked_image_weight=0.0, image_text_contrastive_weight=0.0
    )
    loss = _loss(objective)
    assert set(loss.terms) == {"image_text_matching", "masked_language"}
    assert objective.after_step(_step(), loss) == {}


def test_the_same_image_and_the_same_caption_are_never_negatives(language: Path) -> None:
    """Rows 0 and 2 show one image, rows 1 and 3 have one caption: in many draws they never meet."""
    model = tiny_cbvila(language)
    batch = pair_batch(model, ("about", "and", "class", "and"))
    batch = replace(batch, image_ids=torch.tensor([7, 1, 7, 3]))
    same = same_pairs(batch, ALONE)
    assert same.tolist() == [
        [True, False, True, False], [False, True, False, True],
        [True, False, True, False], [False, True, False, True],
    ]  # fmt: skip
    chance = torch.rand(400, 4, generator=torch.Generator().manual_seed(0))
    for row in chance:
        drawn = hard_negatives(torch.randn(4, 4), same, row)
        assert not same[torch.arange(4), drawn].any()


def test_matching_sees_the_right_pairs(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the one pass with shared contexts equal those of pairs fused one by one."""
    model = tiny_cbvila(language)
    batch = pair_batch(model, TEXTS)
    seen, text = model.encode_image(batch.images), model.encode_text(batch.word_ids, batch.key_padding)
    other_texts, other_images = torch.tensor([1, 2, 3, 0]), torch.tensor([2, 3, 0, 1])
    chosen = itertools.cycle([other_texts, other_images])
    monkeypatch.setattr(module, "hard_negatives", lambda *arguments: next(chosen))
    found = {}
    monkeypatch.setattr(
        module,
        "image_text_matching_loss",
        lambda logits, labels, total: found.update(logits=logits, labels=labels) or logits.sum(),
    )
    _loss(_objective(model), texts=TEXTS)

    def logit(image: int, caption: int) -> torch.Tensor:
        rows = slice(caption, caption + 1)
        context = model.image_context(seen[image : image + 1])
        return model.matching_head(model.fusion(text[rows], context, batch.key_padding[rows])[0, 0])

    pairs = [(i, i) for i in range(4)]
    pairs += [(i, int(other_texts[i])) for i in range(4)] + [(int(other_images[i]), i) for i in range(4)]
    expected = torch.stack([logit(*pair) for pair in pairs])
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-5)
    assert found["labels"].tolist() == [1] * 4 + [0] * 8


@pytest.mark.parametrize("stage", ["input", "latent"])
def test_hidden_patches_reach_the_query_at_the_latent_stage_alone(language: Path, stage: str) -> None:
    """Masked at the input their pixels decide nothing; at the latent stage visible ones attend to them."""
    model = tiny_cbvila(language)
    others = {f"{name}_weight": 0.0 for name in TRAINS if name != "pixel"}
    objective = _objective(model, mask_stage=stage, pixel_patches="visible", **others).eval()
    batch = pair_batch(model, TEXTS)
    hidden = split_patches(4, model.grid**2, objective.num_visible, torch.Generator().manual_seed(0)).hidden
    patches = model.patches(batch.images)
    patches.scatter_(1, hidden.unsqueeze(-1).expand(-1, -1, patches.shape[-1]), 0.0)
    moved = replace(batch, images=model.images(patches))
    with torch.no_grad():
        before, after = (objective(one, Phase(JOINT, 1), _step()).total for one in (batch, moved))
    assert torch.allclose(before, after, atol=1e-5) == (stage == "input")


def test_a_planted_dead_codebook_recovers(language: Path) -> None:
    """All codewords but one far away: k-means at the first step, or restarts, bring them back."""
    for settings in ({"codebook_start": "k_means"}, {"codebook_start": "random", "restart_after": 3}):
        model = tiny_cbvila(language)
        with torch.no_grad():
            model.codebook.weight[1:] = 1e6
        objective = _objective(model, **settings)
        health: dict[str, float] = {}
        for number in range(5):
            health = objective.after_step(_step(number), _loss(objective))
        assert model.codebook.weight.abs().max() < 1e3
        assert health["distinct_codewords"] > 4


def test_collapse_cannot_raise_the_gain(language: Path) -> None:
    """All patches on one codeword: hidden codes can be predicted perfectly, and the gain is 0, not more."""
    model = tiny_cbvila(language, num_codewords=16)
    with torch.no_grad():
        model.codebook.weight[1:] = 1e6
        head = model.masked_patch_head.codewords
        assert head is not None
        head.bias[0] = 50.0
    objective = _objective(model, codebook_start="random", restart_after=0)
    loss = _loss(objective)
    assert float(loss.terms["masked_image"].detach()) < 1e-3
    health = objective.after_step(_step(), loss)
    assert health["perplexity"] == pytest.approx(1.0)
    assert health["masked_image_gain"] == pytest.approx(0.0, abs=1e-3)


def test_the_temperature_stays_in_bounds(language: Path) -> None:
    model = tiny_cbvila(language)
    objective = _objective(model)
    loss = _loss(objective)
    for value, bound in ((50.0, 0.001), (-50.0, 0.5)):
        model.log_scale.data.fill_(value)
        objective.after_step(_step(1), loss)
        assert math.exp(-float(model.log_scale.detach())) == pytest.approx(bound)


def test_a_phase_without_terms_is_refused_before_training(language: Path) -> None:
    """Masked words alone with a burn-in, or a codebook's turn without its term."""
    alone = {f"{name}_weight": 0.0 for name in TRAINS if name != "masked_language"}
    with pytest.raises(ValueError, match="the phase burn_in has nothing to minimize"):
        _objective(tiny_cbvila(language), burn_in_steps=3, **alone)
    assert set(_loss(_objective(tiny_cbvila(language), **alone)).terms) == {"masked_language"}
    with pytest.raises(ValueError, match="the phase codebook has nothing to minimize"):
        _objective(tiny_cbvila(language), alternate_every=3, codebook_weight=0.0)


def test_gumbel_draws_in_training_only(language: Path) -> None:
    """In evaluation the query holds the nearest codewords: as with the straight-through estimator."""
    texts = list(TEXTS)
    losses = []
    for estimator in ("gumbel", "straight_through"):
        objective = _objective(tiny_cbvila(language, estimator=estimator)).eval()
        with torch.no_grad():
            losses.append(
                objective(pair_batch(objective.model, texts), Phase(JOINT, 10), _step()).terms["pixel"]
            )
    assert torch.equal(*losses)


def test_similarities_are_float32_under_autocast(language: Path) -> None:
    """At a temperature of 0.001 a step of bfloat16 is several nats."""
    model = tiny_cbvila(language)
    with torch.no_grad():
        model.log_scale.fill_(math.log(1000))
    batch = pair_batch(model, TEXTS)
    padding = batch.key_padding
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen, text = model.encode_image(batch.images), model.encode_text(batch.word_ids, batch.key_padding)
        image_to_text, _ = module.similarities(model, seen, text, padding, ALONE, learned=True)
        images, texts = model.image_vectors(seen), model.text_vectors(text, padding)
    torch.testing.assert_close(image_to_text, 1000 * images @ texts.T, rtol=1e-5, atol=1e-3)


def test_pooled_texts_are_means_over_their_words(language: Path) -> None:
    """However long the other texts of a batch are; of the start alone unless asked."""
    config = tiny_cbvila_config(language)
    torch.manual_seed(0)
    model = CBViLA.build(replace(config, text=replace(config.text, pooling="mean"))).eval()
    short, both = (model.tokenize_texts(texts, 12) for texts in (["about"], ["about", "and also the class"]))
    with torch.no_grad():
        alone, beside = (
            model.text_vectors(model.encode_text(one.word_ids, one.key_padding), one.key_padding)
            for one in (short, both)
        )
        states = model.encode_text(short.word_ids, short.key_padding)
        expected = model.text_contrast(states[0].mean(0))
    torch.testing.assert_close(beside[0], alone[0])
    torch.testing.assert_close(alone[0], expected / expected.norm())
