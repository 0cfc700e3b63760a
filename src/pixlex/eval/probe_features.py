"""The images of a linear probe, and what frozen models make of them: one vector for each image, computed once."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from pixlex import __version__, distributed
from pixlex.batch import Skipped
from pixlex.config.data import Cut
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.rows import Images
from pixlex.data.sources import BrokenImages, ImageSource, subset
from pixlex.eval.evaluate import progress_bar
from pixlex.files import Damaged, read_json, write_atomically, write_json
from pixlex.messages import printable
from pixlex.models.checkpoint import Tokenizer, fingerprint
from pixlex.models.inference import Precision, compute_rows, computing

Kind = Literal["layers", "last", "encoder", "codes", "pixels"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The sanity row: mean colors of so many by so many fields.
PIXEL_GRID = 8
_FORMAT = 2
# Images of a process between two writes to the disk.
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images of one part of a probe: training, validation or test.

    Attributes:
        source: Where they lie.
        indices: Position of each in its source.
        labels: Class of each, a position in `class_names`.
        class_names: Names of the classes.
        digests: A hash of each image's stored bytes.
        skipped: Images that could not be fetched.
        num_unlabeled: Images left out because their class is unknown.
    """

    source: ImageSource
    indices: Int64[np.ndarray, " images"]
    labels: Int64[np.ndarray, " images"]
    class_names: tuple[str, ...]
    digests: tuple[bytes, ...]
    skipped: tuple[Skipped, ...]
    num_unlabeled: int

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def contents(self) -> str:
        """A hash of the stored bytes of all images in their order."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ProbeSets:
    """The images of a probe, checked against each other.

    Attributes:
        train: Fitted on.
        test: Measured on.
        validation: What the strength is chosen on; None to split it off the training images.
        notes: What must be known of them.
    """

    train: LabeledImages
    test: LabeledImages
    validation: LabeledImages | None
    notes: tuple[str, ...]

    @property
    def parts(self) -> dict[str, LabeledImages]:
        """The parts by name."""
        named = {"training": self.train, "test": self.test, "validation": self.validation}
        return {name: part for name, part in named.items() if part is not None}


def open_sets(
    train: ImageSource,
    test: ImageSource,
    validation: ImageSource | None = None,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    allow_overlap: bool = False,
    max_broken_ratio: float = 0.05,
    progress: bool = False,
) -> ProbeSets:
    """Read the bytes of all images of a probe once and check that they fit together; nothing is decoded.

    Args:
        train: Labeled images.
        test: Others of the same classes.
        validation: Others again; None to split them off the training images.
        limit: Most training images, evenly spaced.
        test_limit: Most test images, and most validation images.
        allow_overlap: Go on when parts share images.
        max_broken_ratio: Fraction of images that may be unfetchable, in [0, 1].
        progress: Show a bar.

    Raises:
        ValueError: No labels, other classes, too few images of a class, or parts that share images.
        TooManyBroken: Too many images cannot be fetched.
    """

    def look(source: ImageSource, limit: int | None) -> LabeledImages:
        return survey(source, limit=limit, max_broken_ratio=max_broken_ratio, progress=progress)

    training = look(train, limit)
    check_counts(training, training.labels, splits=validation is None)
    others = [look(source, test_limit) for source in (test, validation) if source is not None]
    others = [in_classes_of(training, part) for part in others]
    parts = [training, *others]
    notes = []
    for number, part in enumerate(parts):
        for earlier in parts[:number]:
            notes += check_apart(earlier, part, allow=allow_overlap)
    for part in parts:
        if part.num_unlabeled:
            notes.append(f"{part.num_unlabeled} images of {part.source.name} have no class and were left out")
    return ProbeSets(
        train=training, test=others[0], validation=others[1] if len(others) > 1 else None, notes=tuple(notes)
    )


def survey(
    source: ImageSource,
    *,
    limit: int | None = None,
    max_broken_ratio: float = 0.05,
    progress: bool = False,
) -> LabeledImages:
    """Read the stored bytes of the images once: their classes, and a hash of each; see `open_sets`.

    The hashes say whether two parts share images, and whether features on disk are still those of these images. A
    limit takes so many images, evenly spaced over the source, before those without a class are left out.
    """
    if not source.class_names:
        raise ValueError(
            f"{source.name}: expected labeled images (a folder for each class, or the columns label and "
            "class_name), got images without classes"
        )
    total = len(source)
    count = total if limit is None else min(limit, total)
    broken = BrokenImages(None, source, max_broken_ratio)
    own: list[tuple[int, int, bytes] | Skipped] = []
    with progress_bar(count, "images", "look through", shown=progress) as bar:
        for index in distributed.my_turns([number * total // count for number in range(count)]):
            try:
                record = source.read(index)
                own.append((index, record.label, _digest(record)))
                broken.record((), 1)
            except UnreadableImage as fault:
                own.append(Skipped(fault.key, fault.reason))
                broken.record([Skipped(fault.key, fault.reason)], 0)
            bar.update()
    everyone = distributed.in_turn(own)
    skipped = [one for one in everyone if isinstance(one, Skipped)]
    read = [one for one in everyone if not isinstance(one, Skipped)]
    found = [one for one in read if one[1] >= 0]
    if distributed.world_size() > 1:  # the ratio of all may be too large where that of none is
        BrokenImages(None, source, max_broken_ratio).record(skipped, len(read))
    present = sorted({label for _, label, _ in found})
    if not present:
        raise ValueError(f"{source.name}: expected labeled images, got none with a known class")
    if nameless := [label for label in present if not source.class_names[label]]:
        raise ValueError(f"{source.name}: expected a name for every class, label {nameless[0]} has none")
    return LabeledImages(
        source=source,
        indices=np.array([index for index, _, _ in found], dtype=np.int64),
        labels=np.searchsorted(present, [label for _, label, _ in found]).astype(np.int64),
        class_names=tuple(source.class_names[label] for label in present),
        digests=tuple(digest for _, _, digest in found),
        skipped=tuple(skipped),
        num_unlabeled=len(read) - len(found),
    )


def _digest(record: ImageRecord) -> bytes:
    """Return a hash of an image as it is stored."""
    if isinstance(record.data, bytes):
        return hashlib.blake2b(record.data, digest_size=16).digest()
    pixels = np.ascontiguousarray(record.data)
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(pixels.shape).encode()).digest()


def in_classes_of(training: LabeledImages, other: LabeledImages) -> LabeledImages:
    """Return another part with its classes numbered as the training images'.

    Classes are the same when their names are; where several have one name (ImageNet has two classes "crane"),
    they are told apart by their order, which then must be that of the training images.

    Raises:
        ValueError: A class without training images.
    """
    names = training.class_names
    if len(set(names)) < len(names) or len(set(other.class_names)) < len(other.class_names):
        if other.class_names != names:
            raise ValueError(
                f"{other.source.name} and {training.source.name}: several classes share a name, so both must "
                f"hold the same classes in the same order; got {len(other.class_names)} and {len(names)}"
            )
        return other
    unknown = [name for name in other.class_names if name not in names]
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{other.source.name}: expected the classes of the training images {training.source.name} "
            f"({len(names)} classes), got {len(unknown)} that have no training image: {shown}"
        )
    place = np.array([names.index(name) for name in other.class_names], dtype=np.int64)
    return replace(other, labels=place[other.labels], class_names=names)


def check_apart(first: LabeledImages, second: LabeledImages, *, allow: bool = False) -> list[str]:
    """Refuse two parts that share images; return what to say beside the numbers where that is allowed.

    Images are the same when their stored bytes are. Equal names alone prove nothing, as two folders may both hold
    `cat/1.png`.

    Raises:
        ValueError: They share images, and that is not allowed.
    """
    place = {digest: row for row, digest in enumerate(first.digests)}
    shared = [(row, place[digest]) for row, digest in enumerate(second.digests) if digest in place]
    if not shared:
        return []
    row, other = shared[0]
    message = (
        f"{len(shared)} of {len(second)} images of {second.source.name} are also in {first.source.name}, byte "
        f"by byte; the first is {second.source.key(int(second.indices[row]))} = "
        f"{first.source.key(int(first.indices[other]))}"
    )
    if not allow:
        raise ValueError(f"{message}; expected parts without common images (see --allow-overlap)")
    return [message]


def check_counts(images: LabeledImages, labels: Int64[np.ndarray, " readable"], *, splits: bool) -> None:
    """Refuse training images of fewer than two classes, or too few of a class.

    Args:
        images: The training images.
        labels: Classes of those that can be read.
        splits: Whether a validation part is split off them, which takes two images of each class.

    Raises:
        ValueError: Naming the class.
    """
    names = images.class_names
    if len(names) < 2:
        raise ValueError(f"{images.source.name}: expected at least 2 classes, got {', '.join(names)} alone")
    counts = np.bincount(labels, minlength=len(names))
    least, needed = int(counts.argmin()), 2 if splits else 1
    if counts[least] < needed:
        use = "one to fit and one to choose the strength on" if splits else "to fit"
        raise ValueError(
            f"{images.source.name}: expected at least {needed} readable images of every class ({use}), got "
            f"{counts[least]} of {names[least]!r}"
        )


def first_images(images: LabeledImages, size: int, cut: Cut, count: int = 64) -> Float[Tensor, "B 3 H W"]:
    """Return some of the images, spread over the set, as pixels in [0, 1]; broken ones are left out."""
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    some = subset(images.source, images.indices[rows].tolist())
    # The same ones in every process.
    config = LoaderConfig(image_size=size, batch_size=count, cut=cut, rank=0, world_size=1)
    (batch,) = Loader(Images(some), config).evaluation()
    return batch.images


def kinds_of(model: Tokenizer) -> tuple[Kind, ...]:
    """Return the kinds of features that a model has."""
    return ("codes", "encoder", "pixels") if model.vocabulary is None else KINDS


def planned_kinds(models: Sequence[Tokenizer], kinds: Sequence[Kind] | None) -> list[tuple[Kind, ...]]:
    """Return which features are probed of each model.

    Args:
        models: The models.
        kinds: What is asked for, passed over for a model that does not have it; None for what the paper probes
            (figure 4), LQAE's layers and a VQ-VAE's encoder, and beside the latter its codewords.

    Raises:
        ValueError: A kind that none of the models has, or a model that has none of the kinds.
    """
    if kinds is None:
        return [("layers",) if "layers" in kinds_of(model) else ("encoder", "codes") for model in models]
    known = [kinds_of(model) for model in models]

    def family(some: Sequence[Kind]) -> str:
        return "LQAE" if "layers" in some else "VQ-VAE"

    for kind in kinds:
        if not any(kind in some for some in known):
            raise ValueError(
                f"no model has the features {kind!r}: expected "
                + "; ".join(f"{', '.join(some)} of a {family(some)}" for some in dict.fromkeys(known))
            )
    # Pixels are the same whatever the model: one row is enough.
    plan, pixels = [], False
    for some in known:
        chosen = tuple(dict.fromkeys(kind for kind in kinds if kind in some))
        if not chosen:
            raise ValueError(f"a {family(some)} has none of {', '.join(kinds)}: expected {', '.join(some)}")
        plan.append(tuple(kind for kind in chosen if kind != "pixels" or not pixels))
        pixels = pixels or "pixels" in chosen
    return plan


def image_features(
    model: Tokenizer, images: Float[Tensor, "B 3 H W"]
) -> dict[str, Float[Tensor, "B columns"]]:
    """Return one vector for each image and part of the model, the mean over all patches, in float32.

    LQAE, section 4: the hidden states of all layers of the language model, nothing hidden, each the mean over the
    patches. The released code drops the first patch, a habit of models with a class token; here every patch
    counts.

    Args:
        model: In evaluation mode.
        images: Pixels in [0, 1].

    Returns:
        By name: `layer 0` (the embedding layer's output) to `layer L` in this order, for a model with a language
        model; `encoder`, patch vectors of the image encoder; `codes`, codewords; `pixels`, colors of 8 x 8 fields.
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
        columns["layers"] = slice(layers[0].start, layers[-1].stop)
        columns["last"] = layers[-1]
    return columns


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a set of images, on the disk.

    Attributes:
        path: A row for each image, all parts side by side; float32, for half precision would round away the small
            differences of a column with a large mean.
        columns: Where each part and kind lies in a row (see `columns_of`).
        rows: Those of images that could be read; the others are 0.
        labels: Class of each image that could be read.
        skipped: Images that could not be read.
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

    Args:
        model: Where it computes; it is put into evaluation mode and nothing else of it changes.
        images: What to compute.
        folder: Of all features; made if missing.
        precision: bf16 computes networks under autocast.
        max_broken_ratio: Fraction of images that may be unreadable, in [0, 1].
        progress: Show a bar with rate and time left.
        description: What the bar is called.

    Raises:
        TooManyBroken: Too many images cannot be read.
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
        readable: list[Int64[np.ndarray, " some"]] = []
        shape = len(images), sum(widths.values())

        def write(temporary: Path | None) -> None:
            """Compute all rows together with the other processes; write them where there is a path."""
            values = None
            if temporary is not None:
                values = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            bar = progress_bar(len(images), "images", printable(description), shown=progress)
            with bar:
                for rows, computed, faults in _computed(model, images, precision, bar):
                    broken.record(faults, len(rows))
                    skipped.extend(faults)
                    readable.append(rows)
                    if values is not None:
                        values[rows] = computed
            if values is not None:
                values.flush()

        if distributed.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, write)
        else:
            write(None)
        missing = np.setdiff1d(np.arange(len(images)), np.concatenate(readable))
        entry = {
            "header": header, "source": images.source.name, "missing": missing.tolist(),
            "skipped": [asdict(one) for one in skipped],
        }  # fmt: skip
        described = entry

        def describe() -> None:
            write_json(path.with_suffix(".json"), {**described, "checksum": _checksum(path)})

        distributed.from_first(describe)  # before others return
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
        Images(subset(images.source, images.indices.tolist())),
        LoaderConfig(image_size=model.config.image_size, batch_size=_BATCH, cut=model.config.cut),
    ).evaluation()

    def compute(chunk: Tensor) -> Tensor:
        return torch.cat(list(image_features(model, chunk).values()), 1)

    device = next(model.parameters()).device
    for _ in range(0, len(images), _BATCH * distributed.world_size()):
        own = []
        for batch in islice(batches, 1):
            if len(batch.images):
                computed = compute_rows(
                    batch.images, compute, grid=model.grid, device=device, precision=precision
                )
                own.append((batch.indices.numpy(), computed.numpy(), batch.skipped))
            else:
                own.append((np.empty(0, np.int64), np.empty((0, 1), np.float32), batch.skipped))
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
    """Return the CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            found = zlib.crc32(chunk, found)
    return found


def _model_fingerprint(model: Tokenizer, precision: Precision) -> str:
    """Return a hash of all that decides the features: what decides the codes, and the whole language model."""
    digest = hashlib.sha256(fingerprint(model, precision=precision).encode())
    if model.vocabulary is not None:
        for name, tensor in sorted(model.language.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
