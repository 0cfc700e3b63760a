"""WebDataset shards: samples by basename, classes in any of three files, and nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pixlex.data.decoding import UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.pairs import open_pairs
from pixlex.data.shards import TarSource

Picture = Callable[..., bytes]


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", layout: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=layout) as shard:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_over_two_shards(tmp_path: Path, picture: Picture, layout: int) -> None:
    long = "folder/" * 12 + "00003"
    first = {
        "00001.jpg": picture(1, "JPEG"),
        "00001.cls": b"1",
        "00001.json": json.dumps({"class_name": "dog", "width": 7}).encode(),
        "00000.PNG": picture(0),
        "00000.txt": b"0",
        "00000.json": b'{"class_name": "cat"}',
    }
    second = {f"{long}.webp": picture(3, "WEBP"), "00002.jpeg": picture(2, "JPEG"), "00002.cls": b"0\n"}
    second |= {"00002.txt": b"cat", f"{long}.txt": b"a caption is no class"}
    write_tar(tmp_path / "set-1.tar", second, layout=layout)
    write_tar(tmp_path / "set-0.tar", first, layout=layout)
    source = open_source(str(tmp_path / "set-{0..1}.tar"))
    assert isinstance(source, TarSource)
    records = [source.read(index) for index in range(len(source))]
    assert [record.key for record in records] == [
        "set-0.tar/00001.jpg", "set-0.tar/00000.PNG", f"set-1.tar/{long}.webp", "set-1.tar/00002.jpeg",
    ]  # fmt: skip
    assert [record.label for record in records] == [1, 0, -1, 0]
    assert source.class_names == ("cat", "dog")
    both = {**first, **second}
    assert [record.data for record in records] == [both[record.key.split("/", 1)[1]] for record in records]
    assert (
        open_source(str(tmp_path)).identity
        == open_source(str(tmp_path / "*.tar")).identity
        == source.identity
    )
    assert pickle.loads(pickle.dumps(source)).read(3).data == records[3].data


def test_shards_written_by_webdataset(tmp_path: Path, picture: Picture) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "set.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            sample = {"png": picture(number), "cls": number % 2, "json": {"class_name": "ab"[number % 2]}}
            writer.write({"__key__": f"sample{number:04d}", **sample})
    source = open_source(str(path))
    assert [(source.read(index).data, source.read(index).label) for index in range(3)] == [
        (picture(number), number % 2) for number in range(3)
    ]
    assert source.class_names == ("a", "b")


class _Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def test_byte_order_marks_and_other_forms_of_labels(tmp_path: Path, picture: Picture) -> None:
    mark = b"\xef\xbb\xbf"
    files = {"a.png": picture(0), "a.cls": mark + b"1.0\n", "a.json": mark + b'{"class_name": "n02119789"}'}
    files |= {
        "a.txt": mark + b'["a fox", "\xe2\x80\x8b"]',
        "b.png": picture(1),
        "b.txt": mark + b"\xe2\x80\x8b",
    }
    files |= {
        "c.png": picture(2),
        "c.json": b'{"caption": "half \\ud83d", "label": 1.0, "class_name": "n02119789"}',
    }
    write_tar(tmp_path / "set.tar", files)
    with pytest.warns(UserWarning, match="1 of 1 class names are taken by their first synonym"):
        source = open_source(str(tmp_path / "set.tar"))
    assert source.class_names == ("", "kit fox")
    del files["a.cls"]
    files["a.json"] = mark + b"{}"
    write_tar(tmp_path / "pairs.tar", files)
    with pytest.warns(UserWarning, match="first synonym"):
        pairs = open_pairs(str(tmp_path / "pairs.tar"))
    assert pairs.captions == (("a fox",), ("half",))
    assert pairs.ignored == ("pairs.tar/b.png",)


def test_a_pickle_in_a_shard_is_never_loaded(tmp_path: Path, picture: Picture) -> None:
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    names = ("a.pyd", "a.pkl", "a.pickle", "a.pth", "a.npy", "a.mp")
    path = write_tar(tmp_path / "set.tar", {"a.png": picture(0), **dict.fromkeys(names, bomb)})
    source = open_source(str(path))
    assert source.read(0).data == picture(0)
    assert sorted(entry.split(" ")[0] for entry in source.ignored) == sorted(name[1:] for name in names)
    for extension in ("cls", "json", "txt"):
        bad = write_tar(tmp_path / "bad.tar", {"a.png": picture(0), f"a.{extension}": bomb})
        with pytest.raises(
            ValueError, match=rf"the \.{extension} file of bad\.tar/a\.png: (expected UTF-8|not JSON)"
        ):
            open_source(str(bad))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb).close()  # the bomb is a live one
    assert (tmp_path / "exploded").exists()


def test_what_is_not_a_sample(tmp_path: Path, picture: Picture) -> None:
    files = {
        "._a.png": b"hidden",
        "noextension": b"x",
        "b.seg.png": picture(1),
        "a.png": picture(0),
        "c.json": b"{}",
    }
    path = write_tar(tmp_path / "set.tar", files)
    with tarfile.open(path, "a") as shard:
        link = tarfile.TarInfo("d.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
    source = open_source(str(path))
    assert [source.key(index) for index in range(len(source))] == ["set.tar/a.png"]
    assert source.ignored == (".seg.png (1 files)",)


def test_a_preferred_image_of_two(tmp_path: Path, picture: Picture) -> None:
    path = write_tar(tmp_path / "set.tar", {"a.png": picture(0), "a.jpg": picture(1, "JPEG")})
    source = open_source(str(path))
    assert (len(source), source.read(0).data) == (1, picture(1, "JPEG"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"a.cls": b"1", "b.flac": b"x"},
            r"no image in the 1 shards .* expected files ending in \.jpg.*found flac",
        ),
        ({"a.png": b"x", "a.cls": b"1"}, "label 1 has no name"),
        ({"a.png": b"x", "a.json": b"{"}, r"the \.json file of set\.tar/a\.png: not JSON"),
        (
            {"a.png": b"x", "a.json": b'{"label": "x", "class_name": "cat"}'},
            "label must be an integer, got 'x'",
        ),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source(str(write_tar(tmp_path / "set.tar", files)))


def test_shards_that_are_damaged_or_compressed(tmp_path: Path, picture: Picture) -> None:
    path = write_tar(tmp_path / "set.tar", {"a.png": picture(0, width=300, height=300)})
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(
        UnreadableImage, match=r"set\.tar/a\.png: the shard is cut off: \d+ bytes expected, 188 found"
    ):
        source.read(0)
    with pytest.raises(ValueError, match=r"set\.tar cannot be read as an uncompressed tar file"):
        open_source(str(path))
    path.unlink()
    with pytest.raises(UnreadableImage, match="the shard cannot be read"):
        source.read(0)
    packed = write_tar(tmp_path / "packed.tar", {"a.png": picture(0)}, mode="w:gz")
    with pytest.raises(ValueError, match=r"packed\.tar cannot be read as an uncompressed tar file"):
        open_source(str(packed))
