"""Decoded images in memory: one copy, which all worker processes read and fill."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pixlex import distributed
from pixlex.data.chosen import ChosenImages
from pixlex.data.sources import ImageSource

_HEIGHT = 1  # among where an image's pixels begin, height and width (0 where it is not kept), label
_SHARED_MEMORY = "/dev/shm"  # of Linux; elsewhere it has no size of its own
_SHARE = 0.75  # of what is free there: batches of workers travel through it too


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: of mode "RGB".
        label: class index, -1 where unknown.
    """

    image: Image.Image
    label: int


class KeptImages:
    """Room for decoded images, which is filled in the order in which they come and then stays as it is.

    No image makes room for another: in epochs, each of which reads all images in another order, that would not
    bring more of them.

    Args:
        source: the images; those of its rows that are the same image are kept once.
        megabytes: size of the room for pixels, in MiB, taken at once; 40 bytes for each image come on top.
        shared: whether worker processes use it; else it is no shared memory.

    Raises:
        ValueError: shared memory has less room than that.
    """

    def __init__(self, source: ImageSource, megabytes: int, *, shared: bool) -> None:
        if shared and os.path.isdir(_SHARED_MEMORY):
            free = shutil.disk_usage(_SHARED_MEMORY).free
            most = int(free * _SHARE / distributed.num_on_this_machine()) >> 20
            if megabytes > most:
                raise ValueError(
                    f"data.keep_decoded must be at most {most} (MiB) here with data.workers, a share of what is "
                    f"free in shared memory ({_SHARED_MEMORY}), got {megabytes}"
                )
        self._pixels = torch.empty(megabytes << 20, dtype=torch.uint8)
        self._numbers = source.distinct if isinstance(source, ChosenImages) else np.arange(len(source))
        self._places = torch.zeros(len(source), 4, dtype=torch.int64)
        self._used = torch.zeros((), dtype=torch.int64)
        if shared:
            for part in (self._pixels, self._places, self._used):
                part.share_memory_()  # type: ignore[no-untyped-call]
        # Who reads waits for who writes, or it might find a place before its pixels.
        self._lock = multiprocessing.Lock()

    def get(self, index: int) -> Decoded | None:
        """Return an image of the source, None where it is not kept."""
        with self._lock:
            start, height, width, label = self._places[self._numbers[index]].tolist()
        if not height:
            return None
        pixels = self._pixels[start : start + height * width * 3].view(height, width, 3)
        return Decoded(Image.fromarray(pixels.numpy()), label)

    def put(self, index: int, decoded: Decoded) -> None:
        """Keep an image if there is room for it."""
        width, height = decoded.image.size
        number, size = self._numbers[index], height * width * 3
        with self._lock:
            start = int(self._used)
            if self._places[number, _HEIGHT] or start + size > len(self._pixels):
                return
            self._pixels[start : start + size] = torch.from_numpy(np.array(decoded.image)).flatten()
            self._used += size
            self._places[number] = torch.tensor((start, height, width, decoded.label))
