"""Images of the `datasets` library: from the Hugging Face Hub, or saved to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.labels import Labels, labels_of_known_classes, resolve_labels, row_label
from pixlex.data.sources import fingerprint, stored_bytes, unreadable_column
from pixlex.data.text import json_value
from pixlex.files import read_regular
from pixlex.messages import not_installed, quoted


@dataclass(frozen=True)
class DatasetSource:
    """Images of a data set of the `datasets` library.

    Args:
        name: What to call the source.
        column: The name of its image column.
        images: The data set with that column alone, undecoded.
        labels: Class index of each image and the class names.
        table: The data set without its image columns.
    """

    name: str
    column: str
    images: Any
    labels: Labels
    table: Any

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index; empty without labels."""
        return self.labels.class_names

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the number of rows, labels and class names."""
        return fingerprint("datasets", [str(len(self))], self.labels)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns beside the images."""
        return tuple(self.table.column_names)

    def values(self, name: str) -> list[Any]:
        """Return the values of a column; raises `ValueError` if they cannot be read."""
        try:
            return list(self.table[name])
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise unreadable_column(self.name, name, fault) from fault

    def key(self, index: int) -> str:
        """Return the row of an image, such as "#17"."""
        return f"#{index}"

    def read(self, index: int) -> ImageRecord:
        """Return the bytes in a row; raises `UnreadableImage` if there are none."""
        key = self.key(index)
        try:
            cell = self.images[index][self.column]
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise UnreadableImage(key, f"its row cannot be read: {fault}") from fault
        return ImageRecord(stored_bytes(cell, Path(), key), int(self.labels.indices[index]), key)


def open_hub(description: str, *, numbered: bool = False) -> DatasetSource:
    """Open NAME[:SPLIT] of the Hugging Face Hub through `datasets`; the split is "train" by default.

    For `numbered` see `pixlex.data.labels.resolve_labels`.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        ValueError: The data set or split cannot be had, or has no image column.
    """
    name, _, split = description.partition(":")
    try:
        dataset = _datasets().load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError) as fault:
        raise ValueError(f"hf:{description} cannot be loaded: {fault}") from fault
    return _dataset_source(f"hf:{name}:{split or 'train'}", dataset, None, numbered)


def open_saved(folder: Path, *, numbered: bool = False) -> DatasetSource:
    """Open a folder written by `Dataset.save_to_disk`; raises as `open_hub` does."""
    if (path := folder / "dataset_dict.json").is_file():
        found = json_value(read_regular(path), path)
        splits = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(splits, list):
            raise ValueError(f"{path}: expected a list of splits, got {quoted(found)}")
        named = ", ".join(str(folder / split) for split in splits)
        raise ValueError(f"{folder} holds several splits, name one of them: {named}")
    try:
        dataset = _datasets().load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as fault:
        raise ValueError(f"{folder} cannot be loaded as a saved data set: {fault}") from fault
    return _dataset_source(str(folder), dataset, folder, numbered)


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as fault:
        raise not_installed("a Hugging Face data set", "datasets", "datasets") from fault
    return datasets


def _dataset_source(name: str, dataset: Any, folder: Path | None, numbered: bool) -> DatasetSource:
    datasets, features = _datasets(), dataset.features
    columns = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    ]
    column = "image" if "image" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        found = ", ".join(f"{column}: {feature}" for column, feature in features.items())
        raise ValueError(f"{name}: expected one image column or one named 'image', found {found:.400}")
    if not len(dataset):
        raise ValueError(f"{name} has no rows")
    labels = _dataset_labels(name, dataset, folder, numbered)
    images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return DatasetSource(name, column, images, labels, dataset.remove_columns(columns))


def _dataset_labels(name: str, dataset: Any, folder: Path | None, numbered: bool) -> Labels:
    features, nothing = dataset.features, [None] * len(dataset)
    classes = [column for column, one in features.items() if isinstance(one, _datasets().ClassLabel)]
    label = "label" if "label" in features else classes[0] if len(classes) == 1 else None
    values = nothing if label is None else list(dataset[label])
    if label in classes:
        return labels_of_known_classes(values, features[label].names, f"{name}, column {label}", folder)
    names = list(dataset["class_name"]) if "class_name" in features else nothing
    pairs = enumerate(zip(values, names, strict=True))
    rows = [row_label(*pair, f"{name} row {row}") for row, pair in pairs]
    return resolve_labels(rows, name, folder, numbered=numbered)
