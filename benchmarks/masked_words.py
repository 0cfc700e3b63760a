"""Cross-entropy of hidden words over a large vocabulary, forward and backward, next to other ways.

Contestants: ours; all logits at once; torch's own chunked `linear_cross_entropy`. The output matrix is trained
(CB-ViLA, 30,522 x 768) or frozen (LQAE, 50,265 x 768). Each runs in a process of its own, in turn, so that peak
memory is its own; times are medians over some passes after one that does not count.

    python benchmarks/masked_words.py [--rounds 2] [--passes 3] [--words 2048]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

from in_turn import measured_in_turn
from pixlex.losses.masked import masked_word_loss

WIDTH = 768
CONTESTANTS = ("ours", "all logits at once", "torch, chunked")
CASES = {"trained": 30_522, "frozen": 50_265}


def loss_of(contestant: str, vectors: Tensor, word_ids: Tensor, weight: Tensor) -> Tensor:
    if contestant == "ours":
        return masked_word_loss(vectors, word_ids, weight, None)
    if contestant == "all logits at once":
        return F.cross_entropy(F.linear(vectors, weight), word_ids)
    return F.linear_cross_entropy(vectors, weight, word_ids, options=LinearCrossEntropyOptions())


def measure(contestant: str, case: str, words: int, passes: int) -> dict[str, float]:
    """Return seconds of a pass and the memory above vectors and matrix, in MB."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(words, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(CASES[case], WIDTH, generator=generator).mul_(0.02).requires_grad_(case == "trained")
    word_ids = torch.randint(0, CASES[case], (words,), generator=generator)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for _ in range(passes + 1):
        began = time.perf_counter()
        loss = loss_of(contestant, vectors, word_ids, weight)
        loss.backward()
        seconds.append(time.perf_counter() - began)
        vectors.grad = weight.grad = None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[1:]), "memory": peak - start, "loss": loss.item()}


def main() -> None:
    """Run all in turn and print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--words", type=int, default=2048)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.case, given.words, given.passes)))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.words} words, D = {WIDTH}, fp32"
    )
    for case, vocabulary in CASES.items():
        arguments = ["--case", case, "--words", str(given.words), "--passes", str(given.passes)]
        rows = measured_in_turn(__file__, CONTESTANTS, given.rounds, arguments)
        print(f"\n| {case} matrix, V = {vocabulary:,} | seconds | over ours | memory (MB) | loss |")
        print("|---|---|---|---|---|")
        for name, row in rows.items():
            ratio = row["seconds"] / rows["ours"]["seconds"]
            print(
                f"| {name} | {row['seconds']:.2f} | {ratio:.2f} | {row['memory']:.0f} | {row['loss']:.5f} |"
            )


if __name__ == "__main__":
    main()
