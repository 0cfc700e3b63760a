"""Pictures of CB-ViLA's pretraining: rebuilt images, codewords with their patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixlex.data.images import open_source
from pixlex.eval.pretraining import ReconstructedExamples
from pixlex.report.figures import image_columns
from pixlex.report.galleries import choose_codewords, codeword_gallery, reconstructed_pairs


def test_reconstructed_pairs_stand_in_their_columns(tmp_path: Path) -> None:
    """Four columns of one color each, two rows, both texts below each."""
    columns = [torch.full((2, 3, 16, 16), shade) for shade in (0.0, 0.25, 0.5, 1.0)]
    examples = ReconstructedExamples(
        ("a", "b"), ("a text", "a very long text " * 40), ("another", ""), *columns
    )
    sheet = np.asarray(Image.open(reconstructed_pairs(examples, tmp_path / "rebuilt.png")))
    side = 256
    for column, shade in enumerate((0, 64, 128, 255)):
        for row in range(2):
            top, left = 16 + 30 + row * (side + 62), 16 + column * (side + 12)
            assert (sheet[top : top + side, left : left + side] == shade).all()
    below = sheet[16 + 30 + side : 16 + 30 + side + 62]
    assert (below[:24] < 128).any()  # the caption
    assert (below[26:44] < 128).any()  # the other text
    assert (sheet[:, -10:] == 255).all()  # the long one is cut


def test_codewords_drawn_are_used_ones() -> None:
    codes = torch.tensor([[0, 0, 0, 0, 3, 3, 3, 3, 5]])
    assert choose_codewords(codes, 5) == [0, 3]
    assert choose_codewords(codes, 1) in ([0], [3])
    assert choose_codewords(codes, 5, least=100) == [0, 3]  # no codeword has as many


def test_a_gallery_shows_the_patches_of_each_codeword(tmp_path: Path) -> None:
    """Codeword = color of the quarter: each row of the picture shows its color inside the frames."""
    colors = [(200, 30, 30), (30, 160, 40), (40, 60, 200), (230, 200, 40)]
    folder = tmp_path / "images"
    folder.mkdir()
    codes = []
    for number in range(6):
        order = np.random.default_rng(number).permutation(4)
        pixels = np.zeros((32, 32, 3), dtype=np.uint8)
        for place, color in enumerate(order):
            row, column = divmod(place, 2)
            pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = colors[color]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        codes.append(torch.tensor(order))
    path = codeword_gallery(
        open_source(str(folder)),
        torch.arange(6),
        torch.stack(codes),
        image_size=32,
        num_codewords=4,
        path=tmp_path / "gallery.png",
    )
    sheet = np.asarray(Image.open(path)).astype(int)
    for line, color in enumerate(colors):
        row = sheet[6 + line * 78 : 6 + line * 78 + 72, 124:]
        near = (np.abs(row - np.array(color)).sum(-1) < 30).reshape(72, -1)
        # A quarter of each of six pictures, all of it inside a frame in the color of frames.
        assert 0.15 < near[:, : 6 * 78].mean() < 0.25
        assert near[:, 6 * 78 :].sum() == 0
    assert sheet.shape[0] == 6 + 4 * 78


@pytest.mark.parametrize("count", [0, 1])
def test_labels_of_rows(tmp_path: Path, count: int) -> None:
    """A sheet without rows is its titles alone."""
    columns = {"original": torch.zeros(count, 3, 8, 8)}
    assert image_columns(columns, tmp_path / "sheet.png", ["text"] * count).is_file()
