"""The report on a source names everything that is in it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pixlex.data.convert import Spread, inspect_source
from pixlex.data.images import open_source

Picture = Callable[..., bytes]


def test_a_folder_with_everything(tmp_path: Path, picture: Picture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    files = {
        "cat/turned.jpg": buffer.getvalue(),
        "cat/plain.png": picture(0, width=12, height=10),
        "cat/text.jpg": b"a text",
        "dog/grey.gif": b"",
        "dog/big.bmp": picture(1, "BMP", width=50, height=40),
        "dog/notes.txt": b"x",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "emu").mkdir()
    seen = []
    report = inspect_source(open_source(str(tmp_path)), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]
    assert report.num_images == 5
    assert report.width == Spread(12, 20, 50)  # the turned image is 20 wide
    assert report.height == Spread(10, 30, 40)
    assert report.formats == {"PNG": 1, "JPEG": 1, "BMP": 1}
    assert report.modes == {"RGB": 3}
    assert [(image.key, image.reason.split(" (")[0]) for image in report.broken] == [
        ("cat/text.jpg", "not an image in a format that is read"),
        ("dog/grey.gif", "the file is empty"),
    ]
    assert report.broken_share == 0.4
    assert report.images_per_class == {"cat": 2, "dog": 1}
    assert report.unlabeled == 0
    assert [(one.kind, str(one)) for one in report.ignored] == [(".txt", "dog/notes.txt")]
    assert report.empty_folders == ("emu",)
    json.dumps(dataclasses.asdict(report))


def test_duplicate_keys_shared_names_and_missing_labels(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = ["a.png,0,crane", "a.png,2,crane", "a.png,3,dog", "b.png,0,crane", "a.png,,"]
    (tmp_path / "list.csv").write_text("path,label,class_name\n" + "\n".join(rows))
    report = inspect_source(open_source(str(tmp_path / "list.csv")))
    assert report.duplicate_keys == {"a.png": 4}
    assert report.images_per_class == {"crane (0)": 1, "crane (2)": 1, "dog": 1}
    assert report.unlabeled == 1
    assert [image.key for image in report.broken] == ["b.png"]


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    report = inspect_source(open_source(str(tmp_path)))
    assert (report.width, report.height, report.broken_share) == (None, None, 1.0)
