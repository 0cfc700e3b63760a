"""One CB-ViLA training step at the paper's sizes, with more and more of its terms.

256 px, 16 px patches, ViT-B/16, six text and six fusion layers of BERT-base's width, 3,000 codewords, a vocabulary
of 30,522 words, 25 words a text, batch 2, random weights. Rows: matching, contrast and masked words alone (no
codebook, no pixels, no masked images), with pixels and codebook, with masked codes, the same with the
Gumbel-softmax, whose codes need a second pass, and all terms with train.checkpoint_activations. Each row runs in a
process of its own: peak memory is its own.

    python benchmarks/cbvila_step.py [--rounds 1] [--steps 2] [--batch 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

import torch

from in_turn import measured_in_turn
from pixlex.batch import ImageTextBatch
from pixlex.config.cbvila import CBViLAConfig, CBViLAObjectiveConfig, VisualCodebookConfig
from pixlex.models.cbvila import CBViLA
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.phase import Step
from pixlex.train.memory import checkpoint_layers
from pixlex.train.parallel import mixed_precision, pick_precision

WORDS = 25
ROWS: dict[str, dict[str, Any]] = {
    "matching, contrast, masked words": {"pixel_weight": 0.0, "masked_image_weight": 0.0},
    "+ pixels, codebook": {"masked_image_weight": 0.0},
    "+ masked codes": {},
    "the same with Gumbel-softmax": {"estimator": "gumbel"},
    "+ masked codes, layers computed again": {},
}


def measure(row: str, batch: int, steps: int) -> dict[str, float]:
    """Return seconds per pair (median over steps after one warm-up) and peak memory in MB."""
    settings = dict(ROWS[row])
    codebook = VisualCodebookConfig(estimator=settings.pop("estimator", "straight_through"))
    torch.manual_seed(0)
    model = CBViLA.build(CBViLAConfig(codebook=codebook)).train()
    config = CBViLAObjectiveConfig(burn_in_steps=0, codebook_start="random", **settings)
    objective = CBViLAObjective(model, config, steps, WORDS)
    if "computed again" in row:
        checkpoint_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    word_ids = torch.randint(1000, model.tokenizer.vocab_size, (batch, WORDS))
    word_ids[:, 0], word_ids[:, -1] = model.tokenizer.start_id, model.tokenizer.end_id
    pairs = ImageTextBatch(
        torch.rand(batch, 3, 256, 256),
        torch.zeros(batch, dtype=torch.long),
        ("",) * batch,
        torch.arange(batch),
        texts=tuple(str(number) for number in range(batch)),
        image_ids=torch.arange(batch),
        word_ids=word_ids,
        key_padding=torch.zeros(batch, WORDS, dtype=torch.bool),
    )
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for number in range(steps + 1):
        began = time.perf_counter()
        step = Step(number, torch.Generator().manual_seed(number))
        with mixed_precision(pairs.images.device, "auto"):
            loss = objective(pairs, objective.phases[-1], step).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        objective.after_step(step)
        seconds.append((time.perf_counter() - began) / batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[1:]), "peak": peak, "above_model": peak - start}


def main() -> None:
    """Run all rows in turn and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.batch, given.steps)))
        return
    arguments = ["--batch", str(given.batch), "--steps", str(given.steps)]
    rows = measured_in_turn(__file__, list(ROWS), given.rounds, arguments)
    least = next(iter(rows.values()))
    precision = pick_precision("auto", torch.device("cpu"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {given.batch}, {precision}")
    print("| terms | seconds per pair | over the first | peak memory (MB) | above the model (MB) |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = row["seconds"] / least["seconds"]
        print(
            f"| {name} | {row['seconds']:.2f} | {ratio:.2f} | {row['peak']:.0f} | {row['above_model']:.0f} |"
        )


if __name__ == "__main__":
    main()
