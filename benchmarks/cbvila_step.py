"""One CB-ViLA training step at the paper's sizes: more and more of its terms, and all of them pass by pass.

256 px, 16 px patches, ViT-B/16, six text and six fusion layers of BERT-base's width, 3,000 codewords, a vocabulary
of 30,522 words, 25 words a text, batch 2, random weights. Rows: matching, contrast and masked words alone (no
codebook, no pixels, no masked images), with pixels and codebook, with masked codes, the same with the
Gumbel-softmax, whose codes need a second pass, all terms with train.checkpoint_activations, all with train.compile
(where --compile asks for it), and all pass by pass (pass_by_pass.py) with torch's AdamW as it comes, which before
must give the same terms and gradients on small networks. Each row runs in a process of its own: peak memory is its
own. Pairs lie in the device's memory: nothing waits for data.

    python benchmarks/cbvila_step.py [--rounds 1] [--steps 2] [--batch 2] [--compile] [--device D]
        [--largest-batch]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pass_by_pass
from in_turn import measured_in_turn
from measuring import (
    Sizes,
    checked_options,
    measured_steps,
    optimizer_of,
    passed_on,
    print_largest_batch,
    print_machine,
    print_one,
    print_rates,
    print_steps,
    step_parser,
)
from pixlex.batch import ImageTextBatch
from pixlex.config.cbvila import (
    CBViLAConfig,
    CBViLAObjectiveConfig,
    FusionConfig,
    ImageTowerConfig,
    TextTowerConfig,
    VisualCodebookConfig,
)
from pixlex.distributed import ALONE, pick_device
from pixlex.models.cbvila import CBViLA
from pixlex.objectives.cbvila import CBViLAObjective, StepRandom
from pixlex.objectives.phase import Step
from pixlex.training.parallel import mixed_precision, prepare_layers

WORDS = 25
ALL, AGAIN, PLAIN = "+ masked codes", "+ masked codes, layers computed again", "pass by pass"
COMPILED = "+ masked codes, compiled"
ROWS: dict[str, dict[str, Any]] = {
    "matching, contrast, masked words": {"pixel_weight": 0.0, "masked_image_weight": 0.0},
    "+ pixels, codebook": {"masked_image_weight": 0.0},
    ALL: {},
    "the same with Gumbel-softmax": {"estimator": "gumbel"},
    AGAIN: {},
    COMPILED: {},
    PLAIN: {},
}
TRAININGS = {
    "30 epochs of the paper's 4.0 M images": 30 * 4_000_000,
    "of its 5.1 M pairs": 30 * 5_100_000,
}


PAPER, SMALL = Sizes(codewords=3000), Sizes(image_size=64, width=64, depth=2, heads=2, codewords=128)


def build(row: str, steps: int, sizes: Sizes = PAPER) -> CBViLAObjective:
    """Return the objective of a row with random weights; text and fusion encoder share the depth."""
    settings = dict(ROWS[row])
    estimator = settings.pop("estimator", "straight_through")
    width, half = sizes.width, sizes.depth // 2
    config = CBViLAConfig(
        image_size=sizes.image_size,
        image=ImageTowerConfig(width=width, depth=sizes.depth, heads=sizes.heads),
        text=TextTowerConfig(width=width, depth=half, heads=sizes.heads),
        fusion=FusionConfig(depth=half),
        codebook=VisualCodebookConfig(num_codewords=sizes.codewords, dim=width, estimator=estimator),
    )
    torch.manual_seed(0)
    model = CBViLA.build(config).train()
    objective = CBViLAObjectiveConfig(burn_in_steps=0, codebook_start="random", **settings)
    return CBViLAObjective(model, objective, steps, WORDS)


def pairs_of(model: CBViLA, batch: int) -> ImageTextBatch:
    """Return random images with random words, of which no two pairs share one."""
    word_ids = torch.randint(1000, model.tokenizer.vocab_size, (batch, WORDS))
    word_ids[:, 0], word_ids[:, -1] = model.tokenizer.start_id, model.tokenizer.end_id
    return ImageTextBatch(
        torch.rand(batch, 3, model.config.image_size, model.config.image_size),
        torch.zeros(batch, dtype=torch.long),
        ("",) * batch,
        torch.arange(batch),
        texts=tuple(str(number) for number in range(batch)),
        image_ids=torch.arange(batch),
        word_ids=word_ids,
        key_padding=torch.zeros(batch, WORDS, dtype=torch.bool),
    )


def terms_pass_by_pass(objective: CBViLAObjective, pairs: ImageTextBatch, step: Step) -> dict[str, Tensor]:
    """Return all terms pass by pass, with the draws of our objective."""
    model = objective.model
    draws = StepRandom.draw(objective, pairs, ALONE, step.generator)
    return pass_by_pass.terms_of(model, objective.config.masked_language_ratio, pairs, draws)


def weighted(objective: CBViLAObjective, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(
        [getattr(objective.config, f"{name}_weight") * one for name, one in terms.items()]
    ).sum()


def check_equal(device: torch.device) -> None:
    """Require the same terms and gradients of ours and pass by pass, in float32 on small networks."""
    objective = build(ALL, 1, SMALL).to(device)
    pairs = pairs_of(objective.model, 6).to(device)
    ours = objective(pairs, objective.phases[-1], Step(0, torch.Generator().manual_seed(0)))
    plain = terms_pass_by_pass(objective, pairs, Step(0, torch.Generator().manual_seed(0)))
    assert set(ours.terms) == set(plain)
    for name, term in ours.terms.items():
        torch.testing.assert_close(term, plain[name], rtol=1e-5, atol=1e-6)
    parameters = list(objective.parameters())
    gradients = (torch.autograd.grad(one, parameters) for one in (ours.total, weighted(objective, plain)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def measure(row: str, sizes: Sizes, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """Return what `measured_steps` does of one row."""
    objective = build(row, steps, sizes).to(device)
    model = objective.model
    prepare_layers(model, compiles=row == COMPILED, checkpoints=row == AGAIN)
    optimizer = optimizer_of(objective, plain=row == PLAIN)
    pairs = pairs_of(model, batch).to(device)

    def take_step(number: int) -> None:
        step = Step(number, torch.Generator().manual_seed(number))
        with mixed_precision(device, "auto"):
            if row == PLAIN:
                total = weighted(objective, terms_pass_by_pass(objective, pairs, step))
            else:
                loss = objective(pairs, objective.phases[-1], step)
                total = loss.total
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        if row != PLAIN:
            objective.after_step(step, loss)

    return measured_steps(take_step, device, steps, batch)


def main() -> None:
    """Run all rows in turn and print tables with ratios."""
    given = checked_options(step_parser(__doc__, list(ROWS), rounds=1))
    device, sizes = pick_device(given.device), SMALL if given.small else PAPER
    if given.one:
        print_one(lambda: measure(given.one, sizes, given.batch, given.steps, device))
        return
    check_equal(device)
    trainings = {} if given.small else TRAININGS
    print_machine(given)
    whole = [ALL, AGAIN, *[COMPILED] * given.compile, PLAIN]
    if given.largest_batch is not None:
        print_largest_batch(__file__, whole, given, "pair", trainings)
        return
    names = [name for name in ROWS if given.compile or name != COMPILED]
    rows = measured_in_turn(__file__, names, given.rounds, passed_on(given))
    least = next(iter(rows.values()))
    print(
        "| terms | seconds per pair | over the first | of the processor | over the first | peak memory (MiB) "
        "| above the model (MiB) |\n|---|---|---|---|---|---|---|"
    )
    for name, row in list(rows.items())[:-1]:
        ratio, other = (row[key] / least[key] for key in ("seconds", "processor"))
        print(
            f"| {name} | {row['seconds']:.3g} | {ratio:.2f} | {row['processor']:.3g} | {other:.2f} | "
            f"{row['peak']:.0f} | {row['above_model']:.0f} |"
        )
    print("\nAll terms:\n")
    print_steps({name: rows[name] for name in whole}, PLAIN, "pair")
    print_rates(rows, "pair", trainings)


if __name__ == "__main__":
    main()
