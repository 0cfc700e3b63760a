"""A fine-tuning step of questions whose images are shared by 1, 4 or 8 of them: items a second.

`data.texts_per_image` lets questions about one image share a pass of its encoder. Sizes of `cbvila/tiny` (96 px)
or, with --paper, those of the paper (384 px, ViT-B/16, six layers of text, fusion and decoder each). Random
weights; a step has as many questions in each row, only the number of images differs. Rows take turns in one
process; medians.

    python benchmarks/shared_images.py [--rounds 3] [--items 64] [--paper]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pixlex.batch import ReasoningBatch
from pixlex.config.cbvila import CBViLARun, ReasonerConfig, ReasoningObjectiveConfig
from pixlex.config.run import read_run
from pixlex.models.finetuned import Reasoner
from pixlex.objectives.finetune import ReasoningObjective
from pixlex.objectives.phase import Step
from pixlex.training.parallel import mixed_precision, pick_precision

SHARED = (1, 4, 8)
QUESTION = "how many large red circles are left of the small blue square?"


def batch_of(model: Reasoner, items: int, shared: int) -> ReasoningBatch:
    """Return questions, so many of them about each image."""
    words = model.tokenize_texts([QUESTION] * items, 30)
    count, size = items // shared, model.config.image_size
    return ReasoningBatch(
        torch.rand(count, 3, size, size),
        torch.zeros(count, dtype=torch.long),
        ("",) * count,
        torch.arange(count),
        items=torch.arange(items),
        texts=(QUESTION,) * items,
        word_ids=words.word_ids,
        key_padding=words.key_padding,
        answers=(("2",),) * items,
        targets=({"2": 1.0},) * items,
        image_index=None if shared == 1 else torch.arange(items) // shared,
    )


def main() -> None:
    """Print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--paper", action="store_true")
    given = parser.parse_args()
    # The hub is not asked: no pretrained parts, the embedded tokenizer.
    settings = [
        "model.image_size=384",
        "model.image.pretrained=",
        "model.text.pretrained=",
        "model.fusion.pretrained=",
        "model.text.tokenizer=embedded",
    ]
    run = read_run("cbvila/paper", settings) if given.paper else read_run("cbvila/tiny")
    assert isinstance(run, CBViLARun)
    torch.manual_seed(0)
    model = Reasoner.build(ReasonerConfig(body=run.model, answers=("1", "2"))).train()
    objective = ReasoningObjective(model, ReasoningObjectiveConfig(), 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = {shared: batch_of(model, given.items, shared) for shared in SHARED}
    seconds: dict[int, list[float]] = {shared: [] for shared in SHARED}
    for number in range(given.rounds + 1):
        for shared, batch in batches.items():
            began = time.perf_counter()
            with mixed_precision(batch.images.device, "auto"):
                step = Step(number, torch.Generator().manual_seed(number))
                loss = objective(batch, objective.phases[0], step).total
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if number:
                seconds[shared].append(time.perf_counter() - began)
    precision = pick_precision("auto", torch.device("cpu"))
    print(f"{given.items} items, {run.model.image_size} px, {torch.get_num_threads()} threads, {precision}")
    print("| texts for an image | items per second | over the first |\n|---|---|---|")
    base = statistics.median(seconds[1])
    for shared, found in seconds.items():
        median = statistics.median(found)
        print(f"| {shared} | {given.items / median:.1f} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
