"""What is kept of a shard: the same source without reading it again, and made anew when in doubt."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_shards import write_tar

from pixlex.data.images import open_source
from pixlex.data.labels import Labels, resolve_labels, row_label
from pixlex.data.pairs import open_pairs
from pixlex.data.remote import cache_folder
from pixlex.data.shards import TarSource

Picture = Callable[..., bytes]
NAMES = ("plain.png", "folder/ünï.jpg", "\udcff\udc80.png", "no-class.webp")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what a test keeps."""
    monkeypatch.setenv("PIXLEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


@pytest.fixture
def shard(tmp_path: Path, picture: Picture) -> Path:
    """A shard with a name that is no UTF-8 and a caption with half a character, written an hour ago."""
    files = {name: picture(number) for number, name in enumerate(NAMES)}
    files |= {"plain.cls": b"1", "folder/ünï.cls": b"0", "\udcff\udc80.cls": b"1", "a.flac": b"x"}
    files |= {"plain.json": b'{"class_name": "dog", "caption": "half \\ud800"}'}
    files |= {
        "folder/ünï.json": b'{"class_name": "cat", "captions": ["one", "two"]}',
        "\udcff\udc80.txt": b"dog",
    }
    return settle(write_tar(tmp_path / "set.tar", files))


def settle(path: Path, seconds: float = 3600.0) -> Path:
    changed = path.stat().st_mtime - seconds
    os.utime(path, (changed, changed))
    return path


def described(source: TarSource) -> tuple[object, ...]:
    records = [source.read(index) for index in range(len(source))]
    return source.identity, source.class_names, source.ignored, source.blocks, source.captions, records


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on no header of a shard is read."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a shard was scanned")

    return lambda: monkeypatch.setattr(tarfile, "open", refuse)


def test_a_second_start_reads_no_headers(shard: Path, unread: Callable[[], None]) -> None:
    first, pairs = open_source(str(shard)), open_pairs(str(shard))
    assert [first.key(index) for index in range(4)] == [f"set.tar/{name}" for name in NAMES]
    assert [str(one) for one in first.ignored] == ["set.tar/a.flac"]
    assert pairs.captions == (("half",), ("one", "two"))
    unread()
    second = open_source(str(shard))
    assert described(second) == described(first)
    assert open_pairs(str(shard)).identity == pairs.identity
    assert len(list((cache_folder() / "indexes").iterdir())) == 2  # with captions and without


def test_a_changed_shard_is_read_again(shard: Path, picture: Picture) -> None:
    assert len(open_source(str(shard))) == 4
    files = {name: picture(number) for number, name in enumerate(NAMES[:3])}
    settle(write_tar(shard, files), 1800)
    source = open_source(str(shard))
    assert (len(source), source.class_names) == (3, ())
    shard.unlink()
    with pytest.raises(ValueError, match=r"set\.tar does not exist"):
        open_source(str(shard))


def test_a_shard_that_was_just_written_is_not_kept(tmp_path: Path, picture: Picture, kept: Path) -> None:
    path = write_tar(tmp_path / "new.tar", {"a.png": picture(0)})
    assert len(open_source(str(path))) == 1
    assert not kept.exists()
    settle(path)
    open_source(str(path))
    assert len(list(kept.iterdir())) == 1


def test_damage_anywhere_is_noticed(shard: Path, kept: Path) -> None:
    """Many a byte is changed in turn, and the end cut off: the source stays the same."""
    expected = described(open_source(str(shard)))
    (path,) = kept.iterdir()
    good = path.read_bytes()
    for place in range(0, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        assert described(open_source(str(shard))) == expected
    for size in (0, 4, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        assert described(open_source(str(shard))) == expected
    assert kept.iterdir()
    path.unlink()
    path.mkdir()
    assert described(open_source(str(shard))) == expected


def test_names_that_were_kept_follow_the_folder(tmp_path: Path, picture: Picture) -> None:
    """Keys begin behind the folder that the shards share, however they were opened before."""
    for name in ("a/0.tar", "b/0.tar"):
        (tmp_path / name).parent.mkdir()
        settle(write_tar(tmp_path / name, {"x.png": picture(0)}))
    alone, both = open_source(str(tmp_path / "a")), open_source(str(tmp_path / "{a,b}" / "0.tar"))
    assert (alone.key(0), both.key(0), both.key(1)) == ("0.tar/x.png", "a/0.tar/x.png", "b/0.tar/x.png")
    with pytest.raises(IndexError, match="has 2 images, got index 2"):
        both.key(2)
    with pytest.raises(IndexError, match="got index -1"):
        both.read(-1)


def outcome(labels: Callable[[], Labels]) -> object:
    try:
        found = labels()
    except ValueError as fault:
        return str(fault)
    return found.indices.tolist(), found.class_names


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["", "-1", "0", "1", "2"]), st.sampled_from(["", "cat", "dog", "ünï"])),
        min_size=1, max_size=9,
    ),
    split=st.integers(0, 9), captioned=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_labels_are_those_of_the_rows_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], split: int, captioned: bool
) -> None:
    """Pairs of label and name are looked at once, with the result and the errors of looking at every row."""
    folder = tmp_path_factory.mktemp("rows")
    for shard, part in enumerate((rows[:split], rows[split:])):
        files: dict[str, bytes] = {}
        for row, (label, name) in enumerate(part):
            files |= {f"{row}.png": b"x", f"{row}.cls": label.encode()}
            files[f"{row}.json"] = f'{{"class_name": {json.dumps(name)}}}'.encode()
        settle(write_tar(folder / f"{shard}.tar", files))
    fields = [row_label(label, name, "") for label, name in rows]
    for _ in range(2):
        one_by_one = outcome(lambda: resolve_labels(fields, str(folder), folder, numbered=captioned))
        assert outcome(lambda: open_source(str(folder), captioned=captioned).labels) == one_by_one
