"""The published tables of CB-ViLA and LQAE, to stand beside measured numbers: percent, as printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pixlex.config.cbvila import ReasoningTask
from pixlex.data.records import Records
from pixlex.eval.few_shot.prompts import PAPER_COLUMNS

Benchmark = Literal["flickr30k", "coco"]

# What the paper does not say and takes from ALBEF, whose evaluation it follows.
TABLE_IMAGES = "384 px, images squashed to squares"
TABLE_WORDS = 30
TABLE_TOP_K: Mapping[Benchmark, int] = {"flickr30k": 128, "coco": 256}
TABLE_SETTINGS = (
    f"the paper's tables: {TABLE_IMAGES}, {TABLE_WORDS} tokens, the top {TABLE_TOP_K['flickr30k']} of Flickr30k "
    f"and {TABLE_TOP_K['coco']} of COCO"
)

_RECALLS = ("text R@1", "R@5", "R@10", "image R@1", "R@5", "R@10")
_TEST_SETS: Mapping[Benchmark, str] = {
    "flickr30k": "Flickr30k's 1,000 test images",
    "coco": "COCO's 5,000 test images",
}


@dataclass(frozen=True)
class PublishedTable:
    """Rows of a paper: percent by the name of a method; None where the paper prints nothing."""

    source: str
    of: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]

    def text(self, here: str) -> str:
        """Return the rows as text, each marked as published; `here` says what was measured here: "12 images"."""
        width = max(map(len, self.rows))
        lines = [f"published, {self.of}; here {here} ({self.source}; percent: {', '.join(self.columns)})"]
        for name, values in self.rows.items():
            shown = (f"{'-' if value is None else f'{value:.2f}'.removesuffix('0'):>6}" for value in values)
            lines.append(f"published: {name:<{width}}{''.join(shown)}")
        return "\n".join(lines)


# Table I, zero-shot, and Table II, fine-tuned: recall on Flickr30k, then on COCO.
_ZERO_SHOT: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
    "ImageBERT": ((70.7, 90.2, 94.0, 54.3, 79.6, 87.5), (44.0, 71.2, 80.4, 32.3, 59.0, 70.2)),
    "Unicoder-VL": ((64.3, 85.8, 92.3, 48.4, 76.0, 85.2), ()),
    "UNITER": ((80.7, 95.7, 98.0, 66.2, 88.4, 92.9), ()),
    "ViLT": ((73.2, 93.6, 96.5, 55.0, 82.5, 89.8), (56.5, 82.6, 89.6, 40.4, 70.0, 81.1)),
    "CLIP": ((88.0, 98.7, 99.4, 68.7, 90.6, 95.2), (58.4, 81.5, 88.1, 37.8, 62.4, 72.2)),
    "ALIGN": ((88.6, 98.7, 99.7, 75.7, 93.8, 96.8), (58.6, 83.0, 89.7, 45.6, 69.8, 78.6)),
    "ALBEF 4M": ((90.5, 98.8, 99.7, 76.8, 93.7, 96.7), (68.6, 89.5, 94.7, 50.1, 76.4, 84.5)),
    "CB-ViLA": ((91.9, 99.1, 99.6, 79.1, 94.5, 96.6), (70.1, 90.2, 95.3, 52.4, 77.8, 86.0)),
}
_FINE_TUNED: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
    "ImageBERT": ((87.0, 97.6, 99.2, 73.1, 92.6, 96.0), (66.4, 89.8, 94.4, 50.5, 78.7, 87.1)),
    "UNITER": ((87.3, 98.0, 99.2, 75.6, 94.1, 96.8), (65.7, 88.6, 93.8, 52.9, 79.9, 88.0)),
    "VILLA": ((87.9, 97.5, 98.8, 76.3, 94.2, 96.8), ()),
    "OSCAR": ((), (70.0, 91.1, 95.5, 54.0, 80.8, 88.5)),
    "ViLT": ((83.5, 96.7, 98.6, 64.4, 88.7, 93.8), (61.5, 86.3, 92.7, 42.7, 72.9, 83.1)),
    "UNIMO": ((89.7, 98.4, 99.1, 74.6, 93.4, 96.0), ()),
    "SOHO": ((86.5, 98.1, 99.3, 72.5, 92.7, 96.1), (66.4, 88.2, 93.8, 50.6, 78.0, 86.7)),
    "ALBEF 4M": ((94.3, 99.4, 99.8, 82.8, 96.7, 98.4), (73.1, 91.4, 96.0, 56.8, 81.5, 89.2)),
    "CB-ViLA": ((95.1, 99.1, 99.9, 83.0, 96.1, 98.2), (76.2, 92.3, 97.1, 58.1, 83.1, 89.6)),
}
# Table III: VQA test-dev and test-std, NLVR2 dev and test-P, SNLI-VE val and test. CB-ViLA's 74.20 is as printed.
_TASKS: Mapping[str, tuple[float | None, ...]] = {
    "VisualBERT": (70.80, 71.00, 67.40, 67.00, None, None),
    "VL-BERT": (71.16, None, None, None, None, None),
    "LXMERT": (72.42, 72.54, 74.90, 74.50, None, None),
    "12-in-1": (73.15, None, None, 78.87, None, 76.95),
    "UNITER": (72.70, 72.91, 77.18, 77.85, 78.59, 78.28),
    "VL-BART/T5": (None, 71.3, None, 73.6, None, None),
    "ViLT": (70.94, None, 75.24, 76.21, None, None),
    "OSCAR": (73.16, 73.44, 78.07, 78.36, None, None),
    "VILLA": (73.59, 73.67, 78.39, 79.30, 79.47, 79.03),
    "ALBEF 4M": (74.54, 74.70, 80.24, 80.50, 80.14, 80.30),
    "CB-ViLA": (75.84, 74.20, 80.50, 80.84, 81.47, 81.40),
}
_TASK_COLUMNS: Mapping[ReasoningTask, tuple[str, tuple[str, str], int]] = {
    "vqa": ("soft accuracy of VQA v2 as its server scores it", ("test-dev", "test-std"), 0),
    "nlvr2": ("accuracy of NLVR2", ("dev", "test-P"), 2),
    "entailment": ("accuracy of SNLI-VE", ("val", "test"), 4),
}
# Table IV: zero-shot on COCO.
_OBJECTIVES: Mapping[str, tuple[float, ...]] = {
    "MLM+ITM": (65.2, 86.4, 91.5, 47.2, 73.1, 81.3),
    "MLM+ITM+Pixel": (67.4, 88.2, 93.9, 49.5, 75.9, 84.4),
    "MLM+ITM+Pixel+MIM": (70.1, 90.2, 95.3, 52.4, 77.8, 86.0),
}


def longest_caption(positions: int, trained: int = 0) -> int:
    """Return the longest captions in words: as in training, at least the tables', and no more than are read."""
    return min(positions, max(TABLE_WORDS, trained))


def benchmark_of(description: str) -> Benchmark | None:
    """Return which of the two sets of the tables a description of images with captions names; None for another."""
    name = description.partition("?")[0].rpartition("/")[2]
    for text in (name.lower(), description.lower()):
        if "flickr30k" in text:
            return "flickr30k"
        if "coco" in text:
            return "coco"
    return None


def setting_of(trained_on: Sequence[str], data: str) -> str:
    """Say what kind of number an evaluation gives, as publications must be told apart by it.

    "zs-direct": pretrained, nothing fine-tuned. "zs-coco-ft": fine-tuned on COCO, evaluated on something else,
    which ALBEF and its heirs call zero-shot on Flickr30k. "fine-tuned on ...": on anything else. "training
    unknown": a model directory that does not say. `trained_on` describes the data of all trainings in order.
    """
    if not trained_on:
        return "training unknown"
    if len(trained_on) == 1:
        return "zs-direct"
    coco = "coco" in trained_on[-1].lower() and "coco" not in data.lower()
    return "zs-coco-ft" if coco else f"fine-tuned on {trained_on[-1]}"


def retrieval_table(data: str, trained_on: Sequence[str]) -> PublishedTable | None:
    """Return Table I, or Table II where the last training was on the set itself; None for other data."""
    benchmark = benchmark_of(data)
    if benchmark is None:
        return None
    tuned = len(trained_on) > 1 and benchmark_of(trained_on[-1]) == benchmark
    place = ("flickr30k", "coco").index(benchmark)
    rows = {name: tuple(both[place]) for name, both in (_FINE_TUNED if tuned else _ZERO_SHOT).items()}
    return PublishedTable(
        f"CB-ViLA, Table {'II' if tuned else 'I'}",
        f"{'fine-tuned' if tuned else 'zero-shot'} on {_TEST_SETS[benchmark]}",
        _RECALLS,
        {name: values for name, values in rows.items() if values},
    )


def objectives_table(data: str) -> PublishedTable | None:
    """Return Table IV where the data are COCO's."""
    if benchmark_of(data) != "coco":
        return None
    return PublishedTable("CB-ViLA, Table IV", f"zero-shot on {_TEST_SETS['coco']}", _RECALLS, _OBJECTIVES)


def task_table(task: ReasoningTask, items: Records) -> PublishedTable | None:
    """Return a task's columns of Table III; None where the items are not those of its data set."""
    match task:
        case "vqa":
            known = re.search(r"v2_.*mscoco|vqa", items.name.lower())
        case "nlvr2":
            known = (
                re.match(r"(train|dev|test\d)-\d+", items.sentences[0])
                if items.sentences and items.num_images == 2
                else None
            )
        case "entailment":
            official = re.match(r"\d+\.jpg#\d+r\d+", items.ids[0])
            known = official or re.search(r"snli|\bve_(dev|val|test)", items.name.lower())
        case _:
            known = None
    if not known:
        return None
    of, columns, first = _TASK_COLUMNS[task]
    rows = {name: values[first : first + 2] for name, values in _TASKS.items()}
    return PublishedTable(
        "CB-ViLA, Table III", of, columns, {name: two for name, two in rows.items() if any(two)}
    )


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper: accuracies in percent by `Setting.column`, their average where all seven are printed."""

    name: str
    ways: int
    source: str
    accuracy: dict[str, float]
    scorer: str = "strict"
    average: float | None = None


# LQAE, Tables 1 and 2, the seven columns and their average: miniImageNet test classes at 256 px, real names.
# LQAE and ASCII prompt GPT-3.5 (text-davinci-003). LQAE's 5-way "bare:1/0" is missing in the text at hand; it
# follows from the average and is quoted by De-Diffusion.
_LQAE: tuple[tuple[str, int, tuple[float, ...]], ...] = (
    ("ASCII 64x64", 2, (0.0, 5.2, 5.9, 6.5, 4.5, 4.8, 5.2, 4.59)),
    ("MAE + linear", 2, (0.0, 8.9, 11.4, 13.5, 12.8, 15.6, 19.8, 11.71)),
    ("Frozen", 2, (1.7, 33.7, 66.0, 66.0, 63.0, 65.0, 63.7, 51.3)),
    ("untrained LQAE", 2, (0.0, 8.2, 13.8, 14.5, 10.4, 12.7, 15.6, 10.74)),
    ("LQAE", 2, (1.5, 35.2, 68.2, 69.8, 68.5, 68.7, 65.9, 53.97)),
    ("ASCII 64x64", 5, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ("MAE + linear", 5, (0.3, 2.0, 2.5, 3.2, 3.1, 3.5, 3.6, 2.6)),
    ("Frozen", 5, (0.9, 14.5, 34.7, 33.8, 33.8, 33.3, 32.8, 26.26)),
    ("untrained LQAE", 5, (0.0, 1.2, 1.6, 2.3, 2.1, 1.9, 2.3, 1.63)),
    ("LQAE", 5, (1.0, 15.7, 35.9, 36.5, 31.9, 36.4, 45.9, 29.04)),
)
# De-Diffusion, Table 3: one inner shot, without and with induction.
_DE_DIFFUSION = (
    ("SPAE (PaLM 2-L)", 2, 32.2, 85.4),
    ("De-Diffusion (PaLM 2-L)", 2, 78.9, 99.3),
    ("SPAE (PaLM 2-L)", 5, 23.6, 67.0),
    ("De-Diffusion (PaLM 2-L)", 5, 71.8, 97.0),
)


def published_rows(ways: int) -> list[PublishedRow]:
    """Return the published rows of a number of ways; none but for 2 and 5."""
    rows = [
        PublishedRow(
            name, ways, f"LQAE, Table {1 if ways == 2 else 2}",
            dict(zip(PAPER_COLUMNS, values[:-1], strict=True)), average=values[-1],
        )
        for name, size, values in _LQAE if size == ways
    ]  # fmt: skip
    rows += [
        PublishedRow(name, ways, "De-Diffusion, Table 3", {"bare:1/0": bare, "1/0": induced})
        for name, size, bare, induced in _DE_DIFFUSION
        if size == ways
    ]
    if ways == 2:
        rows.append(PublishedRow("V2L (LLaMA-2)", 2, "V2L-Tokenizer, issue 2", {"3/0": 91.2}, "v2l"))
    return rows
