"""Nearest codeword: time and memory next to the ways one would take instead.

The contestants take turns for several rounds in one process, so that a busy machine slows all of them alike;
times are medians, of the clock and of the processor (all threads together; it bears company better). Each
contestant's memory is measured in a process of its own: the peak of resident memory during a search, above what
was resident before it, inputs included. All return codes and their codewords.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from pixlex.nn.nearest import Metric, PreparedCodebook, nearest_codeword

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
        best = torch.full((len(z),), -torch.inf)
        codes = torch.zeros(len(z), dtype=torch.long)
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


CONTESTANTS: dict[str, Callable[[Tensor, Metric], Search]] = {
    OURS: ours,
    "pixlex, prepared codebook": ours_prepared,
    "full distances, one-hot product": full_distances,
    "float32 blocks, running best": float32_blocks,
    "faiss flat index": faiss_flat,
}


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    torch.manual_seed(arguments.seed)
    codebook = torch.randn(arguments.codewords, arguments.width)
    return torch.randn(arguments.rows, arguments.width), codebook


def resident(field: str) -> float:
    """Return a field of this process's memory account, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"expected {field} in the memory account of the process, got none")


def measure_memory(arguments: argparse.Namespace) -> float:
    """Return the peak above what was resident before one search, in MB."""
    z, codebook = inputs(arguments)
    build = CONTESTANTS[arguments.memory_of]
    build(codebook[:64].clone(), arguments.metric)(z[:64].clone())  # libraries and their threads
    search = build(codebook, arguments.metric)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
    before = resident("VmRSS")
    search(z)
    return resident("VmHWM") - before


def memory_in_own_process(name: str, arguments: argparse.Namespace) -> float:
    options = [
        f"--{key}={getattr(arguments, key)}" for key in ("rows", "codewords", "width", "threads", "metric")
    ]
    command = [sys.executable, __file__, *options, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def wrong_codes(codes: Tensor, z: Tensor, codebook: Tensor, metric: Metric) -> int:
    """Count codes whose codeword is further away than the nearest by more than 1e-6 (float64 brute force)."""
    best = torch.full((len(z),), torch.inf, dtype=torch.float64)
    rows = normalize(z.double()) if metric == "cosine" else z.double()
    chosen = codebook[codes].double()
    chosen = normalize(chosen) if metric == "cosine" else chosen
    for start in range(0, len(codebook), 1024):
        block = codebook[start : start + 1024].double()
        block = normalize(block) if metric == "cosine" else block
        distances = rows.square().sum(1, keepdim=True) - 2 * rows @ block.T + block.square().sum(1)
        best = torch.minimum(best, distances.amin(1))
    return int(((rows - chosen).square().sum(1) > best + 1e-6).sum())


def run(arguments: argparse.Namespace) -> dict[str, object]:
    z, codebook = inputs(arguments)
    searches = {name: build(codebook, arguments.metric) for name, build in CONTESTANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    processor_seconds: dict[str, list[float]] = {name: [] for name in searches}
    found = {name: search(z)[0] for name, search in searches.items()}  # the first call is not timed
    for _ in range(arguments.rounds):
        for name, search in searches.items():
            start, processor_start = time.perf_counter(), time.process_time()
            search(z)
            seconds[name].append(time.perf_counter() - start)
            processor_seconds[name].append(time.process_time() - processor_start)
    ours_seconds = statistics.median(seconds[OURS])
    rows = [
        {
            "contestant": name,
            "seconds": statistics.median(times),
            "processor_seconds": statistics.median(processor_seconds[name]),
            "times_pixlex": statistics.median(times) / ours_seconds,
            "peak_megabytes": memory_in_own_process(name, arguments),
            "wrong_codes": wrong_codes(found[name], z, codebook, arguments.metric),
        }
        for name, times in seconds.items()
    ]
    shape = {key: getattr(arguments, key) for key in ("rows", "codewords", "width", "metric", "rounds")}
    capabilities = torch.cpu.get_capabilities()
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "bfloat16": [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)],
    }
    return {"shape": shape, "machine": machine, "results": rows}


def show(report: dict[str, object]) -> None:
    print(" ".join(f"{key}={value}" for part in ("shape", "machine") for key, value in report[part].items()))
    print(f"{'contestant':34s}{'median s':>10s}{'cpu s':>9s}{'x pixlex':>10s}{'peak MB':>9s}{'wrong':>7s}")
    for row in report["results"]:
        print(
            f"{row['contestant']:34s}{row['seconds']:10.3f}{row['processor_seconds']:9.3f}"
            f"{row['times_pixlex']:10.2f}{row['peak_megabytes']:9.1f}{row['wrong_codes']:7d}"
        )


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--memory-of", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(measure_memory(arguments))
    elif arguments.json:
        print(json.dumps(run(arguments), indent=2))
    else:
        show(run(arguments))


if __name__ == "__main__":
    main()
