"""What frozen models make of the images of a linear probe: one vector for each image, computed once."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pixlex import __version__, distributed
from pixlex.batch import BrokenImages, Skipped
from pixlex.data.loader import Images, Loader, loading
from pixlex.data.sources import subset
from pixlex.eval.evaluate import progress_bar
from pixlex.eval.linear_probe import DEFAULT_FIT, Fit, Part, ProbeResult, linear_probe
from pixlex.eval.probe_sets import LabeledImages, ProbeSets, check_counts
from pixlex.files import Damaged, read_json, write_atomically, write_json
from pixlex.messages import printable
from pixlex.models import Precision, compute_rows, computing, hash_of
from pixlex.models.checkpoint import Tokenizer, fingerprint

Kind = Literal["layers", "last", "encoder", "codes", "pixels"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The sanity row: mean colors of so many by so many fields.
PIXEL_GRID = 8
_FORMAT = 2
# Images of a process between two writes to the disk.
_BATCH = 64


def kinds_of(model: Tokenizer) -> tuple[Kind, ...]:
    """Return the kinds of features that a model has."""
    return ("codes", "encoder", "pixels") if model.vocabulary is None else KINDS


def planned_kinds(models: Sequence[Tokenizer], kinds: Sequence[Kind] | None) -> list[tuple[Kind, ...]]:
    """Return which features are probed of each model.

    Of the kinds that are asked for a model has those that it can. None stands for what the paper probes (figure
    4), LQAE's layers and a VQ-VAE's encoder, and beside the latter its codewords.
    """
    known = [kinds_of(model) for model in models]
    if kinds is None:
        return [("layers",) if "layers" in some else ("encoder", "codes") for some in known]
    families = {some: "LQAE" if "layers" in some else "VQ-VAE" for some in known}
    for kind in kinds:
        if not any(kind in some for some in known):
            raise ValueError(
                f"no model has the features {kind!r}: expected "
                + "; ".join(f"{', '.join(some)} of a {family}" for some, family in families.items())
            )
    # Pixels are the same whatever the model: one row is enough.
    plan, pixels = [], False
    for some in known:
        chosen = tuple(dict.fromkeys(kind for kind in kinds if kind in some))
        if not chosen:
            raise ValueError(f"a {families[some]} has none of {', '.join(kinds)}: expected {', '.join(some)}")
        plan.append(tuple(kind for kind in chosen if kind != "pixels" or not pixels))
        pixels = pixels or "pixels" in chosen
    return plan


def image_features(
    model: Tokenizer, images: Float[Tensor, "B 3 H W"]
) -> dict[str, Float[Tensor, "B columns"]]:
    """Return one vector for each image and part of the model, the mean over all patches, in float32.

    LQAE, section 4: the hidden states of all layers of the language model, nothing hidden, each the mean over the
    patches. The released code drops the first patch, a habit of models with a class token; here every patch
    counts. By name: `layer 0` (the embedding layer's output) to `layer L` in this order, for a model with a
    language model; `encoder`, patch vectors of the image encoder; `codes`, codewords; `pixels`, colors of 8 x 8
    fields.
    """
    features = {name: values.float().mean(1) for name, values in model.patch_features(images).items()}
    features["pixels"] = functional.adaptive_avg_pool2d(images.float(), PIXEL_GRID).flatten(1)
    return features


def columns_of(widths: Mapping[str, int]) -> dict[str, slice]:
    """Return where each part and each kind of features lies in a row of all parts side by side."""
    columns, start = {}, 0
    for name, width in widths.items():
        columns[name] = slice(start, start + width)
        start += width
    layers = [columns[name] for name in widths if name.startswith("layer ")]
    if layers:
        columns |= {"layers": slice(layers[0].start, layers[-1].stop), "last": layers[-1]}
    return columns


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a set of images, on the disk.

    Attributes:
        path: A row for each image, all parts side by side; float32, for half precision would round away the small
            differences of a column with a large mean.
        columns: Where each part and kind lies in a row (see `columns_of`).
        rows, labels: Those of images that could be read, and their classes; the other rows are 0.
    """

    path: Path
    columns: Mapping[str, slice]
    rows: Int64[np.ndarray, " readable"]
    labels: Int64[np.ndarray, " readable"]
    skipped: tuple[Skipped, ...]

    @property
    def values(self) -> Float32[np.ndarray, "images columns"]:
        """The rows, memory-mapped."""
        mapped: np.ndarray = np.load(self.path, mmap_mode="r")
        return mapped


def extract(
    model: Tokenizer,
    images: LabeledImages,
    folder: Path,
    *,
    precision: Precision = "fp32",
    max_broken_ratio: float = 0.05,
    progress: bool = False,
    description: str = "features",
) -> Features:
    """Compute the features of images, or take them from the disk if the same model was given the same images.

    Each pair of model and images has two files in `folder`, named by a hash of all that decides the numbers:
    weights, language model, stored bytes of the images, sizes, precision, kind of device, version of pixlex. The
    array appears when it is complete, then a description with its checksum. Several processes share the images;
    the first one writes, and it alone needs to be able to read the folder.

    Raises:
        TooManyBroken: More than this ratio of the images cannot be read.
    """
    model.eval()
    device, size = next(model.parameters()).device, model.config.image_size
    with computing(device, precision):
        probed = image_features(model, torch.zeros(1, 3, size, size, device=device))
    widths = {name: values.shape[1] for name, values in probed.items()}
    header = {
        "format": _FORMAT, "pixlex": __version__, "model": _model_fingerprint(model, precision),
        "listing": images.source.identity, "contents": images.contents, "image_size": size, "device": device.type,
        "widths": widths,
    }  # fmt: skip
    path = folder / f"{hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]}.npy"
    broken = BrokenImages(None, images.source, max_broken_ratio)
    entry = distributed.from_first(lambda: _stored(path, header))
    if entry is None:
        skipped: list[Skipped] = []
        missing = set(range(len(images)))

        def write(temporary: Path | None) -> None:
            """Compute all rows together with the other processes; write them where there is a path."""
            shape = len(images), sum(widths.values())
            values = None
            if temporary is not None:
                values = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            with progress_bar(len(images), "images", printable(description), shown=progress) as bar:
                for rows, computed, faults in _computed(model, images, precision, bar):
                    broken.record(faults, len(rows))
                    skipped.extend(faults)
                    missing.difference_update(rows.tolist())
                    if values is not None:
                        values[rows] = computed
            if values is not None:
                values.flush()

        if distributed.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, write)
        else:
            write(None)
        entry = {
            "header": header, "source": images.source.name, "missing": sorted(missing),
            "skipped": [asdict(one) for one in skipped],
        }  # fmt: skip
        described = entry
        # Before others return.
        distributed.from_first(
            lambda: write_json(path.with_suffix(".json"), {**described, "checksum": _checksum(path)})
        )
    else:  # a limit may be stricter than that of the run which computed them
        broken.record([Skipped(**one) for one in entry["skipped"]], len(images) - len(entry["skipped"]))
    rows = np.setdiff1d(np.arange(len(images)), entry["missing"])
    return Features(
        path=path, columns=columns_of(widths), rows=rows, labels=images.labels[rows],
        skipped=tuple(Skipped(**one) for one in entry["skipped"]),
    )  # fmt: skip


def _computed(
    model: Tokenizer, images: LabeledImages, precision: Precision, bar: tqdm[Any]
) -> Iterator[tuple[Int64[np.ndarray, " some"], Float32[np.ndarray, "some columns"], tuple[Skipped, ...]]]:
    """Yield some rows with their features and what could not be read beside them, of all processes."""
    batches = Loader(
        Images(subset(images.source, images.indices.tolist())), loading(model.config, _BATCH)
    ).evaluation()

    def compute(chunk: Tensor) -> Tensor:
        return torch.cat(list(image_features(model, chunk).values()), 1)

    device = next(model.parameters()).device
    for _ in range(0, len(images), _BATCH * distributed.world_size()):
        own = []
        for batch in islice(batches, 1):
            computed = torch.empty(0, 1)
            if len(batch.images):
                computed = compute_rows(
                    batch.images, compute, grid=model.grid, device=device, precision=precision
                )
            own.append((batch.indices.numpy(), computed.numpy(), batch.skipped))
            bar.update(len(batch.images) + len(batch.skipped))
        yield from distributed.in_turn(own)


def _stored(path: Path, header: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the description of features on the disk, if they are those and are what was written."""
    try:
        entry = read_json(path.with_suffix(".json"))
        return entry if entry["header"] == header and entry["checksum"] == _checksum(path) else None
    except (OSError, Damaged, KeyError):
        return None


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            found = zlib.crc32(chunk, found)
    return found


def _model_fingerprint(model: Tokenizer, precision: Precision) -> str:
    """Return a hash of all that decides the features: what decides the codes, and the whole language model."""
    language = nn.Module() if model.vocabulary is None else model.language
    return hash_of(fingerprint(model, precision=precision).encode(), language)


@dataclass(frozen=True, kw_only=True)
class ProbeFeatures:
    """Features that one model has of the images of a probe, of each of `sets.parts`."""

    name: str
    sets: ProbeSets
    parts: Mapping[str, Features]

    def of(self, part: str, kind: str) -> Part:
        """Return features of one kind, or of one part of the model such as `layer 3`, of some of the images."""
        found = self.parts[part]
        return Part(found.values[:, found.columns[kind]], found.rows, found.labels)

    def repeats(self, compared: ProbeFeatures | None) -> dict[str, int]:
        """Return how often each kind of features stands side by side, to be as wide as an LQAE's `layers`.

        LQAE, section 4: "replicate the feature dimensions by the number of RoBERTa layers", which gives both
        classifiers as many parameters where patch vectors are as wide as hidden states. Elsewhere the number is
        what gives them as many: the least that makes the features at least as wide.
        """
        columns = self.parts["training"].columns
        if "layers" in columns or compared is None:
            return {}
        layers = compared.parts["training"].columns["layers"]
        widths = {kind: columns[kind].stop - columns[kind].start for kind in ("encoder", "codes")}
        return {kind: max(1, -(-(layers.stop - layers.start) // own)) for kind, own in widths.items()}


def probe_features(
    name: str,
    model: Tokenizer,
    sets: ProbeSets,
    folder: Path,
    *,
    precision: Precision = "fp32",
    max_broken_ratio: float = 0.05,
    progress: bool = False,
) -> ProbeFeatures:
    """Compute the features of one model with all processes, or take them from the disk; see `extract`."""
    parts = {
        part: extract(
            model, images, folder, precision=precision, max_broken_ratio=max_broken_ratio, progress=progress,
            description=f"{name}, {part}",
        )
        for part, images in sets.parts.items()
    }  # fmt: skip
    check_counts(sets.train, parts["training"].labels, splits=sets.validation is None)
    return ProbeFeatures(name=name, sets=sets, parts=parts)


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One row of the table: what a classifier found in a kind of features, or in one layer such as `layer 3`."""

    model: str
    features: str
    result: ProbeResult
    skipped: tuple[Skipped, ...]

    @property
    def name(self) -> str:
        """What the row is called."""
        repeats = self.result.repeats
        return f"{self.model}, {self.features}" + (f" x {repeats}" if repeats > 1 else "")


def probe_rows(
    features: ProbeFeatures,
    kinds: Sequence[str],
    how: Fit = DEFAULT_FIT,
    *,
    per_layer: bool = False,
    repeats: Mapping[str, int] | None = None,
) -> Iterator[ProbeRow]:
    """Yield a row of the table for each kind of features of a model; needs no other process.

    Args:
        per_layer: Add a row for every single layer of `layers`.
        repeats: How often the columns of a kind stand side by side, once unless said.
    """
    sets, parts = features.sets, features.parts
    skipped = [one for images in sets.parts.values() for one in images.skipped]
    skipped += [one for part in parts.values() for one in part.skipped]
    shown = list(kinds)
    if per_layer and "layers" in kinds:
        shown += [column for column in parts["training"].columns if column.startswith("layer ")]
    for kind in shown:
        result = linear_probe(
            features.of("training", kind), features.of("test", kind), len(sets.train.class_names),
            replace(how, repeats=(repeats or {}).get(kind, 1)),
            validation=features.of("validation", kind) if "validation" in parts else None,
        )  # fmt: skip
        yield ProbeRow(model=features.name, features=kind, result=result, skipped=tuple(skipped))
