"""Files of codes: what is written is read back, whatever happens between; nothing is written twice."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import tiny_language, tiny_lqae, tiny_vqvae, write_images
from tqdm import tqdm

from pixlex.api import ImageTokenizer
from pixlex.data.images import ImageRecord, ImageSource, TooManyBroken, open_source
from pixlex.encoding import (
    EncodedImage,
    decode_codes,
    decode_file,
    encode,
    encode_source,
    files,
    format_line,
    picture_names,
    read_codes,
)
from pixlex.files import CHECKSUM, sealed

KINDS = ("words", "codes", "jsonl", "parquet")
NAMES = tuple(f"{group}/{number:02d}.png" for group in ("cats", "dogs") for number in range(10))


@pytest.fixture(scope="module")
def lqae(language: Path) -> ImageTokenizer:
    return ImageTokenizer(tiny_lqae(language))


@pytest.fixture(scope="module")
def vqvae() -> ImageTokenizer:
    return ImageTokenizer(tiny_vqvae())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture(scope="module")
def expected(lqae: ImageTokenizer, photos: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Key and codes of each image of the folder, straight from the tokenizer."""
    rows = lqae.tokenize([photos / name for name in NAMES]).tolist()
    return [(name, tuple(row)) for name, row in zip(NAMES, rows, strict=True)]


@dataclass
class Watched:
    """A source that counts what is read, and may do something before."""

    source: ImageSource
    before: Callable[[int], None] = lambda index: None
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def identity(self) -> str:
        return self.source.identity

    def key(self, index: int) -> str:
        return self.source.key(index)

    def read(self, index: int) -> ImageRecord:
        self.before(index)
        self.reads.append(index)
        return self.source.read(index)


def quietly(
    tokenizer: ImageTokenizer, source: ImageSource, out: Path, kind: Any = "codes", **settings: Any
) -> Any:
    return encode_source(tokenizer, source, out, kind, progress=False, **settings)


def interrupt_at(index: int) -> Callable[[int], None]:
    def before(reading: int) -> None:
        if reading == index:
            raise KeyboardInterrupt

    return before


def interrupted(tokenizer: ImageTokenizer, photos: Path, out: Path, at: int) -> Path:
    """Encode one by one up to an interrupt while image `at` is read; return the journal."""
    source = Watched(open_source(str(photos)), interrupt_at(at))
    with pytest.raises(KeyboardInterrupt):
        quietly(tokenizer, source, out, batch_size=1)
    assert not out.exists()
    return out.with_name(f"{out.name}.journal")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(
    lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "new folder" / f"out.{kind}"
    result = quietly(lqae, open_source(str(photos)), out, kind, batch_size=7)
    assert list(read_codes(out, lqae)) == expected
    assert (result.path, result.num_images, result.num_resumed, result.skipped) == (out, 20, 0, ())
    beside = [f"{out.name}.sha256"] if kind in ("words", "codes") else []
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, *beside]


@pytest.mark.parametrize("kind", ["codes", "jsonl", "parquet"])
def test_codes_without_words_are_read_back(
    vqvae: ImageTokenizer, photos: Path, tmp_path: Path, kind: str
) -> None:
    quietly(vqvae, open_source(str(photos)), tmp_path / f"out.{kind}", kind)
    rows = vqvae.tokenize([photos / name for name in NAMES]).tolist()
    assert [list(codes) for _, codes in read_codes(tmp_path / f"out.{kind}", vqvae)] == rows


def test_the_forms(lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path) -> None:
    source = open_source(str(photos))
    for kind in KINDS:
        quietly(lqae, source, tmp_path / kind, kind)
    key, codes = expected[13]
    words = lqae.to_words(torch.tensor([codes]))[0]
    assert (tmp_path / "words").read_text().splitlines()[13] == f"{key}\t{words}"
    assert (tmp_path / "codes").read_text().splitlines()[13] == f"{key}\t{' '.join(map(str, codes))}"
    entry = json.loads((tmp_path / "jsonl").read_text().splitlines()[13])
    assert entry == sealed({"key": key, "label": 1, "codes": list(codes), "words": words})
    table = pq.read_table(tmp_path / "parquet")
    types = {"key": pa.string(), "label": pa.int64(), "codes": pa.list_(pa.int32()), "words": pa.string()}
    assert {column.name: column.type for column in table.schema} == types | {CHECKSUM: pa.string()}
    assert table.slice(13, 1).to_pylist()[0] == entry


def test_what_is_unknown_is_left_out(vqvae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    source = open_source(str(photos / "cats"))
    quietly(vqvae, source, tmp_path / "jsonl", "jsonl")
    quietly(vqvae, source, tmp_path / "parquet", "parquet")
    assert set(json.loads((tmp_path / "jsonl").read_text().splitlines()[0])) == {"key", "codes", CHECKSUM}
    row = pq.read_table(tmp_path / "parquet").slice(0, 1).to_pylist()[0]
    assert (row["label"], row["words"]) == (None, None)


@example(key="\ufeff\\f", codes=[0] * 16)
@settings(deadline=None, max_examples=50)
@given(
    key=st.text(st.characters(exclude_categories=["Cs"])),
    codes=st.lists(st.integers(0, 63), min_size=16, max_size=16),
)
def test_any_key_survives_a_line(vqvae: ImageTokenizer, key: str, codes: list[int]) -> None:
    for kind in ("codes", "jsonl"):
        line = format_line(EncodedImage(0, key, -1, tuple(codes)), kind, vqvae)
        assert "\n" not in line
        assert "\r" not in line
        assert list(files.read_lines([f"{line}\n".encode()], "line", vqvae)) == [(key, tuple(codes))]


def test_byte_order_marks_of_files_to_decode(vqvae: ImageTokenizer, tmp_path: Path) -> None:
    line = f"a.png\t{' '.join(['7'] * 16)}\n"
    for text in (line, json.dumps({"key": "a.png", "codes": [7] * 16})):
        (tmp_path / "codes").write_text(text, encoding="utf-8-sig")
        assert list(read_codes(tmp_path / "codes", vqvae)) == [("a.png", (7,) * 16)]
    (tmp_path / "codes").write_text(line, encoding="utf-16")
    with pytest.raises(ValueError, match="codes: expected UTF-8 text, got the byte order mark of UTF-16"):
        list(read_codes(tmp_path / "codes", vqvae))


def test_a_file_name_that_is_no_text_survives(vqvae: ImageTokenizer, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", ["plain.png"])
    os.rename(folder / "plain.png", os.fsencode(folder) + b"/\xff\t.png")
    key = os.fsdecode(b"\xff\t.png")
    for kind in ("codes", "jsonl"):
        quietly(vqvae, open_source(str(folder)), tmp_path / kind, kind)
        assert [read for read, _ in read_codes(tmp_path / kind, vqvae)] == [key]
    quietly(vqvae, open_source(str(folder)), tmp_path / "out.parquet", "parquet")
    assert [read for read, _ in read_codes(tmp_path / "out.parquet", vqvae)] == ["\\udcff\t.png"]


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_cut_journal_is_gone_on_with(
    lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path, cut: int
) -> None:
    out = tmp_path / "out.txt"
    journal = interrupted(lqae, photos, out, at=9)
    whole = journal.read_bytes()
    done = whole.count(b"\n") - 1
    assert done >= 7  # one batch at hand, one being read ahead
    journal.write_bytes(whole[: len(whole) - cut])
    source = Watched(open_source(str(photos)))
    result = quietly(lqae, source, out)
    kept = done if cut == 0 else done - 1
    assert result.num_resumed == kept
    assert source.reads == list(range(kept, 20))
    assert list(read_codes(out, lqae)) == expected
    assert not journal.exists()


@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_journal_cut_in_its_first_line_is_begun_anew(
    lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path, length: int
) -> None:
    out = tmp_path / "out.txt"
    journal = interrupted(lqae, photos, out, at=5)
    journal.write_bytes(journal.read_bytes()[:length])
    assert quietly(lqae, open_source(str(photos)), out).num_resumed == 0
    assert list(read_codes(out, lqae)) == expected


def test_zeros_after_a_power_cut_are_dropped(
    lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    journal = interrupted(lqae, photos, out, at=9)
    done = journal.read_bytes().count(b"\n") - 1
    with journal.open("ab") as file:
        file.write(bytes(500) + b"\n" + bytes(80))
    assert quietly(lqae, open_source(str(photos)), out).num_resumed == done
    assert list(read_codes(out, lqae)) == expected


def encode_slowly(tokenizer: ImageTokenizer, photos: Path, out: Path) -> None:
    """What the killed process does."""
    tqdm.set_lock(threading.RLock())  # not the one it shares with this process: it may die holding it
    source = Watched(open_source(str(photos)), lambda index: time.sleep(0.002))
    quietly(tokenizer, source, out, "jsonl", batch_size=2)


def test_killed_at_ten_random_moments(lqae: ImageTokenizer, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos = write_images(tmp_path / "photos", [f"{number:03d}.png" for number in range(80)])
    undisturbed, out = tmp_path / "undisturbed.jsonl", tmp_path / "killed.jsonl"
    quietly(lqae, open_source(str(photos)), undisturbed, "jsonl")
    journal = tmp_path / "killed.jsonl.journal"
    fork = multiprocessing.get_context("fork")
    kills, sizes = 0, [0]
    while kills < 10 and not out.exists():
        child = fork.Process(target=encode_slowly, args=(lqae, photos, out))
        child.start()
        wait_for = sizes[-1] + int(generator.integers(1, 400))
        while child.is_alive() and not (journal.exists() and journal.stat().st_size >= wait_for):
            time.sleep(0.0005)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        sizes.append(journal.stat().st_size if journal.exists() else sizes[-1])
    assert kills >= 3
    assert len(set(sizes)) >= 3  # killed at work, not before or after it
    if not out.exists() or journal.exists():
        quietly(lqae, open_source(str(photos)), out, "jsonl")
    assert out.read_bytes() == undisturbed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "photos", "undisturbed.jsonl"]


def test_the_kind_may_change_on_the_way(
    lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    interrupted(lqae, photos, out, at=6)
    assert quietly(lqae, open_source(str(photos)), out, "parquet").num_resumed > 0
    assert list(read_codes(out, lqae)) == expected


def test_work_of_another_model_or_other_images_is_refused(
    lqae: ImageTokenizer, language: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    journal = interrupted(lqae, photos, out, at=6)
    before = journal.read_bytes()
    other = ImageTokenizer(tiny_lqae(language, seed=1))
    rounded = ImageTokenizer(tiny_lqae(language), precision="bf16")
    for tokenizer in (other, rounded):
        with pytest.raises(ValueError, match=r"out\.txt\.journal is the unfinished work of another model"):
            quietly(tokenizer, open_source(str(photos)), out)
    with pytest.raises(ValueError, match="the unfinished work of other images"):
        quietly(lqae, open_source(str(photos / "cats")), out)
    assert journal.read_bytes() == before
    assert quietly(other, open_source(str(photos)), out, overwrite=True).num_resumed == 0


def test_the_same_model_elsewhere_goes_on(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    interrupted(lqae, photos, out, at=6)
    elsewhere = ImageTokenizer(tiny_lqae(tiny_language(tmp_path / "moved")))
    assert quietly(elsewhere, open_source(str(photos)), out).num_resumed > 0


def test_a_journal_that_is_none_is_refused(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out.txt.journal").write_text("Dear diary,\n")
    with pytest.raises(ValueError, match="is not a journal that this version of pixlex reads"):
        quietly(lqae, open_source(str(photos)), tmp_path / "out.txt")
    assert (tmp_path / "out.txt.journal").read_text() == "Dear diary,\n"


def test_two_processes_do_not_share_a_journal(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    with (tmp_path / "out.txt.journal").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is being written by another process"):
            quietly(lqae, open_source(str(photos)), tmp_path / "out.txt")


def test_a_finished_file_is_not_replaced_unasked(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"out\.txt exists; choose another name, or replace it"):
        quietly(lqae, open_source(str(photos)), out)
    assert out.read_text() == "mine"
    quietly(lqae, open_source(str(photos)), out, overwrite=True)
    assert out.read_text().count("\n") == 20
    with pytest.raises(ValueError, match="exists"):
        quietly(lqae, open_source(str(photos)), tmp_path, overwrite=True)


def test_a_full_disk_costs_nothing(
    lqae: ImageTokenizer,
    photos: Path,
    expected: Sequence[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.txt"
    out.write_text("old")

    def full(path: Path, *arguments: Any) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encode, "write_codes", full)
        with pytest.raises(OSError, match="No space left"):
            quietly(lqae, open_source(str(photos)), out, overwrite=True)
    assert out.read_text() == "old"
    source = Watched(open_source(str(photos)))
    assert quietly(lqae, source, out).num_resumed == 20
    assert source.reads == []
    assert list(read_codes(out, lqae)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt", "out.txt.sha256"]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten images, of which the fourth and the last are none."""
    folder = write_images(tmp_path / "mixed", [f"{number}.png" for number in range(10)])
    for name in ("3.png", "9.png"):
        (folder / name).write_text("no image")
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_broken_images_are_skipped_and_listed(
    lqae: ImageTokenizer, mixed: Path, tmp_path: Path, batch_size: int
) -> None:
    out = tmp_path / "out.txt"
    result = quietly(lqae, open_source(str(mixed)), out, batch_size=batch_size, max_broken_share=0.2)
    assert [key for key, _ in read_codes(out, lqae)] == [
        f"{number}.png" for number in range(10) if number % 6 != 3
    ]
    assert [one.key for one in result.skipped] == ["3.png", "9.png"]
    listed = [json.loads(line) for line in (tmp_path / "out.txt.skipped.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in listed] == ["3.png", "9.png"]
    assert all("not an image" in entry["reason"] for entry in listed)


def test_too_many_broken_images_stop_and_may_be_repaired(
    lqae: ImageTokenizer, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    with pytest.raises(TooManyBroken, match=r"3\.png"):
        quietly(lqae, open_source(str(mixed)), out, batch_size=2)
    assert not out.exists()
    assert "3.png" in (tmp_path / "out.txt.skipped.jsonl").read_text()
    write_images(mixed, ["3.png", "9.png"], seed=5)
    source = Watched(open_source(str(mixed)))
    result = quietly(lqae, source, out)
    assert result.num_resumed == 10 - len(source.reads) > 0
    assert 3 in source.reads
    assert [key for key, _ in read_codes(out, lqae)] == [f"{number}.png" for number in range(10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "out.txt", "out.txt.sha256"]


def test_only_broken_images_are_left(lqae: ImageTokenizer, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    with pytest.raises(TooManyBroken):
        quietly(lqae, open_source(str(mixed)), out, batch_size=1, max_broken_share=0.1)
    result = quietly(lqae, open_source(str(mixed)), out, max_broken_share=0.2)
    assert (result.num_images, len(result.skipped)) == (8, 2)


def test_no_image_can_be_read(lqae: ImageTokenizer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("no image")
    with pytest.raises(TooManyBroken, match=r"one\.png"):
        quietly(lqae, open_source(str(tmp_path / "photos")), tmp_path / "out.txt")


def test_numbers_and_kinds_it_refuses(
    lqae: ImageTokenizer, vqvae: ImageTokenizer, photos: Path, tmp_path: Path
) -> None:
    source = open_source(str(photos))
    with pytest.raises(ValueError, match="a vqvae has no words: write codes, jsonl or parquet"):
        quietly(vqvae, source, tmp_path / "out", "words")
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        quietly(lqae, source, tmp_path / "out", batch_size=0)
    with pytest.raises(ValueError, match=r"max_broken_share must lie in \[0, 1\], got 2"):
        quietly(lqae, source, tmp_path / "out2", max_broken_share=2.0)
    with pytest.raises(ValueError, match="expected one of words, codes, jsonl, parquet, got 'csv'"):
        files.check_kind("csv", lqae)


def test_lines_without_keys_take_their_numbers(
    lqae: ImageTokenizer, expected: Sequence[Any], tmp_path: Path
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
        (f"key\t{ZEROS}", r"file\.txt line 2: expected 16 codes \(4 x 4\), got 15"),
        (f"key\t{ZEROS} 300", r"file\.txt line 2: expected codes in \[0, 300\), got 300"),
        ("key\tone two three", r"file\.txt line 2: expected 16 words \(4 x 4\), got 3"),
        ("\t".join(["key", "xylophone " * 16]), r"file\.txt line 2: the word 'xylophone' is not one of"),
        ('{"key": "a"}', r"file\.txt line 2: expected 'codes' or 'words', found neither"),
        ('{"key": "a", "codes": [true]}', r"file\.txt line 2: expected codes to be a list of integers"),
        ('{"key": "a", "codes": "1 2"}', r"file\.txt line 2: expected codes to be a list of integers"),
        ("key\t", r"file\.txt line 2: expected 16 codes"),
    ],
)
def test_lines_it_refuses(lqae: ImageTokenizer, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "file.txt").write_text(f"key\t{ZEROS} 1\n{line}\n")
    with pytest.raises(ValueError, match=message):
        list(read_codes(tmp_path / "file.txt", lqae))


def test_files_it_refuses(lqae: ImageTokenizer, vqvae: ImageTokenizer, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        list(read_codes(tmp_path / "out.parquet", lqae))
    pq.write_table(pa.table({"codes": [[0] * 16, [0] * 3]}), tmp_path / "out.parquet")
    with pytest.raises(ValueError, match=r"out\.parquet row 1: expected 16 codes"):
        list(read_codes(tmp_path / "out.parquet", lqae))
    (tmp_path / "words.txt").write_text("key\tsome words\n")
    with pytest.raises(ValueError, match=r"expected integers \(a vqvae has no words\), got 'some words'"):
        list(read_codes(tmp_path / "words.txt", vqvae))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(), max_size=12))
def test_picture_names_are_safe_and_different(keys: list[str]) -> None:
    names = picture_names(keys)
    assert len(names) == len(keys)
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name == Path(name).name != ".."
        assert not name.startswith(".")
        assert 0 < len(f"{name}.png".encode()) < 256
        assert name.isprintable()


def test_picture_names() -> None:
    keys = [
        "cats/1.jpg",
        "cats_1.png",
        "CATS_1",
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        "a.b",
        "train.parquet#7",
    ]
    assert picture_names(keys) == [
        "cats_1", "cats_1-2", "CATS_1-3", "_.._etc_passwd", "_etc_passwd", "image", "a.b", "train.parquet_7",
    ]  # fmt: skip
    assert picture_names(["a", "a", "a-2", "a"]) == ["a", "a-2", "a-2-2", "a-3"]


def test_pictures_show_what_was_decoded(
    lqae: ImageTokenizer, photos: Path, expected: Sequence[Any], tmp_path: Path
) -> None:
    quietly(lqae, open_source(str(photos)), tmp_path / "words.txt", "words")
    result = decode_file(lqae, tmp_path / "words.txt", tmp_path / "out", batch_size=6, progress=False)
    assert (result.num_images, result.num_resumed) == (20, 0)
    wanted = lqae.decode(torch.tensor([codes for _, codes in expected]))
    for name, image in zip(NAMES, wanted, strict=True):
        picture = Image.open(tmp_path / "out" / name.replace("/", "_"))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        assert (picture.mode, (pixels - image).abs().max() <= 0.5001 / 255) == ("RGB", True)


def test_keys_cannot_leave_the_folder(lqae: ImageTokenizer, expected: Sequence[Any], tmp_path: Path) -> None:
    keys = ["../up.png", "/tmp/../absolute", "a/../../b", "..", ".hidden", "", "x\0y"]
    codes = [(key, expected[0][1]) for key in keys]
    decode_codes(lqae, codes, tmp_path / "in" / "out", progress=False)
    everything = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    pictures = [path for path in everything if path.suffix == ".png"]
    assert len(pictures) == len(keys)
    assert {path.parent for path in everything} == {tmp_path / "in" / "out"}


def test_decoding_goes_on_where_it_was_killed(
    lqae: ImageTokenizer, expected: Sequence[Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    decode_codes(lqae, list(expected), out, progress=False)
    pictures = sorted(out.glob("*.png"))
    contents = {path: path.read_bytes() for path in pictures}
    for path in pictures[5:8]:
        path.unlink()
    leftover = out / f".{pictures[5].name}.123.partial"
    leftover.write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in pictures if path.exists()}
    result = decode_codes(lqae, list(expected), out, progress=False)
    assert (result.num_images, result.num_resumed) == (20, 17)
    assert {path: path.read_bytes() for path in pictures} == contents
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not leftover.exists()


def test_pictures_of_others_are_kept(lqae: ImageTokenizer, expected: Sequence[Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.png").write_text("mine")
    (out / "cats_00.png").write_text("mine too")
    with pytest.raises(ValueError, match=r"cats_00\.png exists and shows other words"):
        decode_codes(lqae, list(expected), out, progress=False)
    assert len(list(out.iterdir())) == 2
    decode_codes(lqae, list(expected), out, progress=False, overwrite=True)
    assert Image.open(out / "cats_00.png").size == (32, 32)
    assert (out / "mine.png").read_text() == "mine"
    other = [(key, codes[::-1]) for key, codes in expected]
    with pytest.raises(ValueError, match="shows other words or another model's picture"):
        decode_codes(lqae, other, out, progress=False)


def test_nothing_is_written_for_a_file_with_a_fault(
    lqae: ImageTokenizer, expected: Sequence[Any], tmp_path: Path
) -> None:
    good = f"key\t{' '.join(map(str, expected[0][1]))}\n"
    (tmp_path / "codes.txt").write_text(good * 5 + "key\t1 2 3\n")
    with pytest.raises(ValueError, match="line 6: expected 16 codes"):
        decode_file(lqae, tmp_path / "codes.txt", tmp_path / "out", progress=False)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="the codes of at least one image, got none"):
        decode_file(lqae, tmp_path / "empty.txt", tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        decode_codes(lqae, list(expected), tmp_path / "empty.txt", progress=False)
    with pytest.raises(TypeError, match="codes are read twice"):
        decode_codes(lqae, iter(expected), tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        decode_codes(lqae, list(expected), tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists()
