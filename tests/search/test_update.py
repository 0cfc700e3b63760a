"""Indexes follow their sources, whatever happens between; nothing is embedded twice."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.search.conftest import NAMES, Indexed, contents
from tests.tiny import tiny_cbvila, write_images
from tqdm import tqdm

from pixlex.batch import TooManyBroken
from pixlex.data.folders import FileSource
from pixlex.data.images import open_source
from pixlex.data.sources import ImageRecord
from pixlex.models.cbvila import CBViLA
from pixlex.nn.nearest import NotFinite
from pixlex.search import DamagedIndex, ImageIndex
from pixlex.search import update as update_module
from pixlex.search.store import Store, read_head, writing

SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Watched(FileSource):
    """A folder that says what is read, and may do something before."""

    before: Callable[[int], None] = lambda index: None
    reads: list[int] = field(default_factory=list)

    def read(self, index: int) -> ImageRecord:
        self.before(index)
        self.reads.append(index)
        return super().read(index)


def watched(folder: Path, before: Callable[[int], None] = lambda index: None) -> Watched:
    source = open_source(str(folder))
    assert isinstance(source, FileSource)
    return Watched(source.name, source.root, source.paths, source.labels, before=before)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the model was given, batch by batch."""
    counts: list[int] = []
    vectors = ImageIndex._image_vectors

    def counting(self: ImageIndex, images: torch.Tensor, **settings: int) -> torch.Tensor:
        counts.append(len(images))
        return vectors(self, images, **settings)

    monkeypatch.setattr(ImageIndex, "_image_vectors", counting)
    return counts


def settle(folder: Path, seconds: float = 60) -> None:
    """Let all files be older than clocks are coarse."""
    for path in folder.rglob("*"):
        if path.is_file():
            moment = path.stat().st_mtime_ns - int(seconds * 1e9)
            os.utime(path, ns=(moment, moment))


@pytest.fixture
def fresh(update: Indexed, tmp_path: Path) -> Callable[[Path], dict[str, bytes]]:
    """What a new index of a source holds."""

    def call(source: Path) -> dict[str, bytes]:
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        update(source, "fresh")
        return contents(tmp_path / "fresh")

    return call


def test_vectors_are_the_models(update: Indexed, model: CBViLA, photos: Path, tmp_path: Path) -> None:
    """Those of `image_vectors`, of length 1; to the bit the same whatever the batch."""
    from tests.tiny import evaluation_batches

    index, result = update(photos)
    assert (len(index), result.num_images, result.num_embedded) == (12, 12, 12)
    (batch,) = evaluation_batches(open_source(str(photos)), image_size=32, batch_size=12)
    with torch.no_grad():
        expected = model.image_vectors(model.encode_image(batch.images)).numpy()
    found = contents(tmp_path / "index")
    assert list(found) == sorted(batch.keys) == sorted(NAMES)
    stacked = np.stack([np.frombuffer(found[key], np.float32) for key in NAMES])
    np.testing.assert_allclose(stacked, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(stacked, axis=1), 1, atol=1e-6)
    assert np.ptp(stacked, axis=0).max() > 1e-3  # images differ
    for batch_size in (1, 5):
        update(photos, f"by-{batch_size}", batch_size=batch_size)
        assert contents(tmp_path / f"by-{batch_size}") == found


def test_what_has_not_changed_is_not_embedded(
    update: Indexed, photos: Path, tmp_path: Path, embedded: list[int]
) -> None:
    """Files of the last two seconds are read again: a clock may hide a change; of settled ones nothing is read."""
    update(photos)
    source = watched(photos)
    _, result = update(source)
    assert sorted(source.reads) == list(range(12))
    assert (result.num_unchanged, sum(embedded)) == (12, 12)
    settle(photos)
    update(photos)  # from now on size and time are trusted
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")}
    source = watched(photos)
    _, result = update(source)
    assert (source.reads, sum(embedded)) == ([], 12)
    assert (result.num_embedded, result.num_unchanged, result.num_images) == (0, 12, 12)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")} == before


def test_a_change_that_the_clock_hides_is_found(
    update: Indexed, photos: Path, tmp_path: Path, fresh: Callable[[Path], dict[str, bytes]]
) -> None:
    """Same size, same time, other bytes, written right after the index was made."""
    path = photos / "cats/00.png"
    raw = path.read_bytes()
    changed = (write_images(tmp_path / "other", ["x.png"], seed=9) / "x.png").read_bytes()
    size = max(len(raw), len(changed))
    path.write_bytes(raw.ljust(size, b"\0"))  # PNG ignores what follows
    update(photos)
    before, state = contents(tmp_path / "index"), path.stat()
    path.write_bytes(changed.ljust(size, b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    _, result = update(photos)
    assert result.num_embedded == 1
    assert contents(tmp_path / "index") == fresh(photos) != before


def test_added_changed_renamed_touched_and_deleted_files(
    update: Indexed,
    photos: Path,
    tmp_path: Path,
    embedded: list[int],
    fresh: Callable[[Path], dict[str, bytes]],
) -> None:
    settle(photos)
    update(photos)
    embedded.clear()
    write_images(photos, ["birds/0.png", "birds/1.png"], seed=5)
    write_images(photos, ["cats/00.png"], seed=6)
    (photos / "cats/01.png").rename(photos / "cats/renamed.png")
    (photos / "cats/04.png").rename(photos / "cats/05.png.other")
    (photos / "cats/05.png").rename(photos / "cats/04.png")
    (photos / "cats/05.png.other").rename(photos / "cats/05.png")
    (photos / "dogs/02.png").touch()
    (photos / "dogs/03.png").unlink()
    _, result = update(photos)
    assert sum(embedded) == result.num_embedded == 3
    assert (result.num_images, result.num_copied, result.num_unchanged, result.num_removed) == (13, 3, 7, 2)
    assert contents(tmp_path / "index") == fresh(photos)
    shutil.rmtree(photos / "cats")
    shutil.rmtree(photos / "birds")
    _, result = update(photos)
    assert (result.num_images, result.num_removed, result.num_embedded) == (5, 8, 0)
    assert contents(tmp_path / "index") == fresh(photos)


def test_broken_files_are_listed_and_tried_again(update: Indexed, photos: Path, tmp_path: Path) -> None:
    """One that was fine before is dropped; the list is of this pass; repaired ones are taken in."""
    settle(photos)
    whole = (photos / "cats/00.png").read_bytes()
    (photos / "new.png").write_bytes(b"no image")
    with pytest.raises(TooManyBroken, match="cannot be read"):
        update(photos, "stopped", max_broken_fraction=0.01, batch_size=6)
    assert sorted(NAMES) == list(contents(tmp_path / "stopped"))  # what was embedded by then stays
    _, result = update(photos)
    assert [one.key for one in result.skipped] == ["new.png"]
    assert result.num_images == 12
    (photos / "cats/00.png").write_bytes(whole[:60])
    _, result = update(photos)
    assert {one.key for one in result.skipped} == {"new.png", "cats/00.png"}
    assert (result.num_images, result.num_removed, result.num_unchanged) == (11, 1, 11)
    assert "cats/00.png" not in contents(tmp_path / "index")
    assert (tmp_path / "index/skipped.jsonl").read_text().count("\n") == 2
    (photos / "cats/00.png").write_bytes(whole)
    (photos / "new.png").unlink()
    _, result = update(photos)
    assert (result.num_images, result.num_embedded, result.skipped) == (12, 1, ())
    assert not (tmp_path / "index/skipped.jsonl").exists()


def test_bytes_whose_row_is_replaced_meanwhile(
    update: Indexed, photos: Path, tmp_path: Path, fresh: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Written batch by batch: a copy takes a vector that is there, or embeds the image again."""
    settle(photos)
    update(photos)
    first, last = (photos / name for name in (NAMES[0], NAMES[-1]))
    last.write_bytes(first.read_bytes())
    write_images(photos, [NAMES[0]], seed=6)
    monkeypatch.setattr(update_module, "_SECONDS", 0.0)
    _, result = update(photos, batch_size=1)
    assert (result.num_embedded, result.num_copied, result.num_images) == (2, 0, 12)
    assert contents(tmp_path / "index") == fresh(photos)


def index_slowly(model: CBViLA, photos: Path, folder: Path) -> None:
    """What the killed process does."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())
    update_module._SECONDS = 0.0  # rows are written after each batch
    source = watched(photos, lambda index: time.sleep(0.04))
    index = ImageIndex.open(folder, model, create=True)
    index.update(source, batch_size=2, progress=False)


def written(folder: Path) -> int:
    """How many files the head of an index names."""
    return len(read_head(str(folder)).files) if (folder / "index.json").exists() else 0


@pytest.mark.parametrize("most", [2, pytest.param(4, marks=pytest.mark.campaign)])
def test_killed_at_random_moments(
    most: int, model: CBViLA, photos: Path, tmp_path: Path, fresh: Callable[[Path], dict[str, bytes]]
) -> None:
    write_images(photos, [f"more/{number:02d}.png" for number in range(28)], seed=3)
    expected, folder = fresh(photos), tmp_path / "killed"
    generator = np.random.default_rng(0)
    kills, sizes = 0, [0]
    while kills < most and sizes[-1] < 40:
        child = SERVER.Process(target=index_slowly, args=(model, photos, folder))
        child.start()
        wait_for = written(folder) + int(generator.integers(1, 8))
        while child.is_alive() and written(folder) < wait_for:
            time.sleep(0.001)
        time.sleep(float(generator.uniform(0, 0.03)))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        there = contents(folder)
        assert there.items() <= expected.items()
        sizes.append(len(there))
    assert kills >= min(most, 3)
    assert len(set(sizes)) >= min(most, 3)  # killed at work, not before or after it
    result = ImageIndex.open(folder, model).update(str(photos), progress=False)
    assert result.num_embedded <= 40 - sizes[-1]
    assert contents(folder) == expected
    assert not list(folder.glob("*.partial"))


def test_a_damaged_table_is_named_deleted_and_made_again(
    update: Indexed, photos: Path, tmp_path: Path, model: CBViLA, fresh: Callable[[Path], dict[str, bytes]]
) -> None:
    """As the error says: delete it, index again."""
    update(photos)
    table = tmp_path / "index/images.lance"
    path = next((table / "data").iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    index = ImageIndex.open(tmp_path / "index", model)
    for again in (lambda: index.search(texts="about"), lambda: update(photos)):
        with pytest.raises(DamagedIndex, match=f"{path.name} is damaged .*: delete {table} and run"):
            again()
    shutil.rmtree(table)
    update(photos)
    index.search(texts="about")
    assert contents(tmp_path / "index") == fresh(photos)


def test_many_files_and_void_rows_are_joined(
    update: Indexed, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixlex.search.store._MOST_FILES", 3)
    monkeypatch.setattr(update_module, "_ROWS_AT_ONCE", 2)
    update(photos, batch_size=2)
    files = Store(str(tmp_path / "index")).head.files
    assert len([name for name in files if name.startswith("data/")]) == 1
    assert list(contents(tmp_path / "index")) == sorted(NAMES)


def test_images_that_are_no_files(update: Indexed, photos: Path, tmp_path: Path, embedded: list[int]) -> None:
    """Rows of a table are compared by their bytes."""

    def table(changed: int | None) -> None:
        images = [(photos / name).read_bytes() for name in NAMES]
        if changed is not None:
            images[changed] = (write_images(tmp_path / "other", ["x.png"], seed=9) / "x.png").read_bytes()
        pq.write_table(pa.table({"image": images}), tmp_path / "set.parquet")

    table(None)
    update(tmp_path / "set.parquet")
    table(4)
    _, result = update(tmp_path / "set.parquet")
    assert (sum(embedded), result.num_embedded, result.num_unchanged) == (13, 1, 11)
    _, result = update("embedded:scenes:test:5", "scenes")
    _, result = update("embedded:scenes:test:5", "scenes")
    assert (result.num_unchanged, sum(embedded)) == (5, 18)


def test_an_image_listed_twice_is_taken_once(update: Indexed, photos: Path, tmp_path: Path) -> None:
    (photos / "list.csv").write_text("path\ncats/00.png\ndogs/01.png\ncats/00.png\n")
    _, result = update(photos / "list.csv")
    assert (result.num_images, result.num_repeated) == (2, 1)
    assert list(contents(tmp_path / "index")) == ["cats/00.png", "dogs/01.png"]


def test_another_source_is_refused(
    update: Indexed, photos: Path, tmp_path: Path, embedded: list[int]
) -> None:
    """It would drop what the index holds; the same images at another place are said to be."""
    index, _ = update(photos)
    assert index.head.source == str(photos)
    with pytest.raises(
        ValueError, match=r"index is an index of .*photos, got .*cats: .* say so with --moved"
    ):
        update(photos / "cats")
    photos.rename(tmp_path / "elsewhere")
    index, result = update(tmp_path / "elsewhere", moved=True)
    assert (index.head.source, result.num_unchanged, sum(embedded)) == (str(tmp_path / "elsewhere"), 12, 12)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        update(tmp_path / "elsewhere", batch_size=0)


def test_another_model_is_refused(
    update: Indexed, photos: Path, tmp_path: Path, model: CBViLA, language: Path
) -> None:
    update(photos)
    other = tiny_cbvila(language, seed=1)
    for given, settings, message in (
        (
            other,
            {"name": "runs/other"},
            r"made with the model given \(fingerprint \w{12}, fp32\), got runs/other",
        ),
        (other, {}, r"\) \(it has changed since, or .*\): vectors of different models"),
        (model, {"precision": "bf16", "name": "m"}, r"fp32\), got m .*, bf16\): vectors of different models"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageIndex.open(tmp_path / "index", given, **settings)  # type: ignore[arg-type]


def test_a_folder_of_other_things_is_left_alone(photos: Path, model: CBViLA, tmp_path: Path) -> None:
    before = sorted(photos.rglob("*"))
    with pytest.raises(ValueError, match=r"photos is no index, it holds no index\.json.*INDEX a new folder"):
        ImageIndex.open(photos, model, create=True)
    assert sorted(photos.rglob("*")) == before


def test_two_that_begin_at_once(model: CBViLA, tmp_path: Path) -> None:
    """The second is told that another writes; what a killed first left is no obstacle."""
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / f".index.json.{'0' * 32}.partial").touch()
    with writing(str(folder)), pytest.raises(ValueError, match="is being written by another process"):
        ImageIndex.open(folder, model, create=True)
    assert len(ImageIndex.open(folder, model, create=True)) == 0


def test_a_model_without_finite_vectors_is_refused(photos: Path, language: Path, tmp_path: Path) -> None:
    broken = tiny_cbvila(language)
    with torch.no_grad():
        broken.image_contrast.bias[0] = math.nan
    index = ImageIndex.open(tmp_path / "index", broken, create=True)
    with pytest.raises(NotFinite, match=r"^cats.*not finite"):
        index.update(str(photos), progress=False)
    assert len(index) == 0
