"""Look at every image of a source and say what is there: the work behind `pixlex doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low

from pixlex.batch import Skipped
from pixlex.data.decoding import UnreadableImage, decode_record, stored_form
from pixlex.data.sources import NO_FILE, FileSource, ImageSource, PassedOver


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers: lengths in pixels, counts."""

    smallest: int
    middle: int
    largest: int


@dataclass(frozen=True)
class DataReport:
    """What a source of images holds.

    Attributes:
        name: the source.
        identity: fingerprint of its listing.
        num_images: images listed, readable or not.
        width: widths of the readable images, upright; None if none is readable.
        height: their heights.
        formats: file format -> number of readable images; "array" for pixels without a file.
        modes: pixel layout as stored, such as "RGB" or "CMYK" -> number of readable images.
        broken: images that cannot be read, with the reason.
        images_per_class: class name -> number of readable images; empty without labels.
        unlabeled: readable images without a class.
        duplicate_keys: keys that occur more than once -> how often.
        ignored: files beside the images that are not looked at.
        empty_folders: class folders without images.
    """

    name: str
    identity: str
    num_images: int
    width: Spread | None
    height: Spread | None
    formats: dict[str, int]
    modes: dict[str, int]
    broken: tuple[Skipped, ...]
    images_per_class: dict[str, int]
    unlabeled: int
    duplicate_keys: dict[str, int]
    ignored: tuple[PassedOver, ...]
    empty_folders: tuple[str, ...]

    @property
    def num_missing(self) -> int:
        """How many of the broken images are files that do not exist."""
        return sum(image.reason.startswith(NO_FILE) for image in self.broken)

    @property
    def broken_share(self) -> float:
        """The share of images that cannot be read, in [0, 1]."""
        return len(self.broken) / self.num_images


def inspect_source(source: ImageSource, progress: Callable[[int, int], None] | None = None) -> DataReport:
    """Decode every image of a source once and report what was found.

    Args:
        source: the images.
        progress: called after each image with the number of images done and of all images.
    """
    widths: list[int] = []
    heights: list[int] = []
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    classes: Counter[int] = Counter()
    keys: Counter[str] = Counter()
    broken: list[Skipped] = []
    for index in range(len(source)):
        keys[source.key(index)] += 1
        try:
            record = source.read(index)
            form = stored_form(record)
            image = decode_record(record)
        except UnreadableImage as fault:
            broken.append(Skipped(fault.key, fault.reason))
        else:
            formats[form.file_format] += 1
            modes[form.mode] += 1
            classes[record.label] += 1
            widths.append(image.width)
            heights.append(image.height)
        if progress is not None:
            progress(index + 1, len(source))
    unlabeled = classes.pop(-1, 0)
    return DataReport(
        name=source.name,
        identity=source.identity,
        num_images=len(source),
        width=spread(widths),
        height=spread(heights),
        formats=dict(formats.most_common()),
        modes=dict(modes.most_common()),
        broken=tuple(broken),
        images_per_class=_named(classes, source.class_names),
        unlabeled=unlabeled,
        duplicate_keys={key: count for key, count in keys.items() if count > 1},
        ignored=tuple(one for one in getattr(source, "ignored", ()) if isinstance(one, PassedOver)),
        empty_folders=source.empty_folders if isinstance(source, FileSource) else (),
    )


def _named(classes: Counter[int], names: tuple[str, ...]) -> dict[str, int]:
    """Count images by class name; a name that several classes share gets their numbers."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return {
        f"{name} ({label})" if name in shared else name: classes[label]
        for label, name in enumerate(names)
        if name
    }


def spread(numbers: Sequence[int]) -> Spread | None:
    """Return smallest, middle and largest; None if there are none."""
    return Spread(min(numbers), median_low(numbers), max(numbers)) if numbers else None
