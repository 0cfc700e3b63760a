"""Files are opened only where they are files; what is larger than asked for is not read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from pixlex.files import open_regular, read_regular


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
