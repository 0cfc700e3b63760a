"""Pictures beside what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixlex.report.captions import captioned_images


def test_an_image_and_its_texts_share_a_row(tmp_path: Path) -> None:
    """Pixels enlarged by a whole factor on the left, ink on the right, also where the text is too long."""
    images = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    path = captioned_images(images, [("written: a dog",), ("a very long text " * 100,)], tmp_path / "a/b.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture).astype(int)
    for row, level in enumerate((0, 128)):
        rows = slice(16 + row * 208, 16 + row * 208 + 192)
        assert (pixels[rows, 16:208] == level).all()
        assert (pixels[rows, 224:] < 128).any()
    assert (pixels[208:224] == 255).all()


def test_texts_for_other_images_are_refused(tmp_path: Path) -> None:
    for images in (torch.rand(1, 3, 8, 8), torch.rand(0, 3, 8, 8)):
        with pytest.raises(ValueError, match="expected texts for each of one or more images, got 2 for"):
            captioned_images(images, [("a",), ("b",)], tmp_path / "c.png")
