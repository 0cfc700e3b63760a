"""Retrieval: ranks against a library and by hand, the second stage against pairs one by one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_cbvila, write_images
from torchmetrics.retrieval import RetrievalHitRate

from pixlex.config.cbvila import ReasoningTask
from pixlex.data.captions import open_pairs
from pixlex.data.questions import open_items
from pixlex.data.records import Records
from pixlex.eval import retrieval
from pixlex.eval.evaluate import Pass
from pixlex.eval.published import benchmark_of, objectives_table, retrieval_table, setting_of, task_table
from pixlex.eval.retrieval import RANKS, Gallery, evaluate_retrieval, gallery, ranks
from pixlex.models.cbvila import CBViLA
from pixlex.nn.bert import Context

QUIET = Pass(progress=False)
CAPTIONS = [["about the class", "and"], ["also any other"], ["the class and all", "allow", "add after"]]


@pytest.fixture(scope="module")
def model(language: Path) -> CBViLA:
    return tiny_cbvila(language)


def written(folder: Path, numbers: Sequence[int | None], captions: Sequence[Sequence[str]]) -> Records:
    """A table of pictures, noise of their numbers, with captions; None is no picture."""
    rows = []
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append(b"no image" if number is None else buffer.getvalue())
    pq.write_table(pa.table({"image": rows, "captions": captions}), folder / "pairs.parquet")
    return open_pairs(str(folder / "pairs.parquet"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return written(tmp_path_factory.mktemp("pairs"), range(3), CAPTIONS)


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The scores that are ranked, those of images first."""
    found: list[torch.Tensor] = []
    monkeypatch.setattr(retrieval, "ranks", lambda *given: found.append(given[0]) or ranks(*given))
    return found


@pytest.fixture(scope="module")
def items(model: CBViLA, pairs: Records) -> Iterator[Gallery]:
    return gallery(model, pairs, QUIET, max_words=12, batch_size=2)


def _belongs(image_of: torch.Tensor) -> torch.Tensor:
    return image_of.unsqueeze(0) == torch.arange(int(image_of.max()) + 1).unsqueeze(1)


def _recalls(values: Mapping[str, float]) -> list[float]:
    return [value for name, value in values.items() if "recall_at" in name]


def _recalls_of(*places: torch.Tensor) -> list[float]:
    return [float((one < k).double().mean()) for one in places for k in RANKS]


def test_ties_count_against() -> None:
    """A model of equal scores, or gone wrong, finds nothing at 1; what was not scored comes last."""
    image_of = torch.tensor([0, 1, 2])
    for scores in (torch.zeros(3, 3), torch.full((3, 3), torch.nan)):
        text_ranks, image_ranks = ranks(scores, _belongs(image_of))
        assert text_ranks.tolist() == image_ranks.tolist() == [2, 2, 2]
    unscored = torch.tensor([[-torch.inf, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert ranks(unscored, _belongs(image_of))[0].tolist() == [2, 0, 0]


def test_recall_equals_the_hit_rate_of_torchmetrics() -> None:
    """Scores without ties, several captions an image: hit rate at k, queries averaged."""
    generator = torch.Generator().manual_seed(0)
    image_of = torch.randint(12, (40,), generator=generator)
    image_of[:12] = torch.arange(12)
    scores = torch.rand(12, 40, generator=generator)
    own = _belongs(image_of)
    text_ranks, image_ranks = ranks(scores, own)
    for k in (1, 5, 10):
        for table, truth, found in ((scores, own, text_ranks), (scores.T, own.T, image_ranks)):
            queries = torch.arange(len(table)).unsqueeze(1).expand_as(table)
            expected = RetrievalHitRate(top_k=k)(table.flatten(), truth.flatten(), indexes=queries.flatten())
            assert float((found < k).double().mean()) == pytest.approx(float(expected))


@pytest.mark.parametrize("score", ["matching", "matching+contrastive"])
def test_the_second_stage_equals_pairs_one_by_one(
    model: CBViLA, items: Gallery, ranked: list[torch.Tensor], score: str
) -> None:
    """Every pair, each image alone with each caption without padding: the same scores, hence the same recall."""
    similarity = items.image_vectors @ items.text_vectors.T
    expected = torch.zeros(3, 6)
    with torch.no_grad():
        for image in range(3):
            for caption in range(6):
                words = ~items.key_padding[caption]
                text = items.text[caption : caption + 1, words]
                fused = model.fusion(text, model.image_context(items.states[image : image + 1]))
                expected[image, caption] = model.matching_head(fused[0, 0])[1]
    if score == "matching+contrastive":
        expected = expected + similarity
    result = evaluate_retrieval(model, items, QUIET, score=score, top_k=6)  # type: ignore[arg-type]
    torch.testing.assert_close(ranked[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ranked[1], expected, rtol=1e-4, atol=1e-5)
    assert result.num_scored == 18
    assert _recalls(result.values) == _recalls_of(*ranks(expected, items.belongs))


def test_an_interrupted_second_stage_goes_on(
    model: CBViLA, items: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of images that were done are not computed again; numbers as without; nothing is left behind."""
    monkeypatch.setattr(retrieval, "_IMAGES_A_FILE", 1)
    seen: list[int] = []
    look = model.image_context

    def counted(image: torch.Tensor) -> Context:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return look(image)

    monkeypatch.setattr(model, "image_context", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_retrieval(model, items, QUIET, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(KeyboardInterrupt):  # other pairs: another folder
        evaluate_retrieval(model, items, QUIET, top_k=1, cache=tmp_path)
    (other,) = set(tmp_path.iterdir()) - {folder}
    first, second = sorted(folder.iterdir())
    second.write_bytes(b"damaged")  # by a full disk, say
    monkeypatch.setattr(model, "image_context", lambda image: seen.append(1) or look(image))
    whole = evaluate_retrieval(model, items, QUIET, cache=tmp_path)
    assert len(seen) == 2 + 2  # the damaged one and the third
    assert list(tmp_path.iterdir()) == [other]
    monkeypatch.undo()
    assert whole == evaluate_retrieval(model, items, QUIET)
    assert first != second


def test_each_direction_ranks_its_own_best(model: CBViLA, items: Gallery, ranked: list[torch.Tensor]) -> None:
    """With top 1 an image has one caption that counts, and a caption one image."""
    evaluate_retrieval(model, items, QUIET, top_k=1)
    by_image, by_caption = (scores.isfinite() for scores in ranked)
    assert by_image.sum(1).tolist() == [1, 1, 1]
    assert by_caption.sum(0).tolist() == [1] * 6


def test_every_caption_counts_and_equals_are_right_for_each_other(model: CBViLA, tmp_path: Path) -> None:
    """The same caption twice, under two images, and one picture in two rows: nobody can tell them apart."""
    pairs = written(tmp_path, (0, 1, 0), [["a", "and", "and"], ["and", "all"], ["any"]])
    found = gallery(model, pairs, QUIET, max_words=12)
    assert found.image_of.tolist() == [0, 0, 0, 1, 1, 2]
    assert found.belongs.int().tolist() == [[1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1]]
    result = evaluate_retrieval(model, found, QUIET, top_k=6)
    assert (result.num_captions, result.num_scored) == (6, 18)
    # The second row of scores is level with the third, and right wherever that one is.
    level = torch.tensor([[0.0, 5, 5, 5, 0, 9], [0.0, 5, 5, 5, 0, 9], [0.0, 5, 5, 5, 0, 9]])
    text_ranks, image_ranks = ranks(level, found.belongs)
    assert (text_ranks.tolist(), image_ranks.tolist()) == ([0, 1, 0], [1, 0, 0, 0, 2, 1])


def test_an_unreadable_image_takes_its_captions_with_it(model: CBViLA, tmp_path: Path) -> None:
    found = gallery(model, written(tmp_path, (0, None, 2), CAPTIONS), QUIET, max_words=12)
    assert found.image_of.tolist() == [0, 0, 1, 1, 1]
    assert [one.key for one in found.skipped] == ["pairs.parquet#1"]


def test_contrast_alone_needs_vectors_alone(model: CBViLA, pairs: Records, items: Gallery) -> None:
    """No second stage; the recalls are those of the similarities."""
    found = gallery(model, pairs, QUIET, max_words=12, states=False)
    assert found.states.numel() == found.text.numel() == 0
    first, second = (evaluate_retrieval(model, one, QUIET, score="contrastive") for one in (items, found))
    assert first == second
    assert first.num_scored == 0
    assert _recalls(first.values) == _recalls_of(
        *ranks(items.image_vectors @ items.text_vectors.T, items.belongs)
    )
    assert first.values["mean_recall"] == pytest.approx(np.mean(_recalls(first.values)))


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
