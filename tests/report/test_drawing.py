"""No picture and no page takes numbers down with it; names are shown as they can be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from tests.report.test_few_shot import cell

from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.episodes import setting_of
from pixlex.report.drawing import drawn, escape, plotted
from pixlex.report.plots import draw_accuracies
from pixlex.report.results import write_ablation

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


def test_names_in_pages_and_figures(tmp_path: Path) -> None:
    name = "caf\udce9 <b> $x$ \x1b[31m"
    assert escape(f"{name}\nsecond line") == "caf\\xe9 &lt;b&gt; $x$ \\x1b[31m\nsecond line"
    figure = Figure()
    figure.subplots().set_title(plotted(name))
    figure.savefig(tmp_path / "a.png")


def test_cells_of_nothing_and_of_all_are_drawn(tmp_path: Path) -> None:
    cells = []
    for column, accuracy in (("1/0", 0.0), ("3/0", 1.0)):
        low, high = wilson_interval(accuracy, 500)
        cells.append(cell(setting_of(column, 2), accuracy, low=low, high=high, answerer="caf\udce9"))
    with Image.open(draw_accuracies(cells, tmp_path / "a.png")) as picture:
        assert picture.width > 300


def test_a_table_of_failed_rows_has_no_picture(tmp_path: Path) -> None:
    row = {"name": "base", "title": "t", "group": "", "paper": "", "failure": "diverged", "numbers": {}}
    assert [path.name for path in write_ablation(tmp_path, [row], [])] == ["results.json", "table.md"]
