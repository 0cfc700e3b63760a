"""Several sets as one: proportions, keys, and which rows are the same image."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pixlex.data.captions import open_pairs
from pixlex.data.decoding import UnreadableImage
from pixlex.data.sources import SetDescription, distinct_images, read_descriptions, with_split

Picture = Callable[..., bytes]


@pytest.fixture
def sets(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images in a.csv, two in b.csv and two in c.csv, whose names are those of b.csv."""
    for folder, numbers in (("a", range(4)), ("b", range(4, 6)), ("c", range(4, 6))):
        (tmp_path / folder).mkdir()
        lines = ["path,caption"]
        for number in numbers:
            (tmp_path / folder / f"{number}.png").write_bytes(picture(number + ord(folder)))
            lines.append(f"{number}.png,{folder}{number}")
        (tmp_path / folder / "set.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(description: str) -> list[str]:
    return [one for (one,) in open_pairs(description).texts]


@pytest.mark.usefixtures("sets")
def test_sets_follow_each_other() -> None:
    source = open_pairs("a/set.csv + b/set.csv")
    assert texts("a/set.csv + b/set.csv") == ["a0", "a1", "a2", "a3", "b4", "b5"]
    assert [source.key(row) for row in range(6)] == [f"{number}.png" for number in range(6)]
    assert [source.image_of(row) for row in range(6)] == list(range(6))
    assert source.name == "a/set.csv + b/set.csv"
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert copy.images.read(4).data == (Path("b") / "4.png").read_bytes()
        assert copy.identity == source.identity
    for row in (-1, 6):
        with pytest.raises(IndexError, match="has 6 images"):
            source.images.read(row)


@pytest.mark.usefixtures("sets")
def test_only_proportions_matter() -> None:
    """The smallest weight is once; what is left of a whole repeat is a fixed subset."""
    counts = Counter(texts("3 * a/set.csv + 1.2 * b/set.csv"))
    assert all(counts[f"b{number}"] == 1 for number in (4, 5))
    assert sorted(counts[f"a{number}"] for number in range(4)) == [2, 2, 3, 3]
    doubled, halved = "6 * a/set.csv + 2.4 * b/set.csv", "1.5 * a/set.csv + .6 * b/set.csv"
    assert texts(doubled) == texts(halved) == texts("3 * a/set.csv + 1.2 * b/set.csv")
    identities = {open_pairs(one).identity for one in (doubled, halved)}
    assert len(identities) == 1
    assert open_pairs("3 * a/set.csv + 1 * b/set.csv").identity not in identities
    assert open_pairs("3 * a/set.csv + 1.2 * c/set.csv").identity not in identities
    assert texts("7 * a/set.csv") == texts("a/set.csv")
    assert texts("0.3 * a/set.csv + 0.1 * b/set.csv") == ["a0", "a1", "a2", "a3"] * 3 + ["b4", "b5"]


@pytest.mark.usefixtures("sets")
def test_repeated_images_keep_one_identity() -> None:
    source = open_pairs("2 * b/set.csv + a/set.csv")
    assert [source.image_of(row) for row in range(8)] == [0, 1, 0, 1, 2, 3, 4, 5]
    assert [source.key(row) for row in (0, 2)] == ["4.png", "4.png"]
    distinct = distinct_images(source.images)
    assert [distinct.key(row) for row in range(len(distinct))] == [
        "4.png", "5.png", "0.png", "1.png", "2.png", "3.png",
    ]  # fmt: skip
    source = open_pairs("b/set.csv?rows=captions + a/set.csv")
    assert [source.image_of(row) for row in range(6)] == list(range(6))


@pytest.mark.usefixtures("sets")
def test_keys_are_numbered_where_sets_share_some() -> None:
    """In errors too; images of one name in two sets are different images."""
    source = open_pairs("a/set.csv + b/set.csv + c/set.csv")
    assert [source.key(row) for row in range(8)] == [
        "1:0.png", "1:1.png", "1:2.png", "1:3.png", "2:4.png", "2:5.png", "3:4.png", "3:5.png",
    ]  # fmt: skip
    assert source.images.read(6).key == "3:4.png"
    assert source.images.read(6).data == (Path("c") / "4.png").read_bytes()
    (Path("b") / "5.png").unlink()
    with pytest.raises(UnreadableImage, match=r"^2:5\.png: the file does not exist"):
        source.images.read(5)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("0 * a.csv + b.csv", "the weight of a set must be a number above 0, got '0' in '0 \\* a.csv'"),
        ("-1 * a.csv", "got '-1'"),
        ("inf * a.csv", "got 'inf'"),
        ("two * a.csv", "got 'two'"),
        ("a.json?spilt=train", r"a\.json: unknown option 'spilt' \(meant split\?\); known: split \("),
        ("a.json?x=1", r"unknown option 'x'; known: split \("),
        ("a.json?split=a&split=b", "the option split must be given once, with a value"),
        ("a.json?split=", "the option split must be given once, with a value"),
    ],
)
def test_descriptions_that_do_not_fit(description: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_descriptions(description)


@pytest.mark.usefixtures("sets")
def test_weights_that_must_be_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"may differ by a factor of 1000, got 0.001 and 2"):
        open_pairs("2 * a/set.csv + 0.001 * b/set.csv")
    with pytest.raises(ValueError, match="does not exist"):
        open_pairs("a/set.csv + nothing.csv")


def test_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Question marks of patterns are no options, plus signs in values join no sets, names may hold both."""
    assert read_descriptions(" 2.5 * a.json?split=train+restval&images=x%26y + set-?.tar ") == [
        SetDescription("a.json", {"split": "train+restval", "images": "x&y"}, 2.5),
        SetDescription("set-?.tar", {}),
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a + b.csv").write_text("")
    assert read_descriptions("a + b.csv") == [SetDescription("a + b.csv", {})]
    assert len(read_descriptions(" + ".join(f"{number}.csv" for number in range(100)))) == 100


def test_a_split_is_put_into_a_description() -> None:
    assert with_split("a.json", "train+restval") == "a.json?split=train+restval"
    assert with_split("a.json?images=x", "val") == "a.json?images=x&split=val"
    assert with_split("hf:owner/set?captions=x", "test") == "hf:owner/set:test?captions=x"
    for twice in ("a.json?split=val", "hf:owner/set:train", "a.json + b.json"):
        with pytest.raises(ValueError, match="the split 'test' is asked for beside"):
            with_split(twice, "test")
