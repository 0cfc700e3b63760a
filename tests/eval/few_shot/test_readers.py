"""Images as text: the model's own words, kept once, cut to a share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.eval.few_shot.fakes import FakeReader, labeled
from tests.tiny import IMAGE_SIZE, tiny_language, tiny_lqae, tiny_vqvae

from pixlex.api import ImageTokenizer
from pixlex.data.images import ImageSource
from pixlex.data.loader import evaluation_batches
from pixlex.eval.few_shot.classifiers import word_classifiers
from pixlex.eval.few_shot.readers import CachedReader, ModelWords, Shortened, model_reader


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    return labeled(tmp_path_factory.mktemp("labeled"), per_class=3)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("language"))


def test_words_are_those_of_the_tokenizer(images: ImageSource, language: Path) -> None:
    model = tiny_lqae(language, search="raw")
    batch = next(evaluation_batches(images, image_size=IMAGE_SIZE, batch_size=len(images)))
    expected = ImageTokenizer(model).to_words(batch.images)
    reader = ModelWords(model, name="tiny")
    assert reader.read(images, range(len(images))) == dict(enumerate(expected))
    assert len(set(expected)) > 3
    # The words of an image do not depend on what is read beside it.
    assert reader.read(images, [5, 2]) == {2: expected[2], 5: expected[5]}


def test_codes_are_rendered_by_a_list_of_words(images: ImageSource, language: Path) -> None:
    model, lqae = tiny_vqvae(), tiny_lqae(language)
    batch = next(evaluation_batches(images, image_size=IMAGE_SIZE, batch_size=len(images)))
    codes = ImageTokenizer(model).tokenize(batch.images).tolist()
    texts = model_reader(model, "vq", words=lqae.language).read(images, range(len(images)))
    assert texts == {row: " ".join(lqae.vocabulary.words[code] for code in codes[row]) for row in texts}
    with pytest.raises(ValueError, match="a VQ-VAE of 64 codes needs as many words, got 0"):
        model_reader(model, "vq")
    with pytest.raises(ValueError, match="needs as many words, got 63"):
        ModelWords(model, name="vq", words=[f"w{number}" for number in range(63)])
    with pytest.raises(ValueError, match="words of its own"):
        ModelWords(lqae, name="lqae", words=["a"])


def test_images_are_read_once(images: ImageSource, tmp_path: Path) -> None:
    """Over calls, objects and runs; a line that was cut off and a new image are read again."""
    reader = FakeReader()
    first = CachedReader(reader, tmp_path).read(images, [1, 4])
    again = CachedReader(reader, tmp_path)
    assert again.read(images, [4, 1]) == first
    assert reader.asked == [1, 4]
    assert set(again.read(images, [1, 4, 9])) == {1, 4, 9}
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert CachedReader(reader, tmp_path).read(images, [1, 4, 9]) == again.read(images, [1, 4, 9])
    assert CachedReader(reader, tmp_path).read(images, [9]) == again.read(images, [9])
    assert reader.asked == [1, 4, 9, 9]


def test_another_reader_or_other_images_are_kept_apart(images: ImageSource, tmp_path: Path) -> None:
    CachedReader(FakeReader(), tmp_path / "cache").read(images, [0])
    other = FakeReader(identity="other")
    CachedReader(other, tmp_path / "cache").read(images, [0])
    repainted = FakeReader()
    CachedReader(repainted, tmp_path / "cache").read(labeled(tmp_path / "images", 3, seed=9), [0])
    assert other.asked == repainted.asked == [0]
    entries = [
        json.loads(line)
        for path in (tmp_path / "cache").iterdir()
        for line in path.read_text().split("\n")
        if line
    ]
    assert len(entries) == 3


class Text(FakeReader):
    def _text(self, images: ImageSource, index: int) -> str:
        return self.name


@pytest.mark.parametrize(
    ("text", "share", "kept"),
    [
        ("a b c d", 0.5, "a b"),
        ("a b c d", 0.51, "a b c"),
        ("a b c d", 1.0, "a b c d"),
        ("a b c d", 0.01, "a"),
        (" ..\n:: \n==#\n%%%", 0.5, " ..\n:: "),
        (" ".join("w" * 100), 0.07, " ".join("w" * 7)),
    ],
)
def test_the_first_share_is_kept(images: ImageSource, text: str, share: float, kept: str) -> None:
    assert Shortened(Text(name=text), share).read(images, [0]) == {0: kept}


def test_shares_it_refuses() -> None:
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got"):
            Shortened(FakeReader(), share)


def test_identities_and_kinds(language: Path) -> None:
    one, other = tiny_lqae(language), tiny_lqae(language, seed=1)
    readers = [model_reader(one, "m"), model_reader(other, "m"), model_reader(one, "m", keep_ratio=0.5)]
    assert len({reader.identity for reader in readers}) == 3
    kinds = ("layers", "last-layer", "bag")
    assert len(word_classifiers(readers[0], kinds, model=one)) == 3
    assert [row.name for row in word_classifiers(readers[0], kinds)] == ["m, bag of words"]
