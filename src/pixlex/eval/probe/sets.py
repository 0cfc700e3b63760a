"""The labeled images of a probe: which they are, of which classes, and that no part holds images of another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from pixlex import distributed
from pixlex.batch import Skipped
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.sources import BrokenImages, ImageSource
from pixlex.eval.passes import progress_bar


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images of one part of a probe: training, validation or test.

    Attributes:
        source: where they lie.
        indices: position of each in its source.
        labels: class of each, a position in `class_names`.
        class_names: names of the classes.
        digests: a hash of each image's stored bytes.
        skipped: images that could not be fetched.
        num_unlabeled: images left out because their class is unknown.
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


def survey(
    source: ImageSource,
    *,
    limit: int | None = None,
    max_broken_share: float = 0.05,
    progress: bool = False,
) -> LabeledImages:
    """Read the stored bytes of the images once: their classes, and a hash of each.

    The hashes say whether two parts share images, and whether features on disk are still those of these
    images; nothing is decoded.

    Args:
        source: labeled images.
        limit: take so many, evenly spaced over the source, before those without a class are left out.
        max_broken_share: share of images that cannot be fetched, in [0, 1], that is put up with.
        progress: show a bar.

    Raises:
        ValueError: the source has no classes, a class has no name, or there is only one class.
        TooManyBroken: too many images cannot be fetched.
    """
    if not source.class_names:
        raise ValueError(
            f"{source.name}: expected labeled images (a folder for each class, or the columns label and "
            "class_name), got images without classes"
        )
    total = len(source)
    count = total if limit is None else min(limit, total)
    chosen = [number * total // count for number in range(count)]
    broken = BrokenImages(None, source, max_broken_share)
    own: list[tuple[int, int, bytes] | Skipped] = []
    with progress_bar(count, "images", "look through", shown=progress) as bar:
        for index in distributed.my_turns(chosen):
            try:
                record = source.read(index)
                own.append((index, record.label, _digest(record)))
                broken.record((), 1)
            except UnreadableImage as fault:
                skip = Skipped(fault.key, fault.reason)
                own.append(skip)
                broken.record([skip], 0)
            bar.update()
    everyone = distributed.in_turn(own)
    skipped = [one for one in everyone if isinstance(one, Skipped)]
    read = [one for one in everyone if not isinstance(one, Skipped)]
    found = [one for one in read if one[1] >= 0]
    if distributed.world_size() > 1:  # the share of all may be too large where that of none is
        BrokenImages(None, source, max_broken_share).record(skipped, len(read))
    present = _present_classes(source, sorted({label for _, label, _ in found}))
    number = {label: place for place, label in enumerate(present)}
    return LabeledImages(
        source=source,
        indices=np.array([index for index, _, _ in found], dtype=np.int64),
        labels=np.array([number[label] for _, label, _ in found], dtype=np.int64),
        class_names=tuple(source.class_names[label] for label in present),
        digests=tuple(digest for _, _, digest in found),
        skipped=tuple(skipped),
        num_unlabeled=len(read) - len(found),
    )


def _present_classes(source: ImageSource, labels: Sequence[int]) -> Sequence[int]:
    """Return the labels that occur, checked."""
    nameless = [label for label in labels if not source.class_names[label]]
    if nameless:
        raise ValueError(f"{source.name}: expected a name for every class, label {nameless[0]} has none")
    if not labels:
        raise ValueError(f"{source.name}: expected labeled images, got none with a known class")
    return labels


def _digest(record: ImageRecord) -> bytes:
    """Return a hash of an image as it is stored."""
    if isinstance(record.data, bytes):
        return hashlib.blake2b(record.data, digest_size=16).digest()
    pixels = np.ascontiguousarray(record.data)
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(pixels.shape).encode()).digest()


def in_classes_of(training: LabeledImages, other: LabeledImages) -> LabeledImages:
    """Return another part with its classes numbered as the training images'.

    Classes are the same when their names are; where several have one name (ImageNet has two classes
    "crane"), they are told apart by their order, which then must be that of the training images.

    Args:
        training: the images that the classifier is fitted on.
        other: validation or test images.

    Raises:
        ValueError: a class without training images.
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
    """Refuse two parts that share images.

    Images are the same when their stored bytes are. Equal names alone prove nothing, as two folders may both
    hold `cat/1.png`.

    Args:
        first: such as the training images.
        second: such as the test images.
        allow: go on all the same.

    Returns:
        What to say beside the numbers: at most one sentence.

    Raises:
        ValueError: they share images, and that is not allowed.
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
    """Refuse classes with too few training images.

    Args:
        images: the training images.
        labels: classes of those that can be read.
        splits: whether a validation part is split off them.

    Raises:
        ValueError: fewer than two classes, or a class with fewer images than the fit needs.
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
