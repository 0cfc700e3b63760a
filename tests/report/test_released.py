"""What the quickstart shows of the released models, and beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch
from tests.tiny import tiny_cbvila, tiny_lqae

from pixlex import run
from pixlex.api import ImageTokenizer, load
from pixlex.api.pictures import batches_of
from pixlex.config.run import read_run
from pixlex.data.images import photograph
from pixlex.eval.metrics import mean_color_mse, mse
from pixlex.models import initialization
from pixlex.models.initialization import released
from pixlex.report.released import compared, look

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.fixture
def small_models(language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models where the released ones would lie."""
    folder = tmp_path / "released"
    ImageTokenizer(tiny_lqae(language)).save(folder / "small-words")
    pairs = tiny_cbvila(language, caption_words=("house", "disk", "arrow"))
    pairs.log_scale.data.zero_()
    ImageTokenizer(pairs).save(folder / "small-pairs")
    monkeypatch.setattr(initialization, "RELEASED", folder)
    return folder


def test_a_page_of_pictures_that_no_model_has_seen(small_models: Path, tmp_path: Path) -> None:
    page = look(tmp_path / "run")
    assert page == tmp_path / "run/released.html"
    text = page.read_text()
    for expected in (
        "cat",
        "flower",
        "4 x 4 words, each on the color it is rebuilt in",
        "each patch in its mean color",
    ):
        assert expected in text
    assert "<td" in text
    assert any(f">{word}" in text for word in ("house", "disk", "arrow"))
    assert (tmp_path / "run/pictures/found.png").is_file()


def test_errors_are_compared_on_the_same_images(small_models: Path, language: Path) -> None:
    own = ImageTokenizer(tiny_lqae(language))
    found = compared(own, "embedded:photographs:test")
    assert (found["num_images"], found["image_size"]) == (96, 32)
    assert found["own"] == found["small-words"] > 0


def test_the_command_shows_first_and_trains_then(
    small_models: Path,
    tmp_path: Path,
    language: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both pages and both errors are named; a second call changes nothing."""
    smaller = [
        f"model.language.name={language}", "model.image_size=32", "train.steps=1", "train.batch_size=2",
        "eval.limit=4", "eval.word_folds=0", "eval.examples=2",
    ]  # fmt: skip
    monkeypatch.setattr(run, "read_run", lambda recipe, overrides: read_run(recipe, smaller))
    for _ in range(2):
        code, out, said = call("quickstart", "--out", tmp_path / "run")
        assert code == 0
        assert f"first   {tmp_path / 'run/released.html'}" in out
        assert f"page    {tmp_path / 'run/report.html'}" in out
        assert ", of small-words " in out
    assert "is finished" in said


def test_the_models_that_come_with_the_package() -> None:
    """Small, with a card, and as good as the card says on pictures that no training saw."""
    folders = released()
    assert list(folders) == ["small-pairs", "small-words"]
    for folder in folders.values():
        assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert all(f"## {part}" in card for part in ("Measures", "Training", "Data", "Limits"))

    words = load("small-words")
    shown = [photograph(name) for name in ("cat", "coffee", "rocket")]
    pixels = next(batches_of(shown, len(shown), words.image_size, "center"))
    assert float(mse(pixels, words.reconstruct(pixels)).mean()) < 0.6 * float(mean_color_mse(pixels).mean())
    assert all(len(text.split()) == words.num_words for text in words.to_words(pixels))

    pairs, names = load("small-pairs"), ["house", "magnifying glass", "floppy disk", "question mark"]
    icons = [
        Path(matplotlib.get_data_path(), f"images/{name}_large.png")
        for name in ("home", "zoom_to_rect", "filesave", "help")
    ]
    assert (pairs.zero_shot(icons, names).argmax(1) == torch.arange(4)).sum() >= 3
