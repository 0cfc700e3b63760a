"""Pictures of images with their words, texts and each other: sizes, colors, places; one that fails is a remark."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, UnidentifiedImageError

from pixlex.report.figures import (
    BREAK,
    Captioned,
    Thumbnail,
    captioned_images,
    contact_sheet,
    drawn,
    fitted,
    font,
    image_columns,
    ink_on,
    line_width,
    patch_colors,
    reconstruction_grid,
    to_bytes,
)

CELL, MARGIN, GAP, TITLE = 80, 16, 12, 30
RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)
FAULTS = (
    OSError(28, "No space left on device"), UnidentifiedImageError("?"), MemoryError(), ImportError("no font"),
    ValueError("yerr must not contain negative values"), UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates"),
    ZeroDivisionError(), KeyError("title"), IndexError(), TypeError("set_text()"), AttributeError("x"),
    RuntimeError("FreeType"), struct.error("'I' format requires"), yaml.representer.RepresenterError("object"),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_failed_picture_is_a_remark(
    fault: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that of an earlier evaluation goes, for it shows other numbers."""
    path = tmp_path / "a" / "caf\udce9\x1b.png"
    assert drawn(path, lambda place: place.write_text("before")) == path

    def draw(place: Path) -> None:
        place.write_text("half of it")
        raise fault

    assert drawn(path, draw) is None
    assert list((tmp_path / "a").iterdir()) == []
    remark = capsys.readouterr().err
    assert rf"caf\xe9\x1b.png could not be made: {type(fault).__name__}" in remark
    assert remark.count("\n") == 1


def test_a_broken_invariant_is_none(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        drawn(tmp_path / "a.png", lambda place: _broken())


def _broken() -> None:
    raise AssertionError


def two_images(size: int) -> torch.Tensor:
    """Noise on the levels of a byte."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), generator=generator) / 255


def pixels(path: Path) -> np.ndarray:
    """The picture as bytes."""
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture).astype(int)


def test_a_row_is_original_words_reconstruction(tmp_path: Path) -> None:
    images = two_images(16)
    copies = 1 - images
    words = [[f"word{cell}" for cell in range(4)] for _ in range(2)]
    path = reconstruction_grid(images, copies, words, 2, tmp_path / "new" / "grid.png")
    sheet = pixels(path)
    side = 2 * CELL
    assert sheet.shape == (2 * MARGIN + TITLE + 2 * side + GAP, 2 * MARGIN + 3 * side + 2 * GAP, 3)
    for row in range(2):
        top = MARGIN + TITLE + row * (side + GAP)
        original, panel, copy = (
            sheet[top : top + side, left : left + side]
            for left in (MARGIN + column * (side + GAP) for column in range(3))
        )
        for shown, expected in ((original, images[row]), (copy, copies[row])):
            enlarged = np.repeat(np.repeat(to_bytes(expected), 10, axis=0), 10, axis=1)
            assert np.array_equal(shown, enlarged)
        for cell, color in enumerate(patch_colors(images[row], 2)):
            corner = panel[cell // 2 * CELL : (cell // 2 + 1) * CELL, cell % 2 * CELL : (cell % 2 + 1) * CELL]
            assert tuple(corner[1, 1]) == color
            assert tuple(corner[-2, -2]) == color
            written = (corner != np.array(color)).any(-1)
            assert 0.01 < written.mean() < 0.5
            # The word stands in the middle and keeps off the border.
            assert not written[:, :2].any()
            assert not written[:, -2:].any()
            assert abs(np.argwhere(written).mean(0) - CELL / 2).max() < 8


def test_patch_colors_are_means_in_the_order_of_the_words() -> None:
    image = two_images(12)[0]
    for place, color in enumerate(patch_colors(image, 3)):
        patch = image[:, place // 3 * 4 : place // 3 * 4 + 4, place % 3 * 4 : place % 3 * 4 + 4]
        assert color == tuple((patch.mean((1, 2)) * 255).round().int().tolist())


def test_ink_has_the_greater_contrast() -> None:
    """At least 4.5 : 1, what WCAG asks of text, on every color."""

    def luminance(color: tuple[int, int, int]) -> float:
        shares = np.array(color) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for color in np.random.default_rng(0).integers(0, 256, (500, 3)).tolist():
        bright, dark = sorted((luminance(tuple(color)), luminance(ink_on(tuple(color)))), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("cell", [35, 64, 80])
@pytest.mark.parametrize(
    "word", ["a", "pheasant", "recognized", "counterrevolutionaries", "w" * 40, "", "##s"]
)
def test_words_fit_their_cell_and_lose_no_letter(word: str, cell: int) -> None:
    text, size = fitted(word, cell)
    assert text.replace(BREAK, "") == word
    assert line_width(text) * size <= cell - 4
    assert len(text.split("\n")) * size <= cell
    assert 1 <= size <= cell / 4


def test_only_a_word_that_would_be_too_small_is_broken() -> None:
    assert BREAK not in fitted("pheasant", 80)[0]
    broken, size = fitted("counterrevolutionaries", 64)
    assert BREAK in broken
    assert size > int(64 / (font(100).getlength("counterrevolutionaries") / 100))


def test_columns_of_images_stand_under_their_titles(tmp_path: Path) -> None:
    """Each column's pixels are where they belong, enlarged by a whole factor."""
    one, other = two_images(16), 1 - two_images(16)
    picture = pixels(image_columns({"one": one, "other": other}, tmp_path / "columns.png"))
    side = 256
    for column, images in enumerate((one, other)):
        left = MARGIN + column * (side + GAP)
        for row in range(2):
            top = MARGIN + TITLE + row * (side + GAP)
            shown = picture[top : top + side : 16, left : left + side : 16]
            assert np.array_equal(shown, to_bytes(images[row]))


@pytest.mark.usefixtures("unchecked_shapes")
def test_columns_of_unequal_images_and_nothing_to_show_are_refused(tmp_path: Path) -> None:
    for columns in ({"a": two_images(16), "b": two_images(8)}, {}, {"a": torch.empty(0, 3, 8, 8)}):
        with pytest.raises(ValueError, match="expected columns of as many images of one size"):
            image_columns(columns, tmp_path / "columns.png")
    assert image_columns({"original": torch.zeros(0, 3, 8, 8)}, tmp_path / "titles.png", []).is_file()
    with pytest.raises(ValueError, match="expected one image or more with what is said of it, got none"):
        captioned_images([], tmp_path / "c.png")
    with pytest.raises(ValueError, match="no image to draw"):
        reconstruction_grid(two_images(8)[:0], two_images(8)[:0], None, 2, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="no picture to draw"):
        contact_sheet("", [], tmp_path / "none.png")


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


def test_pictures_stand_in_rows_in_their_proportions(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (400, 100), RED), Image.new("RGB", (30, 60), GREEN), None]
    pictures += [Image.new("RGB", (50, 50), BLUE)] * 3
    thumbnails = [Thumbnail(picture, ("1.", "x" * 200)) for picture in pictures]
    with Image.open(contact_sheet("a \udcff title\n", thumbnails, tmp_path / "new" / "sheet.png")) as sheet:
        counts = {color: number for number, color in sheet.getcolors(1 << 24)}
        assert sheet.width == 2 * 16 + 5 * 220 + 4 * 12
        assert sheet.getpixel((16 + 110, 52 + 110)) == RED
        assert sheet.getpixel((16 + 232 + 110, 52 + 110)) == GREEN
        assert sheet.getpixel((16 + 2 * 232 + 110, 52 + 110)) == (228, 228, 232)
        assert sheet.getpixel((16 + 110, 52 + 272 + 110)) == BLUE  # the sixth begins the second row
    assert counts[RED] == 220 * 55
    assert counts[GREEN] == 110 * 220
    assert counts[BLUE] == 3 * 220**2
