"""Cross-entropy of hidden words over a large vocabulary, forward and backward, next to other ways.

Contestants: ours; all logits at once; torch's own chunked `linear_cross_entropy`. The output matrix is trained
(CB-ViLA, 30,522 x 768) or frozen (LQAE, 50,265 x 768). Each runs in a process of its own, in turn, so that peak
memory is its own; times are medians over some passes after one that does not count. Operations are those of the
products that the task needs: logits, gradient of the vectors, and of the matrix where it is trained; beside them
stands what a large product of matrices does in the same precision.

    python benchmarks/masked_words.py [--rounds 2] [--passes 3] [--words 2048] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

from in_turn import measured_in_turn
from measuring import PeakMemory, best_product_rate, synchronize
from pixlex.distributed import pick_device
from pixlex.losses import masked_word_loss
from pixlex.training.parallel import mixed_precision

CONTESTANTS = ("ours", "all logits at once", "torch, chunked")
CASES = {"trained": 30_522, "frozen": 50_265}


def loss_of(contestant: str, vectors: Tensor, word_ids: Tensor, weight: Tensor) -> Tensor:
    if contestant == "ours":
        return masked_word_loss(vectors, word_ids, weight, None)
    if contestant == "all logits at once":
        return F.cross_entropy(F.linear(vectors, weight), word_ids)
    return F.linear_cross_entropy(vectors, weight, word_ids, options=LinearCrossEntropyOptions())


def measure(
    contestant: str, case: str, words: int, width: int, passes: int, device: torch.device, precision: str
) -> dict[str, float]:
    """Return seconds of a pass, the memory above vectors and matrix in MiB, and the operations a second."""
    vocabulary, trained = CASES[case], case == "trained"
    rate = best_product_rate(device, precision)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(words, width, generator=generator).to(device).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).mul_(0.02).to(device).requires_grad_(trained)
    word_ids = torch.randint(0, vocabulary, (words,), generator=generator).to(device)
    memory, seconds = PeakMemory(device), []
    for _ in range(passes + 1):
        synchronize(device)
        began = time.perf_counter()
        with mixed_precision(device, precision):
            loss = loss_of(contestant, vectors, word_ids, weight)
        loss.backward()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        vectors.grad = weight.grad = None
    median = statistics.median(seconds[1:])
    operations = (6 if trained else 4) * words * vocabulary * width
    return {
        "seconds": median,
        "memory": memory.peak() - memory.before,
        "loss": loss.item(),
        "gigaflops": operations / median / 1e9,
        "share": operations / median / rate,
    }


def main() -> None:
    """Run all in turn and print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--words", type=int, default=2048)
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = pick_device(given.device)
    if given.one:
        found = measure(
            given.one, given.case, given.words, given.width, given.passes, device, given.precision
        )
        print(json.dumps(found))
        return
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {name}, {given.words} words, D = {given.width}, {given.precision}")
    keys = ("words", "width", "passes", "device", "precision")
    passed_on = [text for key in keys for text in (f"--{key}", str(getattr(given, key)))]
    for case, vocabulary in CASES.items():
        rows = measured_in_turn(__file__, CONTESTANTS, given.rounds, ["--case", case, *passed_on])
        print(
            f"\n| {case} matrix, V = {vocabulary:,} | seconds | over ours | memory (MiB) | loss | GFLOP/s "
            "| over the rate of a matrix product |\n|---|---|---|---|---|---|---|"
        )
        for name, row in rows.items():
            ratio = row["seconds"] / rows["ours"]["seconds"]
            print(
                f"| {name} | {row['seconds']:.3g} | {ratio:.2f} | {row['memory']:.0f} | {row['loss']:.5f} | "
                f"{row['gigaflops']:.1f} | {row['share']:.1%} |"
            )


if __name__ == "__main__":
    main()
