"""Encoding: every image once, whatever ends a run on the way; other models and images are not mixed in."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.encoding.conftest import NAMES, Expected
from tests.tiny import tiny_language, tiny_lqae, write_images
from tqdm import tqdm

from pixlex.api import ImageTokenizer
from pixlex.batch import TooManyBroken
from pixlex.data.decoding import ImageRecord
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.encoding import encode
from pixlex.encoding.decode import decode_codes, picture_names
from pixlex.encoding.encode import encode_parts, encode_source
from pixlex.encoding.files import read_codes
from pixlex.files import Journal, locked


@dataclass
class Watched:
    """A source that counts what is read, and may do something before."""

    source: ImageSource
    before: Callable[[int], None] = lambda index: None
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, index: int) -> ImageRecord:
        self.before(index)
        self.reads.append(index)
        return self.source.read(index)


def quietly(tokenizer: ImageTokenizer, source: Any, out: Path, kind: Any = "codes", **settings: Any) -> Any:
    source = open_source(str(source)) if isinstance(source, Path) else source
    return encode_source(tokenizer, source, out, kind, progress=False, **settings)


def interrupted(tokenizer: ImageTokenizer, photos: Path, out: Path, at: int) -> Path:
    """Encode one by one up to an interrupt while image `at` is read; return the journal."""

    def before(reading: int) -> None:
        if reading == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(tokenizer, Watched(open_source(str(photos)), before), out, batch_size=1)
    assert not out.exists()
    return out.with_name(f"{out.name}.journal")


@pytest.mark.parametrize("cut", [0, 1, 30, "header", "zeros"])
def test_a_cut_journal_is_gone_on_with(
    lqae: ImageTokenizer, photos: Path, expected: Expected, tmp_path: Path, cut: int | str
) -> None:
    """Cut off anywhere, also in its first line, or with the zeros that a power cut leaves."""
    out = tmp_path / "out.txt"
    journal = interrupted(lqae, photos, out, at=9)
    whole = journal.read_bytes()
    done = whole.count(b"\n") - 1
    assert done >= 7  # one batch at hand, one being read ahead
    match cut:
        case "header":
            journal.write_bytes(whole[:40])
        case "zeros":
            journal.write_bytes(whole + bytes(500) + b"\n" + bytes(80))
        case int():
            journal.write_bytes(whole[: len(whole) - cut])
    kept = {0: done, 1: done - 1, 30: done - 1, "header": 0, "zeros": done}[cut]
    source = Watched(open_source(str(photos)))
    if cut == "zeros":
        with pytest.warns(UserWarning, match="1 damaged lines are passed over"):
            result = quietly(lqae, source, out)
    else:
        result = quietly(lqae, source, out)
    assert result.num_resumed == kept
    assert source.reads == list(range(kept, 20))
    assert list(read_codes(out, lqae)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt", "out.txt.sha256"]


def encode_slowly(tokenizer: ImageTokenizer, photos: Path, out: Path) -> None:
    """What the killed process does."""
    tqdm.set_lock(threading.RLock())  # not the one it shares with this process: it may die holding it
    source = Watched(open_source(str(photos)), lambda index: time.sleep(0.002))
    quietly(tokenizer, source, out, "jsonl", batch_size=2)


def test_killed_at_random_moments(lqae: ImageTokenizer, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos = write_images(tmp_path / "photos", [f"{number:03d}.png" for number in range(60)])
    undisturbed, out = tmp_path / "undisturbed.jsonl", tmp_path / "killed.jsonl"
    quietly(lqae, photos, undisturbed, "jsonl")
    journal = tmp_path / "killed.jsonl.journal"
    fork = multiprocessing.get_context("fork")
    kills, sizes = 0, [0]
    while kills < 6 and not out.exists():
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
        quietly(lqae, photos, out, "jsonl")
    assert out.read_bytes() == undisturbed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "photos", "undisturbed.jsonl"]


def test_work_of_others_is_refused(
    lqae: ImageTokenizer, language: Path, photos: Path, expected: Expected, tmp_path: Path
) -> None:
    """Another model, another precision, other images, another process; the same model elsewhere goes on."""
    out = tmp_path / "out.parquet"
    journal = interrupted(lqae, photos, out, at=6)
    before = journal.read_bytes()
    other = ImageTokenizer(tiny_lqae(language, seed=1))
    for tokenizer in (other, ImageTokenizer(tiny_lqae(language), precision="bf16")):
        with pytest.raises(ValueError, match=r"out\.parquet\.journal is the unfinished work of another"):
            quietly(tokenizer, photos, out)
    with pytest.raises(ValueError, match="the unfinished work of other images"):
        quietly(lqae, photos / "cats", out)
    refused = pytest.raises(ValueError, match="is being written by another process")
    with locked(tmp_path / "out.parquet.journal.lock", ""), refused:
        quietly(lqae, photos, out)
    assert journal.read_bytes() == before
    elsewhere = ImageTokenizer(tiny_lqae(tiny_language(tmp_path / "moved")))
    assert quietly(elsewhere, photos, out, "parquet").num_resumed > 0  # the kind may change on the way
    assert list(read_codes(out, lqae)) == expected
    assert quietly(other, photos, out, overwrite=True).num_resumed == 0


def test_what_is_there_is_not_replaced_unasked(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "out.txt", tmp_path / "new.txt.journal"
    out.write_text("mine")
    journal.write_text("Dear diary,\n")
    with pytest.raises(ValueError, match=r"out\.txt exists; choose another name, or replace it"):
        quietly(lqae, photos, out)
    with pytest.raises(ValueError, match="is not a journal that this version of pixlex reads"):
        quietly(lqae, photos, tmp_path / "new.txt")
    with pytest.raises(ValueError, match=r"exists; choose another name$"):
        quietly(lqae, photos, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="part_size must be 1 or more, got 0"):
        in_parts(lqae, photos, tmp_path / "new", part_size=0)
    assert (out.read_text(), journal.read_text()) == ("mine", "Dear diary,\n")
    quietly(lqae, photos, out, overwrite=True)
    assert out.read_text().count("\n") == 20


def test_a_full_disk_costs_nothing(
    lqae: ImageTokenizer, photos: Path, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.txt"
    out.write_text("old")

    def full(path: Path, *arguments: Any) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encode, "write_codes", full)
        with pytest.raises(OSError, match="No space left"):
            quietly(lqae, photos, out, overwrite=True)
    assert out.read_text() == "old"
    source = Watched(open_source(str(photos)))
    assert (quietly(lqae, source, out).num_resumed, source.reads) == (20, [])
    assert list(read_codes(out, lqae)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt", "out.txt.sha256"]


def test_broken_images_are_listed_and_may_be_repaired(lqae: ImageTokenizer, tmp_path: Path) -> None:
    """Too many stop the run and make no file; what is repaired is taken by the run that goes on."""
    names = [f"{number}.png" for number in range(10)]
    folder, out = write_images(tmp_path / "mixed", names), tmp_path / "out.txt"
    for name in ("3.png", "9.png"):
        (folder / name).write_text("no image")
    with pytest.raises(TooManyBroken, match=r"[39]\.png"):
        quietly(lqae, folder, out, batch_size=4, max_broken_fraction=0.1)
    assert not out.exists()
    result = quietly(lqae, folder, out, batch_size=4, max_broken_fraction=0.2)
    assert (result.num_images, [one.key for one in result.skipped]) == (8, ["3.png", "9.png"])
    assert [key for key, _ in read_codes(out, lqae)] == [name for name in names if name[0] not in "39"]
    listed = [json.loads(line) for line in (tmp_path / "out.txt.skipped.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in listed] == ["3.png", "9.png"]
    assert all("not an image" in entry["reason"] for entry in listed)
    write_images(folder, ["3.png", "9.png"], seed=5)
    quietly(lqae, folder, out, overwrite=True)
    assert [key for key, _ in read_codes(out, lqae)] == names
    assert not (tmp_path / "out.txt.skipped.jsonl").exists()


def in_parts(tokenizer: ImageTokenizer, photos: Path, folder: Path, **settings: Any) -> Any:
    values = {"part_size": 6, "batch_size": 2, "progress": False, **settings}
    return encode_parts(tokenizer, open_source(str(photos)), folder, **values)


def test_parts_hold_what_one_file_holds(
    lqae: ImageTokenizer, photos: Path, tmp_path: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one process, and by three in any order, each its slice; what is finished is not touched again."""
    folder = tmp_path / "parts"
    result = in_parts(lqae, photos, folder)
    assert (result.num_parts, result.num_images, result.num_resumed) == (4, 20, 0)
    names = [f"part-{number:05d}.parquet" for number in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == ["_parts.json", *names]
    assert [pq.read_metadata(folder / name).num_rows for name in names] == [6, 6, 6, 2]
    assert list(read_codes(folder, lqae)) == expected
    quietly(lqae, photos, tmp_path / "one.parquet", "parquet")
    assert pq.read_table(folder).equals(pq.read_table(tmp_path / "one.parquet"))
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / names[2]).unlink()
    assert in_parts(lqae, photos, folder).num_images == 6
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in times if times[name] != after[name]} == {names[2]}
    monkeypatch.setenv("WORLD_SIZE", "3")
    counts = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        counts.append(in_parts(lqae, photos, tmp_path / "shared").num_images)
    assert counts == [8, 6, 6]
    for name in names:
        assert (tmp_path / "shared" / name).read_bytes() == (folder / name).read_bytes()


def test_a_part_that_was_cut_off_goes_on(
    lqae: ImageTokenizer, photos: Path, tmp_path: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle, and between the file and the end of its journal."""
    seen = 0
    tokenize = lqae.tokenize

    def stopping(images: Any, **settings: Any) -> Any:
        nonlocal seen
        seen += len(images)
        if seen == 10:
            raise KeyboardInterrupt
        return tokenize(images, **settings)

    def killed(journal: Journal) -> None:
        if journal.path.name == "_part-00001.journal":
            raise KeyboardInterrupt
        journal.path.unlink()

    for owner, name, replaced in ((lqae, "tokenize", stopping), (Journal, "delete", killed)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replaced)
            with pytest.raises(KeyboardInterrupt):
                in_parts(lqae, photos, tmp_path)
    assert (tmp_path / "part-00001.parquet").is_file()
    assert in_parts(lqae, photos, tmp_path).num_images == 8
    assert list(read_codes(tmp_path, lqae)) == expected
    assert not list(tmp_path.glob("*journal*"))


def test_parts_of_something_else_are_refused(lqae: ImageTokenizer, photos: Path, tmp_path: Path) -> None:
    in_parts(lqae, photos, tmp_path / "parts")
    with pytest.raises(ValueError, match="holds parts of 6 images, got a part size of 7"):
        in_parts(lqae, photos, tmp_path / "parts", part_size=7)
    with pytest.raises(ValueError, match="holds parts of other images: choose another folder"):
        in_parts(lqae, photos / "cats", tmp_path / "parts")
    with pytest.raises(ValueError, match="parts of another model or precision: choose another folder"):
        in_parts(ImageTokenizer(lqae.model, precision="bf16"), photos, tmp_path / "parts")
    (tmp_path / "parts/part-00003.parquet").unlink()
    with pytest.raises(ValueError, match="expected 4 parts, found 3: encode has not finished"):
        list(read_codes(tmp_path / "parts", lqae))
    lock = tmp_path / "parts/_part-00003.journal.lock"
    with locked(lock, ""), pytest.raises(ValueError, match="is being written by another process"):
        in_parts(lqae, photos, tmp_path / "parts")
    (tmp_path / "parts/_parts.json").write_text("[")
    with pytest.raises(ValueError, match=r"_parts\.json is damaged"):
        in_parts(lqae, photos, tmp_path / "parts")


def test_broken_images_of_parts(lqae: ImageTokenizer, tmp_path: Path) -> None:
    """They are listed; of too many no part is made, and once they are repaired the same command finishes."""
    names = [f"{number}.png" for number in range(8)]
    photos = write_images(tmp_path / "photos", names)
    whole = {name: (photos / name).read_bytes() for name in names}
    for name in names[4:]:
        (photos / name).write_bytes(b"x" * len(whole[name]))
    with pytest.raises(TooManyBroken):
        in_parts(lqae, photos, tmp_path / "parts", part_size=4, max_broken_fraction=0.1)
    assert [path.name for path in (tmp_path / "parts").glob("part-*")] == ["part-00000.parquet"]
    for name in names[:7]:
        (photos / name).write_bytes(whole[name])
    result = in_parts(lqae, photos, tmp_path / "parts", part_size=4, max_broken_fraction=0.3)
    assert (result.num_images, [one.key for one in result.skipped]) == (3, [names[7]])
    (line,) = (tmp_path / "parts/_part-00001.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == names[7]
    assert [key for key, _ in read_codes(tmp_path / "parts", lqae)] == names[:7]


@settings(deadline=None, max_examples=25)
@example(
    ["cats/1.jpg", "cats_1.png", "CATS_1", "../../etc/passwd", "/etc/passwd", "..", "a", "a", "a-2", "a"]
)
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
    assert picture_names(["a/b.jpg", "a", "a", "a-2", "a", ".."]) == [
        "a_b",
        "a",
        "a-2",
        "a-2-2",
        "a-3",
        "image",
    ]


def test_pictures_show_what_was_decoded(
    lqae: ImageTokenizer, photos: Path, expected: Expected, tmp_path: Path
) -> None:
    encode_source(lqae, open_source(str(photos)), tmp_path / "words.txt", "words", progress=False)
    result = decode_codes(lqae, tmp_path / "words.txt", tmp_path / "out", batch_size=6, progress=False)
    assert (result.num_images, result.num_resumed) == (20, 0)
    wanted = lqae.decode(torch.tensor([codes for _, codes in expected]))
    for name, image in zip(NAMES, wanted, strict=True):
        picture = Image.open(tmp_path / "out" / name.replace("/", "_"))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        assert (picture.mode, (pixels - image).abs().max() <= 0.5001 / 255) == ("RGB", True)


def test_keys_cannot_leave_the_folder(lqae: ImageTokenizer, expected: Expected, tmp_path: Path) -> None:
    keys = ["../up.png", "/tmp/../absolute", "a/../../b", "..", ".hidden", "", "x\0y"]
    decode_codes(lqae, [(key, expected[0][1]) for key in keys], tmp_path / "in" / "out", progress=False)
    everything = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sum(path.suffix == ".png" for path in everything) == len(keys)
    assert {path.parent for path in everything} == {tmp_path / "in" / "out"}


def test_decoding_goes_on_where_it_was_killed(
    lqae: ImageTokenizer, expected: Expected, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    decode_codes(lqae, expected, out, progress=False)
    pictures = sorted(out.glob("*.png"))
    contents = {path: path.read_bytes() for path in pictures}
    for path in pictures[5:8]:
        path.unlink()
    leftover = out / f".{pictures[5].name}.123.partial"
    leftover.write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in pictures if path.exists()}
    result = decode_codes(lqae, expected, out, progress=False)
    assert (result.num_images, result.num_resumed) == (20, 17)
    assert {path: path.read_bytes() for path in pictures} == contents
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not leftover.exists()


def test_pictures_of_others_are_kept(lqae: ImageTokenizer, expected: Expected, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.png").write_text("mine")
    (out / "cats_00.png").write_text("mine too")
    with pytest.raises(ValueError, match=r"cats_00\.png exists and shows other words"):
        decode_codes(lqae, expected, out, progress=False)
    assert len(list(out.iterdir())) == 2
    decode_codes(lqae, expected, out, progress=False, overwrite=True)
    assert Image.open(out / "cats_00.png").size == (32, 32)
    assert (out / "mine.png").read_text() == "mine"
    with pytest.raises(ValueError, match="shows other words or another model's picture"):
        decode_codes(lqae, [(key, codes[::-1]) for key, codes in expected], out, progress=False)


def test_nothing_is_written_for_a_file_with_a_fault(
    lqae: ImageTokenizer, expected: Expected, tmp_path: Path
) -> None:
    good = f"key\t{' '.join(map(str, expected[0][1]))}\n"
    (tmp_path / "codes.txt").write_text(good * 5 + "key\t1 2 3\n")
    with pytest.raises(ValueError, match="line 6: expected 16 codes"):
        decode_codes(lqae, tmp_path / "codes.txt", tmp_path / "out", progress=False)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="the codes of at least one image, got none"):
        decode_codes(lqae, tmp_path / "empty.txt", tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        decode_codes(lqae, expected, tmp_path / "empty.txt", progress=False)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        decode_codes(lqae, expected, tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists()
