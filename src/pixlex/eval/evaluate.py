"""One pass over a set, shared by processes; metrics in words; and how sure a number is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from pixlex import distributed
from pixlex.batch import ReasoningBatch, Skipped
from pixlex.config.fields import ResizeMode
from pixlex.data.decoding import UnreadableImage, decode_record, evaluation_transform
from pixlex.data.sources import ImageSource
from pixlex.files import check_zip
from pixlex.messages import printable
from pixlex.models import Precision
from pixlex.progress import bar_or_lines

Number = int | float

_Z = 1.959963984540054  # two-sided 95 % of a normal distribution
_ROUNDING = 1e-9
_READ_AT_ONCE = 64  # images


@dataclass(frozen=True)
class Metric:
    """A metric, or a term of a loss, in words; the unit "%" shows a ratio in [0, 1] in percent."""

    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""

    def text(self, value: Number) -> str:
        """Return a value with its unit, four digits of it."""
        if not math.isfinite(value):
            return str(value)
        scaled = 100 * value if self.unit == "%" else value
        digits = f"{scaled:,.0f}" if scaled == round(scaled) or abs(scaled) >= 1000 else f"{scaled:.4g}"
        return f"{digits} {self.unit}".rstrip()


# By the last part of their names in the log.
METRICS = {
    "total": Metric("loss", "", "lower"),
    "reconstruction": Metric("reconstruction error", "MSE", "lower"),
    "commitment": Metric("commitment", "MSE", "lower"),
    "codebook": Metric("codebook loss", "MSE", "lower"),
    "masked_language": Metric("cross-entropy of hidden words", "nats", "lower"),
    "entropy": Metric("entropy regularization", "nats", "lower"),
    "masked_patches": Metric("error of hidden patches", "MSE", "lower"),
    "flat_patches": Metric("for comparison: each hidden patch in its own mean", "MSE"),
    "caption": Metric("cross-entropy of captions, per word", "nats", "lower"),
    "other_image_caption": Metric("for comparison: with another image", "nats"),
    "image_text_contrastive": Metric("contrast of images and texts", "nats", "lower"),
    "image_text_matching": Metric("matching of images and texts", "nats", "lower"),
    "masked_image": Metric("cross-entropy of hidden codes", "nats", "lower"),
    "masked_image_gain": Metric("entropy of the codes less cross-entropy of hidden ones", "nats", "higher"),
    "pixel": Metric("error of normalized pixels", "MSE", "lower"),
    "quantization_error_share": Metric("quantization error over variance", "%", "lower"),
    "temperature": Metric("temperature of the contrast"),
    "churn": Metric("patches whose code has changed", "%"),
    "hidden_mse": Metric("error of hidden patches", "MSE", "lower"),
    "visible_mse": Metric("error of visible patches", "MSE", "lower"),
    "recall": Metric("recall", "%", "higher"),
    "text_recall_at_1": Metric("image to text, recall at 1", "%", "higher"),
    "text_recall_at_5": Metric("image to text, recall at 5", "%", "higher"),
    "text_recall_at_10": Metric("image to text, recall at 10", "%", "higher"),
    "image_recall_at_1": Metric("text to image, recall at 1", "%", "higher"),
    "image_recall_at_5": Metric("text to image, recall at 5", "%", "higher"),
    "image_recall_at_10": Metric("text to image, recall at 10", "%", "higher"),
    "codeword_purity": Metric("patches of the most frequent class of their codeword", "%", "higher"),
    "codeword_shuffled_purity": Metric("for comparison: classes shuffled", "%"),
    "codeword_information": Metric("what a codeword tells of the class", "nats", "higher"),
    "codeword_shuffled_information": Metric("for comparison: classes shuffled", "nats"),
    "mean_recall": Metric("mean of the recalls", "%", "higher"),
    "answer": Metric("cross-entropy of answers", "nats", "lower"),
    "num_items": Metric("items"),
    "accuracy": Metric("accuracy", "%", "higher"),
    "consistency": Metric("sentences all of whose items are right", "%", "higher"),
    "majority_accuracy": Metric("for comparison: the most frequent answer", "%"),
    "text_alone_accuracy": Metric("for comparison: a linear classifier on the text alone", "%"),
    "learning_rate": Metric("learning rate"),
    "gradient_norm": Metric("norm of the gradient"),
    "loss_scale": Metric("scale of the loss, fp16"),
    "skipped_steps": Metric("steps that overflowed, fp16"),
    "norm_z": Metric("length of patch vectors"),
    "norm_codeword": Metric("length of their codewords"),
    "cosine": Metric("cosine of patch vectors and codewords", "", "higher"),
    "restarted": Metric("codewords restarted"),
    "images": Metric("speed", "images/s", "higher"),
    "images_per_second": Metric("speed", "images/s", "higher"),
    "peak": Metric("peak memory", "MiB", "lower"),
    "wait": Metric("time spent waiting for data", "%", "lower"),
    "num_images": Metric("images"),
    "words_per_image": Metric("words per image"),
    "mse": Metric("reconstruction error", "MSE", "lower"),
    "psnr": Metric("PSNR", "dB", "higher"),
    "ssim": Metric("SSIM", "", "higher"),
    "masked_mse": Metric("reconstruction error, part of the words hidden", "MSE", "lower"),
    "mean_image_mse": Metric("for comparison: the mean image", "MSE"),
    "mean_color_mse": Metric("for comparison: each image's mean color", "MSE"),
    "patch_color_mse": Metric("for comparison: each patch's mean color", "MSE"),
    "feature_cosine": Metric(
        "cosine of the teacher's features and what the words tell of them", "", "higher"
    ),
    "neighbor_accuracy": Metric(
        "images of the class of most of their 5 nearest, by the teacher", "%", "higher"
    ),
    "distinct_codewords": Metric("distinct codewords", "", "higher"),
    "codebook_usage": Metric("codewords used, of all", "%", "higher"),
    "perplexity": Metric("perplexity of the codewords", "", "higher"),
    "most_frequent_share": Metric("fraction of the most frequent codeword", "%", "lower"),
    "distinct_words_per_image": Metric("distinct words per image"),
    "masked_word_accuracy": Metric("hidden words guessed by the language model", "%"),
    "pseudo_perplexity": Metric("pseudo-perplexity of the words"),
    "text_round_trip_rate": Metric("images whose words survive as text", "%", "higher"),
    "word_round_trip_rate": Metric("words that survive as text", "%", "higher"),
    "tokenizer_round_trip_rate": Metric("the same through the language model's tokenizer", "%", "higher"),
    "rfid": Metric("rFID", "", "lower"),
    "lpips": Metric("LPIPS", "", "lower"),
}


def metric_of(name: str) -> Metric:
    """Return what a name of the log (`phase/term`, `eval/metric`), or its last part, stands for."""
    last = name.rpartition("/")[2]
    return METRICS.get(last, Metric(last.replace("_", " ")))


class NothingToEvaluate(ValueError):
    """Not a single image or item could be read."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """How a set is gone through.

    Attributes:
        precision: Of the networks; measures are always computed in float32.
        total: Images or items expected, for the bar; None where unknown.
        save_examples: Images or items that are returned with what became of them.
    """

    precision: Precision = "fp32"
    total: int | None = None
    save_examples: int = 8
    progress: bool = True


DEFAULT_PASS = Pass()


@dataclass(frozen=True)
class Measured:
    """What was found in a batch, on the CPU, by name.

    Attributes:
        sums: A sum and its weight; the mean over the set is all sums over all weights.
        rows: A tensor or tuple with something for each image or item.
        examples: The same for the first images or items alone.
    """

    sums: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)
    rows: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found on the whole set.

    Attributes:
        values: The numbers by name, described in `METRICS`; one that could not be had is missing.
        rows, examples: As in `Measured`.
        notes: What must be known before a number is compared.
        protocol: What the numbers mean, in a line.
    """

    values: Mapping[str, Number]
    skipped: tuple[Skipped, ...]
    rows: Mapping[str, Any] = field(default_factory=dict, repr=False)
    examples: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    protocol: str = ""

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers by their names in the log: `eval/psnr` and so on."""
        return {f"eval/{name}": float(value) for name, value in self.values.items()}

    @property
    def table(self) -> list[tuple[str, str]]:
        """Label and value with its unit of each number."""
        return labeled(self.values)


def labeled(values: Mapping[str, Number]) -> list[tuple[str, str]]:
    """Return label and value with its unit of each number."""
    return [(metric_of(name).label, metric_of(name).text(value)) for name, value in values.items()]


@torch.no_grad()  # not inference_mode: what a model caches meanwhile must stay usable in training
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    measure: Callable[[Any, int], Measured],
    how: Pass,
    *,
    unit: str = "images",
    description: str = "evaluate",
) -> Evaluation:
    """Measure each batch and combine what all processes found; every process returns the whole.

    The model is in evaluation mode meanwhile. Whole batches go to one process each and are summed up in their
    order, so any number of processes gives the same numbers.

    Args:
        batches: The images, pairs or items, each once; of several processes each brings its own (see `Loader`).
        measure: Given a batch of one item or more on the model's device, and how many examples there is room for,
            returns what it found; runs without gradients, networks in the precision asked for.
        unit: What is counted, as `num_` + unit.

    Raises:
        NothingToEvaluate: Nothing could be read.
    """
    device = next(model.parameters()).device
    found: list[tuple[int, tuple[Skipped, ...], Measured]] = []
    room = how.save_examples
    bar = progress_bar(how.total, unit, description, shown=how.progress)
    with evaluating(model), autocast(device, how.precision), bar:
        for batch in batches:
            size = len(batch.texts if isinstance(batch, ReasoningBatch) else batch.images)
            one = measure(batch.to(device), room) if size else Measured()
            found.append((size, batch.skipped, one))
            room -= max(map(len, one.examples.values()), default=0)
            bar.update(size)
    everyone = distributed.in_turn(found)
    count = sum(size for size, _, _ in everyone)
    skipped = tuple(chain.from_iterable(some for _, some, _ in everyone))
    if count == 0:
        raise NothingToEvaluate(f"no {unit[:-1]} to evaluate ({len(skipped)} could not be read)")
    parts = [one for _, _, one in everyone]
    return Evaluation(
        values={f"num_{unit}": count, **_means([one.sums for one in parts])},
        skipped=skipped,
        rows=_joined([one.rows for one in parts], None),
        examples=_joined([one.examples for one in parts], how.save_examples),
    )


def _means(parts: Sequence[Mapping[str, tuple[Number, Number]]]) -> dict[str, Number]:
    totals: dict[str, tuple[Number, Number]] = {}
    for name, (value, weight) in chain.from_iterable(part.items() for part in parts):
        total, weights = totals.get(name, (0.0, 0.0))
        totals[name] = total + value, weights + weight
    return {name: total / weights for name, (total, weights) in totals.items() if weights}


def _joined(parts: Sequence[Mapping[str, Any]], most: int | None) -> dict[str, Any]:
    joined = {}
    for name in dict.fromkeys(chain.from_iterable(parts)):
        values = [part[name] for part in parts if name in part]
        whole = torch.cat(values) if isinstance(values[0], Tensor) else tuple(chain.from_iterable(values))
        joined[name] = whole[:most]
    return joined


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and each of its parts back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which networks compute in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def progress_bar(total: int | None, unit: str, description: str, *, shown: bool) -> tqdm[Any]:
    """Return a bar, which the first process alone shows, of its part of the total of all processes."""
    processes = distributed.world_size()
    if processes > 1:
        description += f" (process 1 of {processes})"
    return bar_or_lines(
        total=total if total is None else -(-total // processes), unit=f" {unit}", desc=description,
        disable=not shown or not distributed.is_first(),
    )  # fmt: skip


def read_pixels(
    images: ImageSource, indices: Sequence[int], size: int, title: str, resize_mode: ResizeMode = "center"
) -> Iterator[tuple[list[int], Float[Tensor, "B 3 H W"]]]:
    """Yield images in batches with their positions, made square; one that cannot be read is left out.

    A progress bar with the title shows on a terminal when it takes more than a second.
    """
    # Sources read forward faster than back and forth.
    order = sorted(indices)
    with bar_or_lines(
        total=len(order), unit=" images", desc=f"read: {printable(title)}", delay=1, leave=False, disable=None
    ) as bar:
        for first in range(0, len(order), _READ_AT_ONCE):
            positions, rows = [], []
            for position in order[first : first + _READ_AT_ONCE]:
                with suppress(UnreadableImage):
                    rows.append(evaluation_transform(decode_record(images.read(position)), size, resize_mode))
                    positions.append(position)
            if rows:
                yield positions, torch.stack(rows)
            bar.update(len(order[first : first + _READ_AT_ONCE]))


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays, which `read_arrays` compares with their checksums; see `write_atomically`."""
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


def wilson_interval(ratio: Number, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the success ratio of independent trials (Wilson 1927); the ratio lies in it.

    With partial credits the variance is at most that of right and wrong with the same mean: the interval is then
    too wide, never too narrow. It covers the draw of the trials alone: images and classes that are the same in all
    of them are not in it.
    """
    if count < 1 or not -_ROUNDING <= ratio <= 1 + _ROUNDING:
        raise ValueError(f"expected a ratio in [0, 1] of 1 or more trials, got {ratio} of {count}")
    ratio = min(1.0, max(0.0, ratio))  # means of many numbers are rounded
    center = ratio + _Z**2 / (2 * count)
    spread = _Z * math.sqrt(ratio * (1 - ratio) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    # At 0 and 1 the ratio is a bound, which rounding would put on its wrong side.
    return min(ratio, max(0.0, (center - spread) / scale)), max(ratio, min(1.0, (center + spread) / scale))
