"""The nearest vectors: those of brute force; by a graph nearly those."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from pixlex.search.nearest import Graph, nearest
from pixlex.search.parts import Entry
from pixlex.search.store import Store


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cut(ids: np.ndarray, vectors: np.ndarray, sizes: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    borders = np.cumsum(sizes)[:-1]
    yield from zip(np.split(ids, borders), np.split(vectors, borders), strict=True)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    queries=st.sampled_from([1, 3, 25]),  # faiss multiplies matrices from 20 queries on
    width=st.sampled_from([2, 8, 33]),
    top_k=st.integers(1, 80),
    seed=st.integers(0, 1000),
)
def test_equal_to_brute_force(sizes: list[int], queries: int, width: int, top_k: int, seed: int) -> None:
    """Whatever the blocks: the k largest products in float64, and scikit-learn's nearest by cosine."""
    total = sum(sizes)
    vectors, asked = unit(total, width, seed), unit(queries, width, seed + 1)
    ids = np.random.default_rng(seed).permutation(10 * total)[:total].astype(np.int64)
    rows, products = nearest(asked, cut(ids, vectors, sizes), top_k)
    expected = np.sort(asked.astype(np.float64) @ vectors.astype(np.float64).T, axis=1)[:, ::-1]
    count = min(top_k, total)
    assert products.shape == rows.shape == (queries, count)
    np.testing.assert_allclose(products, expected[:, :count], atol=2e-6)
    neighbors = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors.astype(np.float64))
    _, places = neighbors.kneighbors(asked.astype(np.float64), count)
    of_ids = dict(zip(ids.tolist(), vectors, strict=True))
    for query in range(queries):
        assert len(set(rows[query].tolist())) == count
        own = np.array([of_ids[row] @ asked[query] for row in rows[query].tolist()])
        np.testing.assert_allclose(own, products[query], atol=2e-6)  # rows and products belong together
        clear = np.abs(np.diff(expected[query][: count + 1])).min(initial=1) > 1e-5
        if clear:
            assert rows[query].tolist() == ids[places[query]].tolist()


def filled(folder: Path, vectors: np.ndarray) -> Store:
    folder.mkdir(exist_ok=True)
    store = Store(folder, vectors.shape[1])
    entries = [Entry(0, f"{number}", 1, 1, bytes(32)) for number in range(len(vectors))]
    store.append(entries, vectors, [])
    return store


def test_the_graph_finds_nearly_all(tmp_path: Path) -> None:
    store, asked = filled(tmp_path / "index", unit(3000, 16, 0)), unit(50, 16, 1)
    exact, _ = nearest(asked, store.blocks(), 10)
    found, products = Graph(store).nearest(asked, 10)
    shared = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True))
    assert shared >= 0.98 * exact.size
    assert (np.diff(products, axis=1) <= 0).all()
    kept = {path.name for path in (tmp_path / "index").glob("graph-*")}
    assert len(kept) == 1
    again, _ = Graph(Store(tmp_path / "index", 16)).nearest(asked, 10)
    assert (again == found).all()  # the same graph, read again


def test_the_graph_follows_the_index(tmp_path: Path) -> None:
    """Rows that are void are not found, new ones are; a graph of before, or a damaged one, is made anew."""
    vectors = unit(40, 8, 0)
    store = filled(tmp_path / "index", vectors)
    first = Graph(store).nearest(vectors[:1], 1)[0][0, 0]
    before = next((tmp_path / "index").glob("graph-*"))
    store.append([Entry(0, "new", 1, 1, bytes(32))], -vectors[:1], [int(first)])
    rows, _ = Graph(store).nearest(np.concatenate([vectors[:1], -vectors[:1]]), 1)
    assert rows[0, 0] != first
    assert store.entry(int(rows[1, 0])).key == "new"
    assert not before.exists()
    (graph,) = (tmp_path / "index").glob("graph-*")
    graph.write_bytes(graph.read_bytes()[:100])
    assert (Graph(store).nearest(-vectors[:1], 1)[0] == rows[1]).all()


def test_without_faiss_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pixlex\[search\]'"):
        nearest(unit(1, 4, 0), [], 1)
