"""Nearest codeword: time and memory next to the ways one would take instead.

The contestants take turns for several rounds in one process, so that a busy machine slows all of them alike;
times are medians, of the clock and of the processor (all threads together; it bears company better). Each
contestant's memory is measured in a process of its own: the peak during a search, of resident memory or of a GPU's
tensors, above what was there before it, inputs included. All return codes and their codewords. The roofline: the
2 N K D operations of the product over the time, beside those of a large product of matrices in the precision that
training would take here, measured just before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from in_turn import last_line
from measuring import PeakMemory, best_product_rate, synchronize
from pixlex.distributed import pick_device
from pixlex.nn.nearest import Metric, PreparedCodebook, nearest_codeword
from pixlex.training.parallel import pick_precision

Search = Callable[[Tensor], tuple[Tensor, Tensor]]
OURS = "pixlex"


def ours(codebook: Tensor, metric: Metric) -> Search:
    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        codes = nearest_codeword(z, codebook, metric)
        return codes, codebook[codes]

    return search


def ours_prepared(codebook: Tensor, metric: Metric) -> Search:
    prepared = PreparedCodebook(codebook, metric)

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        codes = nearest_codeword(z, prepared, metric)
        return codes, codebook[codes]

    return search


def full_distances(codebook: Tensor, metric: Metric) -> Search:
    """The textbook way: all distances, argmin, one-hot times codebook."""

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        rows, codewords = (normalize(z), normalize(codebook)) if metric == "cosine" else (z, codebook)
        distances = rows.square().sum(1, keepdim=True) - 2 * rows @ codewords.T + codewords.square().sum(1)
        codes = distances.argmin(1)
        return codes, one_hot(codes, len(codebook)).to(codebook.dtype) @ codebook

    return search


def float32_blocks(codebook: Tensor, metric: Metric) -> Search:
    """Blocks of codewords with a running best, in float32: what one writes to save memory only."""

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.full((len(z),), -torch.inf, device=z.device)
        codes = torch.zeros(len(z), dtype=torch.long, device=z.device)
        for start in range(0, len(codebook), 2048):
            block = codebook[start : start + 2048]
            if metric == "cosine":
                score, code = (z @ normalize(block).T).max(1)
            else:
                score, code = (2 * z @ block.T - block.square().sum(1)).max(1)
            codes = torch.where(score > best, code + start, codes)
            best = torch.maximum(score, best)
        return codes, codebook[codes]

    return search


def faiss_flat(codebook: Tensor, metric: Metric) -> Search:
    """The exact index of faiss; it is built, and its codebook normalized, outside of the time."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = (faiss.IndexFlatIP if metric == "cosine" else faiss.IndexFlatL2)(codebook.shape[1])
    index.add((normalize(codebook) if metric == "cosine" else codebook).numpy())

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])
        return codes, codebook[codes]

    return search


def vector_quantize(codebook: Tensor, metric: Metric, *, training: bool = False) -> Search:
    """The layer of vector-quantize-pytorch around a frozen codebook."""
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(
        dim=codebook.shape[1],
        codebook_size=len(codebook),
        use_cosine_sim=metric == "cosine",
        freeze_codebook=True,
    ).to(codebook.device)
    layer.codebook = normalize(codebook) if metric == "cosine" else codebook
    layer.train(training)

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            values, codes, _ = layer(z.unsqueeze(0))
        return codes[0], values[0]

    return search


def vector_quantize_in_training(codebook: Tensor, metric: Metric) -> Search:
    """The same as it is in a training step, where codewords are one-hot codes times the codebook."""
    return vector_quantize(codebook, metric, training=True)


CONTESTANTS: dict[str, Callable[[Tensor, Metric], Search]] = {
    OURS: ours,
    "pixlex, prepared codebook": ours_prepared,
    "full distances, one-hot product": full_distances,
    "float32 blocks, running best": float32_blocks,
    "faiss flat index": faiss_flat,
    "vector-quantize-pytorch": vector_quantize,
    "the same, in training": vector_quantize_in_training,
}
PACKAGES = {
    "faiss flat index": "faiss",
    "vector-quantize-pytorch": "vector_quantize_pytorch",
    "the same, in training": "vector_quantize_pytorch",
}


def why_absent(name: str, device: torch.device) -> str | None:
    """Return why a contestant does not take part; None where it does."""
    package = PACKAGES.get(name)
    if package == "faiss" and device.type != "cpu":
        return "its index is on the CPU alone"
    missing = package is not None and importlib.util.find_spec(package) is None
    return f"{package} is not installed" if missing else None


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    torch.manual_seed(arguments.seed)
    device = pick_device(arguments.device)
    codebook = torch.randn(arguments.codewords, arguments.width)
    return torch.randn(arguments.rows, arguments.width).to(device), codebook.to(device)


def memory_of(name: str, z: Tensor, codebook: Tensor, metric: Metric) -> float:
    """Return the peak above what was held before one search, in MB (10^6 bytes)."""
    build = CONTESTANTS[name]
    build(codebook[:64].clone(), metric)(z[:64].clone())  # libraries and their threads
    search = build(codebook, metric)
    memory = PeakMemory(z.device)
    search(z)
    synchronize(z.device)
    return (memory.peak() - memory.before) * 2**20 / 1e6


def memory_in_own_process(name: str, arguments: argparse.Namespace) -> float:
    keys = ("rows", "codewords", "width", "threads", "metric", "device")
    options = [f"--{key}={getattr(arguments, key)}" for key in keys]
    return float(last_line(__file__, [*options, "--memory-of", name]))


def wrong_codes(codes: Tensor, z: Tensor, codebook: Tensor, metric: Metric) -> int:
    """Count codes whose codeword is further away than the nearest by more than 1e-6 (float64 brute force)."""
    best = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
    rows = normalize(z.double()) if metric == "cosine" else z.double()
    chosen = codebook[codes].double()
    chosen = normalize(chosen) if metric == "cosine" else chosen
    for start in range(0, len(codebook), 1024):
        block = codebook[start : start + 1024].double()
        block = normalize(block) if metric == "cosine" else block
        distances = rows.square().sum(1, keepdim=True) - 2 * rows @ block.T + block.square().sum(1)
        best = torch.minimum(best, distances.amin(1))
    return int(((rows - chosen).square().sum(1) > best + 1e-6).sum())


def timed(searches: dict[str, Search], z: Tensor, rounds: int) -> tuple[dict[str, list[float]], ...]:
    """Return seconds of the clock and of the processor of each call; contestants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    processor_seconds: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            synchronize(z.device)
            start, processor_start = time.perf_counter(), time.process_time()
            search(z)
            synchronize(z.device)
            seconds[name].append(time.perf_counter() - start)
            processor_seconds[name].append(time.process_time() - processor_start)
    return seconds, processor_seconds


def run(arguments: argparse.Namespace) -> dict[str, object]:
    z, codebook = inputs(arguments)
    device, precision = z.device, pick_precision("auto", z.device)
    absent = {name: why_absent(name, device) for name in CONTESTANTS}
    searches = {
        name: build(codebook, arguments.metric) for name, build in CONTESTANTS.items() if not absent[name]
    }
    found = {name: search(z)[0] for name, search in searches.items()}  # the first call is not timed
    rates = [best_product_rate(device, precision)]
    seconds, processor_seconds = timed(searches, z, arguments.rounds)
    rates.append(best_product_rate(device, precision))
    ours_seconds = statistics.median(seconds[OURS])
    operations = 2 * arguments.rows * arguments.codewords * arguments.width
    rows = [
        {
            "contestant": name,
            "seconds": statistics.median(times),
            "processor_seconds": statistics.median(processor_seconds[name]),
            "times_pixlex": statistics.median(times) / ours_seconds,
            "peak_megabytes": memory_in_own_process(name, arguments),
            "wrong_codes": wrong_codes(found[name], z, codebook, arguments.metric),
            "gigaflops": operations / statistics.median(times) / 1e9,
            "of_product": operations / statistics.median(times) / max(rates),
        }
        for name, times in seconds.items()
    ]
    shape = {key: getattr(arguments, key) for key in ("rows", "codewords", "width", "metric", "rounds")}
    return {
        "shape": shape,
        "machine": machine(device),
        "roofline": roofline(arguments, precision, max(rates)),
        "results": rows,
        "absent": {name: reason for name, reason in absent.items() if reason},
    }


def machine(device: torch.device) -> dict[str, object]:
    capabilities = torch.cpu.get_capabilities()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "bfloat16": [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)],
    }


def roofline(arguments: argparse.Namespace, precision: str, rate: float) -> dict[str, object]:
    """Return what every exact search must do at least: the product; reading both sides, writing the result."""
    rows, codewords, width = arguments.rows, arguments.codewords, arguments.width
    operations = 2 * rows * codewords * width
    moved = 4 * width * (rows + codewords) + rows * (8 + 4 * width)  # float32; codes of 8 bytes
    return {
        "operations": operations,
        "least_bytes": moved,
        "operations_per_byte": round(operations / moved),
        "product_precision": precision,
        "product_gigaflops": round(rate / 1e9, 1),
    }


def show(report: dict[str, object]) -> None:
    for part in ("shape", "machine", "roofline"):
        print(" ".join(f"{key}={value}" for key, value in report[part].items()))
    print(
        f"{'contestant':34s}{'median s':>10s}{'cpu s':>9s}{'x pixlex':>10s}{'peak MB':>9s}{'wrong':>7s}"
        f"{'GFLOP/s':>10s}{'of product':>12s}"
    )
    for row in report["results"]:
        print(
            f"{row['contestant']:34s}{row['seconds']:10.4f}{row['processor_seconds']:9.4f}"
            f"{row['times_pixlex']:10.2f}{row['peak_megabytes']:9.1f}{row['wrong_codes']:7d}"
            f"{row['gigaflops']:10.1f}{row['of_product']:12.1%}"
        )
    for name, reason in report["absent"].items():
        print(f"left out: {name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048, help="N (default: 8 images of 256 patches)")
    parser.add_argument("--codewords", type=int, default=50265, help="K (default: RoBERTa's vocabulary)")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--metric", choices=("cosine", "euclidean"), default="cosine")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--memory-of", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, *inputs(arguments), arguments.metric))
    elif arguments.json:
        print(json.dumps(run(arguments), indent=2))
    else:
        show(run(arguments))


if __name__ == "__main__":
    main()
