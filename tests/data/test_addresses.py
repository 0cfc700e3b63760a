"""Shards and tables at addresses: the same source as on a disk, and clear words where they cannot be had."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.far import Far, asked
from tests.data.test_shards import write_tar

from pixlex.config.data import DataConfig
from pixlex.data.decoding import UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.items import open_items
from pixlex.data.loader import training_batches
from pixlex.data.pairs import open_pairs
from pixlex.data.remote import NoSuchFile, RangeFile, RemotePath, Unreachable

Picture = Callable[..., bytes]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def fill(folder: Path, picture: Picture) -> None:
    """Write three shards with labels and captions, names of classes beside them, and a table in row groups."""
    for shard, count in enumerate((4, 3, 5)):
        files: dict[str, bytes] = {}
        for row in range(count):
            base = f"{shard}{row}"
            files |= {f"{base}.png": picture(10 * shard + row), f"{base}.cls": str(row % 3).encode()}
            files[f"{base}.json"] = f'{{"captions": ["one of {base}", "two \\ud800 of {base}"]}}'.encode()
        write_tar(folder / "shards" / f"set-{shard}.tar", files)
    (folder / "shards" / "classes.csv").write_text("label,class_name\n0,cat\n1,dog\n2,owl\n")
    numbers = range(9)
    table = {
        "image": [picture(number) for number in numbers],
        "caption": [f"text {number}" for number in numbers],
        "image_id": [f"id{number}" for number in numbers],
    }
    pq.write_table(pa.table(table), folder / "tables" / "table.parquet", row_group_size=4)


@pytest.fixture
def stored(far: Path, picture: Picture, memory: fsspec.AbstractFileSystem) -> Path:
    """The same files on a disk, at far:// and at memory://far."""
    for name in ("shards", "tables"):
        (far / name).mkdir()
    fill(far, picture)
    for path in far.rglob("*"):
        if path.is_file():
            memory.pipe(f"/far/{path.relative_to(far)}", path.read_bytes())
    return far


def roots(stored: Path) -> list[str]:
    return [f"file://{stored}", "memory://far", "far:/"]


@pytest.mark.parametrize(
    "pattern", ["shards", "shards/*.tar", "shards/set-{0..2}.tar", "tables/table.parquet"]
)
def test_a_source_is_the_same_wherever_it_lies(stored: Path, pattern: str) -> None:
    local = open_source(str(stored / pattern))
    for root in roots(stored):
        source = open_source(f"{root}/{pattern}")
        assert (len(source), source.identity, source.class_names) == (
            len(local), local.identity, local.class_names,
        )  # fmt: skip
        assert source.blocks == local.blocks
        for index in range(len(local)):
            assert source.read(index) == local.read(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pattern", ["shards/*.tar", "tables/table.parquet"])
def test_batches_are_the_same_to_the_bit(stored: Path, pattern: str, workers: int) -> None:
    config = DataConfig(shuffle_blocks=2, streams=2, workers=workers)
    settings = {"config": config, "image_size": 8, "batch_size": 4, "seed": 3}
    expected = list(islice(training_batches(open_source(str(stored / pattern)), **settings), 7))
    for root in roots(stored):
        batches = list(islice(training_batches(open_source(f"{root}/{pattern}"), **settings), 7))
        later = list(islice(training_batches(open_source(f"{root}/{pattern}"), first_step=5, **settings), 2))
        for batch, other in zip([*batches, *later], [*expected, *expected[5:]], strict=True):
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.labels, other.labels)
            assert (batch.keys, batch.skipped) == (other.keys, ())


@pytest.mark.parametrize("pattern", ["shards/set-{0,2}.tar", "tables/table.parquet?rows=captions"])
def test_captions_are_the_same(stored: Path, pattern: str) -> None:
    local = open_pairs(str(stored / pattern))
    for root in roots(stored):
        source = open_pairs(f"{root}/{pattern}")
        assert (source.captions, source.ids, source.identity) == (local.captions, local.ids, local.identity)
    mixed = open_pairs(f"2 * memory://far/{pattern} + far://{pattern}")
    assert len(mixed) == 3 * len(local)


def test_items_of_a_table_with_two_columns_of_images(stored: Path, picture: Picture) -> None:
    table = {
        "left": [picture(1), picture(2)],
        "right": [picture(3), picture(4)],
        "sentence": ["a b", "c d"],
        "label": ["True", "False"],
    }
    pq.write_table(pa.table(table), stored / "pairs.parquet")
    local, remote = (open_items(f"{root}/pairs.parquet", "nlvr2") for root in (stored, "far:/"))
    assert (remote.texts, remote.num_images, len(remote)) == (local.texts, 2, 2)


def test_files_come_in_the_order_of_a_disk(far: Path, picture: Picture) -> None:
    for name in ("a/b.tar", "a-b/c.tar", "a.tar", "c/d.TAR"):
        (far / name).parent.mkdir(exist_ok=True)
        write_tar(far / name, {"0.png": picture(len(name))})
    local, remote = (open_source(f"{root}/**/*.[tT][aA][rR]") for root in (far, "far:/"))
    keys = [remote.key(index) for index in range(len(remote))]
    assert keys == [local.key(index) for index in range(len(local))]
    assert len(keys) == 4
    braces = open_source("far://{c/d.TAR,a/b.tar}")
    assert [braces.key(index) for index in range(2)] == ["a/b.tar/0.png", "c/d.TAR/0.png"]


def test_braces_are_not_listed(stored: Path) -> None:
    Far.log.write_text("")
    open_source("far://shards/set-{0..1}.tar")
    assert sorted(asked("info")) == ["shards/classes.csv", "shards/set-0.tar", "shards/set-1.tar"]


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


@pytest.mark.parametrize(
    ("url", "place", "parent"),
    [
        ("s3://bucket/a/b.tar", "bucket/a/b.tar", "s3://bucket/a"),
        ("https://example.org/x/b.tar?key=a/b", "example.org/x/b.tar", "https://example.org/x"),
        ("memory:///b.tar", "b.tar", "memory://"),
        ("simplecache::s3://bucket/b.tar", "bucket/b.tar", "simplecache::s3://bucket"),
        ("zip://in/b.tar::s3://bucket/x.zip", "in/b.tar", "zip://in::s3://bucket/x.zip"),
    ],
)
def test_parts_of_addresses(url: str, place: str, parent: str) -> None:
    address = RemotePath(url)
    assert (address.path, address.suffix, str(address.parent)) == (PurePosixPath(place), ".tar", parent)
    assert (address.parent / "c.csv").name == "c.csv"


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
def test_addresses_of_nothing(far: Path, description: str, sentence: str) -> None:
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


def test_what_fails_now_and_then_is_tried_again(stored: Path) -> None:
    Far.faults.extend([TimeoutError("slow"), OSError("reset")])
    assert open_source("far://shards/set-0.tar").read(0).data
    Far.faults.extend([OSError("reset")] * 9)
    with pytest.raises(
        Unreachable, match=r"far://shards/set-1\.tar cannot be read after 3 tries: OSError: reset"
    ):
        open_source("far://shards/set-1.tar")
    Far.faults[:] = [PermissionError("no key"), OSError("not reached")]
    with pytest.raises(Unreachable, match=r"far://shards/set-1\.tar cannot be read: PermissionError: no key"):
        open_source("far://shards/set-1.tar")
    assert len(Far.faults) == 1


def test_faults_of_packages_behind_fsspec_count(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    class ClientError(Exception):
        status = 503

    module = ModuleType("aiohttp")
    module.ClientError = ClientError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aiohttp", module)
    Far.faults.append(ClientError("busy"))
    assert RemotePath("far://shards/set-0.tar").state().size
    refused = ClientError("forbidden")
    refused.status = 403
    Far.faults.extend([refused, OSError("not reached")])
    with pytest.raises(Unreachable, match="cannot be read: ClientError: forbidden"):
        RemotePath("far://shards/set-0.tar").state()


def test_a_file_is_missing_only_where_a_server_says_so(stored: Path) -> None:
    """Web servers that do not answer are told as missing files by fsspec, with the cause behind."""

    def missing(cause: Exception) -> FileNotFoundError:
        fault = FileNotFoundError("a.tar")
        fault.__cause__ = cause
        return fault

    answered = OSError("404")
    answered.status = 404  # type: ignore[attr-defined]
    Far.faults.append(missing(answered))
    with pytest.raises(NoSuchFile, match="does not exist"):
        RemotePath("far://shards/set-0.tar").state()
    Far.faults.extend([missing(ConnectionRefusedError("refused"))] * 3)
    with pytest.raises(Unreachable, match="after 3 tries: ConnectionRefusedError: refused"):
        RemotePath("far://shards/set-0.tar").state()


def test_a_server_that_sends_whole_files_alone(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (stored / "tables" / "table.parquet").read_bytes()
    source = open_source("far://tables/table.parquet")
    monkeypatch.setattr(Far, "cat_file", lambda *_, **__: whole)
    with pytest.raises(
        Unreachable, match=r"far://tables/table\.parquet cannot be read in parts: its server sends"
    ):
        source.read(0)


def test_an_address_that_fails_stops_instead_of_counting_as_broken_images(
    stored: Path, tmp_path: Path
) -> None:
    shards, table = open_source("far://shards/*.tar"), open_source("far://tables/table.parquet")
    for path in (tmp_path / "cache" / "shards").iterdir():
        path.unlink()
    for source, name in ((shards, "shards/set-0.tar"), (table, "tables/table.parquet")):
        Far.faults[:] = [OSError("no route")] * 3
        with pytest.raises(
            Unreachable, match=rf"far://{name} cannot be read after 3 tries: OSError: no route"
        ):
            source.read(0)
        assert source.read(0).data


def test_a_table_is_read_by_row_groups(far: Path) -> None:
    rows = [os.urandom(50_000) for _ in range(8)]
    form = {"row_group_size": 2, "compression": "none"}
    pq.write_table(pa.table({"one": rows, "other": rows}), far / "t.parquet", **form)
    with pytest.raises(ValueError, match="expected one column of image bytes"):
        open_source("far://t.parquet")
    pq.write_table(pa.table({"image": rows, "number": list(range(8))}), far / "t.parquet", **form)
    Far.log.write_text("")
    source = open_source("far://t.parquet")
    assert [source.read(index).data for index in (2, 3)] == rows[2:4]
    ranges = [tuple(map(int, line.split()[1:])) for line in asked("range")]
    assert sum(end - start for start, end in ranges) < 3 * 100_000
    assert asked("stream") == asked("whole") == []


def test_a_file_read_in_ranges(far: Path) -> None:
    (far / "x").write_bytes(bytes(range(100)))
    file = RangeFile(RemotePath("far://x"))
    assert file.seekable()
    assert file.readable()
    assert (file.seek(-3, os.SEEK_END), file.read(), file.read(5), file.tell()) == (97, b"abc", b"", 100)
    assert (file.seek(10), file.seek(2, os.SEEK_CUR), file.read(2)) == (10, 12, bytes([12, 13]))
    (far / "x").write_bytes(b"short")
    file.seek(0)
    with pytest.raises(Unreachable, match="expected 100 bytes from 0 on, got 5"):
        file.read()
    (far / "x").unlink()
    with pytest.raises(NoSuchFile, match="far://x does not exist"):
        file.read(1)
