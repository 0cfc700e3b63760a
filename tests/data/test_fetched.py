"""Copies of shards at addresses: fetched once by many processes, gone on with after a kill, kept to a bound."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.far import Far, asked
from tests.data.test_shards import write_tar

from pixlex.data import remote
from pixlex.data.images import open_source
from pixlex.data.remote import CachedFile, FileState, RemotePath, Unreachable, cache_bytes, cache_folder

Picture = Callable[..., bytes]
FORK = multiprocessing.get_context("fork")  # children see what the test told the file system


def fetched(name: str) -> CachedFile:
    address = RemotePath(f"far://{name}")
    return CachedFile(address, address.state())


def content(name: str) -> bytes:
    with fetched(name).open() as file:
        return file.read()


def copies() -> list[Path]:
    return sorted((cache_folder() / "shards").iterdir())


def test_a_file_is_fetched_once(far: Path) -> None:
    (far / "a.tar").write_bytes(b"abc" * 1000)
    assert content("a.tar") == content("a.tar") == b"abc" * 1000
    assert asked("stream") == ["a.tar 0"]
    (far / "a.tar").write_bytes(b"other content")
    assert content("a.tar") == b"other content"


def _read_many(queue: object) -> None:
    for name in ("a.tar", "b.tar"):
        queue.put(content(name))  # type: ignore[attr-defined]


def test_of_many_processes_one_fetches(far: Path) -> None:
    for name in ("a.tar", "b.tar"):
        (far / name).write_bytes(name.encode() * 200_000)
    queue = FORK.Queue()
    processes = [FORK.Process(target=_read_many, args=(queue,)) for _ in range(5)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in range(10)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(found) == sorted([b"a.tar" * 200_000, b"b.tar" * 200_000] * 5)
    assert sorted(asked("stream")) == ["a.tar 0", "b.tar 0"]
    assert [path.suffix for path in copies()] == [".tar", ".tar"]


def test_a_fetch_goes_on_where_it_broke_off(far: Path) -> None:
    (far / "a.tar").write_bytes(bytes(range(250)) * 4)
    Far.breaks_at = 600
    assert content("a.tar") == bytes(range(250)) * 4
    assert asked("stream") == ["a.tar 0", "a.tar 600"]


def test_a_server_that_begins_at_the_beginning_alone(far: Path) -> None:
    (far / "a.tar").write_bytes(bytes(range(250)) * 4)
    Far.breaks_at, Far.seeks = 600, False
    assert content("a.tar") == bytes(range(250)) * 4
    assert asked("stream") == ["a.tar 0", "a.tar 0"]


def _fetch_a_part_and_hang(ready: object) -> None:
    def hang(seconds: float) -> None:
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)

    Far.breaks_at = 600
    remote.time = type("Time", (), {"sleep": staticmethod(hang)})
    content("a.tar")


def test_a_killed_fetch_is_gone_on_with_by_another_process(far: Path) -> None:
    (far / "a.tar").write_bytes(bytes(range(250)) * 4)
    ready = FORK.Event()
    process = FORK.Process(target=_fetch_a_part_and_hang, args=(ready,))
    process.start()
    assert ready.wait(60)
    (partial,) = copies()
    assert (partial.suffix, partial.stat().st_size) == (".partial", 600)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert content("a.tar") == bytes(range(250)) * 4
    assert asked("stream") == ["a.tar 0", "a.tar 600"]


def test_content_of_another_size_is_an_error(far: Path) -> None:
    (far / "a.tar").write_bytes(b"x" * 500)
    file = fetched("a.tar")
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

    def read(name: str) -> None:
        assert content(f"{name}.tar") == name.encode() * 1000
        time.sleep(0.01)  # times of files are coarse

    for name in "aba":
        read(name)
    read("c")
    assert {path.read_bytes()[:1] for path in copies()} == {b"a", b"c"}
    held = fetched("a.tar").open()
    time.sleep(0.01)
    read("d")
    assert {path.read_bytes()[:1] for path in copies()} == {b"a", b"d"}
    read("b")
    assert held.read() == b"a" * 1000  # what is open stays readable
    Far.log.write_text("")
    read("d")
    assert asked("stream") == []
    monkeypatch.setenv("PIXLEX_CACHE_GB", "1e-9")  # less than one file: the last is kept
    read("c")
    assert [path.read_bytes()[:1] for path in copies()] == [b"c"]


def test_a_source_larger_than_the_bound_says_so_and_is_read(
    far: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(3):
        write_tar(far / f"{shard}.tar", {"0.png": picture(shard)})
    monkeypatch.setenv("PIXLEX_CACHE_GB", "15e-6")
    with pytest.warns(UserWarning, match=r"shards exceed .* train with data\.shuffle_blocks"):
        source = open_source("far://{0..2}.tar")
    assert [source.read(index).data for index in range(3)] == [picture(shard) for shard in range(3)]


@pytest.mark.parametrize("text", ["many", "0", "-1", "inf", "nan"])
def test_a_bound_that_is_no_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXLEX_CACHE_GB", text)
    with pytest.raises(
        ValueError, match=f"PIXLEX_CACHE_GB must be a number of gigabytes above 0, got '{text}'"
    ):
        cache_bytes()


def test_where_copies_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXLEX_CACHE", "~/kept")
    assert cache_folder() == Path.home() / "kept"
    monkeypatch.delenv("PIXLEX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/pixlex")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("PIXLEX_CACHE_GB", raising=False)
    assert (cache_folder(), cache_bytes()) == (Path.home() / ".cache" / "pixlex", 50_000_000_000)


def test_a_folder_that_cannot_be_written(
    far: Path, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(far / "a.tar", {"0.png": picture(0)})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ValueError, match=r"far://a\.tar cannot be kept in .*Not a directory; PIXLEX_CACHE names"
    ):
        open_source("far://a.tar")
    assert open_source(str(far / "a.tar")).read(0).data == picture(0)  # the index need not be kept
    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "cache"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk: a write fails in the middle
    try:
        with pytest.raises(
            ValueError, match=r"far://a\.tar cannot be kept in .*File too large; PIXLEX_CACHE"
        ):
            open_source("far://a.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert asked("stream") == ["a.tar 0"]  # trying again would not help
    assert open_source("far://a.tar").read(0).data == picture(0)
