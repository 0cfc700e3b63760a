"""A store: what was added and not replaced is there, whatever happens between; damage is never silent."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_files import full_disk

from pixlex.search import DamagedIndex
from pixlex.search import store as store_module
from pixlex.search.store import Entry, Head, Store, read_head, write_head

WIDTH = 8


def opened(folder: object, **given: Any) -> Store:
    return Store(str(folder), **given)


def made(folder: Path, width: int = WIDTH) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    write_head(str(folder), Head("a/model", "f" * 64, "fp32", width, "pictures"))
    return opened(folder, writes=True)


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def entry(key: str, number: int) -> Entry:
    return Entry(key, number, number, number.to_bytes(32, "little"))


def put(store: Store, values: dict[str, int], dropped: tuple[str, ...] = ()) -> None:
    vectors = [unit(1, store.head.width, number)[0] for number in values.values()]
    matrix = np.stack(vectors) if vectors else np.empty((0, store.head.width), np.float32)
    store.change([entry(key, number) for key, number in values.items()], matrix, dropped)


def held(folder: object) -> dict[str, int]:
    """What a store holds; each vector is that of its entry."""
    store = opened(folder)
    entries = store.entries()
    vectors = store.vectors([one.digest for one in entries])
    for one in entries:
        assert one == entry(one.key, one.size)
        assert (vectors[one.digest] == unit(1, store.head.width, one.size)[0]).all()
    assert len(store) == len(entries)
    return {one.key: one.size for one in entries}


KEYS = st.sampled_from(["a", "b/c.png", "\udcff\t", "\u00e4 \n'", "d", "e"])
STEP = st.one_of(
    st.tuples(st.just("put"), st.dictionaries(KEYS, st.integers(0, 2**40), min_size=1)),
    st.tuples(st.just("remove"), st.sets(KEYS, min_size=1)),
    st.tuples(st.sampled_from(["tidy", "open"]), st.none()),
)


@settings(deadline=None, max_examples=8)
@given(steps=st.lists(STEP, max_size=8))
def test_like_a_dictionary(steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """After any steps the folder holds what a dictionary would, and knows of each image what was said."""
    folder = tmp_path_factory.mktemp("index")
    store, values = made(folder), {}
    put(store, {"first": 0})
    values["first"] = 0
    for what, changed in steps:
        match what:
            case "put":
                put(store, changed)
                values |= changed
            case "remove":
                put(store, {}, tuple(changed))
                values = {key: number for key, number in values.items() if key not in changed}
            case "tidy":
                store.tidy(10**9)
            case _:
                store = opened(folder, writes=True)
    assert held(folder) == values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, one of them changed, another one removed."""
    store = made(tmp_path / "index")
    put(store, {f"{number}": number for number in range(10)})
    put(store, {"3": 30, "new": 31})
    put(store, {}, ("5",))
    return tmp_path / "index"


VALUES = {**{f"{number}": number for number in range(10) if number != 5}, "3": 30, "new": 31}

Change = Callable[[Store], object]


@pytest.mark.parametrize(
    "change", [lambda store: put(store, {"3": 33, "x": 40}, ("1",)), lambda store: store.tidy(99)]
)
@pytest.mark.parametrize("seal", [0, 1])
def test_what_was_not_sealed_is_dropped(
    folder: Path, change: Change, seal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the table's commit and the head, or between tidying and the head."""
    write, sealed = store_module.write_head, 0

    def killed(path: str, head: Head) -> None:
        nonlocal sealed
        if sealed == seal:
            raise KeyboardInterrupt
        sealed += 1
        write(path, head)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_head", killed)
        with suppress(KeyboardInterrupt):
            change(opened(folder, writes=True))
    changed = {key: value for key, value in {**VALUES, "3": 33, "x": 40}.items() if key != "1"}
    expected = held(folder)
    assert expected in (VALUES, changed)
    assert expected == VALUES or sealed == 1
    store = opened(folder, writes=True)
    put(store, {"later": 50})
    store.tidy(99)
    assert held(folder) == {**expected, "later": 50}


def test_a_reader_goes_on_while_another_process_tidies(folder: Path) -> None:
    reader, writer = opened(folder), opened(folder, writes=True)
    put(writer, {"new": 60})
    assert {one.key: one.size for one in reader.entries()} == VALUES  # as it was when it was opened
    writer.tidy(99)
    assert len(list((folder / "images.lance/data").iterdir())) == 1
    assert {one.key: one.size for one in reader.entries()} == VALUES | {"new": 60}
    assert len(reader.nearest(unit(1, WIDTH, 60)[0], 3)) == 3


def test_any_flipped_bit_is_noticed(folder: Path) -> None:
    """In any file of the table; the error names it and what to do."""
    draw = random.Random(0)
    paths = sorted(path for path in (folder / "images.lance").rglob("*.*") if path.suffix != ".json")
    assert {path.parent.name for path in paths} >= {"data", "_versions", "_deletions"}
    for path in paths:
        content = path.read_bytes()
        place = draw.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        for damaged in (bytes(changed), content[: len(content) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(
                DamagedIndex, match=rf"{path.name} is damaged .*: delete .*images\.lance and run"
            ):
                opened(folder)
        path.write_bytes(content)
    hint = folder / "images.lance/_versions/latest_version_hint.json"
    hint.write_text("nothing")
    assert held(folder) == VALUES


def test_a_lost_file_is_noticed(folder: Path) -> None:
    """Of the version that holds; the table itself may go, and is then begun anew by who writes."""
    version = max(
        (folder / "images.lance/_versions").glob("*.manifest"), key=lambda path: path.stat().st_mtime_ns
    )
    for path in (version, *(folder / "images.lance/data").iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises((DamagedIndex, RuntimeError), match=r"is damaged|Not found"):
            held(folder)
        path.write_bytes(content)
    assert held(folder) == VALUES
    (folder / "images.lance").rename(folder / "away")
    with pytest.raises(DamagedIndex, match=r"has lost images\.lance: delete .* and run `pixlex index"):
        opened(folder)
    put(opened(folder, writes=True), {"a": 1})
    assert held(folder) == {"a": 1}


def test_a_full_disk_loses_nothing(folder: Path) -> None:
    store = opened(folder, writes=True)
    with full_disk(20_000), pytest.raises(OSError, match=r"cannot be written|File too large"):
        put(store, {f"{number}": number for number in range(2000)})
    assert held(folder) == VALUES
    put(opened(folder, writes=True), {"later": 50})
    assert held(folder) == {**VALUES, "later": 50}


def test_at_a_url(tmp_path: Path) -> None:
    """Head and table lie where the URL says; nothing is compared with checksums there."""
    path = f"file://{tmp_path}/far"
    write_head(path, Head("a/model", "f" * 64, "fp32", WIDTH))
    store = opened(path, writes=True)
    put(store, {"a": 1, "b": 2})
    put(store, {"c": 3}, ("a",))
    store.tidy(99)
    assert held(path) == {"b": 2, "c": 3}
    assert read_head(path).files == {}
    assert (tmp_path / "far/images.lance").is_dir()


@settings(deadline=None, max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    width=st.sampled_from([2, 8, 33]),
    top_k=st.integers(1, 80),
    seed=st.integers(0, 1000),
)
def test_equal_to_brute_force(
    sizes: list[int], width: int, top_k: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the rows came: the k largest products, in float64, best first."""
    store = made(tmp_path_factory.mktemp("index"), width)
    first = 0
    for size in sizes:
        put(store, {f"{number:03d}": number for number in range(first, first + size)})
        first += size
    vectors = np.stack([unit(1, width, number)[0] for number in range(first)])
    for query in unit(2, width, seed + 10_000):
        found = store.nearest(query, top_k)
        products = vectors.astype(np.float64) @ query
        expected = np.argsort(-products, kind="stable")[:top_k]
        np.testing.assert_allclose([product for _, product in found], products[expected], atol=2e-6)
        for one, product in found:
            assert product == pytest.approx(products[one.size], abs=2e-6)
        clear = np.abs(np.diff(np.sort(products)[::-1][: top_k + 1])).min(initial=1) > 1e-5
        assert not clear or [one.size for one, _ in found] == expected.tolist()


def test_equal_vectors_stand_in_the_order_of_their_keys(tmp_path: Path) -> None:
    """Also at the last place, however many are equal."""
    store = made(tmp_path / "index")
    keys = [f"{number:02d}" for number in range(40)]
    random.Random(0).shuffle(keys)
    same = unit(1, WIDTH, 0)
    for some in (keys[:17], keys[17:]):
        store.change([Entry(key, 1, 1, bytes(32)) for key in some], np.repeat(same, len(some), 0))
    put(store, {"near": 1})
    assert [one.key for one, _ in store.nearest(same[0], 5)] == sorted(keys)[:5]


def test_the_graph_finds_nearly_all_and_follows_the_index(tmp_path: Path) -> None:
    """It is made once, and takes in what comes later; rows that are void are not found."""
    store = made(tmp_path / "index", 16)
    vectors, asked = unit(1000, 16, 0), unit(20, 16, 1)
    store.change([entry(f"{number:04d}", number) for number in range(1000)], vectors)
    reader = opened(tmp_path / "index")
    reader.build_graph()
    version = reader.head.version
    shared = 0
    for query in asked:
        exact = {one.key for one, _ in reader.nearest(query, 10)}
        near = reader.nearest(query, 10, approximate=True)
        shared += len(exact & {one.key for one, _ in near})
        assert [product for _, product in near] == sorted((product for _, product in near), reverse=True)
    assert shared >= 0.98 * 200
    reader.build_graph()
    assert reader.head.version == version
    store = opened(tmp_path / "index", writes=True)
    store.change([entry("0000", 5000), entry("new", 5001)], np.stack([vectors[1], -vectors[0]]), ("0002",))
    for grows in (False, True):
        if grows:
            more = [entry(f"m{number}", 6000 + number) for number in range(300)]
            store.change(more, unit(300, 16, 2))
            store.tidy(10**9)
        reader = opened(tmp_path / "index")
        reader.build_graph()
        for query, key in ((-vectors[0], "new"), (vectors[3], "0003")):
            assert reader.nearest(query, 1, approximate=True)[0][0].key == key
        assert "0000" not in [one.key for one, _ in reader.nearest(vectors[0], 1, approximate=True)]
        assert "0002" not in [one.key for one, _ in reader.nearest(vectors[2], 3, approximate=True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is damaged"),
        ("[]", "index.json is damaged"),
        ('{"format": 3}', "expected index format 2, got 3"),
        (
            '{"format": 1, "model": "m"}',
            "was made by an earlier version of pixlex: move it away and index its im",
        ),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_head(str(tmp_path))


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no index, there is no such folder: make one with `pixlex index"):
        read_head(str(tmp_path / "nowhere"))
    head = Head("runs/pairs", "ab" * 32, "fp32", 8, "\udcff/photos", "main", None, 3, {"a": "b"})
    write_head(str(tmp_path), head)
    assert read_head(str(tmp_path)) == head
