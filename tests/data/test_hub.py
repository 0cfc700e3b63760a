"""Data sets of the `datasets` library, saved to a folder; the Hub itself is not called."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixlex.data import hub
from pixlex.data.decoding import UnreadableImage
from pixlex.data.images import open_source

datasets = pytest.importorskip("datasets")

Picture = Callable[..., bytes]


def make(picture: Picture, **columns: Any) -> Any:
    images = [Image.open(io.BytesIO(picture(number))) for number in range(3)]
    dataset = datasets.Dataset.from_dict({"picture": images, "text": ["a", "b", "c"], **columns})
    return dataset.cast_column("picture", datasets.Image())


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_a_saved_data_set_with_class_labels(tmp_path: Path, picture: Picture) -> None:
    dataset = make(picture, kind=[1, 0, -1])
    dataset = dataset.cast_column("kind", datasets.ClassLabel(names=["cat", "dog", "emu"]))
    dataset.save_to_disk(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert source.class_names == ("cat", "dog", "emu")
    for copy in (source, pickle.loads(pickle.dumps(source))):
        records = [copy.read(index) for index in range(3)]
        assert [record.label for record in records] == [1, 0, -1]
        assert [pixels(record.data) for record in records] == [pixels(picture(number)) for number in range(3)]
        assert [record.key for record in records] == ["#0", "#1", "#2"]


def test_labels_and_names_in_columns(tmp_path: Path, picture: Picture) -> None:
    make(picture, label=[0, 5, 0], class_name=["cat", "dog", "cat"]).save_to_disk(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert [source.read(index).label for index in range(3)] == [0, 5, 0]
    assert (source.class_names[0], source.class_names[5]) == ("cat", "dog")
    make(picture, label=[0, 5, 0]).save_to_disk(tmp_path / "nameless")
    with pytest.raises(ValueError, match="label 0 has no name"):
        open_source(str(tmp_path / "nameless"))


def test_folders_that_are_not_one_data_set_of_images(tmp_path: Path, picture: Picture) -> None:
    splits = datasets.DatasetDict({"train": make(picture), "test": make(picture)})
    splits.save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"several splits, name one of them: .*both/train, .*both/test"):
        open_source(str(tmp_path / "both"))
    assert len(open_source(str(tmp_path / "both" / "test"))) == 3
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(
        ValueError, match=r"expected one image column or one named 'image', found text: Value"
    ):
        open_source(str(tmp_path / "texts"))
    for text in ("{}", "[]", '{"_data_files": 3}', "{"):
        (tmp_path / "texts" / "state.json").write_text(text)
        with pytest.raises(ValueError, match="texts cannot be loaded as a saved data set"):
            open_source(str(tmp_path / "texts"))
    for text, sentence in (('{"splits": 3}', "expected a list of splits"), ("{", "not JSON")):
        (tmp_path / "both" / "dataset_dict.json").write_text(text)
        with pytest.raises(ValueError, match=rf"dataset_dict\.json: {sentence}"):
            open_source(str(tmp_path / "both"))


def test_bytes_without_a_feature_of_images_and_names_of_imagenet(tmp_path: Path, picture: Picture) -> None:
    features = datasets.Features(
        {"file": datasets.Value("binary"), "label": datasets.ClassLabel(names=["cat", "tench, Tinca tinca"])}
    )
    dataset = datasets.Dataset.from_dict({"file": [picture(0)], "label": [1]}, features=features)
    dataset.save_to_disk(tmp_path / "set")
    with pytest.warns(UserWarning, match="1 of 2 class names are taken by their first synonym"):
        source = open_source(str(tmp_path / "set"))
    assert source.class_names == ("cat", "tench")
    assert source.read(0).data == picture(0)


def test_a_row_without_an_image(tmp_path: Path, picture: Picture) -> None:
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict(
        {"image": [{"bytes": picture(0), "path": None}, None]}, features=features
    )
    dataset.save_to_disk(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert source.read(0).data == picture(0)
    with pytest.raises(UnreadableImage, match="#1: the row holds no image"):
        source.read(1)


def test_a_name_is_loaded_by_datasets(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> Any:
        asked.append((name, split))
        return make(picture)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert open_source("hf:owner/set").name == "hf:owner/set:train"
    assert len(open_source("hf:owner/set:test[:10%]")) == 3
    assert asked == [("owner/set", "train"), ("owner/set", "test[:10%]")]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: Path(name).read_text())
    with pytest.raises(ValueError, match=r"hf:owner/set cannot be loaded: .*No such file"):
        open_source("hf:owner/set")


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pixlex\[datasets\]'"):
        hub.open_hub("owner/set")
