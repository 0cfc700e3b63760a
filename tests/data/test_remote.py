"""Remote shards and tables: the same source as on a disk, clear words where they cannot be had, bounded copies."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.far import Far, asked
from tests.data.test_tar import write_tar
from tests.tiny import training_batches

from pixlex.config.fields import DataConfig
from pixlex.data import remote
from pixlex.data.captions import open_pairs
from pixlex.data.decoding import UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.remote import CachedFile, FileState, NoSuchFile, RemotePath, Unreachable, cache_bytes
from pixlex.files import cache_folder

Picture = Callable[..., bytes]
FORK = multiprocessing.get_context("fork")  # children see what the test told the file system
BYTES = bytes(range(250)) * 4


@pytest.fixture
def stored(far: Path, picture: Picture) -> Iterator[Path]:
    """Shards with labels and captions, and a table in row groups: on a disk, at far:// and at memory://far."""
    for name in ("shards", "tables"):
        (far / name).mkdir()
    for shard, count in enumerate((4, 3, 5)):
        files: dict[str, bytes] = {}
        for row in range(count):
            base = f"{shard}{row}"
            files |= {f"{base}.png": picture(10 * shard + row), f"{base}.cls": str(row % 3).encode()}
            files[f"{base}.json"] = f'{{"captions": ["one of {base}", "two \\ud800 of {base}"]}}'.encode()
        write_tar(far / "shards" / f"set-{shard}.tar", files)
    (far / "shards" / "classes.csv").write_text("label,class_name\n0,cat\n1,dog\n2,owl\n")
    images = [picture(number) for number in range(9)]
    table = {
        "image": images,
        "caption": [f"text {n}" for n in range(9)],
        "image_id": [f"id{n}" for n in range(9)],
    }
    pq.write_table(pa.table(table), far / "tables" / "table.parquet", row_group_size=4)
    files = fsspec.filesystem("memory")
    for path in far.rglob("*.*"):
        files.pipe(f"/far/{path.relative_to(far)}", path.read_bytes())
    yield far
    files.rm("/", recursive=True)


@pytest.mark.parametrize("pattern", ["shards", "shards/set-{0..2}.tar", "tables/table.parquet"])
def test_a_source_is_the_same_wherever_it_lies(stored: Path, pattern: str) -> None:
    local, pairs = open_source(str(stored / pattern)), open_pairs(f"{stored / pattern}?rows=captions")
    for root in (f"file://{stored}", "memory://far", "far:/"):
        source = open_source(f"{root}/{pattern}")
        assert (source.identity, source.class_names, source.blocks) == (
            local.identity, local.class_names, local.blocks,
        )  # fmt: skip
        assert all(source.read(index) == local.read(index) for index in range(len(local)))
        other = open_pairs(f"{root}/{pattern}?rows=captions")
        assert (other.texts, other.ids, other.identity) == (pairs.texts, pairs.ids, pairs.identity)
    assert len(open_pairs(f"2 * memory://far/{pattern} + far://{pattern}")) == 3 * len(local)


@pytest.mark.parametrize("pattern", ["shards/*.tar", "tables/table.parquet"])
def test_batches_are_the_same_to_the_bit(stored: Path, pattern: str) -> None:
    config = DataConfig(shuffle_blocks=2, streams=2, workers=2)
    settings = {"config": config, "image_size": 8, "batch_size": 4, "seed": 3}
    expected = list(islice(training_batches(open_source(str(stored / pattern)), **settings), 7))
    source = open_source(f"far://{pattern}")
    batches = [*islice(training_batches(source, **settings), 7)]
    batches += islice(training_batches(source, first_step=5, **settings), 2)
    for batch, other in zip(batches, [*expected, *expected[5:]], strict=True):
        assert torch.equal(batch.images, other.images)
        assert (batch.keys, batch.labels.tolist(), batch.skipped) == (other.keys, other.labels.tolist(), ())


def test_files_come_in_the_order_of_a_disk_and_braces_are_not_listed(far: Path, picture: Picture) -> None:
    for name in ("a/b.tar", "a-b/c.tar", "a.tar", "c/d.TAR"):
        (far / name).parent.mkdir(exist_ok=True)
        write_tar(far / name, {"0.png": picture(len(name))})
    local, other = (open_source(f"{root}/**/*.[tT][aA][rR]") for root in (far, "far:/"))
    keys = [other.key(index) for index in range(4)]
    assert keys == [local.key(index) for index in range(len(local))]
    Far.log.write_text("")
    braces = open_source("far://{c/d.TAR,a/b.tar}")
    assert [braces.key(index) for index in range(2)] == ["a/b.tar/0.png", "c/d.TAR/0.png"]
    assert sorted(asked("info")) == ["a/b.tar", "c/d.TAR"]


def test_images_that_a_table_names_lie_beside_it(far: Path, picture: Picture) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}], kind)
    pq.write_table(pa.table({"image": cells}), far / "table.parquet")
    (far / "a.png").write_bytes(picture(1))
    source = open_source("far://table.parquet")
    assert source.read(0).data == picture(1)
    with pytest.raises(UnreadableImage, match=r"the file does not exist: far://b\.png"):
        source.read(1)
    Far.faults.extend([OSError("gone")] * 3)
    with pytest.raises(Unreachable, match=r"far://a\.png cannot be read after 3 tries: OSError: gone"):
        source.read(0)


def test_a_shard_inside_an_archive(far: Path, picture: Picture) -> None:
    import zipfile

    write_tar(far / "b.tar", {"0.png": picture(1)})
    with zipfile.ZipFile(far / "x.zip", "w") as archive:
        archive.write(far / "b.tar", "in/b.tar")
    source = open_source("zip://in/b.tar::far://x.zip")
    assert (source.key(0), source.read(0).data) == ("b.tar/0.png", picture(1))
    with pytest.raises(ValueError, match="files of a chain are not listed"):
        open_source("zip://in/*.tar::far://x.zip")


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("far://none.tar", r"far://none\.tar does not exist"),
        ("far://none.parquet", r"far://none\.parquet does not exist"),
        ("far://nowhere", "far://nowhere does not exist"),
        ("far://*.tar", r"no file matches far://\*\.tar"),
        ("far://pictures", r"expected a \.tar or \.parquet file, or some in far://pictures"),
        ("far://both", r"must name \.parquet or \.tar files alone, far://both names \.parquet, \.tar"),
        ("far://folder.tar", r"far://folder\.tar is a folder, expected a file"),
        ("unheard-of://a.tar", r"unheard-of://a\.tar cannot be read: Protocol not known: unheard-of"),
    ],
)
def test_urls_of_nothing(far: Path, description: str, sentence: str) -> None:
    for name in ("pictures/a.png", "both/a.tar", "both/a.parquet", "folder.tar/x"):
        (far / name).parent.mkdir(exist_ok=True)
        (far / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=sentence):
        open_source(description)


def test_a_package_that_is_missing_is_named() -> None:
    told = "Install absent to read absent://"
    fsspec.register_implementation("absent", "no_such_package.Files", errtxt=told, clobber=True)
    with pytest.raises(ModuleNotFoundError, match=rf"absent://a\.tar needs a package .*: {told}"):
        open_source("absent://a.tar")


def test_what_fails_now_and_then_is_tried_again(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of the packages behind fsspec count; refusals are final; files are missing where a server says so."""

    class ClientError(Exception):
        status = 503

    def missing(cause: Exception) -> FileNotFoundError:
        fault = FileNotFoundError("a.tar")
        fault.__cause__ = cause
        return fault

    module = ModuleType("aiohttp")
    module.ClientError = ClientError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aiohttp", module)
    (far / "a.tar").write_bytes(b"x")
    path = RemotePath("far://a.tar")
    Far.faults.extend([TimeoutError("slow"), ClientError("busy")])
    assert path.state().size == 1
    refused, answered = ClientError("forbidden"), OSError("404")
    refused.status, answered.status = 403, 404  # type: ignore[attr-defined]
    for faults, kind, sentence in (
        ([OSError("reset")] * 3, Unreachable, "cannot be read after 3 tries: OSError: reset"),
        ([PermissionError("no key")], Unreachable, "cannot be read: PermissionError: no key"),
        ([refused], Unreachable, "cannot be read: ClientError: forbidden"),
        ([missing(answered)], NoSuchFile, "does not exist"),
        ([missing(ConnectionRefusedError("no"))] * 3, Unreachable, "cannot be read after 3 tries: Conn"),
    ):
        Far.faults[:] = [*faults, OSError("not reached")]
        with pytest.raises(kind, match=rf"far://a\.tar {sentence}"):
            path.state()
        assert len(Far.faults) == 1


def test_a_remote_file_that_fails_stops_instead_of_counting_as_broken_images(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, table = open_source("far://shards/*.tar"), open_source("far://tables/table.parquet")
    for path in (tmp_path / "cache" / "shards").iterdir():
        path.unlink()
    for source, name in ((shards, "shards/set-0.tar"), (table, "tables/table.parquet")):
        Far.faults[:] = [OSError("no route")] * 3
        with pytest.raises(Unreachable, match=rf"far://{name} cannot be read after 3 tries: OSError: no"):
            source.read(0)
        assert source.read(0).data
    whole = (stored / "tables" / "table.parquet").read_bytes()
    monkeypatch.setattr(Far, "cat_file", lambda *_, **__: whole)
    with pytest.raises(Unreachable, match=r"table\.parquet cannot be read in parts: its server sends"):
        table.read(8)


def test_a_table_is_read_by_row_groups(far: Path) -> None:
    rows = [os.urandom(50_000) for _ in range(8)]
    columns = {"image": rows, "number": list(range(8))}
    pq.write_table(pa.table(columns), far / "t.parquet", row_group_size=2, compression="none")
    source = open_source("far://t.parquet")
    assert [source.read(index).data for index in (2, 3)] == rows[2:4]
    ranges = [tuple(map(int, line.split()[1:])) for line in asked("range")]
    assert sum(end - start for start, end in ranges) < 3 * 100_000
    assert asked("stream") == asked("whole") == []


def cached(name: str) -> CachedFile:
    path = RemotePath(f"far://{name}")
    return CachedFile(path, path.state())


def content(name: str) -> bytes:
    with cached(name).open() as file:
        return file.read()


def copies() -> list[Path]:
    return sorted((cache_folder() / "shards").iterdir())


def _read_many(queue: object) -> None:
    for name in ("a.tar", "b.tar"):
        queue.put(content(name))  # type: ignore[attr-defined]


def test_of_many_processes_one_downloads(far: Path) -> None:
    for name in ("a.tar", "b.tar"):
        (far / name).write_bytes(name.encode() * 200_000)
    queue = FORK.Queue()
    processes = [FORK.Process(target=_read_many, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in range(8)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(found) == sorted([b"a.tar" * 200_000, b"b.tar" * 200_000] * 4)
    assert sorted(asked("stream")) == ["a.tar 0", "b.tar 0"]
    assert [path.suffix for path in copies()] == [".tar", ".tar"]
    (far / "a.tar").write_bytes(b"other content")
    assert content("a.tar") == b"other content"


@pytest.mark.parametrize(("seeks", "second"), [(True, "a.tar 600"), (False, "a.tar 0")])
def test_a_download_resumes_where_it_broke_off(far: Path, seeks: bool, second: str) -> None:
    """But from the beginning where a server begins there alone."""
    (far / "a.tar").write_bytes(BYTES)
    Far.breaks_at, Far.seeks = 600, seeks
    assert content("a.tar") == BYTES
    assert asked("stream") == ["a.tar 0", second]


def _download_a_part_and_hang(ready: object) -> None:
    def hang(seconds: float) -> None:
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)

    Far.breaks_at = 600
    remote.time = type("Time", (), {"sleep": staticmethod(hang)})
    content("a.tar")


def test_a_killed_download_is_resumed_by_another_process(far: Path) -> None:
    (far / "a.tar").write_bytes(BYTES)
    ready = FORK.Event()
    process = FORK.Process(target=_download_a_part_and_hang, args=(ready,))
    process.start()
    assert ready.wait(60)
    (partial,) = copies()
    assert (partial.suffix, partial.stat().st_size) == (".partial", 600)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert content("a.tar") == BYTES
    assert asked("stream") == ["a.tar 0", "a.tar 600"]


def test_content_of_another_size_is_an_error(far: Path) -> None:
    (far / "a.tar").write_bytes(b"x" * 500)
    file = cached("a.tar")
    for size in (300, 700):
        (far / "a.tar").write_bytes(b"x" * size)
        with pytest.raises(Unreachable, match=rf"far://a\.tar cannot be .*expected 500 bytes, got {size}"):
            file.open()
    (far / "a.tar").write_bytes(b"y" * 500)
    assert CachedFile(file.remote, FileState(None, "")).open().read() == b"y" * 500


def test_the_least_recently_used_goes_first(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXLEX_CACHE_GB", "25e-7")  # 2,500 bytes
    for name in "abcd":
        (far / f"{name}.tar").write_bytes(name.encode() * 1000)

    def read(names: str, left: str) -> None:
        for name in names:
            assert content(f"{name}.tar") == name.encode() * 1000
            time.sleep(0.01)  # times of files are coarse
        assert {path.read_bytes()[:1].decode() for path in copies()} == set(left)

    read("abac", "ac")
    held = cached("a.tar").open()
    time.sleep(0.01)
    read("d", "ad")
    read("b", "db")
    assert held.read() == b"a" * 1000  # what is open stays readable
    Far.log.write_text("")
    read("d", "db")
    assert asked("stream") == []
    monkeypatch.setenv("PIXLEX_CACHE_GB", "1e-9")  # less than one file: the last is kept
    read("c", "c")


def test_a_source_beyond_the_bound_is_read(
    far: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(3):
        write_tar(far / f"{shard}.tar", {"0.png": picture(shard)})
    monkeypatch.setenv("PIXLEX_CACHE_GB", "15e-6")
    with pytest.warns(UserWarning, match=r"shards exceed .* train with data\.shuffle_blocks"):
        source = open_source("far://{0..2}.tar")
    assert [source.read(index).data for index in range(3)] == [picture(shard) for shard in range(3)]


def test_where_and_how_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXLEX_CACHE", "~/kept")
    assert cache_folder() == Path.home() / "kept"
    monkeypatch.delenv("PIXLEX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("PIXLEX_CACHE_GB", raising=False)
    assert (cache_folder(), cache_bytes()) == (Path("/somewhere/pixlex"), 50_000_000_000)
    for text in ("many", "0", "inf", "nan"):
        monkeypatch.setenv("PIXLEX_CACHE_GB", text)
        with pytest.raises(ValueError, match=f"PIXLEX_CACHE_GB must be a number of .* above 0, got '{text}'"):
            cache_bytes()


def test_a_folder_that_cannot_be_written(
    far: Path, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(far / "a.tar", {"0.png": picture(0)})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"far://a\.tar cannot be kept in .*Not a directory; PIXLEX_CACHE"):
        open_source("far://a.tar")
    assert open_source(str(far / "a.tar")).read(0).data == picture(0)  # the index need not be kept
    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "cache"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk: a write fails in the middle
    try:
        with pytest.raises(ValueError, match=r"far://a\.tar cannot be kept .*File too large; PIXLEX_CACHE"):
            open_source("far://a.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert asked("stream") == ["a.tar 0"]  # trying again would not help
    assert open_source("far://a.tar").read(0).data == picture(0)
