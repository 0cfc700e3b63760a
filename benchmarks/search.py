"""Image search: how fast pictures are indexed, how long a query takes, whether what is found is the nearest.

Drawn scenes into an index of a CB-ViLA model, one of random weights where none is named: seconds do not depend on
them. One query after the other by vectors alone, by the graph, and with the best looked at again; brute force in
float64 says what is nearest. The same vectors are searched from the disk, by NumPy and, where it is installed, by
faiss's flat index, both of which hold all vectors in memory.

    python benchmarks/search.py [--count 10000] [--queries 50] [--rerank 32] [--model M] [--paper]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pixlex.config.cbvila import CBViLAConfig, FusionConfig, ImageTowerConfig, TextTowerConfig
from pixlex.data.captions import open_pairs
from pixlex.models import checkpoint
from pixlex.models.cbvila import CBViLA
from pixlex.search import ImageIndex
from pixlex.search.store import Store

try:
    import faiss
except ModuleNotFoundError:
    faiss = None

TOP_K = 10
Found = list[list[str]]


def chosen_model(name: str | None, *, paper: bool) -> CBViLA:
    if name is not None:
        model = checkpoint.load_any(name)
        if not isinstance(model, CBViLA):
            raise ValueError(f"{name} holds a model of family {model.family}, expected cbvila")
        return model
    torch.manual_seed(0)
    if paper:
        return CBViLA.build(CBViLAConfig()).eval()
    config = CBViLAConfig(
        image_size=64,
        patch_size=8,
        image=ImageTowerConfig(width=128, depth=4, heads=4),
        text=TextTowerConfig(tokenizer="embedded", width=128, depth=2, heads=4),
        fusion=FusionConfig(depth=2),
    )
    return CBViLA.build(config).eval()


def milliseconds(work: Callable[[int], object], count: int) -> tuple[float, float]:
    """Return median and 95th percentile over calls, after one that is not counted."""
    work(0)
    times = []
    for number in range(count):
        began = time.perf_counter()
        work(number)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times), float(np.percentile(times, 95))


def timed_update(model: CBViLA, folder: Path, source: str) -> tuple[ImageIndex, float, float]:
    """Return the index, images per second of the first pass, seconds of a second one that finds nothing new."""
    index = ImageIndex.open(folder, model, create=True)
    began = time.perf_counter()
    result = index.update(source)
    rate = result.num_embedded / (time.perf_counter() - began)
    began = time.perf_counter()
    again = index.update(source, progress=False)
    assert again.num_embedded == 0
    return index, rate, time.perf_counter() - began


def shared(found: Found, expected: Found) -> float:
    """Return the share of the expected rows that were found."""
    pairs = zip(found, expected, strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / sum(len(row) for row in expected)


def main() -> None:
    """Build, ask, compare, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="scenes")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--rerank", type=int, default=32)
    parser.add_argument("--model", help="a trained CB-ViLA; default a small random one of 64 px images")
    parser.add_argument("--paper", action="store_true", help="a random one of the paper's sizes")
    given = parser.parse_args()
    model = chosen_model(given.model, paper=given.paper)
    source = f"embedded:scenes:train:{given.count}"
    captions = open_pairs(f"embedded:scenes:test:{given.queries}").texts
    texts = [one[0] for one in captions]
    folder = Path(tempfile.mkdtemp())
    try:
        report(model, folder / "index", source, texts, given.rerank)
    finally:
        shutil.rmtree(folder)


def report(model: CBViLA, folder: Path, source: str, texts: list[str], rerank: int) -> None:
    index, rate, again = timed_update(model, folder, source)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {source}")
    print(f"{len(index)} images, {index.head.width} numbers each, {size:.1f} MiB on the disk")
    print("\n| indexing | |\n|---|---|")
    print(f"| images per second | {rate:.1f} |")
    print(f"| seconds of an update that finds nothing new | {again:.2f} |")
    began = time.perf_counter()
    index.search(texts=texts[:1], approximate=True)
    print(f"| seconds to make the graph | {time.perf_counter() - began:.2f} |")
    ways: dict[str, dict[str, object]] = {
        "vectors": {},
        "graph": {"approximate": True},
        f"vectors, {rerank} looked at again": {"rerank": rerank},
    }
    print("\n| one text query, encoding included | median ms | 95 % ms |\n|---|---|---|")
    for name, settings in ways.items():

        def ask(number: int, settings: dict[str, object] = settings) -> object:
            return index.search(texts=[texts[number]], top_k=TOP_K, **settings)  # type: ignore[arg-type]

        median, slow = milliseconds(ask, len(texts))
        print(f"| {name} | {median:.2f} | {slow:.2f} |")
    compare(Store(str(folder)), len(texts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of the process: {peak:.0f} MiB")


def compare(store: Store, num_queries: int) -> None:
    """Print how the vectors of an index are searched: time, and the share of the truly nearest that is found."""
    by_digest = store.vectors([entry.digest for entry in store.entries()])
    keys = [entry.key for entry in store.entries()]
    vectors = np.stack([by_digest[entry.digest] for entry in store.entries()])
    # Directions between images, and around them: the queries that a trained model would ask.
    generator = np.random.default_rng(0)
    mixed = vectors[generator.integers(0, len(vectors), (2, num_queries))].sum(0)
    queries = (mixed + 0.1 * generator.normal(size=mixed.shape)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected: Found = [
        [keys[row] for row in rows[:TOP_K]] for rows in np.argsort(-products, axis=1, kind="stable")
    ]
    ways: dict[str, Callable[[np.ndarray], list[str]]] = {
        "pixlex, from the disk": lambda query: [one.key for one, _ in store.nearest(query, TOP_K)],
        "pixlex, graph": lambda query: [one.key for one, _ in store.nearest(query, TOP_K, approximate=True)],
        "NumPy, in memory": lambda query: [keys[row] for row in np.argsort(-(vectors @ query))[:TOP_K]],
    }
    if faiss is not None:
        flat = faiss.IndexFlatIP(store.head.width)
        flat.add(vectors)
        ways["faiss flat index, in memory"] = lambda query: [
            keys[row] for row in flat.search(query[None], TOP_K)[1][0]
        ]
    print(
        f"\n| vectors alone, top {TOP_K} | one query, ms | share of the nearest that is found |\n|---|---|---|"
    )
    for name, way in ways.items():

        def ask(number: int, way: Callable[[np.ndarray], list[str]] = way) -> object:
            return way(queries[number])

        median, _ = milliseconds(ask, num_queries)
        found: Found = [way(query) for query in queries]
        print(f"| {name} | {median:.2f} | {shared(found, expected):.4f} |")


if __name__ == "__main__":
    main()
