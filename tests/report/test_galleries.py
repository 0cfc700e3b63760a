"""Images under heat, patches of codewords, rebuilt pairs: where they lie, how they are scaled, what is written."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixlex.data.images import open_source
from pixlex.eval.gradcam import Explanation
from pixlex.report.figures import explained_image, heated
from pixlex.report.progress import choose_codewords, codeword_gallery


def _map(row: int, column: int, height: float = 1.0) -> Tensor:
    heat = torch.zeros(4, 4)
    heat[row, column] = height
    return heat


def _explanation(*maps: Tensor, left_out: tuple[str, ...] = ()) -> Explanation:
    words = tuple(f"word{number}" for number in range(len(maps)))
    return Explanation(words, torch.stack(maps), _map(0, 0), "matching", 0.5, 1, left_out)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_heat_lies_on_its_patch_in_the_hottest_color() -> None:
    """Gray elsewhere, the colormap's last color over 15 % of the image at the center of the patch."""
    image = torch.full((3, 32, 32), 0.5)
    image[0] = 0.9  # its color is gone: 0.299 * 230 + 0.701 * 128 = 158
    pixels = np.asarray(heated(image, _map(2, 1, 0.001), 128)).astype(int)
    assert (pixels[:32] == 158).all()
    assert (pixels[:, 96:] == 158).all()
    hottest = 255 * np.array(matplotlib.colormaps["inferno"](1.0)[:3]) * 0.85 + 158 * 0.15
    assert np.abs(pixels[79:81, 47:49] - hottest).max() < 25  # the center lies between pixels
    away = np.abs(pixels - 158).max(-1)
    assert away[64:96, 32:64].mean() > 4 * away[:, 64:].mean()
    assert np.array_equal(pixels, np.asarray(heated(image, _map(2, 1, 7.0), 128)))
    assert (np.asarray(heated(torch.full((3, 8, 8), 0.2), torch.zeros(4, 4), 16)) == 51).all()


def test_a_panel_for_the_image_the_whole_and_each_word(tmp_path: Path) -> None:
    """Three words make five panels in a row; a word without heat is gray where others are not."""
    image = torch.rand(3, 32, 32)
    explanation = _explanation(_map(3, 3), torch.zeros(4, 4), _map(0, 0))
    pixels = _pixels(explained_image(image[None], [explanation], tmp_path / "a/b.png"))
    panels = [pixels[16:208, 16 + number * 204 : 208 + number * 204] for number in range(5)]
    assert np.array_equal(panels[0][::6, ::6], (image * 255).round().permute(1, 2, 0).int().numpy())
    colorful = [np.ptp(panel, axis=-1) > 0 for panel in panels]
    assert [one.any() for one in colorful] == [True, True, True, False, True]
    assert colorful[2][96:, 96:].any()
    assert not colorful[2][:96, :96].any()
    assert np.array_equal(panels[4], panels[1])
    assert all((pixels[212:228, 16 + number * 204 :][:, :100] < 128).any() for number in range(5))


def test_two_images_stand_below_each_other(tmp_path: Path) -> None:
    """Each in its own block; what is highest in one is 100 %, the other has its share; the answer is named."""
    images = torch.rand(2, 3, 32, 32)
    one, two = _explanation(_map(3, 3, 2.0)), _explanation(_map(0, 0, 1.0))
    both = _pixels(explained_image(images, [one, two], tmp_path / "a.png"))
    alone = _pixels(explained_image(images[:1], [one], tmp_path / "b.png"))
    step = 192 + 44 + 12
    assert both.shape == (alone.shape[0] + step, alone.shape[1], 3)
    second = both[16 + step : 208 + step, 16:208]
    assert np.array_equal(second[::6, ::6], (images[1] * 255).round().permute(1, 2, 0).int().numpy())
    shares = [both[240 + top : 256 + top, 424:500] for top in (0, step)]
    assert not np.array_equal(*shares)
    said = _pixels(explained_image(images[:1], [one], tmp_path / "c.png", answer="red"))
    assert not np.array_equal(said, alone)


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
    used = torch.tensor([[0, 0, 0, 0, 3, 3, 3, 3, 5]])
    assert choose_codewords(used, 5) == [0, 3]
    assert choose_codewords(used, 5, least=100) == [0, 3]  # no codeword has as many
