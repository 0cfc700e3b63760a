"""The masked autoencoder: a baseline that learns from the same images without any words."""

from __future__ import annotations

from dataclasses import dataclass

from pixlex.config.check import Check, describe, part
from pixlex.config.data import CUT_MEANING, Cut, DataConfig
from pixlex.config.lqae import VisionConfig, check_sizes
from pixlex.config.train import EvalConfig, TrainConfig


def _decoder() -> VisionConfig:
    """Return the paper's decoder: narrower and shallower than the encoder."""
    return VisionConfig(width=512, depth=8, heads=16)


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """The masked autoencoder (He et al. 2021), transformers' ViTMAE built anew."""

    image_size: int = describe(256, "Side of the square image in pixels; the paper's 224, here LQAE's.")
    patch_size: int = describe(16, "Side of a patch in pixels; must divide the image size.")
    cut: Cut = describe("center", CUT_MEANING)
    encoder: VisionConfig = part(VisionConfig, "The encoder, which reads the visible patches alone.")
    decoder: VisionConfig = part(_decoder, "The decoder; the paper's has 8 blocks, 512 wide, 16 heads.")
    mask_ratio: float = describe(0.75, "Share of the patches hidden, in (0, 1); the paper hides 75 %.")

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the field, the rule and the value."""
        check = Check(self)
        check_sizes(check)
        for name in ("encoder", "decoder"):
            side: VisionConfig = getattr(self, name)
            check.rule(name, side.block == "standard", "must have standard blocks")
            check.rule(
                name, side.width % 4 == 0, "must have a width that 4 divides, for sines in two directions"
            )
        check.rule(
            "encoder",
            not self.encoder.class_token and self.encoder.pixels == "none",
            "must leave class_token and pixels alone: it has a class token and ImageNet's pixels",
        )
        visible = int(self.grid**2 * (1 - self.mask_ratio))
        check.rule(
            "mask_ratio",
            0 < visible < self.grid**2,
            f"must leave some of the {self.grid**2} patches visible and hide some",
        )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class MAEObjectiveConfig:
    """The loss of the masked autoencoder."""

    normalize_targets: bool = describe(
        True,
        "Predict each patch after its own mean and standard deviation are taken out, as the paper's best.",
    )


@dataclass(frozen=True, kw_only=True)
class MAERun:
    """The masked autoencoder and its training."""

    family: str = describe("mae", "Picks this class.")
    model: MAEConfig = part(MAEConfig, "The network.")
    objective: MAEObjectiveConfig = part(MAEObjectiveConfig, "The loss.")
    data: DataConfig = part(DataConfig, "The images.")
    train: TrainConfig = part(TrainConfig, "The training.")
    eval: EvalConfig = part(EvalConfig, "The measures.")
