"""Whole networks: what all of them have in common, and passes through them that depend on nothing beside."""

from __future__ import annotations

import hashlib
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex.nn.nearest import NotFinite
from pixlex.nn.transformer import initializing
from pixlex.nn.vocabulary import DISTINCT, TOP_K, Namer

if TYPE_CHECKING:
    from pixlex.nn.codebook import Quantized

Precision = Literal["fp32", "bf16"]
_SomeModel = TypeVar("_SomeModel", bound=nn.Module)

# A matrix product may round by the shape of the matrix (on some processors patch vectors differ between batch
# sizes by up to 2e-6 in fp32 and 8e-3 in bf16), and a patch between two words then changes sides. So images are
# computed so many patches at a time, filled up where there are fewer: neither number nor neighbors matter.
_PATCHES_AT_ONCE = 512


class ImageModel(nn.Module):
    """What all networks have in common.

    Attributes:
        family: As recipes name it.
        has_codes: Whether it writes images as codes.
        fuses: Whether its texts look at images in a fusion encoder.
        speaks: Whether a language model goes on behind its images.
        mismatch: What another language model or tokenizer differs in, and what that means; None without words.
        grid: Patches along one side of the image.
        _frozen: The language model that is not trained, or the tokenizer: outside the module tree, so that it is
            not saved, and moved along between devices.
    """

    family: ClassVar[str]
    mismatch: ClassVar[tuple[str, str] | None] = None
    config: Any
    _frozen: tuple[Any, ...] = ()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.grid: int = config.grid

    @classmethod
    def build(cls: type[_SomeModel], config: Any, *, initialize: bool = True) -> _SomeModel:
        """Build the model from its configuration; without `initialize`, weights will be read: none are drawn."""
        with initializing(initialize):
            return cls(config)

    def untrained(self) -> ImageModel:
        """Return the same network with weights drawn anew; what is not trained is shared."""
        return type(self)(self.config, *self._frozen)

    @property
    def num_measured(self) -> int:
        """Images that `measure` needs."""
        return 64

    def measure(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Find the statistics that are measured on images, not trained: those of a whitened search."""

    @property
    def text_identity(self) -> tuple[str, str] | None:
        """Name and fingerprint of what its words are those of; None where it has no words."""
        return (self._frozen[0].name, self._frozen[0].fingerprint) if self._frozen else None

    @property
    def image_identity(self) -> tuple[str, str] | None:
        """Name and fingerprint of a frozen vision model that it is not stored with; None without."""
        return None

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the mean of the encoder's patch vectors, in float32; `images` holds pixels in [0, 1]."""
        encoder: Any = self.encoder
        vectors: Tensor = encoder(images)
        return vectors.float().mean(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for frozen in self._frozen:
            if isinstance(frozen, nn.Module):
                frozen._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class CodeModel(ImageModel):
    """An image tokenizer: a network that writes images as codes in [0, K), K being `num_codewords`."""

    has_codes: ClassVar[Literal[True]] = True
    num_codewords: int
    codebook: Any

    @property
    def num_words(self) -> int:
        """Codes of an image."""
        return self.grid**2

    @property
    def word_grid(self) -> int:
        """Codes along one side of an image; 0 where they belong to no place."""
        return self.grid

    def code_vectors(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B *N S"]:
        """Return what `codebook` is given: a vector for each patch, or one for the whole of each image."""
        raise NotImplementedError

    def quantize(self, images: Float[Tensor, "B 3 H W"]) -> Quantized:
        """Return the nearest codeword of each patch; `images` holds pixels in [0, 1]."""
        quantized: Quantized = self.codebook(self.code_vectors(images))
        return quantized

    @torch.no_grad()
    def tokenize(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Return codes in [0, K), rows of the grid first; `images` holds pixels in [0, 1]."""
        return self.quantize(images).codes


class JointModel(ImageModel):
    """A network that compares images and texts by vectors of length 1, whose product is their similarity.

    Attributes:
        compares: Whether contrast was trained, without which similarities are those of random maps.
        temperature: What divides the similarities in the contrast.
        caption_words: By which it names images unless told others; empty where it brings none.
    """

    compares: Any
    temperature: Any
    caption_words: tuple[str, ...] = ()

    def joint_images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B e"]:
        """Return the vectors of images, pixels in [0, 1], in float32."""
        raise NotImplementedError

    def joint_texts(self, texts: Sequence[str]) -> Float[Tensor, "C e"]:
        """Return the vectors of texts, in float32 on the CPU; that of a text depends on no other's."""
        raise NotImplementedError

    def namer(
        self, words: Sequence[str] | None = None, *, top_k: int | None = None, distinct: float = DISTINCT
    ) -> Namer:
        """Return what names images by words, each read as a caption; see `Namer`.

        Args:
            words: words or phrases; None for those that the model brings.
            top_k: most words of an image; None for 8, or all of fewer.
            distinct: cosine from which on a word repeats another.

        Raises:
            ValueError: no words, or a number out of range.
        """
        given = self.caption_words if words is None else words
        some = tuple(dict.fromkeys(" ".join(word.split()) for word in given if word.strip()))
        if not some:
            what = f"this {self.family} brings no words" if words is None else "the list of words is empty"
            raise ValueError(f"{what}: expected a list of words or phrases that images are named by")
        return Namer(some, self.joint_texts(some), top_k or min(TOP_K, len(some)), distinct)


def hash_of(facts: bytes, network: nn.Module) -> str:
    """Return the SHA-256 of facts, then of name, type, shape and bytes of every weight of a network."""
    digest = hashlib.sha256(facts)
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def rows_at_once(grid: int, device: torch.device, batch_size: int) -> int:
    """Return how many images a pass computes: on a CPU always the same number, on a GPU what is asked for.

    A CPU has nothing from larger passes; a GPU would stand idle in those of a CPU. `grid` is in patches.
    """
    return max(1, _PATCHES_AT_ONCE // grid**2) if device.type == "cpu" else batch_size


class PassSizes:
    """Passes of fewer or more rows than the full one, where they give the same bits; for one use of one model.

    Whether they do is a matter of the processor and its libraries. Each size is tried once, on random images: the
    outputs of all layers are compared with those of a full pass, wherever in the pass they stand.
    """

    def __init__(self) -> None:
        self._same: dict[int, bool] = {}

    def largest(self, inputs: Tensor, full: int, compute: Callable[[Tensor], Tensor]) -> int:
        """Return the rows of a pass over many: two full passes at once are faster, where it is worth the trial."""
        return (
            2 * full if len(inputs) >= 4 * full and self._are_same(inputs, 2 * full, full, compute) else full
        )

    def smallest(self, chunk: Tensor, full: int, compute: Callable[[Tensor], Tensor]) -> int:
        """Return the rows of the smallest pass for a chunk: a power of two, or the full pass."""
        size = 1 << (len(chunk) - 1).bit_length()
        while size < full and not self._are_same(chunk, size, full, compute):
            size *= 2
        return min(size, full)

    def _are_same(self, chunk: Tensor, size: int, full: int, compute: Callable[[Tensor], Tensor]) -> bool:
        if size not in self._same:
            few, many = sorted((size, full))
            rows = chunk[:1].expand(few, *chunk.shape[1:])
            if rows.is_floating_point():
                rows = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0))
            repeated = rows.repeat(-(-many // few), *[1] * (rows.ndim - 1))[:many]
            ones, others = (_checksums(compute, given, few) for given in (rows, repeated))
            self._same[size] = all({*other} == {*one} for one, other in zip(ones, others, strict=True))
        return self._same[size]


def _checksums(compute: Callable[[Tensor], Tensor], rows: Tensor, each: int) -> list[list[int]]:
    """Compute rows; return for each layer the checksums of what it makes of every so many of them."""
    found: list[list[int]] = []

    def note(output: Any) -> None:
        for one in output if isinstance(output, tuple) else (output,):
            if isinstance(one, Tensor) and one.ndim:
                parts = torch.split(one.detach().float(), -(-len(one) * each // len(rows)))
                found.append([zlib.crc32(part.contiguous().numpy().data) for part in parts])

    def hook(layer: nn.Module, given: Any, output: Any) -> None:
        if next(layer.children(), None) is None:
            note(output)

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        note(compute(rows))
    finally:
        handle.remove()
    return found


def compute_rows(
    inputs: Tensor,
    compute: Callable[[Tensor], Tensor],
    *,
    grid: int,
    device: torch.device,
    precision: Precision = "fp32",
    batch_size: int = 64,
    sizes: PassSizes | None = None,
) -> Tensor:
    """Compute one row for each row of the inputs, always in the same shape, without gradients.

    So a row depends neither on the rows beside it nor on their number. On a CPU it does not depend on `batch_size`
    either; on a GPU passes are as large as that, and another one may round differently. Rows come on the CPU.

    Args:
        inputs: Images, or codes, one or more.
        compute: Maps rows to as many rows.
        grid: Patches along one side of an image.
        batch_size: Rows of a pass on a GPU, 1 or more, filled up where there are fewer.
        sizes: Takes smaller and larger passes on a CPU where they give the same; None fills up.

    Raises:
        RuntimeError: The GPU's memory does not hold such a pass.
        NotFinite: What comes of an input is not finite; with its number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    full = rows_at_once(grid, device, batch_size)
    sizes = sizes if device.type == "cpu" else None
    parts = []
    with computing(device, precision):
        most = full if sizes is None else sizes.largest(inputs, full, compute)
        for first in range(0, len(inputs), most):
            chunk = inputs[first : first + most]
            try:
                size = most if len(chunk) > full else full
                if sizes is not None and len(chunk) <= full:
                    size = sizes.smallest(chunk, full, compute)
                filler = chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])
                part = compute(torch.cat([chunk, filler]).to(device))[: len(chunk)].cpu()
            except NotFinite as fault:  # in the row of a patch
                row = None if fault.row is None else min(fault.row // grid**2, len(chunk) - 1)
                raise _not_finite(len(inputs), None if row is None else first + row) from fault
            except torch.OutOfMemoryError as fault:
                # No smaller pass is tried: codes would depend on what else the memory holds at the moment.
                raise RuntimeError(
                    f"{device} does not hold a pass of {full} images: a smaller batch size may fit"
                ) from fault
            if not (finite := part.isfinite().reshape(len(part), -1).all(1)).all():
                raise _not_finite(len(inputs), first + int((~finite).nonzero()[0, 0]))
            parts.append(part)
    return torch.cat(parts)


def compute_texts(
    word_ids: Int[Tensor, "C *kinds T"],
    lengths: Int[Tensor, " C"],
    compute: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
) -> Tensor:
    """Compute one row for each text as `compute_rows` does, those of one length together, without their padding.

    Args:
        word_ids: texts, one or more, padded at their ends.
        lengths: of each, in words (tokens).
        compute: maps texts of one length to as many rows.
    """
    order = lengths.argsort(stable=True)
    rows: list[Tensor] = []
    for length, count in sorted(Counter(lengths.tolist()).items()):
        some = word_ids[order[len(rows) : len(rows) + count], ..., :length]
        side = math.isqrt(length - 1) + 1  # a text is as much work as an image of so many patches
        rows += compute_rows(some, compute, grid=side, device=device)
    return torch.stack(rows)[order.argsort()]


def _not_finite(count: int, row: int | None) -> NotFinite:
    which = "" if row is None else f", first of number {row + 1} of {count}"
    return NotFinite(f"the model's numbers are not finite{which}: its weights are damaged or diverged", row)


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute without gradients in a precision, whatever the caller has switched on."""
    mixed = precision == "bf16"
    # Convolutions would round to TF32.
    exact = device.type == "cuda" and not mixed
    cudnn = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if exact else nullcontext()
    # Autocast is switched off as well as on: the caller may stand inside one of its own.
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed), cudnn:
        yield


def __getattr__(name: str) -> Any:
    """Return the module that was called `pretrained`, as model cards name it."""
    if name != "pretrained":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "pixlex.models.pretrained is now pixlex.models.checkpoint", DeprecationWarning, stacklevel=2
    )
    return import_module("pixlex.models.checkpoint")
