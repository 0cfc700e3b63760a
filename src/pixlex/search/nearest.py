"""The vectors nearest to a query: exactly, block by block, or by a graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from pixlex.files import write_atomically
from pixlex.messages import not_installed
from pixlex.search.store import Store

Blocks = Iterable[tuple[Int64[np.ndarray, " N"], Float32[np.ndarray, "N e"]]]

# Neighbors that each vector of the graph is tied to, and how many are kept in sight while it is built and walked.
_TIES = 32
_SIGHT_BUILDING = 200
_LEAST_SIGHT = 128


def faiss() -> ModuleType:
    """Return the library that compares vectors.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import faiss as library
    except ModuleNotFoundError as fault:
        raise not_installed("searching", "faiss", "search") from fault
    found: ModuleType = library
    return found


def nearest(
    queries: Float32[np.ndarray, "Q e"], blocks: Blocks, top_k: int
) -> tuple[Int64[np.ndarray, "Q k"], Float32[np.ndarray, "Q k"]]:
    """Return the rows with the largest inner products, largest first, and these products.

    Exact up to float32's rounding of the products; memory does not grow with the number of vectors.

    Args:
        queries: one vector for each.
        blocks: rows and their vectors.
        top_k: how many of them, fewer where there are fewer.
    """
    library = faiss()
    rows = np.empty((len(queries), 0), np.int64)
    products = np.empty((len(queries), 0), np.float32)
    for ids, vectors in blocks:
        found, places = library.knn(
            queries, vectors, min(top_k, len(vectors)), metric=library.METRIC_INNER_PRODUCT
        )
        rows, products = np.hstack([rows, ids[places]]), np.hstack([products, found])
        best = np.argsort(-products, axis=1, kind="stable")[:, :top_k]
        rows, products = np.take_along_axis(rows, best, 1), np.take_along_axis(products, best, 1)
    return rows, products


class Graph:
    """Finds nearly the same as `nearest` without looking at all vectors (HNSW, arXiv:1603.09320).

    The graph is built when an index is searched so for the first time and kept beside its parts, with a copy of
    the vectors; when the index has changed it is built anew.

    Args:
        store: the index.

    Attributes:
        state: of the index that the graph belongs to, see `Store.state`.
    """

    def __init__(self, store: Store) -> None:
        self.state = store.state
        self._rows = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in store.blocks())])
        name = hashlib.sha256("\n".join(store.state).encode()).hexdigest()[:16]
        path = store.folder.parent / f"graph-{name}.faiss"
        self._graph = _kept(path) or _built(store, path)

    def nearest(
        self, queries: Float32[np.ndarray, "Q e"], top_k: int
    ) -> tuple[Int64[np.ndarray, "Q k"], Float32[np.ndarray, "Q k"]]:
        """Return rows and products as `nearest` does; -1 stands for a row where fewer are found."""
        self._graph.hnsw.efSearch = max(_LEAST_SIGHT, 2 * top_k)
        products, places = self._graph.search(queries, min(top_k, len(self._rows)))
        return np.where(places < 0, -1, self._rows[places]), products


def _kept(path: Path) -> Any:
    """Return the graph that a file holds, None where there is none or it is damaged: it can be made again."""
    if not path.is_file():
        return None
    try:
        return faiss().read_index(str(path))
    except RuntimeError:
        return None


def _built(store: Store, path: Path) -> Any:
    """Make the graph of an index, and write it in the place of earlier ones."""
    library = faiss()
    graph = library.IndexHNSWFlat(store.width, _TIES, library.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _SIGHT_BUILDING
    for _, vectors in store.blocks():
        graph.add(vectors)
    for old in path.parent.glob("graph-*.faiss"):
        old.unlink(missing_ok=True)
    write_atomically(path, lambda temporary: library.write_index(graph, str(temporary)))
    return graph
