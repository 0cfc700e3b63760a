"""Rows of a table of linear probes: several models, several kinds of features, the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pixlex.batch import Skipped
from pixlex.config.data import Cut
from pixlex.data.decoding import UnreadableImage, decode_record
from pixlex.data.sources import ImageSource
from pixlex.data.transforms import evaluation_transform
from pixlex.eval.probe.cache import Features, extract, prepare
from pixlex.eval.probe.features import Kind, default_kinds, kinds_of
from pixlex.eval.probe.probe import ProbeResult, linear_probe
from pixlex.eval.probe.sets import LabeledImages, check_apart, check_counts, in_classes_of, survey
from pixlex.models.inference import Precision
from pixlex.models.pretrained import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ProbeSets:
    """The images of a probe, checked against each other.

    Attributes:
        train: fitted on.
        test: measured on.
        validation: what the strength is chosen on; None to split it off the training images.
        notes: what is to be known of them.
    """

    train: LabeledImages
    test: LabeledImages
    validation: LabeledImages | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One row of the table.

    Attributes:
        model: what the model is called.
        features: kind of features, or one layer of `layers` such as `layer 3`.
        result: what the classifier found.
        skipped: images that could not be read.
    """

    model: str
    features: str
    result: ProbeResult
    skipped: tuple[Skipped, ...]

    @property
    def name(self) -> str:
        """What the row is called."""
        repeats = self.result.repeats
        return f"{self.model}, {self.features}" + (f" x {repeats}" if repeats > 1 else "")


def open_sets(
    train: ImageSource,
    test: ImageSource,
    validation: ImageSource | None = None,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    allow_overlap: bool = False,
    max_broken_share: float = 0.05,
    progress: bool = False,
) -> ProbeSets:
    """Look through the images of a probe and check that they fit together.

    Args:
        train: labeled images.
        test: others of the same classes.
        validation: others again; None to split them off the training images.
        limit: most training images, evenly spaced.
        test_limit: most test images, and most validation images.
        allow_overlap: go on when parts share images.
        max_broken_share: share of images that cannot be fetched, in [0, 1], that is put up with.
        progress: show a bar.

    Raises:
        ValueError: no labels, other classes, too few images of a class, or parts that share images.
    """

    def look(source: ImageSource, limit: int | None) -> LabeledImages:
        return survey(source, limit=limit, max_broken_share=max_broken_share, progress=progress)

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
        train=training,
        test=others[0],
        validation=others[1] if len(others) > 1 else None,
        notes=tuple(notes),
    )


def first_images(images: LabeledImages, size: int, cut: Cut, count: int = 64) -> Float[Tensor, "B 3 H W"]:
    """Return some of the images, spread over the set, as pixels in [0, 1]; broken ones are left out."""
    pixels = []
    for row in np.linspace(0, len(images) - 1, min(count, len(images))).astype(int):
        try:
            record = images.source.read(int(images.indices[row]))
            pixels.append(evaluation_transform(decode_record(record), size, cut))
        except UnreadableImage:
            continue
    if not pixels:
        raise ValueError(f"{images.source.name}: none of {count} images can be read")
    return torch.stack(pixels)


def planned_kinds(models: Sequence[Tokenizer], kinds: Sequence[Kind] | None) -> list[tuple[Kind, ...]]:
    """Return which features are probed of each model.

    Args:
        models: the models.
        kinds: what is asked for; None for those of `default_kinds`. A kind is passed over for a model that
            does not have it.

    Raises:
        ValueError: a kind that none of the models has, or a model that has none of the kinds.
    """
    if kinds is None:
        return [default_kinds(model) for model in models]
    known = [kinds_of(model) for model in models]
    for kind in kinds:
        if not any(kind in some for some in known):
            raise ValueError(
                f"no model has the features {kind!r}: expected "
                + "; ".join(f"{', '.join(some)} of a {_family(some)}" for some in dict.fromkeys(known))
            )
    # Pixels are the same whatever the model: one row is enough.
    plan, pixels = [], False
    for some in known:
        chosen = tuple(dict.fromkeys(kind for kind in kinds if kind in some))
        if not chosen:
            raise ValueError(f"a {_family(some)} has none of {', '.join(kinds)}: expected {', '.join(some)}")
        plan.append(tuple(kind for kind in chosen if kind != "pixels" or not pixels))
        pixels = pixels or "pixels" in chosen
    return plan


def _family(kinds: Sequence[Kind]) -> str:
    return "LQAE" if "layers" in kinds else "VQ-VAE"


def prepare_features(
    name: str,
    model: Tokenizer,
    sets: ProbeSets,
    folder: Path,
    *,
    precision: Precision = "fp32",
    max_broken_share: float = 0.05,
    progress: bool = False,
) -> None:
    """Compute with all processes what `probe_rows`, whose arguments these are, will find in the folder."""
    for part, images in {"training": sets.train, "test": sets.test, "validation": sets.validation}.items():
        if images is not None:
            prepare(
                model, images, folder, precision=precision, progress=progress, max_broken_share=max_broken_share,
                description=f"{name}, {part}",
            )  # fmt: skip


def probe_rows(
    name: str,
    model: Tokenizer,
    kinds: Sequence[Kind],
    sets: ProbeSets,
    folder: Path,
    *,
    per_layer: bool = False,
    repeats: Mapping[str, int] | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    max_broken_share: float = 0.05,
    progress: bool = False,
) -> Iterator[ProbeRow]:
    """Compute the features of one model and yield a row for each kind.

    Args:
        name: what the model is called.
        model: where it computes; its weights stay as they are.
        kinds: what is probed.
        sets: the images.
        folder: where features are kept (see `extract`).
        per_layer: add a row for every single layer of `layers`.
        repeats: how often the columns of a kind stand side by side, once unless said (see `default_repeats`).
        seed: of the validation split and of mini-batches.
        precision: of the networks.
        max_broken_share: share of unreadable images, in [0, 1], that is put up with.
        progress: show bars.

    Raises:
        ValueError: too few readable images of a class; another process computes the same features.
    """

    def features(images: LabeledImages, part: str) -> Features:
        return extract(
            model,
            images,
            folder,
            precision=precision,
            progress=progress,
            max_broken_share=max_broken_share,
            description=f"{name}, {part}",
        )

    train = features(sets.train, "training")
    check_counts(sets.train, train.labels, splits=sets.validation is None)
    test = features(sets.test, "test")
    validation = None if sets.validation is None else features(sets.validation, "validation")
    parts = (sets.train, sets.test, *((sets.validation,) if sets.validation else ()))
    skipped = tuple(one for images in parts for one in images.skipped)
    skipped += train.skipped + test.skipped + (validation.skipped if validation else ())
    shown: list[str] = list(kinds)
    if per_layer and "layers" in kinds:
        shown += [column for column in train.columns if column.startswith("layer ")]
    for kind in shown:
        result = linear_probe(
            train.of(kind),
            test.of(kind),
            len(sets.train.class_names),
            validation=None if validation is None else validation.of(kind),
            repeats=(repeats or {}).get(kind, 1),
            seed=seed,
            device=next(model.parameters()).device,
            progress=progress,
        )
        yield ProbeRow(model=name, features=kind, result=result, skipped=skipped)
