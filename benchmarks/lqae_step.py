"""One LQAE training step at the paper's sizes beside a straightforward implementation of the same step.

256 px, 16 px patches, ViT-base on both sides, a language model of RoBERTa-base's size with random weights, all
50,265 rows as codewords, batch 2. Straightforward: all N x K distances, one-hot codes multiplied into the
codebook, logits of every position, and a second decoder pass that is weighted 0, as the released code computes
them. "Computed again": ours with train.checkpoint_activations. Each contestant runs in a process of its own, in
turn, so that peak memory is its own.

    python benchmarks/lqae_step.py [--rounds 2] [--steps 2] [--batch 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers import RobertaConfig, RobertaForMaskedLM

from in_turn import measured_in_turn
from pixlex.batch import ImageBatch
from pixlex.config.lqae import LQAEConfig, LQAEObjectiveConfig, QuantizerConfig
from pixlex.models.lqae import LQAE
from pixlex.nn.language import LanguageModel
from pixlex.nn.vocabulary import Vocabulary
from pixlex.objectives.lqae import LQAEObjective
from pixlex.objectives.phase import Step
from pixlex.train.memory import checkpoint_layers
from pixlex.train.parallel import mixed_precision, pick_precision

VOCABULARY = 50_265
CONTESTANTS = ("ours", "ours, layers computed again", "straightforward")


def build() -> LQAE:
    """Return the model of the `paper` recipe around a random language model of RoBERTa-base's size."""
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=514, type_vocab_size=1)
    language_model = RobertaForMaskedLM(config)
    language_model.set_attn_implementation("pixlex")
    language = LanguageModel(
        language_model, SimpleNamespace(mask_token_id=VOCABULARY - 1), name="random RoBERTa-base"
    )
    words = [f"word{number}" for number in range(VOCABULARY)]
    vocabulary = Vocabulary("all", torch.arange(VOCABULARY), words)
    return LQAE(LQAEConfig(quantizer=QuantizerConfig(search="raw")), language, vocabulary)


def straightforward(model: LQAE, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the same loss the plain way."""
    z = model.projector(model.encoder(images)).float()
    codebook = model.quantizer.embedding
    rows, words = F.normalize(z, dim=-1).flatten(0, 1), F.normalize(codebook, dim=-1)
    distances = rows.square().sum(1, keepdim=True) - 2 * rows @ words.T + words.square().sum(1)
    codes = distances.argmin(1)
    one_hot = F.one_hot(codes, VOCABULARY).float()
    values = (one_hot @ codebook).view_as(z)
    passed = z + (values - z).detach()
    language = model.read(passed, mask)
    reconstruction = model.decoder(language.last)
    direct = model.decoder(passed)
    logits = model.language.logits(language.last).float().flatten(0, 1)
    log_share = (F.log_softmax(logits, -1) * one_hot).sum(1).view_as(mask)
    return (
        (reconstruction.float() - images).square().mean()
        + 0.0 * (direct.float() - images).square().mean()
        + 0.005 * (z - values.detach()).square().mean()
        - 0.001 * (log_share * mask).sum() / mask.sum()
    )


def measure(contestant: str, batch: int, steps: int) -> dict[str, float]:
    """Return seconds per image (median over steps after one warm-up) and peak memory in MB."""
    model = build().train()
    if contestant == CONTESTANTS[1]:
        checkpoint_layers(model)
    objective = LQAEObjective(model, LQAEObjectiveConfig(), steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.rand(batch, 3, 256, 256)
    data = ImageBatch(images, torch.zeros(batch, dtype=torch.long), ("",) * batch, torch.arange(batch))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for number in range(steps + 1):
        began = time.perf_counter()
        with mixed_precision(images.device, "auto"):
            if contestant != "straightforward":
                step = Step(number, torch.Generator().manual_seed(number))
                loss = objective(data, objective.phases[0], step).total
            else:
                loss = straightforward(model, images, torch.rand(batch, model.grid**2) < 0.5)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append((time.perf_counter() - began) / batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds[1:]), "peak": peak, "above_model": peak - start}


def main() -> None:
    """Run all in turn and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.batch, given.steps)))
        return
    arguments = ["--batch", str(given.batch), "--steps", str(given.steps)]
    rows = measured_in_turn(__file__, CONTESTANTS, given.rounds, arguments)
    precision = pick_precision("auto", torch.device("cpu"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {given.batch}, {precision}")
    print(
        "| | seconds per image | peak memory (MB) | above the model (MB) | straightforward / this: seconds | peak "
        "| above the model |\n|---|---|---|---|---|---|---|"
    )
    plain = rows["straightforward"]
    for name, row in rows.items():
        ratios = " | ".join(f"{plain[key] / row[key]:.2f}" for key in row)
        print(f"| {name} | {row['seconds']:.2f} | {row['peak']:.0f} | {row['above_model']:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
