"""Images as text: the model's own words, kept once, shortened; ASCII art."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.eval.few_shot.fakes import FakeReader, labeled
from tests.tiny import IMAGE_SIZE, evaluation_batches, tiny_lqae, tiny_vqvae

from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.readers import (
    RAMP,
    area_weights,
    ascii_art,
    cached,
    draw_ascii,
    model_reader,
    model_words,
    shortened,
)


def test_words_are_those_of_the_tokenizer(images: ImageSource, language: Path) -> None:
    model = tiny_lqae(language, search="raw")
    batch = next(evaluation_batches(images, image_size=IMAGE_SIZE, batch_size=len(images)))
    expected = ImageTokenizer(model).to_words(batch.images)
    reader = model_words(model, "tiny")
    assert reader.read(images, range(len(images))) == dict(enumerate(expected))
    assert len(set(expected)) > 3
    # The words of an image do not depend on what is read beside it.
    assert reader.read(images, [5, 2]) == {2: expected[2], 5: expected[5]}


def test_codes_are_rendered_by_a_list_of_words(images: ImageSource, language: Path) -> None:
    model, lqae = tiny_vqvae(), tiny_lqae(language)
    batch = next(evaluation_batches(images, image_size=IMAGE_SIZE, batch_size=len(images)))
    codes = ImageTokenizer(model).tokenize(batch.images).tolist()
    texts = model_reader(model, "vq", words=lqae.vocabulary.words).read(images, range(len(images)))
    assert texts == {row: " ".join(lqae.vocabulary.words[code] for code in codes[row]) for row in texts}
    with pytest.raises(ValueError, match="a VQ-VAE of 64 codes needs as many words, got 0"):
        model_reader(model, "vq")
    with pytest.raises(ValueError, match="needs as many words, got 63"):
        model_words(model, "vq", words=[f"w{number}" for number in range(63)])


def test_images_are_read_once(images: ImageSource, tmp_path: Path) -> None:
    """Over calls, objects and runs; a line that was cut off and a new image are read again."""
    reader = FakeReader()
    first = cached(reader, tmp_path).read(images, [1, 4])
    again = cached(reader, tmp_path)
    assert again.read(images, [4, 1]) == first
    assert reader.asked == [1, 4]
    assert set(again.read(images, [1, 4, 9])) == {1, 4, 9}
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert cached(reader, tmp_path).read(images, [1, 4, 9]) == again.read(images, [1, 4, 9])
    assert cached(reader, tmp_path).read(images, [9]) == again.read(images, [9])
    assert reader.asked == [1, 4, 9, 9]


def test_another_reader_or_other_images_are_kept_apart(images: ImageSource, tmp_path: Path) -> None:
    cached(FakeReader(), tmp_path / "cache").read(images, [0])
    other = FakeReader(identity="other")
    cached(other, tmp_path / "cache").read(images, [0])
    repainted = FakeReader()
    cached(repainted, tmp_path / "cache").read(labeled(tmp_path / "images", 3, seed=9), [0])
    assert other.asked == repainted.asked == [0]
    assert len(list((tmp_path / "cache").iterdir())) == 3


class Text(FakeReader):
    def _text(self, images: ImageSource, index: int) -> str:
        return self.name


def _gray(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows).expand(1, 3, -1, -1)


def test_a_ramp_of_grays_gives_the_ramp() -> None:
    """Ten grays, the middle of each step, in both directions; the borders belong to the step above."""
    grays = [(step + 0.5) / 10 for step in range(10)]
    assert draw_ascii(_gray([grays]), 1, 10) == [RAMP]
    assert draw_ascii(_gray([grays]), 1, 10, RAMP[::-1]) == [RAMP[::-1]]
    assert draw_ascii(_gray([[step / 10 for step in range(10)]]), 1, 10) == [RAMP]
    assert draw_ascii(torch.ones(1, 3, 4, 10), 1, 10) == ["@" * 10]


def test_green_weighs_more_than_red_and_red_more_than_blue() -> None:
    """ITU-R BT.601: full red, green and blue have luma 0.299, 0.587 and 0.114."""
    image = torch.eye(3).reshape(1, 3, 1, 3)
    assert draw_ascii(image, 1, 3, "0123456789") == ["251"]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 37), (5, 7), (1, 1), (255, 257)])
def test_any_size_gives_as_many_lines_and_characters(height: int, width: int) -> None:
    """Larger, smaller, and sizes that do not divide; the mean is kept to the last digit."""
    image = torch.rand(2, 3, height, width)
    texts = draw_ascii(image)
    assert [[len(line) for line in text.split("\n")] for text in texts] == [[64] * 64] * 2
    assert texts == draw_ascii(image)
    weights = area_weights(height, 64)
    torch.testing.assert_close(weights.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(0), torch.full((height,), 64 / height, dtype=torch.float64))


def test_a_cut_pixel_counts_by_its_parts() -> None:
    """Three pixels on two characters: the middle one counts half on each side."""
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(area_weights(3, 2), expected)
    assert draw_ascii(_gray([[0.0, 0.6, 1.0]]), 1, 2, "abc") == ["ac"]


def test_images_of_a_source_are_read_square(tmp_path: Path) -> None:
    """The center of a wide picture; a file that is no picture is left out."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 30:40] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path))
    assert ascii_art().read(source, [0, 1]) == {0: "\n".join([" " * 32 + "@" * 32] * 64)}


def test_impossible_shares_are_refused() -> None:
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got"):
            shortened(FakeReader(), share)


def test_the_first_share_is_kept(images: ImageSource) -> None:
    for text, share, kept in (
        ("a b c d", 0.5, "a b"),
        ("a b c d", 0.51, "a b c"),
        ("a b c d", 1.0, "a b c d"),
        ("a b c d", 0.01, "a"),
        (" ..\n:: \n==#\n%%%", 0.5, " ..\n:: "),
        (" ".join("w" * 100), 0.07, " ".join("w" * 7)),
    ):
        assert shortened(Text(name=text), share).read(images, [0]) == {0: kept}
