"""Sheets of pictures: each whole, in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pixlex.report.figures import Thumbnail, contact_sheet

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


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


def test_few_pictures_make_a_narrow_sheet_and_none_are_refused(tmp_path: Path) -> None:
    picture = Thumbnail(Image.new("RGB", (9, 9), RED), ())
    with Image.open(contact_sheet("", [picture] * 2, tmp_path / "sheet.png")) as sheet:
        assert sheet.width == 2 * 16 + 2 * 220 + 12
    with pytest.raises(ValueError, match="no picture to draw"):
        contact_sheet("", [], tmp_path / "none.png")
