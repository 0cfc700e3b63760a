"""How a model is trained: length, optimizer, precision, what is written and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixlex.config.fields import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Config, Range, describe

SEED = Range("must be 0 or more and below 2 ** 63", lambda value: 0 <= value < 2**63)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training run."""

    steps: int = describe(
        250_200, "Optimizer steps; the paper's 100 epochs of ImageNet are 250,200.", POSITIVE
    )
    batch_size: int = describe(512, "Images in a step, over all processes.", POSITIVE)
    learning_rate: float = describe(
        3e-4,
        "Peak learning rate; the paper says 1.5e-4, its released command makes 3e-4 of that at batch 512.",
        POSITIVE,
    )
    warmup_steps: int = describe(
        12_510, "Steps of linear warm-up; the paper's 5 epochs are 12,510.", NOT_NEGATIVE
    )
    initial_learning_rate: float = describe(0.0, "Learning rate that the warm-up begins at.", NOT_NEGATIVE)
    final_learning_rate: float = describe(0.0, "Learning rate at the end of the cosine.", NOT_NEGATIVE)
    weight_decay: float = describe(5e-4, "AdamW's weight decay (paper: 0.0005).", NOT_NEGATIVE)
    decay_all: bool = describe(
        False, "Decay norms, biases and positions as well, as the released code does by accident."
    )
    beta1: float = describe(0.9, "AdamW's first beta.", BELOW_ONE)
    beta2: float = describe(0.95, "AdamW's second beta (released code: 0.95).", BELOW_ONE)
    epsilon: float = describe(1e-8, "AdamW's epsilon.", POSITIVE)
    clip_norm: float = describe(
        1.0, "Largest norm of the gradient; 0 for no limit, as in the paper.", NOT_NEGATIVE
    )
    seed: int = describe(0, "Seed of weights, data order, augmentation and masks.", SEED)
    precision: Literal["auto", "bf16", "fp32"] = describe(
        "auto",
        "bf16: mixed precision, distances and losses in float32; fp32: everything in float32; auto: bf16 where "
        "the device multiplies in it, else fp32, decided when a run begins.",
    )
    checkpoint_activations: bool = describe(
        False,
        "Keep the input of each layer alone and compute the rest again for its gradients: the same numbers in "
        "less memory, about a third slower. The way to a large batch, since losses compare within it.",
    )
    compile: bool = describe(
        False,
        "Compile transformer layers (torch.compile), minutes at the start; meant for GPUs. Evaluations are "
        "not compiled; a resumed run agrees with an uninterrupted one to rounding only.",
    )
    shard_parameters: bool = describe(
        False,
        "Share weights, gradients and moments of transformer layers out among the processes of torchrun (FSDP2): "
        "for models of which one device cannot hold all that. Alone it changes nothing.",
    )
    device: str = describe("auto", "auto, cpu, cuda or cuda:N.")
    log_every: int = describe(10, "Steps between lines of the log.", POSITIVE)
    checkpoint_every: int = describe(1000, "Steps between checkpoints.", POSITIVE)
    keep_checkpoints: int = describe(2, "Newest checkpoints kept.", POSITIVE)
    evaluate_every: int = describe(
        5000, "Steps between evaluations with pictures; 0 for the end alone.", NOT_NEGATIVE
    )
    wandb: bool = describe(False, "Log to Weights & Biases as well; needs the extra pixlex[wandb].")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """What is measured on the validation images."""

    batch_size: int = describe(64, "Images measured at a time.", POSITIVE)
    limit: int = describe(0, "Validation images used; 0 for all.", NOT_NEGATIVE)
    examples: int = describe(8, "Images drawn with their words.", POSITIVE)
    word_folds: int = describe(
        2,
        "Passes of the language model that measure how well words foretell each other, each with one of so many "
        "shares of the words hidden; 0 for none.",
        NOT_NEGATIVE,
    )
