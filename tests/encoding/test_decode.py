"""Codes become pictures, named safely, each once; those of others are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.encoding.conftest import NAMES, Expected

from pixlex.api import ImageTokenizer
from pixlex.data.images import open_source
from pixlex.encoding.decode import decode_codes, picture_names
from pixlex.encoding.encode import encode_source


@settings(deadline=None, max_examples=50)
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
