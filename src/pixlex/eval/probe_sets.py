"""The labeled images of a linear probe: which they are, of which classes, and that parts share none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from pixlex import distributed
from pixlex.batch import BrokenImages, Skipped
from pixlex.config.fields import ResizeMode
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.loader import Images, Loader, LoaderConfig
from pixlex.data.sources import ImageSource, evenly_spaced, subset
from pixlex.eval.evaluate import progress_bar


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images of one part of a probe: training, validation or test.

    Attributes:
        indices: Position of each in its source.
        labels: Class of each, a position in `class_names`.
        digests: A hash of each image's stored bytes.
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

    def first(self, size: int, resize_mode: ResizeMode, count: int = 64) -> Float[Tensor, "B 3 H W"]:
        """Return some of the images, spread over the set, as pixels in [0, 1]; broken ones are left out."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)
        some = subset(self.source, self.indices[rows].tolist())
        # The same ones in every process.
        config = LoaderConfig(
            image_size=size, batch_size=count, resize_mode=resize_mode, rank=0, world_size=1
        )
        (batch,) = Loader(Images(some), config).evaluation()
        return batch.images


@dataclass(frozen=True, kw_only=True)
class ProbeSets:
    """The images of a probe, checked against each other, and what must be known of them.

    Without a validation part it is split off the training images.
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
        limit, test_limit: Most training images, evenly spaced; most test images, and most validation images.
        allow_overlap: Go on when parts share images.
        max_broken_ratio: Fraction of images that may be unfetchable, in [0, 1].

    Raises:
        ValueError: No labels, other classes, too few images of a class, or parts that share images.
    """
    how: dict[str, Any] = {"max_broken_ratio": max_broken_ratio, "progress": progress}
    training = survey(train, limit=limit, **how)
    check_counts(training, training.labels, splits=validation is None)
    others = [survey(one, limit=test_limit, **how) for one in (test, validation) if one is not None]
    parts = [training, *(in_classes_of(training, part) for part in others)]
    notes = []
    for number, part in enumerate(parts):
        for earlier in parts[:number]:
            notes += check_apart(earlier, part, allow=allow_overlap)
    notes += [
        f"{part.num_unlabeled} images of {part.source.name} have no class and were left out"
        for part in parts
        if part.num_unlabeled
    ]
    return ProbeSets(
        train=training, test=parts[1], validation=parts[2] if len(parts) > 2 else None, notes=tuple(notes)
    )


def survey(
    source: ImageSource, *, limit: int | None = None, max_broken_ratio: float = 0.05, progress: bool = False
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
    chosen = evenly_spaced(len(source), limit)
    broken = BrokenImages(None, source, max_broken_ratio)
    own: list[tuple[int, int, bytes] | Skipped] = []
    with progress_bar(len(chosen), "images", "look through", shown=progress) as bar:
        for index in distributed.my_turns(chosen):
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
    if isinstance(record.data, bytes):
        return hashlib.blake2b(record.data, digest_size=16).digest()
    pixels = np.ascontiguousarray(record.data)
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(pixels.shape).encode()).digest()


def in_classes_of(training: LabeledImages, other: LabeledImages) -> LabeledImages:
    """Return another part with its classes numbered as the training images', which must have all of them.

    Classes are the same when their names are; where several have one name (ImageNet has two classes "crane"),
    they are told apart by their order, which then must be that of the training images.
    """
    names = training.class_names
    if len(set(names)) < len(names) or len(set(other.class_names)) < len(other.class_names):
        if other.class_names != names:
            raise ValueError(
                f"{other.source.name} and {training.source.name}: several classes share a name, so both must "
                f"hold the same classes in the same order; got {len(other.class_names)} and {len(names)}"
            )
        return other
    if unknown := [name for name in other.class_names if name not in names]:
        shown = ", ".join(repr(name) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{other.source.name}: expected the classes of the training images {training.source.name} "
            f"({len(names)} classes), got {len(unknown)} that have no training image: {shown}"
        )
    place = np.array([names.index(name) for name in other.class_names], dtype=np.int64)
    return replace(other, labels=place[other.labels], class_names=names)


def check_apart(first: LabeledImages, second: LabeledImages, *, allow: bool = False) -> list[str]:
    """Refuse two parts that share images; return what to say beside the numbers where that is allowed.

    Images are the same when their stored bytes are: two folders may both hold `cat/1.png`.
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
    """Refuse training images of fewer than two classes, or too few readable ones (`labels`) of a class.

    Where a validation part is split off them, a class takes two.
    """
    names, name = images.class_names, images.source.name
    if len(names) < 2:
        raise ValueError(f"{name}: expected at least 2 classes, got {', '.join(names)} alone")
    counts = np.bincount(labels, minlength=len(names))
    least, needed = int(counts.argmin()), 2 if splits else 1
    if counts[least] < needed:
        use = "one to fit and one to choose the strength on" if splits else "to fit"
        raise ValueError(
            f"{name}: expected at least {needed} readable images of every class ({use}), got {counts[least]} of "
            f"{names[least]!r}"
        )
