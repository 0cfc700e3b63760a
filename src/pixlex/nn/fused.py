"""The nearest codeword on a GPU as one operation of torch, and what its kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from pixlex.nn.candidates import score_radius, sum_rounding

ROWS, COLUMNS, DEPTH = 128, 128, 64  # a tile of the screening product

# A score below all, that of no codeword: finite, because bits of scores are written over.
LOWEST = -3.0e38
_CHUNK = 1 << 15  # rows at a time: what is made of them takes about 5 bytes a number


@dataclass(frozen=True)
class FusedCodebook:
    """A codebook as the kernels read it, filled up to whole tiles.

    Attributes:
        codebook: the codewords as they were given (K, D).
        rounded: y' of `pixlex.nn.candidates`, in bfloat16 (K', D').
        offset: -|y|^2 / 2 under `euclidean`, 0 under `cosine`; very low where there is no codeword (K',).
        norms: norms of the codewords in float64 (K,).
        largest: the largest |y| and the largest |y - y'| (2,).
        center: c under `euclidean`, None under `cosine` (D,).
    """

    codebook: Tensor
    rounded: Tensor
    offset: Tensor
    norms: Tensor
    largest: Tensor
    center: Tensor | None

    @classmethod
    def over(cls, codebook: Tensor, center: Tensor | None) -> FusedCodebook:
        """Round a codebook; `center` is None under `cosine`."""
        (size, width), device = codebook.shape, codebook.device
        codebook = codebook.float().contiguous()
        y = _directions(codebook) if center is None else codebook - center
        norms = torch.linalg.vector_norm(codebook, dim=1, dtype=torch.float64)
        rounded = torch.zeros(
            filled(size, COLUMNS), filled(width, DEPTH), dtype=torch.bfloat16, device=device
        )
        rounded[:size, :width] = y
        lengths = torch.linalg.vector_norm(y, dim=1)
        residual = torch.linalg.vector_norm(y - rounded[:size, :width].float(), dim=1)
        offset = torch.full((len(rounded),), LOWEST, device=device)
        offset[:size] = torch.where(norms > 0, 0.0, LOWEST) if center is None else lengths.square() / -2
        return cls(codebook, rounded, offset, norms, torch.stack([lengths.max(), residual.max()]), center)


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: a GPU of compute capability 8.0 or more, and Triton beside torch."""
    if device.type == "meta":  # shapes alone, for which no kernel runs
        return True
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fused_nearest(z: Tensor, codebook: FusedCodebook) -> Tensor:
    """Return the code of the nearest codeword of each row (N,), as `pixlex.nn.nearest` defines it.

    Nothing waits for the device, so nothing is checked there: a row that is not finite gets a code that means
    nothing.

    Args:
        z: rows in float32 (N, D).
        codebook: what they are compared with.
    """
    parts = (getattr(codebook, name) for name in FusedCodebook.__dataclass_fields__)
    return cast(Tensor, _nearest(z, *parts))


def _launched(
    z: Tensor,
    codebook: Tensor,
    rounded: Tensor,
    offset: Tensor,
    norms: Tensor,
    largest: Tensor,
    center: Tensor | None,
) -> Tensor:
    from pixlex.nn.fused_nearest import launch

    codes = torch.empty(len(z), dtype=torch.long, device=z.device)
    prepared = FusedCodebook(codebook, rounded, offset, norms, largest, center)
    with torch.cuda.device_of(z):  # type: ignore[no-untyped-call] # Triton starts kernels on the current GPU
        for start in range(0, len(z), _CHUNK):
            part = slice(start, start + _CHUNK)
            launch(z[part].contiguous(), prepared, codes[part])
    return codes


# One operation to torch: its shapes are known without a GPU, and torch.compile does not look inside.
_nearest = torch.library.custom_op(
    "pixlex::fused_nearest",
    _launched,
    mutates_args=(),
    schema=(
        "(Tensor z, Tensor codebook, Tensor rounded, Tensor offset, Tensor norms, Tensor largest, Tensor? center)"
        " -> Tensor"
    ),
)
_nearest.register_fake(lambda z, *parts: torch.empty(len(z), dtype=torch.long, device=z.device))


def rounded_rows(z: Tensor, codebook: FusedCodebook) -> tuple[Tensor, Tensor]:
    """Return x' filled up to whole tiles (N', D'), and how far scores of each row can be off (N,)."""
    x = _directions(z) if codebook.center is None else z - codebook.center
    size, width = z.shape
    shape = filled(size, ROWS), codebook.rounded.shape[1]
    rounded = torch.zeros(shape, dtype=codebook.rounded.dtype, device=z.device)
    rounded[:size, :width] = x.bfloat16()
    norm = torch.linalg.vector_norm(x, dim=1)
    residual = torch.linalg.vector_norm(x - rounded[:size, :width].float(), dim=1)
    longest, least_exact = codebook.largest.unbind()
    with_offset = codebook.center is not None
    return rounded, score_radius((norm, residual), (longest, least_exact), sum_rounding(width), with_offset)


def _directions(rows: Tensor) -> Tensor:
    """Return rows divided by their norms, whatever the range of float32; those that are 0 stay so."""
    largest = rows.abs().amax(1, keepdim=True)
    scaled = rows / largest.masked_fill(largest == 0, 1.0)
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    directions: Tensor = scaled / norms.masked_fill(norms == 0, 1.0)
    return directions


def filled(size: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-size // multiple) * multiple
