"""Parts of networks. What people take away to networks of their own has its names here, formulas of losses too.

`quantized, codes, loss = LearnedCodebook(512, 64)(vectors)`: vectors (B, N, D), or maps (B, D, H, W), which come
back as maps with codes (B, H, W).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixlex.config.lqae import QuantizerConfig as QuantizerConfig
    from pixlex.losses import caption_loss as caption_loss
    from pixlex.losses import codebook_loss as codebook_loss
    from pixlex.losses import commitment_loss as commitment_loss
    from pixlex.losses import entropy_regularization as entropy_regularization
    from pixlex.losses import image_contrastive_loss as image_contrastive_loss
    from pixlex.losses import image_text_contrastive_loss as image_text_contrastive_loss
    from pixlex.losses import image_text_matching_loss as image_text_matching_loss
    from pixlex.losses import masked_patch_loss as masked_patch_loss
    from pixlex.losses import masked_word_loss as masked_word_loss
    from pixlex.losses import pixel_loss as pixel_loss
    from pixlex.nn.codebook import LearnedCodebook as LearnedCodebook
    from pixlex.nn.codebook import WordCodebook as WordCodebook
    from pixlex.nn.nearest import nearest_codeword as nearest_codeword

_ROOMS = {
    "pixlex.config.lqae": ("QuantizerConfig",),
    "pixlex.losses": (
        "caption_loss", "codebook_loss", "commitment_loss", "entropy_regularization", "image_contrastive_loss",
        "image_text_contrastive_loss", "image_text_matching_loss", "masked_patch_loss", "masked_word_loss",
        "pixel_loss",
    ),
    "pixlex.nn.codebook": ("LearnedCodebook", "WordCodebook"),
    "pixlex.nn.nearest": ("nearest_codeword",),
}  # fmt: skip
__all__ = sorted(name for names in _ROOMS.values() for name in names)


def __getattr__(name: str) -> Any:
    """Import on first use, so that no part of a network brings the others along, nor the losses."""
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(room), name)
    raise AttributeError(f"module 'pixlex.nn' has no attribute {name!r}")
