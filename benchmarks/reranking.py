"""Re-ranking: image by image with keys and values made once, against making them for every pair.

ALBEF goes through captions and their k best images (and through images and their k best captions) and projects the
image's vectors in every layer for every pair. Ours goes through images, projects each once, and scores a pair that
is in both lists once. Both score the same pairs here; pairs in both lists are counted apart. Time for COCO's test
set (5,000 images, 25,010 captions, k = 256) is extrapolated from the pairs per second.

    python benchmarks/reranking.py [--images 64] [--top-k 32] [--rounds 3] [--paper]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pixlex.config.cbvila import (
    CBViLAConfig,
    FusionConfig,
    ImageTowerConfig,
    TextTowerConfig,
    VisualCodebookConfig,
)
from pixlex.eval.evaluate import Pass
from pixlex.eval.retrieval import Gallery, matching_logits, top_pairs
from pixlex.models.cbvila import CBViLA

CAPTIONS, WORDS = 5, 16
COCO_IMAGES, COCO_CAPTIONS, COCO_K = 5000, 25010, 256


def config(*, paper: bool) -> CBViLAConfig:
    """Return the paper's sizes, or those of `cbvila/captions`."""
    if paper:
        return CBViLAConfig(image_size=384)
    return CBViLAConfig(
        image_size=128,
        image=ImageTowerConfig(width=192, depth=6, heads=6),
        text=TextTowerConfig(width=384, depth=3, positions=48),
        fusion=FusionConfig(depth=3),
        codebook=VisualCodebookConfig(num_codewords=512, dim=192),
    )


@torch.no_grad()
def caption_major(model: CBViLA, seen: Tensor, text: Tensor, padding: Tensor, wanted: Tensor) -> Tensor:
    """Score each caption against its images, whose keys and values are made for every pair."""
    logits = torch.zeros(wanted.shape)
    for caption, column in enumerate(wanted.T):
        images = column.nonzero().flatten()
        if len(images):
            rows = torch.full_like(images, caption)
            fused = model.fusion(text[rows], model.image_context(seen[images]), padding[rows])
            logits[images, caption] = model.matching_head(fused[:, 0])[:, 1]
    return logits


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return seconds and what came out."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def main() -> None:
    """Score the same pairs both ways in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paper", action="store_true", help="the paper's sizes, 384 px")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = CBViLA.build(config(paper=given.paper)).eval()
    count, width = given.images * CAPTIONS, model.config.text.width
    seen = torch.randn(given.images, model.grid**2 + 1, model.config.image.width)
    text, padding = torch.randn(count, WORDS, width), torch.zeros(count, WORDS, dtype=torch.bool)
    of_images, of_captions = top_pairs(torch.randn(given.images, count), given.top_k)
    wanted, asked = of_images | of_captions, int(of_images.sum() + of_captions.sum())
    pairs = int(wanted.sum())
    places = torch.arange(given.images)
    items = Gallery(
        states=seen, own=places, image_vectors=torch.empty(given.images, 0), text=text, key_padding=padding,
        text_vectors=torch.empty(count, 0), image_of=torch.arange(count) // CAPTIONS, same_pixels=places,
        same_text=torch.arange(count), max_words=WORDS, skipped=(),
    )  # fmt: skip
    ways = {
        "caption by caption, images projected for every pair": lambda: caption_major(
            model, seen, text, padding, wanted
        ),
        "image by image, projected once (ours)": lambda: matching_logits(
            model, items, wanted, Pass(progress=False)
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    for number in range(given.rounds + 1):
        for name, way in ways.items():
            took, found[name] = timed(way)
            if number:  # the first is a warm-up
                seconds[name].append(took)
    first, ours = found.values()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; the lists name {asked} pairs, "
        f"{pairs} different ones; scores spread by {float(ours[wanted].std()):.2g}"
    )
    print(f"largest difference of the scores: {float((first - ours).abs().max()):.1e}")
    print("| way | pairs per second | over the first | COCO test, hours |")
    print("|---|---|---|---|")
    slowest = statistics.median(seconds[next(iter(ways))])
    for name, took in seconds.items():
        rate = pairs / statistics.median(took)
        # ALBEF scores what is in both lists twice; with k of all, at least the share that was met here is spared.
        coco = (COCO_IMAGES + COCO_CAPTIONS) * COCO_K * (pairs / asked if "ours" in name else 1)
        print(f"| {name} | {rate:.0f} | {slowest / statistics.median(took):.2f} | {coco / rate / 3600:.1f} |")


if __name__ == "__main__":
    main()
