"""Nearest class mean: against slow references, fair in ties, blind to what it must not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.eval.few_shot.fakes import FakeReader, labeled, paper_settings
from tests.tiny import tiny_language, tiny_lqae

from pixlex.data.images import ImageSource
from pixlex.eval.few_shot.classifiers import Chance, NearestClassMean, fair_credit, similarities
from pixlex.eval.few_shot.episodes import Setting, sample_episodes
from pixlex.eval.few_shot.features import BagOfWords, Features, LayerFeatures, PixelFeatures, SentenceFeatures
from pixlex.eval.few_shot.readers import ModelWords
from pixlex.models.lqae import LQAE
from pixlex.nn.language import load_language_model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    return labeled(tmp_path_factory.mktemp("labeled"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LQAE:
    return tiny_lqae(tiny_language(tmp_path_factory.mktemp("language")), search="raw")


def credits_of(
    features: Features, images: ImageSource, setting: Setting, count: int = 30
) -> list[float | None]:
    episodes = sample_episodes(images, setting, count=count, seed=0).episodes
    return [one.credit for one in NearestClassMean(features).answer(setting, episodes, images)]


@pytest.mark.parametrize("ways", [2, 5])
def test_constant_input_scores_exactly_chance(images: ImageSource, model: LQAE, ways: int) -> None:
    """With one text for all images nothing can be told apart, whatever the order of the names."""
    setting = Setting(ways=ways, shots=3)
    constant = FakeReader(constant=True)

    class Word(FakeReader):
        def _text(self, images: ImageSource, index: int) -> str:
            return " ".join([model.vocabulary.words[5]] * 16)

    found: list[Features] = [
        BagOfWords(constant),
        SentenceFeatures(constant, model.language),
        LayerFeatures(model, Word()),
        LayerFeatures(model, Word(), "last"),
    ]
    for features in found:
        assert credits_of(features, images, setting) == [pytest.approx(1 / ways)] * 30
    episodes = sample_episodes(images, setting, count=3, seed=0).episodes
    assert [one.credit for one in Chance().answer(setting, episodes, images)] == [1 / ways] * 3


def test_words_that_tell_classes_apart_are_always_right(images: ImageSource) -> None:
    assert credits_of(BagOfWords(FakeReader()), images, Setting(ways=5, shots=2)) == [1.0] * 30
    # Every picture is noise around its class's color.
    assert np.mean([c or 0 for c in credits_of(PixelFeatures(16), images, Setting(ways=5, shots=3))]) > 0.95


def test_repeats_induction_and_names_change_nothing(images: ImageSource, model: LQAE) -> None:
    features = LayerFeatures(model, ModelWords(model, name="tiny"))
    settings = [one for naming in ("real", "nonsense") for one in paper_settings(2, naming)]  # type: ignore[arg-type]
    results = {one: credits_of(features, images, one) for one in settings if one.shots == 1}
    assert len(results) == 10
    assert len({tuple(values) for values in results.values()}) == 1


def test_sentence_vectors_are_the_mean_over_real_words(model: LQAE) -> None:
    """Against the encoder's own tokenizer and network, one text at a time; padding changes nothing."""
    words = model.vocabulary.words
    texts = [words[3], " ".join(words[:20]), " ".join(words[40:45])]
    found = SentenceFeatures(FakeReader(), model.language).encode(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([model.language.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = model.language(model.language.word_embedding[ids]).last.mean(1)[0]
        assert vector == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_text_longer_than_the_encoder_reads_is_read_in_pieces(model: LQAE) -> None:
    room = model.language.max_words - model.language.tokenizer.num_special_tokens_to_add()
    piece, other = model.vocabulary.words[:room], model.vocabulary.words[100 : 100 + room]
    encoder = SentenceFeatures(FakeReader(), model.language)
    whole, first, second = encoder.encode([" ".join((*piece, *other)), " ".join(piece), " ".join(other)])
    assert whole == pytest.approx((first + second) / 2, abs=1e-5)


def test_similarities() -> None:
    generator = np.random.default_rng(0)
    means, query = generator.normal(size=(4, 6)), generator.normal(size=6)
    expected = [float(m @ query / np.sqrt((m @ m) * (query @ query))) for m in means]
    assert similarities(means, query, "cosine") == pytest.approx(expected)
    assert similarities(means, query, "euclidean") == pytest.approx(
        [-np.sqrt(((m - query) ** 2).sum()) for m in means]
    )
    assert similarities(np.zeros((2, 6)), query, "cosine").tolist() == [0, 0]


def test_ties_share_the_credit(images: ImageSource) -> None:
    episode = sample_episodes(images, Setting(ways=3, shots=1), count=1, seed=0).episodes[0]
    for place in range(3):
        values = [0.0, 0.0, 0.0]
        values[place] = 1.0
        assert fair_credit(episode, values, tolerance=0.0).credit == float(place == episode.answer)
        values[place] = -1.0
        assert fair_credit(episode, values, tolerance=0.0).credit == (0.0 if place == episode.answer else 0.5)


@pytest.mark.timeout(600)
def test_the_embedded_encoder_knows_what_is_alike() -> None:
    encoder = SentenceFeatures(FakeReader(), load_language_model())
    cat, kitten, bank = encoder.encode(["a cat sits", "a kitten is sitting", "the bank raised its rates"])
    assert similarities(np.stack([kitten, bank]).astype(float), cat.astype(float), "cosine").argmax() == 0


def test_an_image_that_cannot_be_read(images: ImageSource, tmp_path: Path) -> None:
    setting = Setting(ways=2, shots=1)
    broken = sample_episodes(images, setting, count=1, seed=0).episodes[0].query
    given = credits_of(BagOfWords(FakeReader(unreadable=frozenset((broken,)))), images, setting)
    assert given[0] is None
    assert 1.0 in given
