"""Classifiers of features: against slow references, fair in ties, blind to what they must not see."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.eval.few_shot.fakes import FakeReader, paper_settings
from tests.tiny import evaluation_batches, tiny_cbvila, tiny_lqae, tiny_mae, tiny_vqvae

from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import read_pixels
from pixlex.eval.few_shot.classifiers import (
    Chance,
    Features,
    bag_of_words,
    compared_features,
    encoder_features,
    layer_features,
    linear_per_episode,
    nearest_class_mean,
    pixel_features,
    sentence_features,
    sentence_vectors,
    similarities,
)
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompts import Episode, Setting, Shown, fair_credit
from pixlex.eval.few_shot.readers import model_words
from pixlex.models.lqae import LQAE
from pixlex.nn.bert import Words
from pixlex.nn.language_model import load_language_model


@pytest.fixture(scope="module")
def model(language: Path) -> LQAE:
    return tiny_lqae(language, search="raw")


def credits_of(
    features: Features, images: ImageSource, setting: Setting, count: int = 12
) -> list[float | None]:
    episodes = sample_episodes(images, setting, count=count, seed=0).episodes
    return [one.credit for one in nearest_class_mean(features).answer(setting, episodes, images)]


@pytest.mark.parametrize("ways", [2, 5])
def test_constant_input_scores_exactly_chance(images: ImageSource, model: LQAE, ways: int) -> None:
    """With one text for all images nothing can be distinguished, whatever the order of the names."""
    setting, constant = Setting(ways=ways, shots=3), FakeReader(constant=True)

    class Word(FakeReader):
        def _text(self, images: ImageSource, index: int) -> str:
            return " ".join([model.vocabulary.words[5]] * 16)

    for features in (
        bag_of_words(constant),
        sentence_features(constant, model.language),
        layer_features(model, Word()),
        layer_features(model, Word(), "last"),
    ):
        assert credits_of(features, images, setting) == [pytest.approx(1 / ways)] * 12
    episodes = sample_episodes(images, setting, count=3, seed=0).episodes
    assert [one.credit for one in Chance().answer(setting, episodes, images)] == [1 / ways] * 3


def test_words_that_tell_classes_apart_are_always_right(images: ImageSource) -> None:
    assert credits_of(bag_of_words(FakeReader()), images, Setting(ways=5, shots=2)) == [1.0] * 12
    # Every picture is noise around its class's color.
    assert np.mean([c or 0 for c in credits_of(pixel_features(16), images, Setting(ways=5, shots=3))]) > 0.95


def test_repeats_induction_and_names_change_nothing(images: ImageSource, model: LQAE) -> None:
    features = layer_features(model, model_words(model, "tiny"))
    settings = [one for naming in ("real", "nonsense") for one in paper_settings(2, naming)]  # type: ignore[arg-type]
    results = {one: credits_of(features, images, one) for one in settings if one.shots == 1}
    assert len(results) == 10
    assert len({tuple(values) for values in results.values()}) == 1


def test_sentence_vectors_are_the_mean_over_real_words(model: LQAE) -> None:
    """Against the encoder's own tokenizer and network, one text at a time; a longer text is read in pieces."""
    words, encode = model.vocabulary.words, partial(sentence_vectors, model.language)
    texts = [words[3], " ".join(words[:20]), " ".join(words[40:45])]
    for text, vector in zip(texts, encode(texts), strict=True):
        ids = torch.tensor([model.language.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = model.language(model.language.word_embedding[ids]).last.mean(1)[0]
        assert vector == pytest.approx(expected.numpy(), abs=1e-5)
    room = model.language.max_words - model.language.tokenizer.num_special_tokens_to_add()
    piece, other = words[:room], words[100 : 100 + room]
    full, first, second = encode([" ".join((*piece, *other)), " ".join(piece), " ".join(other)])
    assert full == pytest.approx((first + second) / 2, abs=1e-5)


def test_similarities_and_ties(images: ImageSource) -> None:
    generator = np.random.default_rng(0)
    means, query = generator.normal(size=(4, 6)), generator.normal(size=6)
    expected = [float(m @ query / np.sqrt((m @ m) * (query @ query))) for m in means]
    assert similarities(means, query, "cosine") == pytest.approx(expected)
    distances = [np.sqrt(((m - query) ** 2).sum()) for m in means]
    assert -similarities(means, query, "euclidean") == pytest.approx(distances)
    assert similarities(np.zeros((2, 6)), query, "cosine").tolist() == [0, 0]
    episode = sample_episodes(images, Setting(ways=3, shots=1), count=1, seed=0).episodes[0]
    for place in range(3):
        values = [0.0, 0.0, 0.0]
        values[place] = 1.0
        assert fair_credit(episode, values, tolerance=0.0).credit == float(place == episode.answer)
        values[place] = -1.0
        assert fair_credit(episode, values, tolerance=0.0).credit == (0.0 if place == episode.answer else 0.5)


@pytest.mark.timeout(600)
def test_without_an_example_a_name_is_the_nearest_text(images: ImageSource) -> None:
    """Words that are the name itself are always right; who knows no names says that an example is needed."""

    class Oracle(FakeReader):
        def _text(self, images: ImageSource, index: int) -> str:
            return images.key(index).split("/")[0]

    setting, encoder = Setting(ways=5, shots=0), load_language_model()
    assert credits_of(sentence_features(Oracle(), encoder), images, setting) == [1.0] * 12
    assert credits_of(sentence_features(FakeReader(constant=True), encoder), images, setting) != [1.0] * 12
    for classifier in (
        nearest_class_mean(bag_of_words(Oracle())),
        nearest_class_mean(pixel_features(16)),
        linear_per_episode(encoder_features(tiny_mae(), name="MAE")),
    ):
        message = classifier.check(setting, (), images)
        assert message.startswith("needs an example: 5-way, 0 shots, 0 repeats, real names: ")
        assert classifier.check(Setting(ways=5, shots=1), (), images) == ""


def test_a_cbvila_compares_images_with_names(images: ImageSource, language: Path) -> None:
    """Against its own vectors, one image and one name at a time; with examples it is their nearest mean."""
    model = tiny_cbvila(language)
    with pytest.raises(ValueError, match="tiny was trained without contrast"):
        compared_features(model, name="tiny")
    with torch.no_grad():
        model.log_scale += 1
    classifier = nearest_class_mean(compared_features(model, name="tiny"))
    assert classifier.name == "tiny, images and names compared"
    drawn = sample_episodes(images, Setting(ways=3, shots=0), count=6, seed=0)
    answers = {one.episode: one for one in classifier.answer(drawn.setting, drawn.episodes, images)}
    size = model.config.image_size
    for episode in drawn.episodes:
        ((_, pixels),) = read_pixels(images, [episode.query], size, "", model.config.resize_mode)
        with torch.no_grad():
            image = model.image_vectors(model.encode_image(pixels))[0]
            texts = [model.tokenize_texts([name], 16) for name in episode.names]
            values = [
                image @ model.text_vectors(model.encode_text(*one), one[1])[0] for one in map(_parts, texts)
            ]
        best = int(torch.stack(values).argmax())
        # Names that the tiny tokenizer does not know are one text.
        assert episode.names[best] in answers[episode.number].text.split(" | ")
    shown = Setting(ways=3, shots=2)
    assert None not in credits_of(compared_features(model, name="tiny"), images, shown)


def _parts(words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    return words.word_ids, words.key_padding


@pytest.mark.timeout(600)
def test_the_embedded_encoder_knows_what_is_alike() -> None:
    encoder = load_language_model()
    cat, kitten, bank = sentence_vectors(
        encoder, ["a cat sits", "a kitten is sitting", "the bank raised its rates"]
    )
    assert similarities(np.stack([kitten, bank]).astype(float), cat.astype(float), "cosine").argmax() == 0


def test_three_classes_are_fitted_to_the_minimum_of_the_stated_loss() -> None:
    """Gradient descent on the equation, in float64, gives the same logits."""
    draw = np.random.default_rng(0)
    support, classes, query = draw.normal(size=(9, 4)), np.arange(9) % 3, draw.normal(size=4)
    values = linear_per_episode(pixel_features(), strength=2.0).values(support, classes, query)
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
    expected = fitted[:, :-1] @ ((query - center) / scale) + fitted[:, -1]
    assert values - values.mean() == pytest.approx(expected - expected.mean(), abs=1e-4)


def test_scale_and_place_of_the_features_do_not_matter() -> None:
    """Nor, but for their order, does which class is called which."""
    draw = np.random.default_rng(1)
    support, classes, query = draw.normal(size=(10, 6)), np.arange(10) % 2, draw.normal(size=6)
    values = linear_per_episode(pixel_features()).values
    expected = values(support, classes, query)
    assert values(1000 * support + 7, classes, 1000 * query + 7) == pytest.approx(expected, abs=1e-5)
    assert values(support, 1 - classes, query) == pytest.approx(expected[::-1], abs=1e-5)
    weak = linear_per_episode(pixel_features(), strength=1e-4).values(support, classes, query)
    assert weak == pytest.approx([0, 0], abs=1e-2)
    with pytest.raises(ValueError, match=r"strength must be above 0, got 0"):
        linear_per_episode(pixel_features(), strength=0.0)


def _episode(support: list[int], query: int, answer: int, number: int = 0) -> Episode:
    shown = tuple(Shown(image=image, name=place % 2) for place, image in enumerate(support))
    return Episode(number=number, names=("cat", "dog"), support=shown, query=query, answer=answer)


def test_a_copy_is_recognized_and_a_broken_image_fails_its_episode_alone(source: ImageSource) -> None:
    """By the features of either kind of model, whatever stands first; equal images share the credit."""
    episodes = [
        _episode([0, 1, 2, 3], 9, 0, 5),
        _episode([1, 0, 3, 2], 9, 1, 6),
        _episode([0, 1], 9, 1, 7),
        _episode([0, 9], 3, 1, 8),
        _episode([0, 8], 1, 0, 9),
    ]
    for model in (tiny_mae(), tiny_vqvae()):
        classifier = linear_per_episode(encoder_features(model, name="tiny"))
        answers = list(classifier.answer(Setting(ways=2, shots=2), episodes, source))
        assert [(one.episode, one.credit, one.text) for one in answers] == [
            (5, 1.0, "cat"), (6, 1.0, "dog"), (7, 0.0, "cat"), (8, 0.5, "cat | dog"), (9, None, ""),
        ]  # fmt: skip
        assert "cannot be read" in answers[-1].detail
        assert classifier.name == "tiny, encoder + linear"


def test_features_are_those_of_the_model_and_read_once(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image goes through the encoder once, however many episodes show it."""
    model, features = tiny_mae(), encoder_features(tiny_mae(), name="MAE")
    (batch,) = evaluation_batches(source, image_size=32, batch_size=16)
    kept = features.read(source, range(10))
    assert 8 not in kept
    found = features.vectors([kept[index] for index in (0, 3, 9)])
    assert found == pytest.approx(model.embed(batch.images).numpy()[[0, 3, 8]], abs=1e-5)
    asked: list[int] = []
    read = source.read
    monkeypatch.setattr(type(source), "read", lambda self, index: (asked.append(index), read(index))[1])
    episodes = [_episode([0, 1], 2, 0, number) for number in range(5)]
    list(linear_per_episode(features).answer(Setting(ways=2, shots=1), episodes, source))
    assert asked == [0, 1, 2]


def test_the_identity_tells_weights_and_strength_apart() -> None:
    one, other = (encoder_features(tiny_mae(seed=seed), name="MAE") for seed in (0, 1))
    classifiers = [linear_per_episode(one), linear_per_episode(other), linear_per_episode(one, strength=2.0)]
    assert len({classifier.identity for classifier in classifiers}) == 3
