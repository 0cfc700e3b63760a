"""Retrieval: ranks against a library and by hand, the second stage against pairs one by one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_cbvila
from torchmetrics.retrieval import RetrievalHitRate

from pixlex.data.captions import open_pairs
from pixlex.data.records import Records
from pixlex.eval import retrieval
from pixlex.eval.evaluate import Pass
from pixlex.eval.retrieval import RANKS, Gallery, evaluate_retrieval, gallery, ranks
from pixlex.models.cbvila import CBViLA
from pixlex.nn.bert import Context

QUIET = Pass(progress=False)
CAPTIONS = [["about the class", "and"], ["also any other"], ["the class and all", "allow", "add after"]]


@pytest.fixture(scope="module")
def model(language_folder: Path) -> CBViLA:
    return tiny_cbvila(language_folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    rows = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append(buffer.getvalue())
    pq.write_table(pa.table({"image": rows, "captions": CAPTIONS}), path)
    return open_pairs(str(path))


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
    model: CBViLA, items: Gallery, monkeypatch: pytest.MonkeyPatch, score: str
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
    found: list[torch.Tensor] = []

    def noted(scores: torch.Tensor, belongs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(scores)
        return ranks(scores, belongs)

    monkeypatch.setattr(retrieval, "ranks", noted)
    result = evaluate_retrieval(model, items, QUIET, score=score, top_k=6)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)
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


def test_each_direction_ranks_its_own_best(
    model: CBViLA, items: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With top 1 an image has one caption that counts, and a caption one image."""
    seen: list[torch.Tensor] = []

    def noted(scores: torch.Tensor, belongs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(scores)
        return ranks(scores, belongs)

    monkeypatch.setattr(retrieval, "ranks", noted)
    evaluate_retrieval(model, items, QUIET, top_k=1)
    by_image, by_caption = (scores.isfinite() for scores in seen)
    assert by_image.sum(1).tolist() == [1, 1, 1]
    assert by_caption.sum(0).tolist() == [1] * 6


def test_every_caption_counts_and_equals_are_right_for_each_other(model: CBViLA, tmp_path: Path) -> None:
    """The same caption twice, under two images, and one picture in two rows: nobody can tell them apart."""
    buffers = []
    for number in (0, 1, 0):
        buffers.append(io.BytesIO())
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffers[-1], "PNG")
    captions = [["a", "and", "and"], ["and", "all"], ["any"]]
    pq.write_table(
        pa.table({"image": [one.getvalue() for one in buffers], "captions": captions}), tmp_path / "p.parquet"
    )
    found = gallery(model, open_pairs(str(tmp_path / "p.parquet")), QUIET, max_words=12)
    assert found.image_of.tolist() == [0, 0, 0, 1, 1, 2]
    assert found.belongs.int().tolist() == [[1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1]]
    result = evaluate_retrieval(model, found, QUIET, top_k=6)
    assert (result.num_captions, result.num_scored) == (6, 18)
    # The second row of scores is level with the third, and right wherever that one is.
    level = torch.tensor([[0.0, 5, 5, 5, 0, 9], [0.0, 5, 5, 5, 0, 9], [0.0, 5, 5, 5, 0, 9]])
    text_ranks, image_ranks = ranks(level, found.belongs)
    assert (text_ranks.tolist(), image_ranks.tolist()) == ([0, 1, 0], [1, 0, 0, 0, 2, 1])


def test_an_unreadable_image_takes_its_captions_with_it(model: CBViLA, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    rows = [buffer.getvalue(), b"no image", buffer.getvalue()]
    pq.write_table(pa.table({"image": rows, "captions": CAPTIONS}), tmp_path / "pairs.parquet")
    found = gallery(model, open_pairs(str(tmp_path / "pairs.parquet")), QUIET, max_words=12)
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
