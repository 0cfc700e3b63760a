"""Statements about images and hypotheses in every kind of file, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.questions import open_items
from pixlex.data.records import Questions
from pixlex.nn.bert import Words

Picture = Callable[..., bytes]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def nlvr2_row(identifier: str, label: str = "True") -> dict[str, Any]:
    return {"identifier": identifier, "sentence": f"Sentence {identifier[-1]}.", "label": label}


def test_lines_of_nlvr2(tmp_path: Path, picture: Picture) -> None:
    """Left and right by their names, in whatever folder they lie."""
    for number, path in enumerate(
        ("dev/dev-8-0-img0.png", "dev/dev-8-0-img1.png", "deep/er/dev-8-1-img1.png")
    ):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).write_bytes(picture(number))
    rows = [nlvr2_row("dev-8-0-0"), nlvr2_row("dev-8-1-0", "False"), nlvr2_row("dev-8-0-1")]
    path = write_lines(tmp_path / "dev.json", rows)
    source = open_items(f"{path}?images={tmp_path}/images", "nlvr2")
    assert (len(source), source.num_images) == (3, 2)
    assert source.ids == ("dev-8-0-0", "dev-8-1-0", "dev-8-0-1")
    assert source.answers == (("true",), ("false",), ("true",))
    assert source.first_texts == ("sentence 0", "sentence 0", "sentence 1")
    assert source.sentences == ("dev-8-0", "dev-8-0", "dev-8-1")
    assert [source.images.read(index).data for index in (0, 1, 3)] == [picture(number) for number in range(3)]
    assert source.images.key(2) == "dev-8-1-img0.png"
    assert source.images.key(4) == "dev/dev-8-0-img0.png"


def test_a_pair_of_which_one_image_is_missing_is_passed_over(tmp_path: Path, picture: Picture) -> None:
    """It is found when it is read, and takes the other image along."""
    for name in ("dev-8-0-img0", "dev-8-0-img1", "dev-8-1-img0", "dev-9-0-img0", "dev-9-0-img1"):
        (tmp_path / f"{name}.png").write_bytes(picture(0, width=20, height=20))
    path = write_lines(tmp_path / "dev.json", [nlvr2_row(f"dev-{pair}-0") for pair in ("8-0", "8-1", "9-0")])

    def encode(texts: Sequence[str]) -> Words:
        empty = torch.zeros(len(texts), 1)
        return Words(empty.long(), empty.bool())

    source = open_items(path, "nlvr2")
    batches = list(Loader(Questions(source, encode), LoaderConfig(image_size=16, batch_size=3)).evaluation())
    assert [item for batch in batches for item in batch.items.tolist()] == [0, 2]
    assert [key for batch in batches for key in batch.keys] == [
        f"dev-{pair}-img{place}.png" for pair in ("8-0", "9-0") for place in (0, 1)
    ]


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, picture: Picture) -> None:
    """One in the folder of the originals, another in that of the resized."""
    for folder in ("small", "whole"):
        (tmp_path / folder).mkdir()
        for place in (0, 1):
            (tmp_path / folder / f"dev-8-0-img{place}.png").write_bytes(picture(place))
    path = write_lines(tmp_path / "dev.json", [nlvr2_row("dev-8-0-0")])
    with pytest.raises(ValueError, match=r"line 1: expected one file dev-8-0-img0\.png .*, found small/"):
        open_items(path, "nlvr2")
    assert len(open_items(f"{path}?images={tmp_path}/small", "nlvr2")) == 1


def test_lines_of_nlvr(tmp_path: Path, picture: Picture) -> None:
    """Six pictures of one sentence are six items; the split is that of the file's name."""
    (tmp_path / "images" / "3").mkdir(parents=True)
    for permutation in range(6):
        (tmp_path / "images" / "3" / f"dev-72-1-{permutation}.png").write_bytes(picture(permutation))
    row = {"identifier": "72-1", "directory": "3", "sentence": "There is a box.", "label": "false"}
    path = write_lines(tmp_path / "dev.json", [row])
    source = open_items(path, "nlvr2")
    assert (len(source), source.num_images) == (6, 1)
    assert source.ids == tuple(f"dev-72-1-{permutation}" for permutation in range(6))
    assert set(source.sentences) == {"dev-72"}
    assert set(source.answers) == {("false",)}
    assert [source.images.read(index).data for index in range(6)] == [picture(number) for number in range(6)]
    renamed = write_lines(tmp_path / "other.json", [row])
    assert open_items(f"{renamed}?split=dev", "nlvr2").ids == source.ids
    with pytest.raises(ValueError, match=r"none of 6 images exists, the first is .*/other-72-1-0\.png"):
        open_items(renamed, "nlvr2")


def test_statements_of_albef(tmp_path: Path, picture: Picture) -> None:
    """Sentences are told apart by the set of the images; unknown where the names do not say it."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dev-850-0-img0.png").write_bytes(picture(0))
    rows = [
        {"images": [f"dev/dev-{name}-img{side}.png" for side in (0, 1)], "sentence": "A.", "label": label}
        for name, label in (("850-0", "False"), ("850-1", "True"), ("851-0", "True"))
    ]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(rows))
    source = open_items(str(path), "nlvr2")
    assert (source.num_images, source.answers) == (2, (("false",), ("true",), ("true",)))
    assert source.sentences[0] == source.sentences[1] != source.sentences[2]
    assert source.images.read(0).data == picture(0)
    path.write_text(json.dumps([*rows, {"images": ["x.png", "y.png"], "sentence": "b", "label": None}]))
    source = open_items(str(path), "nlvr2")
    assert (source.sentences, source.answers[3]) == ((), ())


def test_two_columns_of_images(tmp_path: Path, picture: Picture) -> None:
    """The first by name is the left one, whatever the order of the columns."""
    columns = {side: [picture(at + n) for n in range(3)] for side, at in (("right", 10), ("left", 0))}
    table = pa.table({**columns, "sentence": ["a", "b", "c"], "label": ["True", "False", "True"]})
    (tmp_path / "folder").mkdir()
    pq.write_table(table, tmp_path / "folder" / "pairs.parquet", row_group_size=2)
    for path in (tmp_path / "folder" / "pairs.parquet", tmp_path / "folder"):
        source = open_items(str(path), "nlvr2")
        assert (len(source), source.num_images, source.answers[1]) == (3, 2, ("false",))
        images = [source.images.read(index).data for index in range(6)]
        assert images == [picture(number) for number in (0, 10, 1, 11, 2, 12)]
        assert source.images.key(0) != source.images.key(1)
        assert source.take([2]).images.read(1).data == picture(12)
    pq.write_table(table.rename_columns(["left", "right", "sentence", "label"]), tmp_path / "pairs.parquet")
    assert open_items(f"{tmp_path}/pairs.parquet", "nlvr2").images.read(0).data == picture(10)


def test_lists_of_images_inside_a_text_and_paths_of_another_machine(tmp_path: Path, picture: Picture) -> None:
    for number in range(2):
        (tmp_path / f"dev-8-0-img{number}.png").write_bytes(picture(number))
    (tmp_path / "a.csv").write_text(
        "images,sentence,label\n\"['/export/nlvr/dev-8-0-img0.png', 'dev-8-0-img1.png']\",Two dogs.,1.0\n"
    )
    source = open_items(str(tmp_path / "a.csv"), "nlvr2")
    assert [source.images.key(place) for place in range(2)] == ["dev-8-0-img0.png", "dev-8-0-img1.png"]
    assert source.answers == (("true",),)


def snli_row(number: int, label: str, **more: Any) -> dict[str, Any]:
    return {
        "pairID": f"7.jpg#{number}",
        "gold_label": label,
        "sentence1": "The premise says it all.",
        "sentence2": f"Hypothesis, {number}.",
        "annotator_labels": [label],
    } | more


def test_lines_of_snli_ve(tmp_path: Path, picture: Picture) -> None:
    """Both spellings of the image's id; no agreement leaves out; the premise is nowhere."""
    (tmp_path / "flickr").mkdir()
    (tmp_path / "flickr" / "7.jpg").write_bytes(picture(7, "JPEG"))
    rows = [
        snli_row(0, "neutral", Flickr30K_ID="7"),
        snli_row(1, "-", Flickr30K_ID="7"),
        snli_row(2, "contradiction", Flikr30kID="7.jpg"),
        snli_row(3, "entailment", Flickr30K_ID=7),
    ]
    path = write_lines(tmp_path / "snli_ve_dev.jsonl", rows)
    source = open_items(f"{path}?images={tmp_path}/flickr", "entailment")
    assert source.ids == ("7.jpg#0", "7.jpg#2", "7.jpg#3")
    assert source.answers == (("neutral",), ("contradiction",), ("entailment",))
    assert source.first_texts == ("hypothesis 0", "hypothesis 2", "hypothesis 3")
    assert source.ignored == ("line 2: the label is -, its annotators did not agree",)
    assert [source.images.read(index).data for index in range(3)] == [picture(7, "JPEG")] * 3
    assert "premise" not in repr(source)  # of the text alone


def test_hypotheses_on_a_table_of_images(tmp_path: Path, picture: Picture) -> None:
    """ALBEF's ids have no ending, the table's have; an id that it lacks leaves the item out."""
    rows = [{"image": name, "sentence": "A - b", "label": "entailment"} for name in ("11", "12.jpg", "13")]
    (tmp_path / "ve.json").write_text(json.dumps(rows))
    table = pa.table({"image_id": ["12", "11.jpg"], "image": [picture(12), picture(11)]})
    pq.write_table(table, tmp_path / "images.parquet")
    source = open_items(f"{tmp_path}/ve.json?images={tmp_path}/images.parquet", "entailment")
    assert (source.first_texts, source.ids) == (("a b", "a b"), ("entry 0", "entry 1"))
    assert [source.images.read(index).data for index in range(2)] == [picture(11), picture(12)]
    assert source.ignored == (f"entry 2: {tmp_path}/images.parquet has no image 13",)
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"twice\.parquet#2: expected ids that occur once, got '12' again"):
        open_items(f"{tmp_path}/ve.json?images={tmp_path}/twice.parquet", "entailment")
    pq.write_table(table.drop_columns(["image_id"]), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="expected a column image_id, found image"):
        open_items(f"{tmp_path}/ve.json?images={tmp_path}/bare.parquet", "entailment")
    pq.write_table(pa.table({"image_id": ["5"], "image": [picture(5)]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"ve\.json: no item has its images; entry 0: .* has no image 11"):
        open_items(f"{tmp_path}/ve.json?images={tmp_path}/other.parquet", "entailment")
    with pytest.raises(ValueError, match=r"gone does not exist"):
        open_items(f"{tmp_path}/ve.json?images={tmp_path}/gone", "entailment")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("entailment", {"label": "maybe"}, "line 1: expected entailment, neutral, .* as label, got 'maybe'"),
        ("entailment", {"sentence": None, "label": "neutral"}, "line 1: expected a text in sentence, got None"),
        ("nlvr2", {"label": "perhaps"}, r"line 1: expected true or false .* as label, got 'perhaps'"),
        ("nlvr2", {"identifier": "dev-1", "label": 1, "sentence": 3}, "line 1: .* text in sentence, got 3"),
        ("nlvr2", {"identifier": "1-2-3", "label": 1}, "line 1: expected split-set-pair-sentence or sentence-"),
        ("nlvr2", {"identifier": "1-2", "label": 7}, "line 1: expected true or false .* as label, got 7"),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path: Path, picture: Picture, task: Any, row: dict[str, Any], message: str) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    path = write_lines(tmp_path / "bad.jsonl", [{"image": "a.png", "sentence": "x"} | row])
    with pytest.raises(ValueError, match=message):
        open_items(path, task)


def test_only_undecided_items(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [snli_row(0, "-", Flickr30K_ID="7")])
    with pytest.raises(ValueError, match=r"a\.jsonl lists no item; left out: line 1: the label is -"):
        open_items(path, "entailment")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json: expected ALBEF's list .*; found an object of nothing"):
        open_items(f"{tmp_path}/b.json", "entailment")
