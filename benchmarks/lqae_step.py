"""One LQAE training step at the paper's sizes beside a straightforward implementation of the same step.

256 px, 16 px patches, ViT-base on both sides, a language model of RoBERTa-base's size with random weights, all
50,265 rows as codewords, batch 2. Straightforward: all N x K distances, one-hot codes multiplied into the
codebook, logits of every position, a second decoder pass that is weighted 0, as the released code computes
them, and torch's AdamW as it comes. "Computed again": ours with train.checkpoint_activations; "compiled": with
train.compile. Each contestant runs in a process of its own, in turn, so that peak memory is its own. Before, both
ways must give the same loss and gradients on small networks. Images lie in the device's memory: nothing waits for
data.

    python benchmarks/lqae_step.py [--rounds 2] [--steps 2] [--batch 2] [--compile] [--device D] [--largest-batch]
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers import RobertaConfig, RobertaForMaskedLM

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
from pixlex.batch import ImageBatch
from pixlex.config.lqae import LQAEConfig, LQAEObjectiveConfig, QuantizerConfig, VisionConfig
from pixlex.distributed import pick_device
from pixlex.models.lqae import LQAE
from pixlex.nn.language_model import LanguageModel, registered_attention
from pixlex.nn.transformer import random_mask
from pixlex.nn.vocabulary import Vocabulary
from pixlex.objectives.lqae import LQAEObjective
from pixlex.objectives.phase import Step
from pixlex.training.parallel import mixed_precision, prepare_layers

OURS, AGAIN, COMPILED, PLAIN = "ours", "ours, layers computed again", "ours, compiled", "straightforward"
CONTESTANTS = (OURS, AGAIN, COMPILED, PLAIN)
TRAININGS = {"100 epochs of ImageNet": 100 * 1_281_167}


PAPER = Sizes(codewords=50_265)
SMALL = Sizes(image_size=64, width=64, depth=2, heads=2, codewords=2000)


def build(sizes: Sizes) -> LQAE:
    """Return the model of the `paper` recipe around a random language model of RoBERTa-base's kind."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=sizes.codewords,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    language_model = RobertaForMaskedLM(config)
    language_model.set_attn_implementation(registered_attention())
    # The row of the padding is 0 in fresh models: ours leaves it out, the plain way would take it nearly always.
    torch.nn.init.normal_(language_model.get_input_embeddings().weight[config.pad_token_id], std=0.02)
    language = LanguageModel(
        language_model, SimpleNamespace(mask_token_id=sizes.codewords - 1), name="random RoBERTa"
    )
    words = [f"word{number}" for number in range(sizes.codewords)]
    vocabulary = Vocabulary("all", torch.arange(sizes.codewords), words)
    vision = VisionConfig(width=sizes.width, depth=sizes.depth, heads=sizes.heads)
    quantizer = QuantizerConfig(search="raw")
    model = LQAEConfig(image_size=sizes.image_size, encoder=vision, decoder=vision, quantizer=quantizer)
    return LQAE(model, language, vocabulary)


def straightforward(model: LQAE, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the same loss the plain way."""
    z = model.projector(model.encoder(images)).float()
    codebook = model.quantizer.embedding
    rows, words = F.normalize(z, dim=-1).flatten(0, 1), F.normalize(codebook, dim=-1)
    distances = rows.square().sum(1, keepdim=True) - 2 * rows @ words.T + words.square().sum(1)
    codes = distances.argmin(1)
    one_hot = F.one_hot(codes, len(codebook)).float()
    values = (one_hot @ codebook).view_as(z)
    passed = z + (values - z).detach()
    language = model.encode_text(passed, mask)
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


def loss_of(contestant: str, objective: LQAEObjective, data: ImageBatch, number: int) -> torch.Tensor:
    """Return the loss of a step, whose mask is the same for all contestants."""
    generator = torch.Generator().manual_seed(number)
    if contestant != PLAIN:
        return objective(data, objective.phases[0], Step(number, generator)).total
    mask = random_mask(len(data.images), objective.model.grid**2, 0.5, 0.5, generator)
    return straightforward(objective.model, data.images, mask.to(data.images.device))


def batch_of(sizes: Sizes, batch: int, device: torch.device) -> ImageBatch:
    """Return random images."""
    images = torch.rand(batch, 3, sizes.image_size, sizes.image_size)
    data = ImageBatch(images, torch.zeros(batch, dtype=torch.long), ("",) * batch, torch.arange(batch))
    return data.to(device)


def check_equal(device: torch.device) -> None:
    """Require the same loss and gradients of both ways, in float32 on small networks."""
    objective = LQAEObjective(build(SMALL).train().to(device), LQAEObjectiveConfig(), 1)
    data = batch_of(SMALL, 4, device)
    parameters = list(objective.parameters())
    ours, plain = (loss_of(contestant, objective, data, 0) for contestant in (OURS, PLAIN))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def measure(contestant: str, sizes: Sizes, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """Return what `measured_steps` does of one contestant."""
    model = build(sizes).train().to(device)
    prepare_layers(model, compiles=contestant == COMPILED, checkpoints=contestant == AGAIN)
    objective = LQAEObjective(model, LQAEObjectiveConfig(), steps)
    optimizer = optimizer_of(objective, plain=contestant == PLAIN)
    data = batch_of(sizes, batch, device)

    def take_step(number: int) -> None:
        with mixed_precision(device, "auto"):
            loss = loss_of(contestant, objective, data, number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return measured_steps(take_step, device, steps, batch)


def main() -> None:
    """Run all in turn and print tables with ratios."""
    given = checked_options(step_parser(__doc__, CONTESTANTS, rounds=2))
    device, sizes = pick_device(given.device), SMALL if given.small else PAPER
    if given.one:
        print_one(lambda: measure(given.one, sizes, given.batch, given.steps, device))
        return
    check_equal(device)
    trainings = {} if given.small else TRAININGS
    print_machine(given)
    contestants = [name for name in CONTESTANTS if given.compile or name != COMPILED]
    if given.largest_batch is not None:
        print_largest_batch(__file__, contestants, given, "image", trainings)
        return
    rows = measured_in_turn(__file__, contestants, given.rounds, passed_on(given))
    print_steps(rows, PLAIN, "image")
    print_rates(rows, "image", trainings)


if __name__ == "__main__":
    main()
