"""LQAE with words for whole images: contrast of views, concepts and their words, what is read from words alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.nn.test_vision import published
from tests.tiny import TOWER, tiny_words_config

from pixlex import api
from pixlex.batch import ImageBatch
from pixlex.config.lqae import LQAEObjectiveConfig, QuantizerConfig, TeacherConfig, VisionConfig
from pixlex.losses import feature_loss, image_contrastive_loss, relation_loss
from pixlex.models.checkpoint import fingerprint, load_any, save, untrained_copy
from pixlex.models.lqae import LQAE
from pixlex.nn.codebook import ConceptCodebook, assign_words
from pixlex.objectives.lqae import WordsObjective
from pixlex.objectives.phase import Step

IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _batch(first: int = 0, count: int = 8, epoch: int = 0) -> ImageBatch:
    numbers = torch.arange(first, first + count)
    return ImageBatch(
        images=IMAGES[numbers], labels=-torch.ones(count, dtype=torch.long), indices=numbers,
        keys=tuple(map(str, numbers.tolist())), epochs=torch.full((count,), epoch),
    )  # fmt: skip


def _batches() -> Iterator[ImageBatch]:
    epoch = 0
    while True:
        yield from (_batch(first, epoch=epoch) for first in (0, 8, 16))
        epoch += 1


def _step() -> Step:
    return Step(0, torch.Generator().manual_seed(0))


def _objective(language: Path) -> WordsObjective:
    torch.manual_seed(0)
    model = LQAE.build(tiny_words_config(language))
    return WordsObjective(model, LQAEObjectiveConfig(teacher=TeacherConfig(steps=2)), 4)


def test_contrast_is_that_of_the_paper() -> None:
    """SimCLR's equation 1 by loops; with more than one right answer the mean of their logarithms."""
    rng = np.random.default_rng(0)
    z, same = rng.normal(size=(6, 4)), np.kron(np.ones((2, 2)), np.eye(3)).astype(bool)
    for groups in (
        same,
        same | np.kron(np.ones((2, 2)), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])).astype(bool),
    ):
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        expected = []
        for i in range(6):
            others = [k for k in range(6) if k != i]
            log_sum = np.log(sum(np.exp(unit[i] @ unit[k] / 0.3) for k in others))
            expected.append(np.mean([log_sum - unit[i] @ unit[k] / 0.3 for k in others if groups[i, k]]))
        vectors = torch.from_numpy(z).float()
        own = torch.eye(6, dtype=torch.bool)
        found = image_contrastive_loss(vectors, vectors, torch.from_numpy(groups), own, 0.3)
        assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_what_is_alike_to_the_teacher_costs_nothing() -> None:
    """Any length of a feature, any rotation of all of them: 0; other relations: more."""
    features = torch.randn(8, 5)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    assert float(feature_loss(3 * features, features)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(features @ rotation, features)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(features.roll(1, 0), features)) > 0.01


def test_like_concepts_get_like_words() -> None:
    """Where the words are the concepts, turned and in another order, each finds its own."""
    generator = torch.Generator().manual_seed(3)
    words = torch.randn(40, 6, generator=generator) * torch.tensor([6.0, 5, 4, 3, 2, 1])
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    order = torch.randperm(40, generator=generator)
    found = assign_words((words @ rotation)[order], words)
    assert float((found == order).float().mean()) > 0.9
    assert len(set(found.tolist())) == 40


def test_concepts_are_clusters_of_images() -> None:
    """Images of one cluster have the same nearest word; the space of the search is white."""
    torch.manual_seed(0)
    centers = 4 * torch.randn(5, 12)
    features = (centers.unsqueeze(1) + 0.1 * torch.randn(5, 30, 12)).flatten(0, 1)
    config = QuantizerConfig(search="concepts", search_dim=4, num_concepts=5)
    quantizer = ConceptCodebook(torch.randn(50, 8), config, 12).eval()
    quantizer.fit(features, quantizer.embedding)
    codes = quantizer(features, 3).codes
    first = codes[:, 0].view(5, 30)
    assert (first == first[:, :1]).all()
    assert len(first[:, 0].unique()) == 5
    assert all(len(set(row)) == 3 for row in codes.tolist())
    z = quantizer.located(features)
    assert torch.allclose(z.T @ z / len(z), torch.eye(4), atol=1e-2)
    with pytest.raises(ValueError, match="expected 5 images or more to find 5 concepts, got 4"):
        quantizer.fit(features[:4], quantizer.embedding)


def test_each_phase_trains_its_part(language: Path) -> None:
    """The teacher learns in the first phase; then it, concepts and words stay, and what reads them learns."""
    objective = _objective(language)
    teacher, words = objective.phases
    assert (teacher.name, teacher.last_step, words.first_step, words.last_step) == ("teacher", 2, 2, 4)
    objective.train()(_batch(), teacher, _step()).total.backward()
    moved = {name for name, one in objective.named_parameters() if one.grad is not None}
    assert moved == {name for name, _ in objective.named_parameters() if name.startswith(teacher.trains)}
    before = objective.model.quantizer.concepts.clone()
    objective.eval().prepare(words, _batches)
    assert not torch.equal(objective.model.quantizer.concepts, before)
    objective.zero_grad(set_to_none=True)
    loss = objective.train()(_batch(), words, _step())
    assert set(loss.terms) == {"reconstruction", "feature", "relation"}
    loss.total.backward()
    moved = {name for name, one in objective.named_parameters() if one.grad is not None}
    assert moved
    assert all(name.startswith(words.trains) for name in moved)


def test_preparing_reads_each_image_once_and_gives_the_same(language: Path) -> None:
    first, second = _objective(language).eval(), _objective(language).eval()
    seen: list[str] = []

    def counted() -> Iterator[ImageBatch]:
        for batch in _batches():
            seen.extend(batch.keys)
            yield batch

    for objective in (first, second):
        objective.prepare(objective.phases[1], counted)
    state, other = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_model_of_words_without_a_place(language: Path, tmp_path: Path) -> None:
    """Words and back, whatever stands beside an image; written and read; what a number of words must be."""
    objective = _objective(language).eval()
    objective.prepare(objective.phases[1], _batches)
    save(objective.model, tmp_path)
    tokenizer = api.load(str(tmp_path))
    assert (tokenizer.num_words, tokenizer.grid) == (4, 0)
    codes = tokenizer.tokenize(list(IMAGES))
    assert codes.shape == (24, 4)
    assert torch.equal(codes[5:6], tokenizer.tokenize(IMAGES[5]))
    texts = tokenizer.to_words(list(IMAGES))
    assert torch.equal(tokenizer.from_words(texts), codes)
    assert tokenizer.decode(texts[:3]).shape == (3, 3, 32, 32)
    assert tokenizer.embed(list(IMAGES[:2])).shape == (2, 32)
    assert fingerprint(tokenizer.model) == fingerprint(load_any(str(tmp_path)))
    with pytest.raises(ValueError, match="expected 4 words, got 3"):
        tokenizer.from_words(" ".join(texts[0].split()[:3]))
    fresh = untrained_copy(tokenizer.model, IMAGES)
    assert len(fresh.tokenize(IMAGES).unique()) > 1


def test_published_teacher_is_named_and_not_stored(language: Path, tmp_path: Path) -> None:
    """No first phase; bit-equal after training; another in its place is refused."""
    teacher = published("dinov2", tmp_path / "teacher")
    config = tiny_words_config(language, teacher=str(teacher))
    model = LQAE.build(config)
    assert model.teacher is not None
    before = model.teacher.fingerprint
    objective = WordsObjective(model, LQAEObjectiveConfig(), 2)
    assert [phase.name for phase in objective.phases] == ["words"]
    objective.eval().prepare(objective.phases[0], _batches)
    objective.train()(_batch(), objective.phases[0], _step()).total.backward()
    assert model.teacher.fingerprint == before
    save(model.eval(), tmp_path / "model")
    assert not any("teacher" in name for name in model.state_dict())
    assert torch.equal(load_any(str(tmp_path / "model")).tokenize(IMAGES), model.tokenize(IMAGES))
    other = published("dinov2", teacher)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0@")
    with pytest.raises(ValueError, match="words mean nothing by other features"):
        load_any(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"words": 0, "encoder": VisionConfig(**TOWER)},
            "words must be above 0 with quantizer.search=concepts",
        ),
        ({"words": 7}, "words must be at most the 6 concepts, got 7"),
        ({"encoder": VisionConfig(block="official")}, "must not be official or pretrained with model.words"),
    ],
)
def test_settings_that_contradict_each_other(
    language: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_words_config(language, **changes)


@pytest.mark.parametrize("steps", [0, 4])
def test_a_teacher_of_its_own_needs_steps(language: Path, steps: int) -> None:
    model = LQAE.build(tiny_words_config(language))
    with pytest.raises(
        ValueError, match=rf"teacher.steps must be in \(0, 4\), the steps of the run, got {steps}"
    ):
        WordsObjective(model, LQAEObjectiveConfig(teacher=TeacherConfig(steps=steps)), 4)
