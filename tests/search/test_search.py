"""Searching: vectors are multiplied, then the matching head is asked; errors say what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.search.conftest import NAMES, Indexed
from tests.tiny import english_words, evaluation_batches, tiny_cbvila, tiny_vqvae, write_images

import pixlex
from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.models.cbvila import CBViLA
from pixlex.search import ImageIndex, SearchResult

WORDS = english_words(300)
TEXTS = tuple(" ".join(WORDS[first : first + 5]) for first in range(0, 60, 10))


@pytest.fixture
def index(update: Indexed, photos: Path) -> ImageIndex:
    return update(photos)[0]


@pytest.fixture
def images(photos: Path) -> torch.Tensor:
    (batch,) = evaluation_batches(open_source(str(photos)), image_size=32, batch_size=12)
    return batch.images


def keys(result: SearchResult) -> list[str]:
    assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))
    return [hit.key for hit in result.hits]


@torch.no_grad()
def text_vector(model: CBViLA, text: str) -> torch.Tensor:
    words = model.tokenize_texts([text], 16)
    return model.text_vectors(model.encode_text(words.word_ids, words.key_padding), words.key_padding)[0]


@torch.no_grad()
def logit(model: CBViLA, text: str, image: torch.Tensor) -> float:
    """The whole network at once, one pair."""
    words = model.tokenize_texts([text], 16)
    read = model.encode_text(words.word_ids, words.key_padding)
    fused = model.fusion(read, model.image_context(model.encode_image(image[None])), words.key_padding)
    return float(model.matching_head(fused[:, 0])[0, 1])


def test_texts_find_the_nearest_images(index: ImageIndex, model: CBViLA, images: torch.Tensor) -> None:
    """The order of all products, whatever is searched together; another text, another order."""
    with torch.no_grad():
        vectors = model.image_vectors(model.encode_image(images))
    together = index.search(texts=[TEXTS[0].upper().replace(" ", "-!"), *TEXTS[1:]], top_k=12)  # as captions
    orders = set()
    for text, result in zip(TEXTS, together, strict=True):
        products = vectors @ text_vector(model, text)
        order = products.argsort(descending=True)
        assert keys(result) == [NAMES[number] for number in order]
        np.testing.assert_allclose([hit.similarity for hit in result.hits], products[order], atol=2e-6)
        assert all(hit.matching is None for hit in result.hits)
        orders.add(tuple(keys(result)))
        assert keys(index.search(texts=[text], top_k=5)[0]) == keys(result)[:5]
    assert len(orders) > 1


@pytest.mark.parametrize("resize_mode", ["center", "squash"])
def test_images_are_cut_as_the_model_wants(
    language: Path, photos: Path, tmp_path: Path, resize_mode: str
) -> None:
    """When they are indexed, when they are asked for, and when they are looked at again: as in evaluation."""
    model = tiny_cbvila(language, resize_mode=resize_mode)
    index = ImageIndex.open(tmp_path / resize_mode, model, create=True)
    index.update(str(photos), progress=False)
    source = open_source(str(photos))
    (batch,) = evaluation_batches(source, image_size=32, batch_size=12, resize_mode=resize_mode)  # type: ignore[arg-type]
    for queries in (batch.images, [photos / name for name in NAMES]):
        for name, result in zip(NAMES, index.search(images=queries, top_k=1), strict=True):
            assert keys(result) == [name]
            assert result.hits[0].similarity == pytest.approx(1, abs=1e-5)
    (found,) = index.search(texts=TEXTS[:1], top_k=12, rerank=12)
    for hit in found.hits:
        alone = logit(model, TEXTS[0], batch.images[NAMES.index(hit.key)])
        assert hit.matching == pytest.approx(alone, abs=1e-5)


def test_equal_pictures_stand_in_the_order_of_their_keys(update: Indexed, photos: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        (photos / name).write_bytes((photos / "cats/03.png").read_bytes())
    index, _ = update(photos)
    (result,) = index.search(images=[photos / "b.png"], top_k=5)
    assert keys(result)[:4] == ["a.png", "b.png", "c.png", "cats/03.png"]


def test_the_second_stage_ranks_by_the_matching_head(
    index: ImageIndex, model: CBViLA, images: torch.Tensor
) -> None:
    """Candidates stay those of the first stage; all of them, or the first few, with or without similarity."""
    plain = index.search(texts=TEXTS, top_k=12)
    matched = index.search(texts=TEXTS, top_k=12, rerank=12)
    few = index.search(texts=TEXTS, top_k=9, rerank=4)
    both = index.search(texts=TEXTS, top_k=3, rerank=12, score="matching+contrastive")
    for text, before, after, first, summed in zip(TEXTS, plain, matched, few, both, strict=True):
        logits = {name: logit(model, text, image) for name, image in zip(NAMES, images, strict=True)}
        assert {hit.key: hit.matching for hit in after.hits} == pytest.approx(logits, abs=1e-5)
        assert keys(after) == sorted(NAMES, key=lambda name: -logits[name])
        similarities = {hit.key: hit.similarity for hit in before.hits}
        assert {hit.key: hit.similarity for hit in after.hits} == similarities
        assert keys(first)[:4] == sorted(keys(before)[:4], key=lambda name: -logits[name])
        assert keys(first)[4:] == keys(before)[4:9]
        assert [hit.matching is None for hit in first.hits] == [False] * 4 + [True] * 5
        assert len(summed.hits) == 3
        for hit in summed.hits:
            assert hit.matching == pytest.approx(logits[hit.key] + hit.similarity, abs=1e-5)
    assert [keys(one) for one in matched] != [keys(one) for one in plain]


def test_the_second_stage_agrees_with_the_evaluation(
    index: ImageIndex, model: CBViLA, photos: Path, tmp_path: Path
) -> None:
    """`evaluate_retrieval` counts as found at 1, 5 and 10 what a search finds there."""
    from pixlex.data.captions import open_pairs
    from pixlex.eval.retrieval import evaluate_retrieval, gallery

    lines = [f"{name},{WORDS[3 * number]} {WORDS[3 * number + 1]}" for number, name in enumerate(NAMES)]
    (photos / "pairs.csv").write_text("path,caption\n" + "\n".join(lines) + "\n")
    pairs = open_pairs(str(photos / "pairs.csv"))
    measured = evaluate_retrieval(model, gallery(model, pairs, max_words=16), score="matching", top_k=6)
    texts = [captions[0] for captions in pairs.texts]
    found = index.search(texts=texts, top_k=6, rerank=6)
    places = [
        keys(result).index(name) if name in keys(result) else 99
        for name, result in zip(NAMES, found, strict=True)
    ]
    shares = tuple(sum(place < k for place in places) / len(places) for k in (1, 5, 10))
    found_at = tuple(measured.values[f"image_recall_at_{k}"] for k in (1, 5, 10))
    assert found_at == pytest.approx(shares)
    assert 0 < shares[1] < 1


def test_candidates_that_are_gone_or_changed_stand_behind(index: ImageIndex, photos: Path) -> None:
    (before,) = index.search(texts=TEXTS[:1], top_k=12)
    gone, changed, broken = keys(before)[:3]
    (photos / gone).unlink()
    write_images(photos, [changed], seed=8)
    (photos / broken).write_bytes(b"no image")
    (after,) = index.search(texts=TEXTS[:1], top_k=12, rerank=5)
    assert set(keys(after)[:2]) == set(keys(before)[3:5])
    assert keys(after)[2:] == [gone, changed, broken, *keys(before)[5:]]
    reasons = {one.key: one.reason for one in after.skipped}
    assert "does not exist" in reasons[gone]
    assert reasons[changed] == reasons[broken] == "it has changed since it was indexed"


def test_a_graph_finds_the_same_in_a_small_index(index: ImageIndex, photos: Path) -> None:
    exact = index.search(texts=TEXTS, top_k=4)
    near = index.search(texts=TEXTS, top_k=4, approximate=True)
    assert [keys(one) for one in near] == [keys(one) for one in exact]
    (image,) = index.search(images=[photos / NAMES[0]], top_k=20, approximate=True)
    assert sorted(keys(image)) == sorted(NAMES)


def test_from_another_process_of_mind(
    index: ImageIndex, model: CBViLA, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reopened index finds the same, and knows where its images are from any folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = ImageIndex.open("relative", model, create=True)
    relative.update("photos", progress=False)
    monkeypatch.chdir(tmp_path / "cwd")
    again = ImageIndex.open(tmp_path / "relative", model)
    assert again.search(texts=TEXTS, rerank=3) == index.search(texts=TEXTS, rerank=3)
    assert again.picture(NAMES[0]).size == (40, 36)


def test_an_index_of_a_source_without_description_ranks_by_vectors(
    update: Indexed, photos: Path, model: CBViLA, tmp_path: Path
) -> None:
    index, _ = update(open_source(str(photos)))
    assert index.search(texts=TEXTS[:1], rerank=2)[0].hits[0].matching is not None  # the source is at hand
    again = ImageIndex.open(tmp_path / "index", model)
    assert len(again.search(texts=TEXTS[:1])[0].hits) == 10
    with pytest.raises(ValueError, match="does not remember where its images are"):
        again.search(texts=TEXTS[:1], rerank=2)


Search = Callable[[ImageIndex, Path], Any]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index, _: index.search(), "expected texts or images to search by, one of the two"),
        (lambda index, _: index.search(texts=[]), "expected a text or several, got none"),
        (lambda index, _: index.search(texts=["a", "  "]), "expected a text to search by, got '  '"),
        (lambda index, _: index.search(texts=["?!"]), r"got '\?!': it holds punctuation alone"),
        (lambda index, _: index.search(texts=["a"], top_k=0), "top_k must be 1 or more, got 0"),
        (lambda index, _: index.search(texts=["a"], rerank=-1), "rerank must be 0 or more, got -1"),
        (
            lambda index, _: index.search(texts=["a"], rerank=1, score="cosine"),
            "score must be one of matching, ",
        ),
        (lambda index, one: index.search(images=[one], rerank=5), "rerank must be 0 for images"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    index: ImageIndex, photos: Path, call: Search, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(index, photos / NAMES[0])


def test_one_query_is_one(index: ImageIndex, photos: Path) -> None:
    """A text is not the sequence of its letters, a path is a picture."""
    assert index.search(texts=WORDS[0]) == index.search(texts=[WORDS[0]])
    assert index.search(texts=iter(TEXTS)) == index.search(texts=TEXTS)
    path = photos / NAMES[0]
    (expected,) = index.search(images=[path])
    opened = Image.open(path)
    array = np.asarray(opened)
    for one in (str(path), path, path.read_bytes(), opened, array, iter([path]), [array]):
        assert index.search(images=one) == [expected]


def test_an_index_opens_with_what_it_remembers(model: CBViLA, photos: Path, tmp_path: Path) -> None:
    """Without a model, with one that `pixlex.load` gave, with where it lies; in the precision that it has."""
    ImageTokenizer(model).save(tmp_path / "model")
    made = ImageIndex.open(tmp_path / "index", tmp_path / "model", precision="bf16", create=True)
    made.update(str(photos), progress=False)
    expected = made.search(texts=TEXTS)
    for given in (None, str(tmp_path / "model"), tmp_path / "model", pixlex.load(tmp_path / "model"), model):
        assert ImageIndex.open(tmp_path / "index", given).search(texts=TEXTS) == expected
    with pytest.raises(ValueError, match="expected the model that makes its vectors"):
        ImageIndex.open(tmp_path / "other", create=True)
    with pytest.raises(ValueError, match="expected a CB-ViLA, which compares texts and images, got VQVAE"):
        ImageIndex.open(tmp_path / "index", ImageTokenizer(tiny_vqvae()))


def test_an_empty_index_says_so(model: CBViLA, tmp_path: Path) -> None:
    empty = ImageIndex.open(tmp_path / "index", model, create=True)
    with pytest.raises(ValueError, match="holds no image yet: run `pixlex index SOURCE"):
        empty.search(texts=["a"])


def test_long_texts_are_cut(index: ImageIndex, model: CBViLA) -> None:
    """To what the model has positions for, as in evaluation."""
    assert model.config.text.positions == 16
    one, other = index.search(texts=[" ".join(WORDS[:29]), " ".join(WORDS[:14])])
    assert keys(one) == keys(other)


def test_an_index_finds_the_model_that_was_loaded_for_it(language: Path, tmp_path: Path) -> None:
    """By `pixlex.load`, from a relative path: later nobody has to name it."""
    model = tiny_cbvila(language)
    model.log_scale.data.zero_()
    ImageTokenizer(model).save(tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        tokenizer = pixlex.load("model")
        index = ImageIndex.open("index", tokenizer, create=True)
        index.update(str(write_images(tmp_path / "pictures", ["0.png", "1.png"])), progress=False)
    assert index.head.model == str(tmp_path / "model")
    assert len(ImageIndex.open(tmp_path / "index").search(texts="the class")[0].hits) == 2
