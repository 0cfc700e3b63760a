"""The images of a probe and what is refused; features, computed once and never those of something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.tiny import tiny_lqae, write_classes
from tests.training.running import digest
from torch import Tensor

from pixlex.batch import TooManyBroken
from pixlex.data.images import open_source
from pixlex.eval import probe_features
from pixlex.eval.probe_features import extract, image_features, kinds_of, planned_kinds
from pixlex.eval.probe_sets import LabeledImages, check_apart, in_classes_of, survey
from pixlex.models.baselines import VQVAE
from pixlex.models.checkpoint import untrained_copy
from pixlex.models.lqae import LQAE


def looked_at(folder: Path, limit: int | None = None) -> LabeledImages:
    return survey(open_source(str(folder)), limit=limit)


def table(path: Path, labels: list[int | None], names: list[str | None]) -> Path:
    """A parquet file whose images all differ."""
    rows = [bytes([number, 1, 2]) for number in range(len(labels))]
    pq.write_table(pa.table({"image": rows, "label": labels, "class_name": names}), path)
    return path


def test_images_without_a_class_are_left_out_and_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "some.parquet", [5, None, 2, 5], ["cat", None, "dog", "cat"])
    images = looked_at(path)
    assert images.class_names == ("dog", "cat")
    assert (images.labels.tolist(), images.indices.tolist()) == ([1, 0, 1], [0, 2, 3])
    assert images.num_unlabeled == 1
    with pytest.raises(ValueError, match="label 3 has no name"):
        looked_at(table(tmp_path / "nameless.parquet", [3, 3], [None, None]))


def test_images_that_cannot_be_fetched(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    write_classes(tmp_path, 30, names=("cat", "dog"))
    lines = [
        f"{name}/{number}.png,{label},{name}"
        for label, name in enumerate(("cat", "dog"))
        for number in range(30)
    ]
    path.write_text("\n".join(["path,label,class_name", *lines]) + "\n")
    (tmp_path / "cat" / "3.png").unlink()
    images = looked_at(path)
    assert [one.key for one in images.skipped] == ["cat/3.png"]
    assert len(images) == 59
    for number in range(10):
        (tmp_path / "dog" / f"{number}.png").unlink()
    with pytest.raises(TooManyBroken, match="max_broken_fraction"):
        looked_at(path)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """One without training images is refused."""
    training = looked_at(write_classes(tmp_path / "train", 3))
    test = in_classes_of(training, looked_at(write_classes(tmp_path / "two", 2, names=("red", "green"))))
    assert test.class_names == training.class_names
    assert test.labels.tolist() == [1, 1, 2, 2]
    other = looked_at(write_classes(tmp_path / "test", 2, names=("red", "mauve", "beige")))
    with pytest.raises(
        ValueError, match=r"expected the classes of .*train \(3 classes\), got 2 .*'beige', 'mauve'"
    ):
        in_classes_of(training, other)


def test_two_classes_of_one_name_are_told_apart_by_their_order(tmp_path: Path) -> None:
    names: list[str | None] = ["crane", "cat", "crane"]
    training = looked_at(table(tmp_path / "train.parquet", [0, 1, 2], names))
    test = looked_at(table(tmp_path / "test.parquet", [2, 1, 0], names))
    assert in_classes_of(training, test).labels.tolist() == [2, 1, 0]
    fewer = looked_at(table(tmp_path / "fewer.parquet", [0, 1], ["crane", "cat"]))
    with pytest.raises(ValueError, match="several classes share a name"):
        in_classes_of(training, fewer)


def test_parts_that_share_images_are_refused(tmp_path: Path) -> None:
    training = looked_at(write_classes(tmp_path / "train", 3))
    apart = write_classes(tmp_path / "test", 3, seed=1)
    assert check_apart(training, looked_at(apart)) == []
    shutil.copy(tmp_path / "train" / "red" / "2.png", apart / "red" / "renamed.png")
    message = r"1 of 10 images of .*test are also in .*train, byte by byte; .*red/renamed.png = red/2.png"
    with pytest.raises(ValueError, match=message):
        check_apart(training, looked_at(apart))
    (note,) = check_apart(training, looked_at(apart), allow=True)
    assert "1 of 10" in note


@torch.no_grad()
def test_every_patch_of_every_layer_counts(lqae: LQAE, vqvae: VQVAE, images: Tensor) -> None:
    """The released code leaves the first patch out."""
    hidden = lqae.encode_text(lqae.quantizer.embedding[lqae.tokenize(images)], all_states=True).hidden_states
    features = image_features(lqae, images)
    assert len(hidden) == 2
    for number, states in enumerate(hidden):
        assert states.shape[1] == 16
        torch.testing.assert_close(features[f"layer {number}"], states.mean(1), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(features[f"layer {number}"], states[:, 1:].mean(1), atol=1e-3)
    torch.testing.assert_close(features["encoder"], lqae.encoder(images).mean(1))
    torch.testing.assert_close(features["codes"], lqae.quantizer.embedding[lqae.tokenize(images)].mean(1))
    assert (features["pixels"].mean(1) - images.mean((1, 2, 3))).abs().max() < 1e-6
    features = image_features(vqvae, images)
    assert list(features) == ["encoder", "codes", "pixels"]
    torch.testing.assert_close(features["codes"], vqvae.codebook.weight[vqvae.tokenize(images)].mean(1))


def test_which_features_are_probed(lqae: LQAE, vqvae: VQVAE) -> None:
    assert planned_kinds([lqae, vqvae], None) == [("layers",), ("encoder", "codes")]
    asked = planned_kinds([lqae, vqvae], ["layers", "codes", "pixels", "codes"])
    assert asked == [("layers", "codes", "pixels"), ("codes",)]
    assert set(kinds_of(vqvae)) < set(kinds_of(lqae))
    with pytest.raises(
        ValueError, match="no model has the features 'layers': expected codes, encoder, pixels of"
    ):
        planned_kinds([vqvae], ["codes", "layers"])
    with pytest.raises(
        ValueError, match="a VQ-VAE has none of layers, last: expected codes, encoder, pixels"
    ):
        planned_kinds([lqae, vqvae], ["layers", "last"])


@pytest.mark.parametrize("search", ["raw", "whitened"])
def test_an_untrained_copy_has_fresh_weights_and_the_same_language(
    language: Path, images: Tensor, search: str
) -> None:
    model = tiny_lqae(language, search=search)
    before, state = digest(model), torch.random.get_rng_state()
    fresh = untrained_copy(model, images, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert digest(model) == before
    assert not fresh.training
    assert digest(fresh.language) == digest(model.language)
    assert not torch.equal(fresh.encoder.patches.weight, model.encoder.patches.weight)
    assert digest(untrained_copy(model, images, seed=3)) == digest(fresh)
    assert digest(untrained_copy(model, images, seed=4)) != digest(fresh)
    if search == "whitened":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            unmeasured = LQAE.build(model.config).eval()
        assert fresh.tokenize(images).unique().numel() > unmeasured.tokenize(images).unique().numel()


@pytest.fixture
def labeled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabeledImages:
    """Twelve images, four at a time."""
    monkeypatch.setattr(probe_features, "_BATCH", 4)
    return looked_at(write_classes(tmp_path / "images", 4))


def test_features_are_computed_once_and_models_stay_as_they_are(
    lqae: LQAE, vqvae: VQVAE, labeled: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row depends neither on the others nor on the mode of the model."""
    for model in (lqae, vqvae):
        before = [digest(part) for part in (model, lqae.language)]
        first = extract(model.train(), labeled, tmp_path / "cache")
        assert [digest(part) for part in (model, lqae.language)] == before
    some = extract(vqvae, survey(labeled.source, limit=3), tmp_path / "cache")
    assert some.values.tobytes() == first.values[[0, 4, 8]].tobytes()
    monkeypatch.setattr(probe_features, "compute_rows", None)
    again = extract(vqvae, labeled, tmp_path / "cache")
    assert again.values.tobytes() == first.values.tobytes()
    assert isinstance(again.values, np.memmap)
    assert again.values.dtype == np.float32
    assert again.labels.tolist() == labeled.labels.tolist()
    assert again.columns["encoder"] == slice(0, 32)


def test_other_weights_images_or_precisions_are_other_features(
    lqae: LQAE, language: Path, labeled: LabeledImages, tmp_path: Path
) -> None:
    """The language model's weights count too; and bytes of pictures, not their names."""
    same, words = (tiny_lqae(language, search="raw") for _ in range(2))
    with torch.no_grad():
        next(words.language.body.encoder.parameters()).view(-1)[0] += 1
    folder = tmp_path / "images"
    found = [extract(one, labeled, tmp_path / "cache").path for one in (lqae, same, words)]
    found.append(extract(lqae, labeled, tmp_path / "cache", precision="bf16").path)
    shutil.copy(folder / "red" / "0.png", folder / "red" / "1.png")
    changed = looked_at(folder)
    assert changed.source.identity == labeled.source.identity
    found.append(extract(lqae, changed, tmp_path / "cache").path)
    assert found[0] == found[1]
    assert len(set(found)) == 4


@pytest.mark.parametrize("damage", ["stopped", "no description", "torn array"])
def test_what_is_not_whole_is_computed_again(
    lqae: LQAE, labeled: LabeledImages, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array appears when it is complete; without its description, or with another checksum, it is nothing."""
    expected = extract(lqae, labeled, tmp_path / "whole")
    content, path = expected.path.read_bytes(), tmp_path / "cache" / expected.path.name
    if damage == "stopped":
        calls = iter(range(2))

        def stopping(*given: object, **settings: object) -> Tensor:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return compute(*given, **settings)  # type: ignore[arg-type]

        compute = probe_features.compute_rows
        with monkeypatch.context() as patch:
            patch.setattr(probe_features, "compute_rows", stopping)
            with pytest.raises(KeyboardInterrupt):
                extract(lqae, labeled, tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []
    else:
        extract(lqae, labeled, tmp_path / "cache")
        if damage == "no description":
            path.with_suffix(".json").unlink()
        else:  # flipped bits: tests/test_damage.py
            path.write_bytes(content[:-40])
    assert extract(lqae, labeled, tmp_path / "cache").path.read_bytes() == content


def test_broken_images_are_left_out_and_listed(
    lqae: LQAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_classes(tmp_path / "images", 10)
    (folder / "green" / "3.png").write_bytes(b"no image")
    labeled = looked_at(folder)
    for _ in range(2):  # the second time from the disk
        features = extract(lqae, labeled, tmp_path / "cache")
        assert [one.key for one in features.skipped] == ["green/3.png"]
        assert np.bincount(features.labels).tolist() == [10, 9, 10]
        assert np.abs(features.values[features.rows]).sum(1).min() > 0
        assert (features.values[13] == 0).all()
        with pytest.raises(TooManyBroken):
            extract(lqae, labeled, tmp_path / "cache", max_broken_ratio=0.01)
        monkeypatch.setattr(probe_features, "compute_rows", None)
