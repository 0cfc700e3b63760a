"""Folders and lists of image files."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from pixlex.data.decoding import UnreadableImage
from pixlex.data.images import open_source
from pixlex.data.lists import open_list
from pixlex.data.sources import FileSource, ImageSource, open_folder, open_image_files

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
    assert source.ignored == ("README.md", "cat/notes.txt")
    assert source.empty_folders == ("empty",)


def test_an_image_at_the_top_makes_the_folder_flat(tmp_path: Path, picture: Picture) -> None:
    source = open_folder(fill(tmp_path, {"b.png": picture(0), "sub/a.png": picture(1)}))
    assert source.paths == ("b.png", "sub/a.png")
    assert source.class_names == ()
    assert source.read(1).label == -1


def test_links_are_followed_but_not_in_circles(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"elsewhere/a.png": picture(0), "images/b/b.png": picture(1)})
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "b" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "b" / "dead.png").symlink_to(tmp_path / "nothing.png")
    source = open_folder(tmp_path / "images")
    assert source.paths == ("b/b.png", "b/dead.png", "linked/a.png")
    with pytest.raises(UnreadableImage, match=r"b/dead\.png: the file does not exist"):
        source.read(1)


def test_a_pipe_is_not_waited_for(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path, {"a.png": picture(0)})
    os.mkfifo(tmp_path / "pipe.png")
    assert open_folder(tmp_path).paths == ("a.png",)


@pytest.mark.parametrize(
    ("folders", "files", "sentence"),
    [
        ([], [], "is empty"),
        (["a", "b/c"], [], "holds only folders without files"),
        (
            ["a"],
            ["a/notes.txt", "list.doc"],
            r"none of its 2 files \(a/notes.txt, list.doc\) ends in .*\.jpg",
        ),
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
    files = {"cat/a.png": picture(0), "dog/b.png": picture(1)}
    first = open_folder(fill(tmp_path / "first", files))
    assert open_folder(fill(tmp_path / "second", files)).identity == first.identity
    more = open_folder(fill(tmp_path / "third", {**files, "dog/c.png": picture(2)}))
    renamed = open_folder(fill(tmp_path / "fourth", {"cat/a.png": b"", "eel/b.png": b""}))
    assert len({first.identity, more.identity, renamed.identity}) == 3
    assert pickle.loads(pickle.dumps(first)).identity == first.identity


def test_names_that_are_no_text(tmp_path: Path, picture: Picture) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(picture(0))
    source = open_folder(tmp_path)
    assert source.read(0).data == picture(0)
    assert len(source.identity) == 64


def test_csv_and_jsonl_lists_say_the_same(tmp_path: Path, picture: Picture) -> None:
    fill(tmp_path / "pictures", {"a, b.png": picture(0), "c.png": picture(1)})
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(2))
    rows = [
        {"path": "pictures/a, b.png", "label": 2, "class_name": "dog"},
        {"path": str(outside), "label": 0, "class_name": "cat"},
        {"path": "pictures/c.png", "label": None, "class_name": None},
    ]
    quoted = [
        f'"{row["path"]}",{"" if row["label"] is None else row["label"]},{row["class_name"] or ""},x'
        for row in rows
    ]
    (tmp_path / "list.csv").write_text("\ufeffpath,label,class_name,other\n" + "\n".join(quoted) + "\n")
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    table, lines = open_list(tmp_path / "list.csv"), open_list(tmp_path / "list.jsonl")
    assert table.identity == lines.identity
    for source in (table, lines):
        assert source.class_names == ("cat", "", "dog")
        records = [source.read(index) for index in range(3)]
        assert [record.label for record in records] == [2, 0, -1]
        assert [record.data for record in records] == [picture(0), picture(2), picture(1)]
        assert [source.key(index) for index in range(3)] == [row["path"] for row in rows]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "", "lists no image"),
        ("a.csv", "path,label\n", "lists no image"),
        ("a.csv", "file,label\nx.png,1\n", r"line 2: expected a column 'path', found 'file', 'label'"),
        ("a.csv", "path,label,class_name\n,1,cat\n", "line 2: expected a path, got ''"),
        ("a.csv", "path,label\nx.png,1\n", r"label 1 has no name \(row 0\)"),
        ("a.csv", "path,class_name\nx.png,cat\n", r"'cat' has no label \(row 0\)"),
        (
            "a.csv",
            "path,label,class_name\nx.png,1,cat\ny.png,1,dog\n",
            "label 1 has two names, 'cat' and 'dog'",
        ),
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


def test_missing_and_unreadable_files_are_found_when_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "gone.png"}\n{"path": "folder.png"}\n')
    (tmp_path / "folder.png").mkdir()
    source = open_list(tmp_path / "a.jsonl")
    for index, sentence in enumerate(["does not exist", "Is a directory"]):
        with pytest.raises(UnreadableImage, match=sentence) as caught:
            source.read(index)
        assert caught.value.key == source.key(index)


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
