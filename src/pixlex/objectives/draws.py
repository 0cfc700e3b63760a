"""What chance decides in a step of CB-ViLA: the same on any number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixlex import distributed
from pixlex.batch import send
from pixlex.nn.masking import SplitPatches, WordDraws, split_patches


@dataclass(frozen=True)
class Draws:
    """Draws for the pairs of this process.

    Attributes:
        patches: which patches are seen.
        words: which words are hidden, and how; on the CPU.
        negatives: uniform in [0, 1): which text is set against each image, which image against each text.
        noise_seeds: seed of the Gumbel noise of each image.
    """

    patches: SplitPatches
    words: WordDraws
    negatives: Float[Tensor, "B 2"]
    noise_seeds: Int[Tensor, " B"]

    @classmethod
    def draw(
        cls,
        *,
        num_pairs: int,
        num_patches: int,
        num_visible: int,
        max_words: int,
        num_words: int,
        vocab_size: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> Draws:
        """Draw for the whole batch, keep this process's part.

        Args:
            num_pairs: of this process; each has as many.
            num_patches: N.
            num_visible: patches seen of each image.
            max_words: longest text of all.
            num_words: longest text of this process.
            vocab_size: V.
            generator: on the CPU, the same on every process.
            device: where the draws are used.
        """
        total, first = num_pairs * distributed.world_size(), num_pairs * distributed.rank()
        own = slice(first, first + num_pairs)
        patches = split_patches(total, num_patches, num_visible, generator)
        words = WordDraws.draw(total, max_words, vocab_size, generator)
        negatives = torch.rand(total, 2, generator=generator)
        seeds = torch.randint(2**62, (total,), generator=generator)
        return cls(
            SplitPatches(patches.visible[own], patches.hidden[own]).to(device),
            words.part(first, num_pairs, num_words),
            send(negatives[own], device),
            seeds[own],
        )

    def gumbel(self, num_rows: int, num_codewords: int, device: torch.device) -> Float[Tensor, "B n K"]:
        """Return draws from Gumbel(0, 1) for so many patches of each image."""
        noise = []
        for seed in self.noise_seeds.tolist():
            generator = torch.Generator(device).manual_seed(seed)
            uniform = torch.rand(num_rows, num_codewords, generator=generator, device=device)
            noise.append(-torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7))))
        return torch.stack(noise)
