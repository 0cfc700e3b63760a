"""Files are opened only where they are files, read up to a bound, and written with the rights of new files."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import tiny_vqvae

from pixlex.files import open_regular, read_regular, write_atomically
from pixlex.models import pretrained


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


def test_a_saved_model_is_readable_by_the_group(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        pretrained.save(tiny_vqvae(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o640}
