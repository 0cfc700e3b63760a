"""CB-ViLA's published tables: which stands beside which data, with the numbers as printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import write_images

from pixlex.config.cbvila import ReasoningTask
from pixlex.data.questions import open_items
from pixlex.eval.published import benchmark_of, objectives_table, retrieval_table, setting_of, task_table

COCO, FLICKR = "dataset_coco.json?split=test", "/data/coco/dataset_flickr30k.json?split=test&images=coco"


@pytest.mark.parametrize(
    ("data", "trained_on", "source", "first", "last"),
    [
        (FLICKR, ["pairs"], "Table I", 91.9, 96.6),
        (FLICKR, ["pairs", COCO], "Table I", 91.9, 96.6),  # ALBEF's way of zero-shot
        (FLICKR, ["pairs", FLICKR], "Table II", 95.1, 98.2),
        (COCO, [], "Table I", 70.1, 86.0),
        ("hf:someone/mscoco:test", ["pairs", COCO], "Table II", 76.2, 89.6),
    ],
)
def test_a_table_of_the_data_and_of_what_was_tuned(
    data: str, trained_on: list[str], source: str, first: float, last: float
) -> None:
    table = retrieval_table(data, trained_on)
    assert table is not None
    assert table.source == f"CB-ViLA, {source}"
    assert table.rows["CB-ViLA"][::5] == (first, last)
    assert {len(values) for values in table.rows.values()} == {len(table.columns)} == {6}
    text = table.text("12 images")
    assert text.count("published: ") == len(table.rows)
    assert f"published, {table.of}; here 12 images (CB-ViLA, {source};" in text.splitlines()[0]


def test_other_data_have_no_table() -> None:
    assert benchmark_of("embedded:scenes:test") is benchmark_of("flickr8k.json") is None
    assert retrieval_table("pairs.parquet", [COCO]) is objectives_table(FLICKR) is None
    four = objectives_table(COCO)
    assert four is not None
    assert [values[0] for values in four.rows.values()] == [65.2, 67.4, 70.1]


@pytest.mark.parametrize(
    ("task", "name", "rows", "last"),
    [
        ("vqa", "vqa_val.json", '[{"question_id": 1, "image": "a.png", "question": "what", "answer": ["a"]}]',
         (75.84, 74.20)),
        ("nlvr2", "dev.json", '{"identifier": "dev-1-0-0", "sentence": "it is", "label": "True"}', (80.50, 80.84)),
        ("nlvr2", "mine.jsonl", '{"images": ["a.png", "a.png"], "sentence": "it is", "label": "True"}', None),
        ("entailment", "mine.jsonl",
         '{"Flickr30K_ID": "a.png", "pairID": "12.jpg#2r1n", "sentence2": "so", "gold_label": "neutral"}',
         (81.47, 81.40)),
        ("entailment", "mine.jsonl", '{"image": "a.png", "sentence": "so", "label": "neutral"}', None),
    ],
)  # fmt: skip
def test_a_task_has_its_columns_where_the_items_are_those_of_its_set(
    task: ReasoningTask, name: str, rows: str, last: tuple[float, float] | None, tmp_path: Path
) -> None:
    write_images(tmp_path, ["a.png", "dev-1-0-img0.png", "dev-1-0-img1.png"])
    (tmp_path / name).write_text(rows)
    table = task_table(task, open_items(str(tmp_path / name), task))
    assert (None if table is None else table.rows["CB-ViLA"]) == last


def test_what_a_number_is_called() -> None:
    """Zero-shot right away, zero-shot behind COCO, and fine-tuned are three things."""
    assert setting_of(["pairs.parquet"], FLICKR) == "zs-direct"
    assert setting_of(["pairs.parquet", COCO], "dataset_flickr30k.json") == "zs-coco-ft"
    assert setting_of(["pairs.parquet", COCO], "dataset_coco.json") == f"fine-tuned on {COCO}"
    assert setting_of([], FLICKR) == "training unknown"
