"""Pictures of images with their words, texts and each other: sizes, colors, places; one that fails is a remark."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pixlex.config.fields import GridConfig
from pixlex.data.images import open_source
from pixlex.eval.gradcam import Explanation
from pixlex.report import curves as module
from pixlex.report.curves import curves, read_log, running_mean
from pixlex.report.figures import (
    BREAK,
    Thumbnail,
    captioned_images,
    contact_sheet,
    drawn,
    explained_image,
    fitted,
    heated,
    image_columns,
    ink_on,
    line_width,
    patch_colors,
    reconstruction_grid,
    to_bytes,
)
from pixlex.report.progress import choose_codewords, codeword_gallery

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
        for cell, color in enumerate(patch_colors(copies[row], 2)):
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
        config=GridConfig(image_size=32),
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


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log as training writes it."""
    lines: list[dict[str, float]] = []
    for step in range(1, 151):
        names = ("total", "reconstruction", "distinct_codewords", "learning_rate")
        values = (1.0 / step, 0.5 / step, step, 1e-3)
        lines.append(
            {"step": step, **{f"train/{name}": one for name, one in zip(names, values, strict=True)}}
        )
        if step % 50 == 0:
            numbers = {"eval/psnr": 10 + step / 50, "eval/mse": 0.4 / step, "eval/mean_image_mse": 0.1}
            lines.append({"step": step, **numbers, "eval/num_images": 8, "eval/masked_word_accuracy": 0.25})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def lines_of(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The legends of each panel that is drawn."""
    drawn: dict[str, list[str]] = {}
    original = module._draw

    def noting(axes: matplotlib.axes.Axes, panel: str, lines: Any) -> None:
        original(axes, panel, lines)
        drawn[panel] = [text.get_text() for text in axes.get_legend().get_texts()]

    monkeypatch.setattr(module, "_draw", noting)
    curves(path, out)
    return drawn


def global_state() -> tuple[Any, dict[str, Any]]:
    """Backend and settings of matplotlib; asking the settings for the backend would choose one."""
    settings = {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
    return matplotlib.get_backend(auto_select=False), settings


def test_a_log_is_read_as_curves(log: Path) -> None:
    found = read_log(log)
    steps, values = found["train/total"]
    assert np.array_equal(steps, np.arange(1, 151))
    np.testing.assert_allclose(values, 1 / steps)
    assert found["eval/psnr"][0].tolist() == [50, 100, 150]
    assert found["eval/psnr"][1].tolist() == [11, 12, 13]


def test_torn_lines_and_what_is_no_number_are_passed_over(log: Path) -> None:
    expected = read_log(log)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(
            '{"step": 151, "train/total": NaN, "train/reconstruction": Infinity, "train/kind": "x"}\n'
        )
        stream.write(
            '{"step": 152, "train/total": null, "train/flag": true}\n[1, 2]\n7\n{"train/total": 3.0}\n\n'
        )
        stream.write('{"step": NaN, "train/total": 3.0}\n{"step": 153, "train/tot')
    found = read_log(log)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_after_a_resumed_run_the_later_line_of_a_step_counts(tmp_path: Path) -> None:
    """A line torn in the middle of the log costs that line alone."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": 1}\n{"step": 9, "a{"step": 2, "a": 7}\n{"step": 2, "a": 9}\n{"step": 2, "a": 2}\n'
        '{"step": 1, "b": 5}\n',
        "utf-8",
    )
    assert [part.tolist() for part in read_log(path)["a"]] == [[1, 2], [1, 2]]
    assert read_log(path)["b"][1].tolist() == [5]


def test_curves_writes_a_picture_and_leaves_matplotlib_alone(log: Path, tmp_path: Path) -> None:
    before = global_state()
    out = curves(log, tmp_path / "new" / "curves.png")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(set(picture.convert("L").tobytes())) > 50
    assert global_state() == before


def test_panels_hold_what_belongs_together(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = lines_of(log, tmp_path / "curves.png", monkeypatch)
    assert list(drawn)[:3] == ["total", "reconstruction", "distinct_codewords"]
    assert drawn["total"] == ["train"]
    assert drawn["reconstruction"] == ["train", "eval", "eval, the mean image"]
    assert drawn["distinct_codewords"] == ["train, one batch"]
    assert "num_images" not in drawn


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json\n",
        '{"step": 1, "train/total": 0.0, "train/commitment": -1.0}\n',
        "\n".join(f'{{"step": {step}, "train/total": 5.0}}' for step in range(200)),
        '{"step": 0, "train/reconstruction": 1e-30}\n{"step": 1, "train/reconstruction": 1e30}\n',
    ],
    ids=["empty", "no-json", "not-positive", "constant", "wide"],
)
def test_odd_logs_give_a_picture(content: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content, encoding="utf-8")
    with Image.open(curves(path, tmp_path / "curves.png")) as picture:
        assert picture.size[0] > 1000
    with pytest.raises(FileNotFoundError):
        curves(tmp_path / "absent.jsonl", tmp_path / "curves.png")


@pytest.mark.parametrize("radius", [0, 1, 4, 50])
def test_running_mean_equals_a_loop(radius: int) -> None:
    values = np.random.default_rng(0).normal(size=23)
    expected = [values[max(0, place - radius) : place + radius + 1].mean() for place in range(23)]
    np.testing.assert_allclose(running_mean(values, radius), expected)
