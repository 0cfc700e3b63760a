"""The second stage of retrieval: how well texts match images, image by image, kept so that it can go on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Never
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from pixlex import distributed
from pixlex.eval.passes import evaluating, progress_bar
from pixlex.files import check_zip, write_atomically
from pixlex.models.cbvila import CBViLA
from pixlex.models.pretrained import fingerprint

# Texts that look at one image together.
_TEXTS_AT_ONCE = 256
# Images whose scores are one file.
_IMAGES_A_FILE = 32


class KeptScores:
    """Scores of pairs in a folder, a file for some images each: what an interrupted evaluation need not do again.

    Args:
        folder: where they are kept.
        key: of all that the scores depend on; those of another key are not looked at.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / f"scores-{key[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, first: int, count: int) -> Float[Tensor, " P"] | None:
        """Return the scores of the images from one on; None where there are none, or not so many."""
        found = read_arrays(self._path(first)).get("scores")
        if found is None or found.shape != (count,) or found.dtype != np.float32:
            return None
        return torch.from_numpy(found)

    def write(self, first: int, scores: Float[Tensor, " P"]) -> None:
        """Keep the scores of the images from one on."""
        write_atomically(self._path(first), lambda path: write_arrays(path, scores=scores.numpy()))

    def remove(self) -> None:
        """Remove them all: the evaluation is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:07d}.npz"


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays, which `read_arrays` compares with their checksums."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return what `write_arrays` wrote; nothing where there is no file, or not what was written."""
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, LookupError, BadZipFile):
        return {}


@torch.no_grad()
def matching_logits(
    model: CBViLA,
    seen: Float[Tensor, "O M W"],
    text: Float[Tensor, "C T D"],
    key_padding: Bool[Tensor, "C T"],
    wanted: Bool[Tensor, "I C"],
    *,
    own: Int[Tensor, " O"] | None = None,
    precision: Literal["bf16", "fp32"] = "fp32",
    keep: Path | None = None,
    progress: bool = True,
) -> Float[Tensor, "I C"]:
    """Return the logit of "belongs" for the wanted pairs, zeros elsewhere; an image is projected once.

    Args:
        model: the network, where it is.
        seen: images after the image encoder.
        text: texts after the text encoder.
        key_padding: True = padding of the texts.
        wanted: the pairs.
        own: which images `seen` holds, where several processes have some of them each; None: all.
        precision: bf16 computes networks under autocast.
        keep: a folder in which scores lie until the last is there; a second call goes on where one stopped.
        progress: show a bar.
    """
    own = torch.arange(len(seen)) if own is None else own
    kept = None
    if keep is not None and len(own):
        kept = KeptScores(keep, _key(model, seen, text, wanted[own], precision))
    total = int(wanted.sum())
    scores = _scored(model, seen, text, key_padding, wanted[own], precision, kept, total, progress=progress)
    logits = torch.zeros(wanted.shape)
    for images, found in distributed.gather_objects((own, scores)):
        logits[images] = logits[images].masked_scatter(wanted[images], found)
    if kept is not None:
        kept.remove()  # once the scores of all are there
    return logits


def _scored(
    model: CBViLA,
    seen: Float[Tensor, "O M W"],
    text: Float[Tensor, "C T D"],
    key_padding: Bool[Tensor, "C T"],
    wanted: Bool[Tensor, "O C"],
    precision: Literal["bf16", "fp32"],
    kept: KeptScores | None,
    total: int,
    *,
    progress: bool,
) -> Float[Tensor, " P"]:
    """Return the logits of wanted pairs, those of the first image first; `total` pairs are all processes'."""
    place = next(model.parameters()).device
    scores = [torch.zeros(0)]
    bar = progress_bar(total, "pairs", "match", shown=progress)
    with evaluating(model), bar, torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
        for first in range(0, len(wanted), _IMAGES_A_FILE):
            block = slice(first, first + _IMAGES_A_FILE)
            count = int(wanted[block].sum())
            found = None if kept is None else kept.read(first, count)
            if found is None:
                parts = [torch.zeros(0)]
                for image, row in enumerate(wanted[block], start=first):
                    one = seen[image : image + 1].to(place)
                    parts += _of_image(model, one, text, key_padding, row, bar)
                found = torch.cat(parts)
                if kept is not None:
                    kept.write(first, found)
            else:
                bar.update(count)
            scores.append(found)
    return torch.cat(scores)


def _of_image(
    model: CBViLA,
    seen: Float[Tensor, "1 M W"],
    text: Float[Tensor, "C T D"],
    key_padding: Bool[Tensor, "C T"],
    row: Bool[Tensor, " C"],
    bar: tqdm[Never],
) -> Iterator[Float[Tensor, " P"]]:
    """Yield the logits of one image's texts, in their order."""
    texts: Int[Tensor, " P"] = row.nonzero().flatten()
    if not len(texts):
        return
    context = model.image_context(seen)
    for part in torch.split(texts, _TEXTS_AT_ONCE):
        padding = key_padding[part]
        length = int((~padding).sum(1).max())  # no text is longer
        fused = model.fusion(
            text[part, :length].to(seen.device), context, padding[:, :length].to(seen.device)
        )
        yield model.matching_head(fused[:, 0]).float()[:, 1].cpu()
        bar.update(len(part))


def _key(model: CBViLA, seen: Tensor, text: Tensor, wanted: Tensor, precision: str) -> str:
    """Return a hash of all that the scores depend on: model, images and texts as it sees them, pairs."""
    digest = hashlib.sha256(fingerprint(model, precision=precision).encode())
    for tensor in (seen[:, 0].float(), text[:, 0].float(), wanted):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
