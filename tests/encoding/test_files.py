"""Files of codes and words: what is written is read back; what is none is refused with file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.encoding.conftest import Expected
from tests.tiny import write_images

from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.encoding import files
from pixlex.encoding.encode import encode_source
from pixlex.encoding.files import EncodedImage, format_line, read_codes
from pixlex.files import CHECKSUM, sealed


def test_the_forms(lqae: ImageTokenizer, photos: Path, expected: Expected, tmp_path: Path) -> None:
    """Every kind is read back, and looks as it is described."""
    for kind in ("words", "codes", "jsonl", "parquet"):
        out = tmp_path / kind / f"out.{kind}"
        encode_source(lqae, open_source(str(photos)), out, kind, batch_size=7, progress=False)  # type: ignore[arg-type]
        assert list(read_codes(out, lqae)) == expected
        beside = [f"{out.name}.sha256"] if kind in ("words", "codes") else []
        assert sorted(path.name for path in out.parent.iterdir()) == [out.name, *beside]
    key, codes = expected[13]
    words = lqae.to_words(torch.tensor([codes]))[0]
    lines = {path.name: path.read_text().splitlines()[13] for path in tmp_path.glob("[!p]*/out.*[!6]")}
    assert lines["out.words"] == f"{key}\t{words}"
    assert lines["out.codes"] == f"{key}\t{' '.join(map(str, codes))}"
    entry = json.loads(lines["out.jsonl"])
    assert entry == sealed({"key": key, "label": 1, "codes": list(codes), "words": words})
    table = pq.read_table(tmp_path / "parquet" / "out.parquet")
    types = {"key": pa.string(), "label": pa.int64(), "codes": pa.list_(pa.int32()), "words": pa.string()}
    assert {column.name: column.type for column in table.schema} == types | {CHECKSUM: pa.string()}
    assert table.slice(13, 1).to_pylist()[0] == entry


def test_what_is_unknown_is_left_out(vqvae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    """Labels of a folder without classes, words of a model without words; the codes are read back."""
    source = open_source(str(photos / "cats"))
    rows = [tuple(row) for row in vqvae.tokenize(sorted((photos / "cats").iterdir())).tolist()]
    for kind in ("codes", "jsonl", "parquet"):
        encode_source(vqvae, source, tmp_path / f"out.{kind}", kind, progress=False)  # type: ignore[arg-type]
        assert [codes for _, codes in read_codes(tmp_path / f"out.{kind}", vqvae)] == rows
    assert set(json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])) == {"key", "codes", CHECKSUM}
    row = pq.read_table(tmp_path / "out.parquet").slice(0, 1).to_pylist()[0]
    assert (row["label"], row["words"]) == (None, None)


@example(key="\ufeff\\f", codes=[0] * 16)
@settings(deadline=None, max_examples=50)
@given(
    key=st.text(st.characters(exclude_categories=["Cs"])),
    codes=st.lists(st.integers(0, 63), min_size=16, max_size=16),
)
def test_any_key_survives_a_line(vqvae: ImageTokenizer, key: str, codes: list[int]) -> None:
    for kind in ("codes", "jsonl"):
        line = format_line(EncodedImage(0, key, -1, tuple(codes)), kind, vqvae)  # type: ignore[arg-type]
        assert not {"\n", "\r"} & set(line)
        assert list(files.read_lines([f"{line}\n".encode()], "line", vqvae)) == [(key, tuple(codes))]


def test_a_file_name_that_is_no_text_survives(vqvae: ImageTokenizer, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", ["plain.png"])
    os.rename(folder / "plain.png", os.fsencode(folder) + b"/\xff\t.png")
    key = os.fsdecode(b"\xff\t.png")
    for kind, read in (("codes", key), ("jsonl", key), ("parquet", "\\udcff\t.png")):
        out = tmp_path / f"out.{kind}"
        encode_source(vqvae, open_source(str(folder)), out, kind, progress=False)  # type: ignore[arg-type]
        assert [found for found, _ in read_codes(out, vqvae)] == [read]


def test_byte_order_marks_of_files_to_decode(vqvae: ImageTokenizer, tmp_path: Path) -> None:
    line = f"a.png\t{' '.join(['7'] * 16)}\n"
    for text in (line, json.dumps({"key": "a.png", "codes": [7] * 16})):
        (tmp_path / "codes").write_text(text, encoding="utf-8-sig")
        assert list(read_codes(tmp_path / "codes", vqvae)) == [("a.png", (7,) * 16)]
    (tmp_path / "codes").write_text(line, encoding="utf-16")
    with pytest.raises(ValueError, match="codes: expected UTF-8 text, got the byte order mark of UTF-16"):
        list(read_codes(tmp_path / "codes", vqvae))


def test_lines_without_keys_take_their_numbers(
    lqae: ImageTokenizer, expected: Expected, tmp_path: Path
) -> None:
    codes = [row for _, row in expected[:3]]
    words = lqae.to_words(torch.tensor(codes))
    lines = [words[0], "", " ".join(map(str, codes[1])), json.dumps({"words": words[2]}), ""]
    (tmp_path / "lines.txt").write_text("\r\n".join(lines))
    read = list(read_codes(tmp_path / "lines.txt", lqae))
    assert read == [("1", codes[0]), ("3", codes[1]), ("4", codes[2])]


ZEROS = " ".join(["0"] * 15)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"key\t{ZEROS}", r"expected 16 codes \(4 x 4\), got 15"),
        (f"key\t{ZEROS} 300", r"expected codes in \[0, 300\), got 300"),
        ("key\tone two three", r"expected 16 words \(4 x 4\), got 3"),
        ("\t".join(["key", "xylophone " * 16]), "the word 'xylophone' is not one of"),
        ('{"key": "a"}', "expected 'codes' or 'words', found neither"),
        ('{"key": "a", "codes": [true]}', "expected codes to be a list of integers"),
    ],
)
def test_lines_it_refuses(lqae: ImageTokenizer, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "file.txt").write_text(f"key\t{ZEROS} 1\n{line}\n")
    with pytest.raises(ValueError, match=rf"file\.txt line 2: {message}"):
        list(read_codes(tmp_path / "file.txt", lqae))


def test_files_it_refuses(lqae: ImageTokenizer, vqvae: ImageTokenizer, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        list(read_codes(tmp_path / "out.parquet", lqae))
    pq.write_table(pa.table({"codes": [[0] * 16, [0] * 3]}), tmp_path / "out.parquet")
    with pytest.raises(ValueError, match=r"out\.parquet row 1: expected 16 codes"):
        list(read_codes(tmp_path / "out.parquet", lqae))
    (tmp_path / "words.txt").write_text("key\tsome words\n")
    with pytest.raises(
        ValueError, match="expected integers, for a vqvae's codes are no words, got 'some words'"
    ):
        list(read_codes(tmp_path / "words.txt", vqvae))
    (tmp_path / "parts").mkdir()
    with pytest.raises(ValueError, match=r"expected parts of codes, part-00000\.parquet .*, found none"):
        list(read_codes(tmp_path / "parts", lqae))
    with pytest.raises(ValueError, match="expected one of words, codes, jsonl, parquet, got 'csv'"):
        files.check_kind("csv", lqae)
    with pytest.raises(ValueError, match="a vqvae has no words: write codes, jsonl or parquet"):
        files.check_kind("words", vqvae)
