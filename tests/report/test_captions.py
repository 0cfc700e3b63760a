"""Pictures beside what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixlex.report.figures import Captioned, captioned_images


def test_an_image_and_its_texts_share_a_row(tmp_path: Path) -> None:
    """Pixels enlarged by a whole factor on the left, ink on the right, also where the text is too long."""
    images = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    texts = (("written: a dog",), ("a very long text " * 100,))
    shown = [Captioned(image.unsqueeze(0), text) for image, text in zip(images, texts, strict=True)]
    path = captioned_images(shown, tmp_path / "a/b.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture).astype(int)
    for row, level in enumerate((0, 128)):
        rows = slice(16 + row * 208, 16 + row * 208 + 192)
        assert (pixels[rows, 16:208] == level).all()
        assert (pixels[rows, 224:] < 128).any()
    assert (pixels[208:224] == 255).all()


def test_images_of_one_item_stand_side_by_side(tmp_path: Path) -> None:
    path = captioned_images([Captioned(torch.zeros(2, 3, 32, 32), ("a",))], tmp_path / "a.png")
    with Image.open(path) as picture:
        assert (np.asarray(picture)[16:208, 16 : 16 + 2 * 192] == 0).all()


def test_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one image or more with what is said of it, got none"):
        captioned_images([], tmp_path / "c.png")
