"""Parquet files: bytes by row, whatever the row groups, and columns that do not fit."""

from __future__ import annotations

import base64
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixlex.data import tables
from pixlex.data.captions import open_pairs
from pixlex.data.decoding import ImageRecord, UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.tables import ParquetSource, image_columns

Picture = Callable[..., bytes]


def write(path: Path, columns: dict[str, Any], row_group_size: int = 3) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_any_order_of_reading_gives_each_row_its_bytes(tmp_path: Path, picture: Picture) -> None:
    numbers, names = range(11), ("cat", "dog", "emu")
    images = [picture(number) for number in numbers]
    labels = pa.array([number % 3 for number in numbers], pa.int32())
    columns = {"image": images, "label": labels, "class_name": [names[number % 3] for number in numbers]}
    path = write(
        tmp_path / "set.parquet", {**columns, "source_file": [f"{number}.JPEG" for number in numbers]}
    )
    source = ParquetSource("set", [path])
    assert (len(source), source.class_names) == (11, names)
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for index in np.random.default_rng(0).permutation(11).tolist() * 2:
            assert copy.read(index) == ImageRecord(images[index], index % 3, f"set.parquet#{index}")
    for index in (-1, 11):
        with pytest.raises(IndexError, match="set has 11 images"):
            source.read(index)


def test_a_named_column_gives_the_classes(tmp_path: Path, picture: Picture) -> None:
    """In place of label and class_name, of any form of table and list; a gap is no class."""
    images = [picture(number) for number in range(5)]
    names, numbers = ["wug", "dax", None, "", "wug"], [7, 10, 7, None, 10]
    table = {"image": images, "kind": names, "size": numbers, "label": [0] * 5, "class_name": ["x"] * 5}
    parquet = write(tmp_path / "set.parquet", table)
    kinds = ([1, 0, -1, -1, 1], ("dax", "wug"))
    listed = tmp_path / "set.csv"
    rows = [f"{number}.png,{name or ''}" for number, name in enumerate(names)]
    listed.write_text("\n".join(["path,kind", *rows]))
    described = [f"{parquet}?label=kind", f"{tmp_path}/*.parquet?label=kind", f"{listed}?label=kind"]
    if datasets := pytest.importorskip("datasets"):
        saved = datasets.Dataset.from_dict({"image": images, "kind": names, "size": numbers})
        saved.save_to_disk(tmp_path / "saved")
        described.append(f"{tmp_path / 'saved'}?label=kind")
        known = saved.cast_column("size", datasets.ClassLabel(names=[str(one) for one in range(11)]))
        known.save_to_disk(tmp_path / "known")
    for one in described:
        source = open_source(one)
        assert (source.labels.indices.tolist(), source.class_names) == kinds  # type: ignore[attr-defined]
    numbered = open_source(f"{parquet}?label=size")
    assert numbered.class_names == ("10", "7")
    assert open_source(f"{tmp_path / 'known'}?label=size").class_names[7] == "7"
    assert open_source(f"{parquet}?label=label").class_names == ("0",)
    plain = open_source(str(parquet))
    assert len({numbered.identity, source.identity, plain.identity}) == 3
    assert plain.class_names == ("x",)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("set.parquet?label=color", r"set.parquet: expected a column color, found image, label"),
        ("set.csv?label=color", r"set.csv line 2: expected a column color, found 'path'"),
        ("set.parquet?lable=label", r"unknown option 'lable' \(meant label\?\)"),
        ("set.parquet?captions=label", "opened for their classes take the options label, got captions"),
        ("shards.tar?label=kind", "has no columns"),
        ("set.parquet?label=label + set.parquet", "expected one source of images, got a mixture"),
        (
            "set.parquet?label=label&rows=images",
            "that are opened for their classes take the options label, got rows",
        ),
        ("set.parquet?label=", "the option label must be given once, with a value"),
        ("set.parquet?label=image", "class_name must be a text"),
    ],
)
def test_columns_of_classes_it_refuses(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch, description: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set.parquet", {"image": [picture(0)], "label": [0], "class_name": ["x"]})
    (tmp_path / "set.csv").write_text("path\n0.png")
    with tarfile.open(tmp_path / "shards.tar", "w") as tar:
        (tmp_path / "0.png").write_bytes(picture(0))
        tar.add(tmp_path / "0.png", "0.png")
    with pytest.raises(ValueError, match=message):
        open_source(description)


def test_row_groups_without_rows_and_files_without_rows(tmp_path: Path, picture: Picture) -> None:
    schema = pa.schema([("image", pa.binary())])
    paths = [tmp_path / f"{number}.parquet" for number in range(4)]
    for number, (path, sizes) in enumerate(zip(paths, [[0], [2, 0, 1], [], [1]], strict=True)):
        with pq.ParquetWriter(path, schema) as writer:
            for size in sizes:
                writer.write_table(pa.table({"image": [picture(number)] * size}, schema=schema))
    source = ParquetSource("set", paths)
    keys = ["1.parquet#0", "1.parquet#1", "1.parquet#2", "3.parquet#0"]
    assert [source.key(index) for index in range(4)] == keys
    assert [source.read(index).data for index in range(4)] == [picture(1)] * 3 + [picture(3)]


def test_cached_row_groups_are_bounded(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(number) for number in range(30)]
    path = write(tmp_path / "set.parquet", {"image": images})
    limit = 4 * sum(len(image) for image in images[:3])
    monkeypatch.setattr(tables, "CACHE_BYTES", limit)
    with pytest.warns(UserWarning, match="reading in random order will be slow"):
        source = ParquetSource("set", [path])
    for index in np.random.default_rng(0).permutation(30).tolist():
        assert source.read(index).data == images[index]
        held = [group.nbytes for group in source._cache.values()]
        assert sum(held) <= limit
    assert len(held) >= 2


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
        pa.list_(pa.uint8()), pa.large_list(pa.uint8()),
        pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)  # fmt: skip
def test_other_columns_of_bytes(tmp_path: Path, picture: Picture, kind: pa.DataType) -> None:
    """Bytes in every type that holds them, and base64, half of it behind the beginning of an address."""
    images = [picture(number) for number in range(4)]
    is_text = "string" in str(kind) and not pa.types.is_struct(kind)
    cells: list[Any] = [list(image) if "list" in str(kind) else image for image in images]
    if pa.types.is_struct(kind):
        cells = [{"bytes": image, "path": "a.png"} for image in images]
    elif is_text:
        texts = [base64.encodebytes(image).decode() for image in images]
        cells = [texts[0], f"data:image/png;base64,{texts[1]}", None, "?"]
    is_dictionary = pa.types.is_dictionary(kind)
    column = pa.array(cells, kind.value_type if is_dictionary else kind)
    column = column.dictionary_encode() if is_dictionary else column
    path = write(tmp_path / "set.parquet", {"picture": column, "text": ["x"] * 4})
    source = ParquetSource("set", [path])
    assert image_columns(path) == ["picture"]
    assert [source.read(index).data for index in range(2)] == images[:2]
    for index, reason in ((2, "the row holds no image"), (3, "its cell is no base64")) if is_text else ():
        with pytest.raises(UnreadableImage, match=rf"set\.parquet#{index}: {reason}"):
            source.read(index)
    assert is_text or source.read(3).data == images[3]
    words = {"path": ["abcd"] * 3, "caption": ["words" * 40] * 3}  # in letters of base64
    assert image_columns(write(tmp_path / "words.parquet", words)) == []


def test_cells_with_a_path_alone_with_nothing_and_with_gaps(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": None, "path": path} for path in ("a.png", "gone.png", None)]
    source = ParquetSource("set", [write(tmp_path / "a.parquet", {"image": pa.array([*cells, None], kind)})])
    assert source.read(0).data == picture(0)
    sentences = (r"a\.parquet#1: the file does not exist", "the row holds no image", "the row holds no image")
    for index, sentence in enumerate(sentences, 1):
        with pytest.raises(UnreadableImage, match=sentence):
            source.read(index)
    images = [picture(0).ljust(2000, b"\0"), picture(1).ljust(2000, b"\0")]
    path = write(tmp_path / "b.parquet", {"image": pa.array(images, pa.binary(2000))})
    assert ParquetSource("set", [path]).read(1).data == images[1]
    path = write(tmp_path / "c.parquet", {"image": pa.array([[1, None]], pa.list_(pa.uint8()))})
    with pytest.raises(UnreadableImage, match=r"c\.parquet#0: expected bytes, got \[1, None\]"):
        ParquetSource("set", [path]).read(0)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ("{", "metadata 'huggingface': not JSON"),
        (b"\xff", "metadata 'huggingface': expected UTF-8 text"),
        ("3", "'dog' has no label"),
        ('{"info": null}', "'dog' has no label"),
        ('{"info": {"features": {"label": {"names": 3}}}}', "expected the class names of label.* got 3"),
        ('{"info": {"features": {"label": {"names": ["a", 3]}}}}', r"expected the .* got \['a', 3\]"),
        ('{"info": {"features": {"label": {"names": ["a"]}}}}', r"column label row 1: .*\[0, 1\).* 'dog'"),
    ],
)
def test_class_names_that_datasets_wrote(tmp_path: Path, metadata: str | bytes, sentence: str) -> None:
    path = tmp_path / "set.parquet"
    names = '{"info": {"features": {"label": {"names": ["cat", "dog", "emu"]}}}}'
    table = pa.table({"image": [b"x", b"y"], "label": [2, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": names}), path)
    source = ParquetSource("set", [path])
    assert (source.class_names, source.labels.indices.tolist()) == (("cat", "dog", "emu"), [2, 0])
    table = pa.table({"image": [b"x", b"y"], "label": [None, "dog"]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
    with pytest.raises(ValueError, match=sentence):
        ParquetSource(str(path), [path])


def test_columns_twice_and_texts_that_are_no_utf_8(tmp_path: Path) -> None:
    """Errors with file and column, and the row."""
    pq.write_table(pa.table([[b"x"], [0], [1]], names=["image", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: expected columns .* names of their own, got 'label'"):
        open_source(str(tmp_path / "a.parquet"))
    bad = pa.array([b"ok", b"caf\xe9"]).view(pa.string())
    write(tmp_path / "b.parquet", {"image": [b"x", b"y"], "caption": bad})
    for description in ("b.parquet", "c.parquet"):
        write(tmp_path / "c.parquet", {"path": ["x", "y"], "caption": bad})
        with pytest.raises(ValueError, match=rf"{description}#1, column caption: .* UTF-8 text, got b'caf"):
            open_pairs(str(tmp_path / description))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"images": [[b"x"]], "text": ["x"]}, r"expected one image a row, got a list .* the column images"),
        ({f"column {number}": [0] for number in range(999)}, r"set\.parquet: expected one column.{1,600}$"),
        ({"image": [b"x"], "label": [[1] * 999], "class_name": ["cat"]}, r"set\.parquet row .* got .{80}$"),
        ({"left": [b"x"], "right": [b"x"]}, r"or one of .* named 'image'; found left: binary, right: binary"),
        ({"image": pa.array([], pa.binary())}, "set has no rows"),
        ({"image": [b"x"], "label": [3]}, r"set: label 3 has no name \(row 0\)"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path / "set.parquet", columns)
    with pytest.raises(ValueError, match=sentence):
        ParquetSource("set", [path])


def test_files_that_differ_and_files_that_are_no_parquet(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", {"image": [b"x"], "label": [0], "class_name": ["cat"]})
    two = write(tmp_path / "two.parquet", {"image": [b"x"]})
    with pytest.raises(ValueError, match=r"two\.parquet: the .* \['class_name', 'label'\] of .*one\.parquet"):
        ParquetSource("set", [one, two])
    (tmp_path / "three.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"three\.parquet cannot be read as parquet"):
        open_source(str(tmp_path / "three.parquet"))


def test_a_damaged_row_group_is_an_unreadable_image(tmp_path: Path) -> None:
    noise = [np.random.default_rng(number).bytes(2000) for number in range(4)]
    path = write(tmp_path / "set.parquet", {"image": noise}, row_group_size=2)
    data = bytearray(path.read_bytes())
    source = ParquetSource("set", [path])
    data[4:600] = bytes(596)
    path.write_bytes(bytes(data))
    with pytest.raises(UnreadableImage, match=r"set\.parquet#0: its row group cannot be read"):
        source.read(0)
    assert source.read(3).data == noise[3]
