"""`pixlex.load(...).tokenize` and `decode` against the network called plainly: processor milliseconds a picture.

An untrained `lqae/tinyimages` with the embedded language model. *Plain* is encoder and search (or decoder) in one
call of the network, at several batch sizes; the least of them is what `tokenize` is compared with. Contestants
take turns in one process. Then a fresh process that loads the model and turns one picture into words.

    OMP_NUM_THREADS=1 python benchmarks/tokenizing.py [--images 128] [--rounds 7] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pixlex
from pixlex.config.lqae import LQAERun
from pixlex.config.run import read_run
from pixlex.models import checkpoint
from pixlex.models.lqae import LQAE

BATCHES = (8, 16, 32, 64)
_FRESH = "import sys, pixlex; pixlex.load(sys.argv[1]).to_words(sys.argv[2])"


def milliseconds(contestants: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Return the median of each contestant, after a round that does not count; given: calls and their pictures."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, (work, pictures) in contestants.items():
            began = time.process_time()
            work()
            found[name].append(1000 * (time.process_time() - began) / pictures)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def fresh_process(model: str, picture: str, rounds: int) -> float:
    """Return the median processor seconds of processes that turn one picture into words."""
    seconds = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", _FRESH, model, picture], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def main() -> None:
    """Print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=128, help="pictures of a call")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    run = read_run("lqae/tinyimages", given.overrides)
    assert isinstance(run, LQAERun)
    torch.manual_seed(0)
    side = run.model.image_size
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(LQAE.build(run.model), Path(folder, "model"))
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder, "picture.png"))
        tokenizer = pixlex.load(Path(folder, "model"), device="cpu")
        seconds = fresh_process(str(Path(folder, "model")), str(Path(folder, "picture.png")), given.rounds)
    images = torch.rand(given.images, 3, side, side)
    codes = tokenizer.tokenize(images)
    network = torch.inference_mode()(tokenizer.model.tokenize)
    decode = torch.inference_mode()(tokenizer.model.decode)
    sizes = [size for size in BATCHES if size <= given.images]
    found = milliseconds(
        {
            f"tokenize {given.images}": (lambda: tokenizer.tokenize(images), given.images),
            **{f"plain, {size} at once": (lambda size=size: network(images[:size]), size) for size in sizes},
            "tokenize 1": (lambda: tokenizer.tokenize(images[:1]), 1),
            "plain, 1": (lambda: network(images[:1]), 1),
            "decode 1": (lambda: tokenizer.decode(codes[:1]), 1),
            "plain decode, 1": (lambda: decode(codes[:1]), 1),
        },
        given.rounds,
    )
    best = min(found[f"plain, {size} at once"] for size in sizes)
    plain = {
        f"tokenize {given.images}": best,
        "tokenize 1": found["plain, 1"],
        "decode 1": found["plain decode, 1"],
    }
    print("| | ms a picture, of the processor | over plain |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.2f} | {f'{value / plain[name]:.2f}' if name in plain else ''} |")
    print(f"| a fresh process, one picture | {1000 * seconds:.0f} | |")


if __name__ == "__main__":
    main()
