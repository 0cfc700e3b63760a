"""A classifier for each episode: against a slow reference, fair where nothing can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_mae, tiny_vqvae, write_images

from pixlex.data.images import open_source
from pixlex.data.loader import evaluation_batches
from pixlex.eval.few_shot.classifiers import LinearPerEpisode
from pixlex.eval.few_shot.episodes import Episode, Setting, Shown
from pixlex.eval.few_shot.features import EncoderFeatures, PixelFeatures


def _loss(weights: np.ndarray, rows: np.ndarray, classes: np.ndarray, strength: float) -> float:
    """0.5 |w|^2 + C sum of cross-entropies, of weights (classes, columns + 1)."""
    logits = rows @ weights[:, :-1].T + weights[:, -1]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), classes]
    return float(0.5 * (weights[:, :-1] ** 2).sum() + strength * losses.sum())


def test_three_classes_are_fitted_to_the_minimum_of_the_stated_loss() -> None:
    """Gradient descent on the equation, in float64, gives the same logits."""
    draw = np.random.default_rng(0)
    support, classes, query = draw.normal(size=(9, 4)), np.arange(9) % 3, draw.normal(size=4)
    values = LinearPerEpisode(PixelFeatures(), strength=2.0).values(support, classes, query)
    center = support.mean(0)
    scale = np.linalg.norm(support - center, axis=1).mean()
    rows = torch.tensor((support - center) / scale)
    weights = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], lr=1, max_iter=500, tolerance_grad=1e-10, tolerance_change=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = rows @ weights[:, :-1].T + weights[:, -1]
        loss = 0.5 * weights[:, :-1].square().sum() + 2.0 * torch.nn.functional.cross_entropy(
            logits, torch.tensor(classes), reduction="sum"
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = weights.detach().numpy()
    assert _loss(fitted, rows.numpy(), classes, 2.0) < _loss(fitted + 0.01, rows.numpy(), classes, 2.0)
    expected = fitted[:, :-1] @ ((query - center) / scale) + fitted[:, -1]
    assert values - values.mean() == pytest.approx(expected - expected.mean(), abs=1e-4)


def test_scale_and_place_of_the_features_do_not_matter() -> None:
    """Nor, but for their order, does which class is called which."""
    draw = np.random.default_rng(1)
    support, classes, query = draw.normal(size=(10, 6)), np.arange(10) % 2, draw.normal(size=6)
    values = LinearPerEpisode(PixelFeatures(), strength=1.0).values(support, classes, query)
    moved = LinearPerEpisode(PixelFeatures(), strength=1.0).values(
        1000 * support + 7, classes, 1000 * query + 7
    )
    assert moved == pytest.approx(values, abs=1e-5)
    assert LinearPerEpisode(PixelFeatures(), strength=1.0).values(
        support, 1 - classes, query
    ) == pytest.approx(values[::-1], abs=1e-5)
    assert LinearPerEpisode(PixelFeatures(), strength=1e-4).values(support, classes, query) == pytest.approx(
        [0, 0], abs=1e-2
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures; the last is a copy of the first, and one cannot be read."""
    folder = write_images(tmp_path_factory.mktemp("images"), [f"{number}.png" for number in range(8)])
    (folder / "8.png").write_bytes(b"no picture")
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    return folder


def _episode(support: list[int], query: int, answer: int, number: int = 0) -> Episode:
    shown = tuple(Shown(image=image, name=place % 2) for place, image in enumerate(support))
    return Episode(number=number, names=("cat", "dog"), support=shown, query=query, answer=answer)


def test_a_copy_of_a_support_image_is_recognized(images: Path) -> None:
    """By the features of either kind of model, whatever stands first."""
    source = open_source(str(images))
    episodes = [_episode([0, 1, 2, 3], 9, 0, 5), _episode([1, 0, 3, 2], 9, 1, 6), _episode([0, 1], 9, 1, 7)]
    for model in (tiny_mae(), tiny_vqvae()):
        answerer = LinearPerEpisode(EncoderFeatures(model, name="tiny"))
        answers = list(answerer.answer(Setting(ways=2, shots=2), episodes, source))
        assert [(one.episode, one.credit, one.text) for one in answers] == [
            (5, 1.0, "cat"), (6, 1.0, "dog"), (7, 0.0, "cat"),
        ]  # fmt: skip
        assert answerer.name == "tiny, encoder + linear"


def test_equal_images_share_the_credit(images: Path) -> None:
    """Support images that are all the same say nothing: 1 / ways, not the first name."""
    source = open_source(str(images))
    answerer = LinearPerEpisode(EncoderFeatures(tiny_mae(), name="MAE"))
    (answer,) = answerer.answer(Setting(ways=2, shots=1), [_episode([0, 9], 3, 1)], source)
    assert (answer.credit, answer.text) == (0.5, "cat | dog")


def test_an_unreadable_image_is_no_wrong_answer(images: Path) -> None:
    """Its episode fails, the others go on."""
    source = open_source(str(images))
    answerer = LinearPerEpisode(EncoderFeatures(tiny_mae(), name="MAE"))
    episodes = [_episode([0, 8], 1, 0, 0), _episode([0, 1], 9, 0, 1)]
    answers = list(answerer.answer(Setting(ways=2, shots=1), episodes, source))
    assert [one.credit for one in answers] == [None, 1.0]
    assert "cannot be read" in answers[0].detail


def test_features_are_those_of_the_model_and_read_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image goes through the encoder once, however many episodes show it."""
    source = open_source(str(images))
    model, features = tiny_mae(), EncoderFeatures(tiny_mae(), name="MAE")
    (batch,) = evaluation_batches(source, image_size=32, batch_size=16)
    kept = features.read(source, range(10))
    assert 8 not in kept
    expected = model.embed(batch.images).numpy()
    assert features.vectors([kept[index] for index in (0, 3, 9)]) == pytest.approx(
        expected[[0, 3, 8]], abs=1e-5
    )
    asked: list[int] = []
    read = source.read
    monkeypatch.setattr(type(source), "read", lambda self, index: (asked.append(index), read(index))[1])
    answerer = LinearPerEpisode(features)
    list(answerer.answer(Setting(ways=2, shots=1), [_episode([0, 1], 2, 0, n) for n in range(5)], source))
    assert asked == [0, 1, 2]


def test_the_identity_tells_weights_and_strength_apart() -> None:
    """What is kept of one must not be taken for another."""
    one, other = (EncoderFeatures(tiny_mae(seed=seed), name="MAE") for seed in (0, 1))
    answerers = [LinearPerEpisode(one), LinearPerEpisode(other), LinearPerEpisode(one, strength=2.0)]
    assert len({answerer.identity for answerer in answerers}) == 3
    with pytest.raises(ValueError, match=r"strength must be above 0, got 0"):
        LinearPerEpisode(one, strength=0.0)
