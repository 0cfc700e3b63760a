"""Folders and lists of image files."""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pixlex.data.convert import inspect_source
from pixlex.data.decoding import UnreadableImage, load_image
from pixlex.data.folders import FileSource, open_folder, open_image_files, open_list
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource, PassedOverWarning

Picture = Callable[..., bytes]


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_class_folders(tmp_path: Path, picture: Picture) -> None:
    files = {
        "dog/b.JPG": picture(0, "JPEG"),
        "dog/deep/er/a.png": picture(1),
        "cat/z.webp": picture(2, "WEBP"),
        "cat/notes.txt": b"not looked at",
        "README.md": b"not looked at",
        ".hidden/x.png": picture(3),
        "cat/.x.png": picture(4),
    }
    (tmp_path / "empty").mkdir()
    source = open_folder(fill(tmp_path, files))
    assert isinstance(source, ImageSource)
    assert source.paths == ("cat/z.webp", "dog/b.JPG", "dog/deep/er/a.png")
    assert source.class_names == ("cat", "dog")
    assert [source.read(index).label for index in range(3)] == [0, 1, 1]
    assert [source.read(index).data for index in range(3)] == [files[path] for path in source.paths]
    assert {one.name: one.kind for one in source.ignored} == {
        "README.md": ".md", "cat/notes.txt": ".txt", ".hidden/": "hidden", "cat/.x.png": "hidden .png",
    }  # fmt: skip
    assert source.empty_folders == ("empty",)


def test_an_image_at_the_top_makes_the_folder_flat(tmp_path: Path, picture: Picture) -> None:
    source = open_folder(fill(tmp_path, {"b.png": picture(0), "sub/a.png": picture(1)}))
    assert source.paths == ("b.png", "sub/a.png")
    assert source.class_names == ()
    assert source.read(1).label == -1


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"elsewhere/a.png": picture(0), "images/b/b.png": picture(1)})
    images = tmp_path / "images"
    elsewhere = tmp_path / "elsewhere"
    links = {"a": elsewhere, "again": elsewhere, "b/up": images, "b/root": Path("/")}
    for name, target in {**links, "b/dead.png": Path("nothing"), "b/loop.png": Path("loop.png")}.items():
        (images / name).symlink_to(target)
    (images / "round").symlink_to("round")
    source = open_folder(images)
    assert source.paths == ("a/a.png", "b/b.png", "b/dead.png", "b/loop.png")
    assert {one.name.split(":")[0]: one.kind for one in source.ignored} == {
        "again": "link", "b/up": "link", "b/root": "link", "round": "without an ending",
    }  # fmt: skip
    for index, sentence in ((2, "the file does not exist"), (3, "Too many levels of symbolic links")):
        with pytest.raises(UnreadableImage, match=sentence):
            source.read(index)


def test_regular_files_alone_are_read(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe is not waited for, a device that never ends not read, nor a file beyond the bound."""
    fill(tmp_path, {"a.png": picture(0), "large.png": b"\0" * 5000})
    monkeypatch.setattr("pixlex.data.sources.MAX_FILE_BYTES", 4000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe.png").symlink_to("pipe")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening, pytest.MonkeyPatch.context() as here:
        here.chdir(tmp_path)  # the path of a socket is short
        listening.bind("socket.png")
    source = open_folder(tmp_path)
    assert source.paths == ("a.png", "large.png", "pipe.png", "socket.png", "zero.png")
    assert [one.name for one in source.ignored] == ["pipe"]
    reasons = ["is larger than 4,000", *(f"is no file but a {kind}" for kind in ("pipe", "socket", "device"))]
    for index, reason in enumerate(reasons, 1):
        with pytest.raises(UnreadableImage, match=reason):
            source.read(index)
    rows = "".join(f"{name}\n" for name in ("path", *source.paths, "/dev/zero", "pipe"))
    (tmp_path / "rows.csv").write_text(rows)
    listed = open_source(str(tmp_path / "rows.csv"))
    for index in range(1, len(listed)):
        with pytest.raises(UnreadableImage, match=r"no file but|larger than"):
            listed.read(index)
    for name in ("pipe.png", "zero.png", "nowhere.png"):
        with pytest.raises(ValueError, match=r"neither a file nor a folder|does not exist"):
            open_source(str(tmp_path / name))


def test_a_folder_that_is_not_readable(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"a/a.png": picture(0), "b/b.png": picture(1)})
    scandir = os.scandir

    def refuse(folder: Path) -> object:  # permissions would not hold root back
        if folder.name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("pixlex.data.sources.os.scandir", refuse)
    ignored = open_folder(tmp_path).ignored
    assert [(one.kind, one.name) for one in ignored] == [("folder", "b: cannot be read: Permission denied")]


def test_every_image_is_found_and_the_rest_is_said(tmp_path: Path, picture: Picture) -> None:
    names = ("a.jfif", "b.pjpeg", "c.JPE", "plain", "d.pjp")
    files = {f"x/{name}": picture(number, "JPEG") for number, name in enumerate(names)}
    others = "x/e.heic x/f.heic x/text x/.g.png x/h Thumbs.db __MACOSX/x/._a.jpg x/.DS_Store"
    fill(tmp_path, {**files, **dict.fromkeys(others.split(), b"x")})
    with pytest.warns(PassedOverWarning) as said:
        source = open_source(str(tmp_path))
    assert sorted(source.key(index) for index in range(len(source))) == sorted(files)
    assert [str(one.message) for one in said] == [
        f"{tmp_path}: 5 files passed over (2 .heic, 2 without an ending, 1 hidden .png), "
        "`pixlex doctor` lists them"
    ]
    assert len(inspect_source(source).ignored) == 8
    assert load_image(open_source(str(tmp_path / "x" / "plain")).read(0).data, "plain").mode == "RGB"


@pytest.mark.parametrize(
    ("folders", "files", "sentence"),
    [
        ([], [], "is empty"),
        (["a", "b/c"], [], "holds only folders without files"),
        (["a"], ["a/notes.txt", "list.doc"], r"none of its 2 files \(a/notes.txt, list.doc\) .*\.jpg"),
        ([], [".hidden.png"], "is empty"),
    ],
)
def test_folders_without_images(tmp_path: Path, folders: list[str], files: list[str], sentence: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    fill(tmp_path, dict.fromkeys(files, b"x"))
    with pytest.raises(ValueError, match=sentence):
        open_source(str(tmp_path))


def test_identity_is_that_of_the_listing(tmp_path: Path, picture: Picture) -> None:
    """Of names that are no text too."""
    files = {"cat/a.png": picture(0), "dog/b.png": picture(1)}
    first = open_folder(fill(tmp_path / "first", files))
    assert open_folder(fill(tmp_path / "second", files)).identity == first.identity
    renamed = open_folder(fill(tmp_path / "third", {"cat/a.png": b"", "eel/b.png": b""}))
    with open(os.fsencode(tmp_path) + b"/second/cat/\xff\xfe.png", "wb") as file:
        file.write(picture(0))
    more = open_folder(tmp_path / "second")
    assert more.read(1).data == picture(0)
    assert len({first.identity, more.identity, renamed.identity}) == 3
    assert pickle.loads(pickle.dumps(first)).identity == first.identity


def test_csv_and_jsonl_lists_say_the_same(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"pictures/a, b.png": picture(0), "pictures/c.png": picture(1), "outside.png": picture(2)})
    outside = str(tmp_path / "outside.png")
    rows = [("pictures/a, b.png", 2, "dog"), (outside, 0, "cat"), ("pictures/c.png", None, None)]
    cells = [f'"{path}",{"" if label is None else label},{name or ""},x' for path, label, name in rows]
    (tmp_path / "list.csv").write_text("\ufeffpath,label,class_name,other\n" + "\n".join(cells) + "\n")
    objects = [json.dumps(dict(zip(("path", "label", "class_name"), row, strict=True))) for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(objects) + "\n\n")
    table, lines = open_list(tmp_path / "list.csv"), open_list(tmp_path / "list.jsonl")
    assert table.identity == lines.identity
    for source in (table, lines):
        assert source.class_names == ("cat", "", "dog")
        records = [source.read(index) for index in range(3)]
        assert [record.label for record in records] == [2, 0, -1]
        assert [record.data for record in records] == [picture(0), picture(2), picture(1)]
        assert [record.key for record in records] == [path for path, _, _ in rows]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "", "lists no image"),
        ("a.csv", "path,label\n", "lists no image"),
        ("a.csv", "file,label\nx.png,1\n", r"line 2: expected a column 'path', found 'file', 'label'"),
        ("a.csv", "path,label,class_name\n,1,cat\n", "line 2: expected a path, got ''"),
        ("a.csv", "path,label\nx.png,1\n", r"label 1 has no name \(row 0\)"),
        ("a.csv", "path,class_name\nx.png,cat\n", r"'cat' has no label \(row 0\)"),
        ("a.csv", "path,label,class_name\nx.png,1.5,cat\n", "line 2: label must be an integer, got '1.5'"),
        ("a.csv", "path\nx.png,1,cat\n", "line 2: expected 1 columns, found more"),
        ("a.csv", 'path\n"x.png', "not a readable csv file"),
        ("a.jsonl", '{"path": "x.png"}\n{"path"\n', "line 2: not JSON"),
        ("a.jsonl", '["x.png"]\n', "line 1: expected an object, got"),
        ("a.jsonl", '{"file": "x.png"}\n', "line 1: expected a column 'path', found 'file'"),
        ("a.jsonl", '{"path": 7}\n', "line 1: expected a path, got 7"),
    ],
)
def test_malformed_lists(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        open_source(str(tmp_path / name))


def test_single_files(tmp_path: Path, picture: Picture) -> None:
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    for number, path in enumerate(paths):
        path.write_bytes(picture(number))
    source = open_image_files(paths)
    assert [source.read(index).data for index in range(2)] == [picture(0), picture(1)]
    single = open_source(str(paths[0]))
    assert isinstance(single, FileSource)
    assert single.read(0).key == paths[0].as_posix()
    with pytest.raises(ValueError, match="at least one image file"):
        open_image_files([])
