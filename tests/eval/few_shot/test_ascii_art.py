"""ASCII art: a ramp of grays gives the ramp of characters, whatever the sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixlex.data.images import open_source
from pixlex.eval.few_shot.readers import RAMP, AsciiArt, area_weights


def _gray(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows).expand(1, 3, -1, -1)


def test_a_ramp_of_grays_gives_the_ramp() -> None:
    """Ten grays, the middle of each step, in both directions; the borders belong to the step above."""
    grays = [(step + 0.5) / 10 for step in range(10)]
    art = AsciiArt(lines=1, columns=10)
    assert art.draw(_gray([grays])) == [RAMP]
    assert AsciiArt(lines=1, columns=10, inverted=True).draw(_gray([grays])) == [RAMP[::-1]]
    assert art.draw(_gray([[step / 10 for step in range(10)]])) == [RAMP]
    assert art.draw(torch.ones(1, 3, 4, 10)) == ["@" * 10]


def test_more_light_is_never_an_earlier_character() -> None:
    """Over a fine ramp, and with noise below one step of it."""
    text = AsciiArt(lines=1, columns=256).draw(_gray([[value / 255 for value in range(256)]]))[0]
    steps = [RAMP.index(character) for character in text]
    assert steps == sorted(steps)
    assert set(steps) == set(range(10))


def test_green_weighs_more_than_red_and_red_more_than_blue() -> None:
    """ITU-R BT.601: full red, green and blue have luma 0.299, 0.587 and 0.114."""
    image = torch.eye(3).reshape(1, 3, 1, 3)
    assert AsciiArt(lines=1, columns=3, ramp="0123456789").draw(image) == ["251"]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 37), (5, 7), (1, 1), (255, 257)])
def test_any_size_gives_as_many_lines_and_characters(height: int, width: int) -> None:
    """Larger, smaller, and sizes that do not divide; the mean is kept to the last digit."""
    image = torch.rand(2, 3, height, width)
    texts = AsciiArt().draw(image)
    assert [[len(line) for line in text.split("\n")] for text in texts] == [[64] * 64] * 2
    assert texts == AsciiArt().draw(image)
    weights = area_weights(height, 64)
    torch.testing.assert_close(weights.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(0), torch.full((height,), 64 / height, dtype=torch.float64))


def test_a_cut_pixel_counts_by_its_parts() -> None:
    """Three pixels on two characters: the middle one counts half on each side."""
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(area_weights(3, 2), expected)
    assert AsciiArt(lines=1, columns=2, ramp="abc").draw(_gray([[0.0, 0.6, 1.0]])) == ["ac"]


def test_images_of_a_source_are_read_square(tmp_path: Path) -> None:
    """The center of a wide picture; a file that is no picture is left out."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 30:40] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path))
    art = AsciiArt(lines=2, columns=4)
    assert art.read(source, [0, 1]) == {0: "  @@\n  @@"}


def test_the_identity_is_that_of_the_settings() -> None:
    """Equal settings, equal fingerprint; another ramp or size, another one."""
    assert AsciiArt().identity == AsciiArt().identity
    others = (AsciiArt(lines=32), AsciiArt(inverted=True), AsciiArt(ramp=" #"))
    assert len({art.identity for art in (AsciiArt(), *others)}) == 4


@pytest.mark.parametrize("bad", [{"lines": 0}, {"columns": -1}, {"ramp": "#"}, {"ramp": "a\nb"}])
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected .* got"):
        AsciiArt(**bad)  # type: ignore[arg-type]
