"""An archive encoded by several processes: every image once, whoever dies on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from tests.tiny import tiny_language, tiny_lqae, write_images

from pixlex.api import ImageTokenizer
from pixlex.data.images import TooManyBroken, open_source
from pixlex.data.sources import subset
from pixlex.encoding import encode_parts, encode_source, parts, read_codes
from pixlex.encoding.journal import Journal, journal_header

# Children that are killed share no locks with this process; see tests/train/test_loop.py.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.tiny"])
NAMES = tuple(f"{number:02d}.png" for number in range(23))


@pytest.fixture(scope="module")
def lqae(language: Path) -> ImageTokenizer:
    return ImageTokenizer(tiny_lqae(language))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture(scope="module")
def expected(lqae: ImageTokenizer, photos: Path) -> list[tuple[str, tuple[int, ...]]]:
    rows = lqae.tokenize([photos / name for name in NAMES]).tolist()
    return [(name, tuple(row)) for name, row in zip(NAMES, rows, strict=True)]


def quietly(tokenizer: ImageTokenizer, photos: Path, folder: Path, **settings: Any) -> Any:
    values = {"part_size": 5, "batch_size": 2, "progress": False, **settings}
    return encode_parts(tokenizer, open_source(str(photos)), folder, **values)


def test_parts_hold_what_one_file_holds(
    lqae: ImageTokenizer, photos: Path, tmp_path: Path, expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    result = quietly(lqae, photos, tmp_path / "parts")
    assert (result.num_parts, result.num_images, result.num_resumed) == (5, 23, 0)
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["_parts.json", *(f"part-{number:05d}.parquet" for number in range(5))]
    assert [pq.read_metadata(tmp_path / "parts" / name).num_rows for name in names[1:]] == [5, 5, 5, 5, 3]
    assert list(read_codes(tmp_path / "parts", lqae)) == expected
    encode_source(lqae, open_source(str(photos)), tmp_path / "one.parquet", "parquet", progress=False)
    whole = pq.read_table(tmp_path / "one.parquet")
    assert pq.read_table(tmp_path / "parts").equals(whole)


def test_a_second_call_does_only_what_is_missing(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    quietly(lqae, photos, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "part-00002.parquet").unlink()
    result = quietly(lqae, photos, tmp_path)
    assert result.num_images == 5
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"part-00002.parquet"}


def _encode_slowly(folder: Path, language: Path, photos: Path, out: Path) -> None:
    """Encode with a tokenizer that takes its time, and write down how many images it saw."""
    tokenizer = ImageTokenizer(tiny_lqae(language))
    original, seen = tokenizer.tokenize, 0

    def tokenize(images: Any, **settings: Any) -> Any:
        nonlocal seen
        time.sleep(0.15)
        seen += len(images)
        (out / f"seen-{os.getpid()}").write_text(str(seen))
        return original(images, **settings)

    tokenizer.tokenize = tokenize  # type: ignore[method-assign]
    quietly(tokenizer, photos, folder)


def test_one_of_two_is_killed(
    lqae: ImageTokenizer, photos: Path, tmp_path: Path, expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    """The other goes on where it was: nothing is lost, and no more than one batch repeated."""
    folder, notes, language = tmp_path / "parts", tmp_path / "notes", tmp_path / "language"
    notes.mkdir()
    tiny_language(language)
    children = [
        SERVER.Process(target=_encode_slowly, args=(folder, language, photos, notes)) for _ in range(2)
    ]
    for child in children:
        child.start()
    first = notes / f"seen-{children[0].pid}"
    while not (first.exists() and first.read_text() and int(first.read_text()) >= 4):
        assert children[0].is_alive()
        time.sleep(0.01)
    assert children[0].pid is not None
    os.kill(children[0].pid, signal.SIGKILL)
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [-signal.SIGKILL, 0]
    assert [key for key, _ in read_codes(folder, lqae)] == [key for key, _ in expected]
    seen = [int(path.read_text()) for path in notes.iterdir()]
    assert len(seen) == 2
    assert 23 <= sum(seen) <= 25
    assert not list(folder.glob("*journal*"))


def test_a_part_that_another_holds_is_waited_for(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    """All others are finished meanwhile; the held one comes when its holder lets go."""
    quietly(lqae, photos, tmp_path)
    for number in (1, 3):
        (tmp_path / f"part-{number:05d}.parquet").unlink()
    header = journal_header(lqae, subset(open_source(str(photos)), range(5, 10)))
    holder = Journal(tmp_path / "_part-00001.journal", header)

    def let_go() -> None:
        until = time.monotonic() + 60
        while not (tmp_path / "part-00003.parquet").exists() and time.monotonic() < until:
            time.sleep(0.01)
        holder.__exit__(None, None, None)

    thread = threading.Thread(target=let_go)
    thread.start()
    assert quietly(lqae, photos, tmp_path).num_images == 10
    thread.join(60)


def test_folders_of_something_else_are_refused(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    quietly(lqae, photos, tmp_path / "parts")
    with pytest.raises(ValueError, match="holds parts of 5 images, got a part size of 6"):
        quietly(lqae, photos, tmp_path / "parts", part_size=6)
    others = write_images(tmp_path / "others", NAMES[:7])
    with pytest.raises(ValueError, match="holds parts of other images: subset another folder"):
        quietly(lqae, others, tmp_path / "parts")
    rounded = ImageTokenizer(lqae.model, precision="bf16")
    with pytest.raises(ValueError, match="parts of another model or precision: subset another folder"):
        quietly(rounded, photos, tmp_path / "parts")
    (tmp_path / "parts/part-00003.parquet").unlink()
    with pytest.raises(ValueError, match="expected 5 parts, found 4: encode has not finished"):
        list(read_codes(tmp_path / "parts", lqae))
    with pytest.raises(ValueError, match="part_size must be 1 or more, got 0"):
        quietly(lqae, photos, tmp_path / "new", part_size=0)
    (tmp_path / "parts/_parts.json").write_text("[")
    with pytest.raises(ValueError, match=r"_parts\.json is damaged"):
        quietly(lqae, photos, tmp_path / "parts")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"expected parts of codes, part-00000\.parquet and so on, found none"
    ):
        list(read_codes(tmp_path / "empty", lqae))


def test_broken_images_are_listed_and_too_many_stop(lqae: ImageTokenizer, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", NAMES[:8])
    (photos / NAMES[6]).write_bytes(b"nothing")
    result = quietly(lqae, photos, tmp_path / "parts", part_size=4, max_broken_share=0.2)
    assert result.num_images == 7
    assert [one.key for one in result.skipped] == [NAMES[6]]
    (line,) = (tmp_path / "parts/_part-00001.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == NAMES[6]


def test_too_many_broken_images_stop_and_are_tried_again(lqae: ImageTokenizer, tmp_path: Path) -> None:
    """No part is made of them: once they are repaired, the same command finishes with all."""
    photos = write_images(tmp_path / "photos", NAMES[:8])
    whole = {name: (photos / name).read_bytes() for name in NAMES[:8]}
    for name in NAMES[4:8]:
        (photos / name).write_bytes(b"x" * len(whole[name]))
    with pytest.raises(TooManyBroken):
        quietly(lqae, photos, tmp_path / "parts", part_size=4, max_broken_share=0.1)
    assert [path.name for path in (tmp_path / "parts").glob("part-*")] == ["part-00000.parquet"]
    for name, data in whole.items():
        (photos / name).write_bytes(data)
    assert quietly(lqae, photos, tmp_path / "parts", part_size=4).num_images == 4
    assert [key for key, _ in read_codes(tmp_path / "parts", lqae)] == list(NAMES[:8])


def test_what_a_kill_left_of_a_finished_part_goes(
    lqae: ImageTokenizer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the file and the end of its journal."""

    def killed(journal: Journal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            quietly(lqae, photos, tmp_path)
    assert (tmp_path / "_part-00000.journal").is_file()
    assert quietly(lqae, photos, tmp_path).num_images == 18
    assert pq.read_table(tmp_path).num_rows == 23
    assert not (tmp_path / "_part-00000.journal").exists()


def test_of_two_that_begin_one_says_the_size(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    """The file that is there is not written over, whoever came between."""
    header = {**journal_header(lqae, open_source(str(photos))), "part_size": 9}
    parts._write_first(tmp_path / "_parts.json", json.dumps(header))
    parts._write_first(tmp_path / "_parts.json", json.dumps({**header, "part_size": 5}))
    assert json.loads((tmp_path / "_parts.json").read_text())["part_size"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["_parts.json"]
    with pytest.raises(ValueError, match="holds parts of 9 images, got a part size of 5"):
        quietly(lqae, photos, tmp_path)


def test_shards_at_an_address_give_the_parts_of_a_disk(
    lqae: ImageTokenizer, photos: Path, tmp_path: Path
) -> None:
    """Two calls, the second behind what the first left, by another description of the same shards."""
    files = fsspec.filesystem("memory")
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name in NAMES[shard::3]:
                tar.add(photos / name, name)
        files.pipe(f"/shards/{shard}.tar", (tmp_path / f"{shard}.tar").read_bytes())
    try:
        source = open_source("memory://shards/{0..2}.tar")
        encode_parts(lqae, source, tmp_path / "far", part_size=5, batch_size=2, progress=False)
        (tmp_path / "far" / "part-00002.parquet").unlink()
        again = open_source("memory://shards")  # the same files, named otherwise
        result = encode_parts(lqae, again, tmp_path / "far", part_size=5, batch_size=2, progress=False)
    finally:
        files.rm("/shards", recursive=True)
    assert result.num_images == 5
    local = open_source(str(tmp_path / "{0..2}.tar"))
    encode_parts(lqae, local, tmp_path / "near", part_size=5, batch_size=2, progress=False)
    assert list(read_codes(tmp_path / "far", lqae)) == list(read_codes(tmp_path / "near", lqae))
