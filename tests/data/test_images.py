"""Descriptions of sources: which kind they open, what they say when there is nothing; data sets of `datasets`."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixlex.data.captions import open_pairs
from pixlex.data.images import open_source
from pixlex.data.questions import open_items
from pixlex.data.tables import ParquetSource, open_hub

datasets = pytest.importorskip("datasets")

Picture = Callable[..., bytes]


def write_parquet(path: Path, images: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images}), path)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("part-*.parquet", 12),
        ("part-{000..009}.parquet", 10),
        ("part-{3..5}.parquet", None),
        ("part-{000,011}.parquet", 2),
        ("part-0{0,1}{0..1}.parquet", 4),
        ("part-00[12].parquet", 2),
        ("**/*.parquet", 13),
    ],
)
def test_patterns(tmp_path: Path, picture: Picture, pattern: str, count: int | None) -> None:
    for number in range(12):
        write_parquet(tmp_path / f"part-{number:03d}.parquet", [picture(number)])
    write_parquet(tmp_path / "deeper" / "part-000.parquet", [picture(12)])
    if count is None:
        with pytest.raises(ValueError, match=r"no file matches .*part-3\.parquet"):
            open_source(str(tmp_path / pattern))
        return
    source = open_source(str(tmp_path / pattern))
    assert isinstance(source, ParquetSource)
    keys = [source.key(index) for index in range(len(source))]
    assert len(set(keys)) == len(keys) == count
    assert keys == sorted(keys)


def test_a_path_that_exists_is_no_pattern(tmp_path: Path, picture: Picture) -> None:
    folder = tmp_path / "set [1] {a,b}"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(0))
    assert len(open_source(f"  {folder} ")) == 1


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("", "the description of the images is empty"),
        ("a-{5..2}.parquet", r"the range \{5\.\.2\} in .* runs backwards"),
        ("nowhere/at/all", r"nowhere/at/all does not exist \(looked for /.*nowhere/at/all\); expected a f"),
        ("data\\images", "does not exist .*; paths are written with /, not with backslashes"),
        ("embedded:digits", "expected embedded:digits:train.*got 'embedded:digits'"),
        ("embedded:faces:train", "expected embedded:digits:train"),
        ("embedded:photographs:validation", "expected embedded:digits:train"),
    ],
)
def test_descriptions_of_nothing(description: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source(description)


def test_unknown_suffixes_and_mixtures(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "noname").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.zip ends in \.zip; expected a folder of images"):
        open_source(str(tmp_path / "a.zip"))
    with pytest.raises(ValueError, match="noname ends in no suffix"):
        open_source(str(tmp_path / "noname"))
    with pytest.raises(ValueError, match=r"must name \.parquet or \.tar files alone, .* names , \.zip"):
        open_source(str(tmp_path / "*"))


@pytest.mark.parametrize("opened", [open_source, open_pairs, lambda name: open_items(name, "vqa")])
def test_a_name_that_is_too_long_does_not_exist(opened: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        opened("x" * 999)


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    write_parquet(tmp_path / "metadata.parquet", [picture(1)])
    assert [open_source(str(tmp_path)).key(0)] == ["a.png"]
    write_parquet(tmp_path / "train.parquet", [picture(1)])
    with pytest.raises(ValueError, match=r"holds images and \.parquet files, and it is not clear which"):
        open_source(str(tmp_path))


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


def test_folders_that_are_not_one_data_set_of_images(tmp_path: Path, picture: Picture) -> None:
    splits = datasets.DatasetDict({"train": make(picture), "test": make(picture)})
    splits.save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"several splits, name one of them: .*both/train, .*both/test"):
        open_source(str(tmp_path / "both"))
    assert len(open_source(str(tmp_path / "both" / "test"))) == 3
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"expected one image column or .*'image', found text: Value"):
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


def test_a_name_is_loaded_by_datasets(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Mock(return_value=make(picture))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert open_source("hf:owner/set").name == "hf:owner/set:train"
    assert len(open_source("hf:owner/set:test[:10%]")) == 3
    assert load.call_args_list == [call("owner/set", split="train"), call("owner/set", split="test[:10%]")]
    for load.side_effect in (FileNotFoundError("gone"), datasets.exceptions.DatasetGenerationError("gone")):
        with pytest.raises(ValueError, match="hf:owner/set cannot be loaded: gone"):
            open_source("hf:owner/set")
    for nameless in ("hf:", "hf:/", "hf::test"):
        with pytest.raises(ValueError, match=rf"expected hf:NAME\[:SPLIT\], got '{nameless}'"):
            open_source(nameless)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pixlex\[datasets\]'"):
        open_hub("owner/set")
