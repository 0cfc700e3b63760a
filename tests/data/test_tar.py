"""What tar shards hold: samples by basename, classes in any of three files, damage, and nothing is unpickled."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pixlex.data.captions import open_pairs
from pixlex.data.decoding import ImageRecord, UnreadableImage, load_image
from pixlex.data.images import open_source
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
        "00001.jpg": picture(1, "JPEG"), "00001.cls": b"1",
        "00001.json": b'{"class_name": "dog", "width": 7}',
        "00000.PNG": picture(0), "00000.txt": b"0", "00000.json": b'{"class_name": "cat"}',
    }  # fmt: skip
    second = {f"{long}.webp": picture(3, "WEBP"), "00002.jpeg": picture(2, "JPEG"), "00002.cls": b"0\n"}
    second |= {"00002.txt": b"cat", f"{long}.txt": b"a caption is no class"}
    for number, files in enumerate((first, second)):
        write_tar(tmp_path / f"set-{number}.tar", files, layout=layout)
    source = open_source(str(tmp_path / "set-{0..1}.tar"))
    names = ("0.tar/00001.jpg", "0.tar/00000.PNG", f"1.tar/{long}.webp", "1.tar/00002.jpeg")
    contents = [(first if name[0] == "0" else second)[name.split("/", 1)[1]] for name in names]
    expected = zip(contents, (1, 0, -1, 0), (f"set-{name}" for name in names), strict=True)
    assert [source.read(index) for index in range(len(source))] == [ImageRecord(*one) for one in expected]
    assert source.class_names == ("cat", "dog")
    assert open_source(str(tmp_path)).identity == source.identity
    assert pickle.loads(pickle.dumps(source)).read(3).data == contents[3]


def test_shards_written_by_webdataset(tmp_path: Path, picture: Picture) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "set.tar")) as writer:
        for number in range(3):
            sample = {"png": picture(number), "cls": number % 2, "json": {"class_name": "ab"[number % 2]}}
            writer.write({"__key__": f"sample{number:04d}", **sample})
    source = open_source(str(tmp_path / "set.tar"))
    records = [source.read(index) for index in range(3)]
    assert [(one.data, one.label) for one in records] == [(picture(n), n % 2) for n in range(3)]
    assert source.class_names == ("a", "b")


class _Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def test_byte_order_marks_and_other_forms_of_labels(tmp_path: Path, picture: Picture) -> None:
    mark = b"\xef\xbb\xbf"
    files = {"a.png": picture(0), "a.json": mark + b'{"label": 1.0, "class_name": "n02119789"}'}
    files |= {"a.cls": mark + b"1.0\n", "a.txt": mark + b'["a fox", "\xe2\x80\x8b"]'}
    with pytest.warns(UserWarning, match="1 of 1 class names are taken by their first synonym"):
        source = open_source(str(write_tar(tmp_path / "set.tar", files)))
    assert source.class_names == ("", "kit fox")
    del files["a.cls"]
    files |= {"b.png": picture(1), "b.txt": mark + b"\xe2\x80\x8b"}
    files |= {"c.png": picture(2), "c.json": b'{"caption": "half \\ud83d"}'}
    with pytest.warns(UserWarning, match="first synonym"):
        pairs = open_pairs(str(write_tar(tmp_path / "pairs.tar", files)))
    assert pairs.texts == (("a fox",), ("half",))
    assert pairs.ignored == ("pairs.tar/b.png",)


def test_a_pickle_in_a_shard_is_never_loaded(tmp_path: Path, picture: Picture) -> None:
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    names = ("a.pyd", "a.pkl", "a.pickle", "a.pth", "a.npy", "a.mp")
    path = write_tar(tmp_path / "set.tar", {"a.png": picture(0), **dict.fromkeys(names, bomb)})
    source = open_source(str(path))
    assert source.read(0).data == picture(0)
    assert sorted(one.kind for one in source.ignored) == sorted(name[1:] for name in names)
    for extension in ("cls", "json", "txt"):
        bad = write_tar(tmp_path / "bad.tar", {"a.png": picture(0), f"a.{extension}": bomb})
        with pytest.raises(
            ValueError, match=rf"the \.{extension} file of bad\.tar/a\.png: (expected UTF-8|not JSON)"
        ):
            open_source(str(bad))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb).close()  # the bomb is a live one
    assert (tmp_path / "exploded").exists()


def added(path: Path, name: str, kind: bytes, target: str = "") -> None:
    with tarfile.open(path, "a") as shard:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        shard.addfile(entry)


def keys_and_rest(path: Path) -> tuple[list[str], dict[str, tuple[int, str]]]:
    source = open_source(str(path))
    assert isinstance(source, TarSource)
    assert all(load_image(source.read(index).data, "key").mode == "RGB" for index in range(len(source)))
    keys = [source.key(index).removeprefix(f"{path.name}/") for index in range(len(source))]
    return keys, {one.kind: (one.count, one.name.removeprefix(f"{path.name}/")) for one in source.ignored}


def of_webdataset(path: Path) -> int:
    """How many samples webdataset reads."""
    webdataset = pytest.importorskip("webdataset")
    samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False, handler=lambda _: False)
    return sum(1 for _ in samples)


def test_what_is_not_a_sample(tmp_path: Path, picture: Picture) -> None:
    names = ("._a.png", "__MACOSX/a.png", "text", "c.json", "a.seg.png", "a.png", "x.npy", "y.npy")
    path = write_tar(tmp_path / "set.tar", {name: picture(0) if name == "a.png" else b"{}" for name in names})
    added(path, "d.png", tarfile.SYMTYPE, "/etc/passwd")
    added(path, "e.png", tarfile.LNKTYPE, "e.png")
    added(path, "null.png", tarfile.CHRTYPE)
    added(path, "folder", tarfile.DIRTYPE)
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as shard:
        sparse = tarfile.TarInfo("sparse.png")
        sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "9000", "GNU.sparse.numblocks": "1"}
        shard.addfile(sparse)
    keys, rest = keys_and_rest(path)
    assert keys == ["a.png"]
    assert rest == {
        "hidden": (2, "._a.png"), "without an ending": (1, "text"), ".json": (1, "c.json"),
        "further picture": (1, "a.seg.png"), ".npy": (2, "x.npy"), "no regular file": (1, "null.png"),
        "sparse file": (1, "sparse.png"),
        "link": (2, "d.png: leads to /etc/passwd, which is no file here"),
    }  # fmt: skip


def test_links_inside_a_shard_are_the_files_that_they_lead_to(tmp_path: Path, picture: Picture) -> None:
    path = write_tar(tmp_path / "set.tar", {"x/a.png": picture(0), "x/a.cls": b"3", "x/a.txt": b"cat"})
    added(path, "x/b.png", tarfile.SYMTYPE, "a.png")
    added(path, "x/b.cls", tarfile.LNKTYPE, "./x/a.cls")
    added(path, "b.txt", tarfile.SYMTYPE, "x/a.txt")
    added(path, "y/c.png", tarfile.SYMTYPE, "../x/b.png")
    (tmp_path / "classes.csv").write_text("label,class_name\n3,cat\n")
    source = open_source(str(path))
    assert [(source.key(index), source.read(index).data) for index in range(3)] == [
        (f"set.tar/{name}.png", picture(0)) for name in ("x/a", "x/b", "y/c")
    ]
    assert [source.read(index).label for index in range(3)] == [3, 3, -1]
    assert [one.kind for one in source.ignored] == [".txt"]


def test_samples_of_several_images_and_of_none_by_its_extension(tmp_path: Path, picture: Picture) -> None:
    names = ["a.jpg", "a.png", "s0.input.jpg", "s0.target.jpg", "b.jfif", "c.tiff", "plain"]
    names += ["v.01.png", "v.02.png"]
    files = {name: picture(0, "TIFF" if name == "c.tiff" else "PNG") for name in names}
    files |= {"s0.cls": b"1", "v.01.cls": b"0", "v.02.cls": b"1", "v.json": b"{}", "classes.csv": b""}
    (tmp_path / "classes.csv").write_text("label,class_name\n0,cat\n1,dog\n")
    source = open_source(str(write_tar(tmp_path / "set.tar", files)))
    records = [source.read(index) for index in range(len(source))]
    assert {record.key.removeprefix("set.tar/"): record.label for record in records} == {
        "a.jpg": -1, "s0.input.jpg": 1, "s0.target.jpg": 1, "b.jfif": -1, "c.tiff": -1, "plain": -1,
        "v.01.png": 0, "v.02.png": 1,
    }  # fmt: skip
    assert [str(one) for one in source.ignored] == ["set.tar/classes.csv", "set.tar/a.png"]


def test_a_name_that_occurs_again_is_another_sample(tmp_path: Path, picture: Picture) -> None:
    """As WebDataset has it where other files lie between them; labels belong to the image before them."""
    path = write_tar(tmp_path / "set.tar", {"a.png": picture(0), "a.cls": b"0", "b.png": picture(1)})
    write_tar(path, {"a.png": picture(2), "a.cls": b"1"}, "a")
    (tmp_path / "classes.csv").write_text("label,class_name\n0,cat\n1,dog\n")
    source = open_source(str(path))
    assert [source.read(index).data for index in range(3)] == [picture(number) for number in range(3)]
    assert [source.read(index).label for index in range(3)] == [0, -1, 1]
    assert len(source) == of_webdataset(path)


def damaged(tmp_path: Path, picture: Picture, how: str) -> Path:
    """A shard of a.png, b.png, c.png, and d.png, e.png, f.png in a second one, 1,536 bytes each but for ends."""
    content = picture(0).ljust(1000, b"x")
    layout = tarfile.USTAR_FORMAT
    first, second = (
        write_tar(tmp_path / "x.tar", {f"{name}.png": content for name in names}, layout=layout).read_bytes()
        for names in ("abc", "def")
    )
    flipped = bytearray(first + second)
    flipped[1536 + 150] ^= 1  # in the checksum of b.png
    shards = {
        "whole": first,
        "no end mark": first[: 3 * 1536],
        "last block not filled": first[: 3 * 1536 - 20],
        "cut in a header": first[: 2 * 1536 + 100],
        "cut behind a header": first[: 2 * 1536 + 512],
        "cut in a body": first[: 3 * 1536 - 700],
        "joined": first + second,
        "joined without end marks": first[: 3 * 1536] + second,
        "cut in a body and joined": first[: 3 * 1536 - 800] + second,
        "damaged header": bytes(flipped),
    }
    (tmp_path / "set.tar").write_bytes(shards[how])
    return tmp_path / "set.tar"


NO_END = {"missing end mark": (1, "the end, before which something may have been cut off")}


@pytest.mark.parametrize(
    ("how", "names", "rest"),
    [
        ("whole", "abc", {}),
        ("no end mark", "abc", NO_END),
        ("last block not filled", "abc", NO_END),
        ("cut in a header", "ab", {"damaged part": (1, "bytes 3,072 to 3,172")}),
        ("cut behind a header", "ab", {"cut off": (1, "c.png")}),
        ("cut in a body", "ab", {"cut off": (1, "c.png")}),
        ("joined", "abcdef", {}),
        ("joined without end marks", "abcdef", {}),
        # The cut image runs into the headers of the next one.
        ("cut in a body and joined", "abcef", {"damaged part": (1, "bytes 4,608 to 5,344")}),
        ("damaged header", "acdef", {"damaged part": (1, "bytes 1,536 to 3,072")}),
    ],
)
def test_of_a_damaged_shard_all_is_read_that_can_be(
    tmp_path: Path, picture: Picture, how: str, names: str, rest: dict[str, tuple[int, str]]
) -> None:
    path = damaged(tmp_path, picture, how)
    assert keys_and_rest(path) == ([f"{name}.png" for name in names], rest)
    assert len(names) >= of_webdataset(path) - ("cut off" in rest)  # it counts an image that is cut, too


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_no_damage_makes_images_fewer_without_a_word(tmp_path: Path, picture: Picture, layout: int) -> None:
    names = [f"{'folder/' * (20 * (number % 2))}{number}.png" for number in range(4)]
    path = write_tar(tmp_path / "set.tar", {name: picture(0) for name in names}, layout=layout)
    good = path.read_bytes()
    end = len(good.rstrip(b"\0"))
    for number in range(30):
        data, place = bytearray(good), number * end // 30 + 1
        if number % 3 == 0:
            data[place] ^= 0x10
        elif number % 3 == 1:
            del data[place:]
        else:
            del data[place : place + 700]
        path.write_bytes(data)
        try:
            source = open_source(str(path))
        except ValueError:  # nothing is left of it
            continue
        assert isinstance(source, TarSource)
        assert len(source) == 4 or source.ignored, (number, place)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.cls": b"1", "b.flac": b"x"}, r"no image in the 1 shards .* in \.jpg.*; found 1 \.cls, 1 \.flac"),
        ({"a.png": b"x", "a.cls": b"1"}, "label 1 has no name"),
        ({"a.png": b"x", "a.json": b"{"}, r"the \.json file of set\.tar/a\.png: not JSON"),
        ({"a.png": b"x", "a.json": b'{"label": "x", "class_name": "cat"}'}, "label must .* integer, got 'x'"),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source(str(write_tar(tmp_path / "set.tar", files)))


def test_shards_that_are_damaged_or_compressed(tmp_path: Path, picture: Picture) -> None:
    path = write_tar(tmp_path / "set.tar", {"a.png": picture(0, width=300, height=300)})
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UnreadableImage, match=r"set\.tar/a\.png: the shard .* \d+ bytes expected, 188 found"):
        source.read(0)
    with pytest.raises(ValueError, match=r"no image in the 1 shards of .*; found 1 cut off"):
        open_source(str(path))
    path.unlink()
    with pytest.raises(UnreadableImage, match="the shard cannot be read"):
        source.read(0)
    packed = write_tar(tmp_path / "packed.tar", {"a.png": picture(0)}, mode="w:gz")
    with pytest.raises(ValueError, match=r"packed\.tar cannot be read as an .* it is compressed \(gzip\)"):
        open_source(str(packed))
    for content in (b"", b"no tar at all", picture(0, width=300, height=300)):
        packed.write_bytes(content)
        with pytest.raises(ValueError, match=r"packed\.tar cannot be read as an uncompressed tar file"):
            open_source(str(packed))
