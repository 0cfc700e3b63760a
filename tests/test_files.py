"""Files are opened only where they are files, read up to a bound, written whole; locks end with their process."""

from __future__ import annotations

import errno
import io
import os
import resource
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import tiny_vqvae

from pixlex.files import (
    locked,
    naming,
    open_regular,
    read_json,
    read_regular,
    remove_partial,
    write_atomically,
    write_json,
    write_text,
)
from pixlex.models import checkpoint
from pixlex.training.checkpoint import load_newest, save_checkpoint
from pixlex.training.logging import Tracker


def test_regular_files_and_links_to_them_are_read_up_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_regular(tmp_path / name, 5) == b"12345"
        with pytest.raises(ValueError, match=rf"{name} is larger than 4 bytes"):
            read_regular(tmp_path / name, 4)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="a file of Linux")
def test_a_file_that_says_it_is_empty_is_read_up_to_the_bound() -> None:
    assert len(read_regular(Path("/proc/self/status"), 1 << 20)) > 100
    with pytest.raises(io.UnsupportedOperation, match="larger than 100 bytes"):
        read_regular(Path("/proc/self/status"), 100)


def test_everything_else_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, fault in (
        (tmp_path / "pipe", io.UnsupportedOperation),
        (Path("/dev/zero"), io.UnsupportedOperation),
        (tmp_path, IsADirectoryError),
        (tmp_path / "nothing", FileNotFoundError),
        (tmp_path / "loop", OSError),
    ):
        with pytest.raises(fault):
            open_regular(path)


@pytest.fixture(params=[0o022, 0o007, 0o077])
def rights(request: pytest.FixtureRequest) -> Iterator[int]:
    """What an umask leaves of a new file's rights."""
    before = os.umask(request.param)
    yield 0o666 & ~int(request.param)
    os.umask(before)


def _safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)  # by itself: readable by its owner alone


@pytest.mark.parametrize("write", [_safetensors, lambda path: path.write_text("text")])
def test_a_file_has_the_rights_of_new_files(
    write: Callable[[Path], object], rights: int, tmp_path: Path
) -> None:
    for _ in range(2):  # replacing one is writing one
        write_atomically(tmp_path / "file", write)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == rights
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Holds a lock, has a child that lives on, and waits to be killed.
_HOLDER = """
import os, sys, time
from pathlib import Path
from pixlex.files import locked
with locked(Path(sys.argv[1]), "held"):
    if os.fork() == 0:
        print("holds", flush=True)
    time.sleep(60)
"""


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_the_disk_refuses_names_file_and_cause(tmp_path: Path) -> None:
    """A checkpoint, a model, a line of the log, any file: the old one stays and nothing half-written."""
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(3)}, keep=2)
    model = tiny_vqvae()
    checkpoint.save(model, tmp_path / "model")
    tracker = Tracker(tmp_path / "run", 0)
    write_text(tmp_path / "text", "before")
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "run" not in path.parts
    }
    with full_disk(8192):
        for write, name in (
            (
                lambda: save_checkpoint(tmp_path, 2, {"weights": torch.ones(10_000)}, keep=2),
                "step-00000002.pt",
            ),
            (lambda: checkpoint.save(model, tmp_path / "model"), "model.safetensors"),
            (lambda: write_text(tmp_path / "text", "x" * 10_000), "text"),
            (lambda: tracker.log(1, {"x" * 10_000: 1.0}), "metrics.jsonl"),
        ):
            with pytest.raises(OSError, match=f"File too large: '.*{name}'") as found:
                write()
            assert found.value.errno == errno.EFBIG
    assert before == {path: path.read_bytes() for path in before}
    assert not list(tmp_path.rglob("*.partial"))
    state = load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 1


def test_faults_of_other_files_keep_their_names(tmp_path: Path) -> None:
    """What is read meanwhile is not taken for what is written."""
    with pytest.raises(OSError, match="other"), naming(tmp_path / "mine"):
        raise OSError(errno.EIO, "broken", "other")
    with pytest.raises(RuntimeError, match="else"), naming(tmp_path / "mine"):
        raise RuntimeError("something else")
    with pytest.raises(FileNotFoundError, match="absent"):
        write_atomically(tmp_path / "mine", lambda temporary: (tmp_path / "absent").read_bytes())


def test_only_our_own_leftovers_go(tmp_path: Path) -> None:
    """What a killed write left is removed, at any depth; nothing that somebody else may have named so."""
    (tmp_path / "a").mkdir()
    ours = [tmp_path / f".x.{'0' * 32}.partial", tmp_path / "a" / f".step-1.pt.{'f' * 32}.partial"]
    theirs = [tmp_path / ".x.partial", tmp_path / f"x.{'0' * 32}.partial"]
    for path in ours + theirs:
        path.touch()
    remove_partial(tmp_path)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)


def test_a_lock_is_refused_and_dies_with_its_process(tmp_path: Path) -> None:
    """Even where a child of the killed process lives on."""
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(ValueError, match="somebody holds it"), locked(path, "somebody holds it"):
            pass
        holder.kill()
        holder.wait()
        with locked(path, "still held"):
            pass
    finally:
        os.killpg(holder.pid, 9)


def test_small_files_take_little_memory(tmp_path: Path) -> None:
    """The bound on bytes is not what is set aside."""
    path = tmp_path / "config.json"
    write_json(path, {"one": 1})
    tracemalloc.start()
    try:
        assert read_json(path) == {"one": 1}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
