"""Parts on the disk: what was added and not replaced is there, whatever happens between."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.search.conftest import contents

from pixlex.search import store as store_module
from pixlex.search.parts import DamagedIndex, Entry, listed_parts
from pixlex.search.store import Head, Store, read_head, write_head, writing

WIDTH = 8


def entry(key: str, number: int) -> Entry:
    return Entry(0, key, number, number, number.to_bytes(32, "little"))


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float32)


def put(store: Store, values: dict[str, int]) -> None:
    """Add images, or change those that are there."""
    before = {one.key: one.row for one in store.entries()}
    store.append(
        [entry(key, number) for key, number in values.items()],
        np.stack([vector(number) for number in values.values()]),
        [before[key] for key in values if key in before],
    )


def remove(store: Store, keys: set[str]) -> None:
    store.append(
        [], np.empty((0, WIDTH), np.float32), [one.row for one in store.entries() if one.key in keys]
    )


def expected(values: dict[str, int]) -> dict[str, bytes]:
    return {key: vector(number).tobytes() for key, number in values.items()}


KEYS = st.sampled_from(["a", "b/c.png", "\udcff\t", "\u00e4 \n", "d", "e"])
STEP = st.one_of(
    st.tuples(st.just("put"), st.dictionaries(KEYS, st.integers(0, 2**40), min_size=1)),
    st.tuples(st.just("remove"), st.sets(KEYS)),
    st.tuples(st.sampled_from(["rewrite", "open"]), st.none()),
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEP, max_size=12))
def test_like_a_dictionary(steps: list[tuple[str, object]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """After any steps the folder holds what a dictionary would, and knows of each image what was said."""
    folder = tmp_path_factory.mktemp("index")
    store, values = Store(folder, WIDTH), {}
    for what, given_values in steps:
        match what, given_values:
            case "put", dict():
                put(store, given_values)
                values |= given_values
            case "remove", set():
                remove(store, given_values)
                values = {key: number for key, number in values.items() if key not in given_values}
            case "rewrite", _:
                store.rewrite()
                assert len(listed_parts(folder / "parts")) == 1
            case _:
                store = Store(folder, WIDTH)
    assert contents(folder) == expected(values)
    for one in Store(folder, WIDTH).entries():
        number = values[one.key]
        assert (one.size, one.modified, one.digest) == (number, number, number.to_bytes(32, "little"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three parts: ten images, one of them changed, another one removed."""
    store = Store(tmp_path, WIDTH)
    put(store, {f"{number}": number for number in range(10)})
    put(store, {"3": 30, "new": 31})
    remove(store, {"5"})
    return tmp_path


VALUES = {**{f"{number}": number for number in range(10) if number != 5}, "3": 30, "new": 31}


@pytest.mark.parametrize("after", range(4))
def test_a_rewrite_cut_off_after_any_part_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(store_module, "_ROWS_AT_ONCE", 3)
    write, written = store_module.write_part, 0

    def stopping(*arguments: object, **settings: object) -> Path:
        nonlocal written
        if written == after:
            raise OSError("no space left on device")
        written += 1
        return write(*arguments, **settings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_part", stopping)
        with pytest.raises(OSError, match="no space"):
            Store(folder, WIDTH).rewrite()
    assert contents(folder) == expected(VALUES)
    Store(folder, WIDTH).rewrite()
    assert contents(folder) == expected(VALUES)
    assert len(listed_parts(folder / "parts")) == 4


def test_a_rewrite_cut_off_before_it_deletes_is_finished_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old parts lie there, void, until `drop_void`."""
    unlink = Path.unlink

    def stopping(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".arrow":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stopping)
        with pytest.raises(KeyboardInterrupt):
            Store(folder, WIDTH).rewrite()
    assert contents(folder) == expected(VALUES)
    assert len(listed_parts(folder / "parts")) == 4
    Store(folder, WIDTH).drop_void()
    assert contents(folder) == expected(VALUES)
    assert [number for number, _ in listed_parts(folder / "parts")] == [4]


@settings(deadline=None, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), which=st.integers(0, 2))
def test_any_changed_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: float, change: int, which: int
) -> None:
    folder = tmp_path_factory.mktemp("index")
    store = Store(folder, WIDTH)
    for number in range(3):
        put(store, {f"{number}": number})
    path = listed_parts(folder / "parts")[which][1]
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    with pytest.raises(DamagedIndex) as raised:
        Store(folder, WIDTH)
    assert str(path) in str(raised.value)
    assert f"delete it and run `pixlex index SOURCE --out {folder}` again" in str(raised.value)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_cut_part_is_noticed(folder: Path, length: int) -> None:
    path = listed_parts(folder / "parts")[0][1]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedIndex, match=r"00000001-.* is damaged"):
        Store(folder, WIDTH)


def test_parts_of_elsewhere_are_noticed(folder: Path, tmp_path: Path) -> None:
    """Another width, another number, a number that is taken."""
    with pytest.raises(DamagedIndex, match="belongs to another index"):
        Store(folder, WIDTH + 1)
    first = listed_parts(folder / "parts")[0][1]
    copied = first.with_name(first.name.replace("00000001", "00000007"))
    shutil.copy(first, copied)
    with pytest.raises(DamagedIndex, match="belongs to another index or has got another name"):
        Store(folder, WIDTH)
    copied.unlink()
    shutil.copy(first, first.with_name("00000001-00000000.arrow"))
    with pytest.raises(DamagedIndex, match="have the same number"):
        Store(folder, WIDTH)


@pytest.mark.parametrize(("number", "missing"), [(1, (1,)), (2, (2,))])
def test_a_lost_part_is_noticed(folder: Path, number: int, missing: tuple[int, ...]) -> None:
    dict(listed_parts(folder / "parts"))[number].unlink()
    store = Store(folder, WIDTH)
    assert store.missing == missing
    assert store.wasteful


def test_vectors_are_not_copied(folder: Path) -> None:
    """Where all rows of a part hold, a block is the mapped file itself; a changed file would show through."""
    blocks = dict(enumerate(vectors for _, vectors in Store(folder, WIDTH).blocks()))
    assert not blocks[1].flags.writeable
    assert not blocks[1].flags.owndata


def test_one_process_writes(folder: Path) -> None:
    written = pytest.raises(ValueError, match="is being written by another process")
    with writing(folder), written, writing(folder):
        pass
    with writing(folder):
        pass


def test_a_head_is_read_back(tmp_path: Path) -> None:
    head = Head("runs/pairs", "ab" * 32, "fp32", 8, "\udcff/photos", "main", None)
    write_head(tmp_path, head)
    assert read_head(tmp_path) == head


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is damaged"),
        ("[]", "index.json is damaged"),
        ('{"format": 1}', "index.json is damaged"),
        ('{"format": 2}', "expected index format 1, got 2"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_head(tmp_path)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no index, there is no such folder: make one with `pixlex index"):
        read_head(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is no index, it holds no index\.json"):
        read_head(tmp_path)
