"""Curves of a run: what is read from a log, also a torn one, and what is drawn of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pixlex.report import curves as module
from pixlex.report.curves import curves, read_log, running_mean


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
