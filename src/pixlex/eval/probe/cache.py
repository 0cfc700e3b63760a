"""Features of a set of images, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt64
from torch import Tensor

from pixlex import __version__, distributed
from pixlex.batch import Skipped
from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.sources import BrokenImages
from pixlex.data.transforms import evaluation_transform
from pixlex.eval.probe.classifier import Part
from pixlex.eval.probe.features import columns_of, image_features, weights_fingerprint
from pixlex.eval.probe.sets import LabeledImages
from pixlex.files import Damaged, locked, read_json, write_json
from pixlex.messages import printable
from pixlex.models.inference import Precision, compute_rows
from pixlex.models.pretrained import Tokenizer
from pixlex.progress import bar_or_lines

_FORMAT = 1

# Images of a process between two writes to the disk.
_IMAGES_A_WRITE = 64

# Features, and which rows of them are done.
_Arrays = tuple[np.memmap, np.memmap]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a set of images.

    Attributes:
        values: a row for each image, all parts side by side, memory-mapped; float32, for half precision
            would round away the small differences of a column with a large mean.
        columns: where each part and kind lies in a row (see `columns_of`).
        rows: those of images that could be read; the others are 0.
        labels: class of each image that could be read.
        skipped: images that could not be read.
        num_computed: rows computed now; the others were on disk.
    """

    values: Float32[np.ndarray, "images columns"]
    columns: Mapping[str, slice]
    rows: Int64[np.ndarray, " readable"]
    labels: Int64[np.ndarray, " readable"]
    skipped: tuple[Skipped, ...]
    num_computed: int

    def of(self, kind: str) -> Part:
        """Return the columns of one kind of features, or of one part such as `layer 3`."""
        return Part(self.values[:, self.columns[kind]], self.rows, self.labels)


def extract(
    model: Tokenizer,
    images: LabeledImages,
    folder: Path,
    *,
    precision: Precision = "fp32",
    progress: bool = False,
    max_broken_share: float = 0.05,
    description: str = "features",
) -> Features:
    """Compute the features of images, or take them from the disk if the same model saw the same images.

    Below `folder` each pair of model and images has a folder of its own, named by a hash of all that decides
    the numbers: weights, language model, stored bytes of the images, sizes, precision, kind of device,
    version of pixlex. It holds `features.npy` (float32), `done.npy` (a checksum of each row that is done) and,
    once complete, `features.json`. A run that was killed goes on where it was, rows that are not what was
    written are computed again. Several processes share the images; the first one writes, and all must be able to
    read the folder (see `prepare` where they cannot).

    Args:
        model: where it computes; it is put into evaluation mode and nothing else of it changes.
        images: what to compute.
        folder: of all features; made if missing.
        precision: bf16 computes networks under autocast.
        progress: show a bar with rate and time left.
        max_broken_share: share of unreadable images, in [0, 1], that is put up with.
        description: what the bar is called.

    Raises:
        ValueError: another process computes the same.
        TooManyBroken: too many images cannot be read.
    """
    place, widths, finished, computed = _prepared(
        model, images, folder, precision, max_broken_share, description, progress=progress
    )
    rows = np.flatnonzero(np.load(place / "done.npy"))
    return Features(
        values=np.load(place / "features.npy", mmap_mode="r"),
        columns=columns_of(widths),
        rows=rows,
        labels=images.labels[rows],
        skipped=tuple(Skipped(**one) for one in finished["skipped"]),
        num_computed=computed,
    )


def prepare(
    model: Tokenizer,
    images: LabeledImages,
    folder: Path,
    *,
    precision: Precision = "fp32",
    progress: bool = False,
    max_broken_share: float = 0.05,
    description: str = "features",
) -> None:
    """Compute features with all processes and let the first one put them where `extract` will find them.

    The arguments and what is raised are those of `extract`.
    """
    _prepared(model, images, folder, precision, max_broken_share, description, progress=progress)


def _prepared(
    model: Tokenizer,
    images: LabeledImages,
    folder: Path,
    precision: Precision,
    max_broken_share: float,
    description: str,
    *,
    progress: bool,
) -> tuple[Path, dict[str, int], dict[str, Any], int]:
    """Compute what is missing; return where it lies, widths of parts, `features.json`, rows computed now."""
    extraction = _Extraction(model.eval(), images, precision, max_broken_share)
    header = distributed.from_first(extraction.header)
    place = folder / hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
    with ExitStack() as held:
        if distributed.is_first():
            place.mkdir(parents=True, exist_ok=True)
            refusal = f"the features in {place} are being computed by another process"
            held.enter_context(locked(place / "lock", refusal))
        width = sum(extraction.widths.values())
        finished = distributed.from_first(lambda: _read(place, header, (len(images), width)))
        if finished is not None:
            # A limit may be stricter than that of the run which computed them.
            extraction.broken.record([Skipped(**one) for one in finished["skipped"]], finished["num_images"])
            return place, extraction.widths, finished, 0
        arrays = _open_arrays(place, len(images), width) if distributed.is_first() else None
        missing = distributed.from_first(lambda: _missing(arrays))
        skipped = extraction.run(missing, arrays, progress, description)
        finished = {
            "header": header,
            "source": images.source.name,
            "num_images": len(images) - len(skipped),
            "skipped": [asdict(one) for one in skipped],
        }
        written = finished
        distributed.from_first(lambda: write_json(place / "features.json", written))  # before others read it
        return place, extraction.widths, finished, len(missing) - len(skipped)


@dataclass(frozen=True)
class _Computed:
    """Some rows: those that could be read, their features, the others."""

    rows: list[int]
    values: Float32[np.ndarray, "rows columns"] | None
    skipped: tuple[Skipped, ...]


class _Extraction:
    """The images that are still to be computed, and how."""

    def __init__(self, model: Tokenizer, images: LabeledImages, precision: Precision, broken: float) -> None:
        self.model, self.images, self.precision = model, images, precision
        self.device = next(model.parameters()).device
        self.size, self.cut = model.config.image_size, model.config.cut
        self.broken = BrokenImages(None, images.source, broken)
        self.widths: dict[str, int] = {}
        self._compute(torch.zeros(1, 3, self.size, self.size))

    def header(self) -> dict[str, Any]:
        """Return all that decides the numbers."""
        return {
            "format": _FORMAT,
            "pixlex": __version__,
            "model": weights_fingerprint(self.model, self.precision),
            "listing": self.images.source.identity,
            "contents": self.images.contents,
            "image_size": self.size,
            "device": self.device.type,
            "dtype": "float32",
            "widths": self.widths,
        }

    def run(
        self, missing: np.ndarray, arrays: _Arrays | None, progress: bool, description: str
    ) -> list[Skipped]:
        """Compute the missing rows with all processes; return what could not be read.

        Args:
            missing: the rows.
            arrays: where the first process writes features and what is done; None on the others.
            progress: show a bar.
            description: what the bar is called.
        """
        parts = [
            missing[first : first + _IMAGES_A_WRITE] for first in range(0, len(missing), _IMAGES_A_WRITE)
        ]
        together, total = distributed.world_size(), len(self.images)
        skipped: list[Skipped] = []
        hidden = not progress or not distributed.is_first()
        with bar_or_lines(
            total=total,
            initial=total - len(missing),
            unit=" images",
            desc=printable(description),
            disable=hidden,
        ) as bar:
            for first in range(0, len(parts), together):
                own = [self._rows(part) for part in distributed.my_turns(parts[first : first + together])]
                for part in distributed.in_turn(own):
                    skipped += part.skipped
                    self.broken.record(part.skipped, len(part.rows))
                    if arrays is not None and part.values is not None:
                        _keep(arrays, part.rows, part.values)
                    bar.update(len(part.rows) + len(part.skipped))
        return skipped

    def _rows(self, rows: np.ndarray) -> _Computed:
        """Return some rows, computed."""
        readable, pixels, faults = [], [], []
        for row in rows.tolist():
            try:
                record = self.images.source.read(int(self.images.indices[row]))
                pixels.append(evaluation_transform(decode_record(record), self.size, self.cut))
                readable.append(row)
            except UnreadableImage as fault:
                faults.append(Skipped(fault.key, fault.reason))
        values = self._compute(torch.stack(pixels)).numpy() if pixels else None
        return _Computed(readable, values, tuple(faults))

    def _compute(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B columns"]:
        """Return all parts side by side; note how wide each is."""

        def compute(chunk: Tensor) -> Tensor:
            parts = image_features(self.model, chunk)
            self.widths = {name: values.shape[1] for name, values in parts.items()}
            return torch.cat(list(parts.values()), 1)

        return compute_rows(
            images, compute, grid=self.model.grid, device=self.device, precision=self.precision
        )


def _missing(arrays: _Arrays | None) -> Int64[np.ndarray, " rows"]:
    """Return the rows that are not done; only the first process has the arrays, and only it is asked."""
    assert arrays is not None
    return np.flatnonzero(arrays[1] == 0)


def _keep(arrays: _Arrays, rows: list[int], computed: Float32[np.ndarray, "rows columns"]) -> None:
    """Write rows."""
    values, done = arrays
    values[rows] = computed
    # The rows must be on the disk before it says that they are done.
    values.flush()
    done[rows] = _checksums(computed)
    done.flush()


def _open_arrays(place: Path, num_images: int, width: int) -> _Arrays:
    """Open the arrays of an unfinished extraction, or make them; `done.npy` is there only after its rows."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "features.npy": ((num_images, width), np.float32),
        "done.npy": ((num_images,), np.uint64),
    }
    arrays = _mapped(place, (num_images, width), "r+")
    if arrays is None:
        for name, (shape, dtype) in shapes.items():
            new = place / f".{name}.partial"
            np.lib.format.open_memmap(new, mode="w+", dtype=dtype, shape=shape).flush()
            new.replace(place / name)
        arrays = _mapped(place, (num_images, width), "r+")
        assert arrays is not None
    values, done = arrays
    if done.dtype == np.bool_:  # of an older version, which wrote no checksums
        sums = np.where(done, _checksums(values), 0).astype(np.uint64)
        np.save(place / "done.npy", sums)
        done = np.load(place / "done.npy", mmap_mode="r+")
    damaged = _damaged(values, done)
    if len(damaged):
        warnings.warn(f"{place}: {len(damaged)} damaged rows of features are computed again", stacklevel=2)
        done[damaged] = 0
    return values, done


def _mapped(place: Path, shape: tuple[int, int], mode: Literal["r", "r+"]) -> _Arrays | None:
    """Return the arrays of an extraction; None where there are none of this shape."""
    try:
        values, done = (np.load(place / name, mmap_mode=mode) for name in ("features.npy", "done.npy"))
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, TypeError, OverflowError):
        return None
    fits = values.shape == shape and done.shape == shape[:1] and values.dtype == np.float32
    return (values, done) if fits and done.dtype in (np.uint64, np.bool_) else None


def _checksums(values: Iterable[Float32[np.ndarray, " columns"]]) -> UInt64[np.ndarray, " rows"]:
    """Return the CRC-32 of each row plus 1: 0 says that a row is not done."""
    return np.array([zlib.crc32(row.tobytes()) + 1 for row in values], np.uint64)


def _damaged(values: np.ndarray, done: np.ndarray) -> Int64[np.ndarray, " rows"]:
    """Return the rows that are done and not what was written; none of an older version's, which cannot be told."""
    if done.dtype == np.bool_:
        return np.empty(0, np.int64)
    rows: Int64[np.ndarray, " done"] = np.flatnonzero(done)
    damaged: Int64[np.ndarray, " rows"] = rows[_checksums(values[row] for row in rows) != done[rows]]
    return damaged


def _read(place: Path, header: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, Any] | None:
    """Return what is written down of a finished extraction, if its features are what was written."""
    try:
        entry = read_json(place / "features.json")
        skipped = [Skipped(**one) for one in entry["skipped"]]
        arrays = _mapped(place, shape, "r")
        whole = (
            entry["header"] == header
            and arrays is not None
            and entry["num_images"] == np.count_nonzero(arrays[1]) == shape[0] - len(skipped)
            and not len(_damaged(*arrays))
        )
    except (OSError, Damaged, KeyError, TypeError):
        return None
    return entry if whole else None
