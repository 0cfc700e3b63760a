"""Questions in every kind of file, and what does not fit."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixlex.data.decoding import UnreadableImage
from pixlex.data.questions import open_items
from pixlex.data.records import Records

Picture = Callable[..., bytes]
QUESTIONS = {
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What's on it?", "question_id": 42000},
        {"image_id": 7, "question": "How many?", "question_id": 7001},
        {"image_id": 42, "question": "Is it red?", "question_id": 42001},
    ],
}
GIVEN = {42000: ["cat"] * 7 + ["Cat", "dog", ""], 7001: ["2"] * 10, 42001: ["yes"] * 6 + ["no"] * 4}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": question,
            "image_id": question // 1000,
            "answer_type": "number" if question == 7001 else "other",
            "multiple_choice_answer": texts[0],
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": number + 1}
                for number, text in enumerate(texts)
            ],
        }
        for question, texts in reversed(GIVEN.items())
    ]
}


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def opened(path: str) -> Records:
    return open_items(path, "vqa")


@pytest.fixture
def coco(tmp_path: Path, picture: Picture) -> Path:
    """A folder of images as COCO's, one of two there, with questions and annotations beside."""
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    (tmp_path / "images" / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(picture(42, "JPEG"))
    write(tmp_path / "questions.json", QUESTIONS)
    write(tmp_path / "annotations.json", ANNOTATIONS)
    return tmp_path


def test_official_questions_with_annotations(coco: Path, picture: Picture) -> None:
    """Answers are found by the id of the question, in another order; one image is stored once."""
    source = opened(f"{coco}/questions.json?annotations={coco}/annotations.json&images={coco}/images/val2014")
    assert source.ids == ("42000", "7001", "42001")
    assert source.first_texts == ("whats on it", "how many", "is it red")
    assert source.answers == tuple(tuple(GIVEN[int(name)]) for name in source.ids)
    assert source.kinds == ("other", "number", "other")
    assert (source.scales, source.sentences, source.ignored) == ((), (), ())
    assert source.targets(0) == pytest.approx({"cat": 0.7, "Cat": 0.1, "dog": 0.1, "": 0.1})
    assert source.images.read(2).data == picture(42, "JPEG")
    assert source.images.key(0) == source.images.key(2)
    with pytest.raises(UnreadableImage, match=r"COCO_val2014_000000000007\.jpg: the file does not exist"):
        pickle.loads(pickle.dumps(source.images)).read(1)


def test_the_split_may_be_a_folder_of_images(coco: Path, picture: Picture) -> None:
    """Below the folder that holds train2014 and val2014."""
    source = opened(f"{coco}/questions.json?images={coco}/images")
    assert source.images.key(0) == "val2014/COCO_val2014_000000000042.jpg"
    assert source.images.read(0).data == picture(42, "JPEG")


def test_test_questions_have_no_answers(coco: Path, tmp_path: Path, picture: Picture) -> None:
    """Those of test-dev are asked about the images of test."""
    (coco / "images" / "COCO_test2015_000000000007.jpg").write_bytes(picture(7, "JPEG"))
    path = write(tmp_path / "test.json", {**QUESTIONS, "data_subtype": "test-dev2015"})
    source = opened(f"{path}?images={coco}/images")
    assert source.answers == ((), (), ())
    assert source.images.read(1).data == picture(7, "JPEG")
    with pytest.raises(ValueError, match="none of 3 items has an answer"):
        source.answered()
    bare = write(tmp_path / "bare.json", {"questions": QUESTIONS["questions"]})
    assert opened(f"{bare}?split=test2015&images={coco}/images").images.key(1) == source.images.key(1)
    with pytest.raises(ValueError, match=r"bare\.json: expected data_type mscoco and data_subtype"):
        opened(f"{bare}?images={coco}/images")


def test_official_questions_on_a_table_of_images(coco: Path, picture: Picture) -> None:
    """Ids are whole numbers in both; an image that the table does not have takes its items along."""
    pq.write_table(pa.table({"image_id": [42], "image": [picture(42)]}), coco / "table.parquet")
    source = opened(f"{coco}/questions.json?images={coco}/table.parquet")
    assert source.ids == ("42000", "42001")
    assert source.images.read(1).data == picture(42)
    assert source.ignored == (f"7001: {coco}/table.parquet has no image 7",)


def test_annotations_must_fit(coco: Path) -> None:
    every = ANNOTATIONS["annotations"]
    for content, message in (
        ({"annotations": every[:2]}, r"questions\.json entry 0: expected an annotation of question 42000 in"),
        ({"annotations": every * 2}, r"some\.json entry 3: expected questions that occur once, got 42001"),
        ({"annotations": [*every, {"question_id": 5}]}, r"entry 3: expected question_id and answers, got"),
        (QUESTIONS, r"some\.json: expected VQA v2's \{annotations: .*found an object of"),
    ):
        path = write(coco / "some.json", content)
        with pytest.raises(ValueError, match=message):
            opened(f"{coco}/questions.json?images={coco}/images&annotations={path}")


def test_albef(tmp_path: Path, picture: Picture) -> None:
    """Lists of answers and single ones; Visual Genome counts half; joined with a set without scales."""
    (tmp_path / "a.jpg").write_bytes(picture(0))
    rows = [
        {"question_id": 1, "question": "Where?", "image": "a.jpg", "answer": ["x", "y", "x", "z"]},
        {"question_id": 2, "question": "Who - ?", "image": "b.jpg", "answer": "he", "dataset": "vg"},
        {"question_id": 3, "question": "Why?", "image": "a.jpg", "dataset": "vqa"},
    ]
    path = write(tmp_path / "albef.json", rows)
    source = opened(path)
    assert source.first_texts == ("where", "who", "why")
    assert source.answers == (("x", "y", "x", "z"), ("he",), ())
    assert source.scales == (1.0, 0.5, 1.0)
    assert [source.targets(item) for item in (0, 1)] == [{"x": 0.5, "y": 0.25, "z": 0.25}, {"he": 0.5}]
    raw = open_items(path, "vqa", clean=False)
    assert raw.first_texts == ("Where?", "Who - ?", "Why?")
    joined = opened(f"{path} + embedded:scenes:train:2")
    assert joined.scales == (1.0, 0.5, 1.0, 1.0, 1.0)
    assert joined.kinds[:3] == ("", "", "")
    assert joined.ids == (*source.ids, "scenes/train-000000", "scenes/train-000001")
    assert joined.images.key(4) == "scenes/train-000001"
    assert opened(f"{path} + {path}").ids == ("1:1", "1:2", "1:3", "2:1", "2:2", "2:3")


def test_visual_genome(tmp_path: Path, picture: Picture) -> None:
    """Every question counts half; images lie in one of two folders."""
    for number, folder in ((1, "VG_100K"), (20, "VG_100K_2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{number}.jpg").write_bytes(picture(number, "JPEG"))
    man = {"qa_id": 12, "question": "Who?", "answer": "A man."}
    entries = [
        {"id": 1, "qas": [{"qa_id": 11, "question": "What?", "answer": "A clock.", "q_objects": []}]},
        {"id": 20, "qas": []},
        {"image_id": 20, "qas": [man, {"qa_id": 13, "question": "Why?", "answer": ""}]},
    ]
    path = write(tmp_path / "genome.json", entries)
    source = opened(path)
    assert source.ids == ("11", "12", "13")
    assert source.answers == (("A clock.",), ("A man.",), ())
    assert source.scales == (0.5, 0.5, 0.5)
    paths = ["VG_100K/1.jpg", "VG_100K_2/20.jpg", "VG_100K_2/20.jpg"]
    assert [source.images.key(item) for item in range(3)] == paths
    index = [{"image_id": number, "url": f"https://x/VG_100K_2/{number}.jpg"} for number in (1, 20)]
    indexed = opened(f"{path}?index={write(tmp_path / 'index.json', index)}")
    assert indexed.images.key(0) == "VG_100K_2/1.jpg"


def test_images_in_the_rows(tmp_path: Path, picture: Picture) -> None:
    """The first row has no word left and takes its image along; another column holds the answers."""
    table = pa.table(
        {
            "image": [picture(number) for number in range(3)],
            "question": ["?!", "Where?", "Who?"],
            "question_id": [5, 6, 7],
            "answer": ["a", "b", "c"],
            "best": [["a"], ["x", "y"], None],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    source = opened(f"{tmp_path}/rows.parquet?answers=best")
    assert (source.ids, source.first_texts) == (("6", "7"), ("where", "who"))
    assert source.answers == (("x", "y"), ())
    assert source.ignored == ("5: nothing is left of the text '?!' after cleaning",)
    assert source.images.read(0).data == picture(1)
    assert opened(f"{tmp_path}/rows.parquet").answers == (("b",), ("c",))
    with pytest.raises(ValueError, match="row 0: expected a field worst, found"):
        opened(f"{tmp_path}/rows.parquet?answers=worst")
    pq.write_table(table.slice(0, 1), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="nothing is left of all of them after cleaning, the first"):
        opened(f"{tmp_path}/none.parquet")


def test_ids_of_any_kind_and_answers_in_one_cell(coco: Path, tmp_path: Path) -> None:
    """42000, 42000.0 and "42000" are one question; lists inside a text are lists."""
    questions = json.loads((coco / "questions.json").read_text())
    for number, kind in enumerate((float, str, lambda one: f"{one}.0")):
        questions["questions"][number]["question_id"] = kind(questions["questions"][number]["question_id"])
        questions["questions"][number]["image_id"] = kind(questions["questions"][number]["image_id"])
    write(tmp_path / "kinds.json", questions)
    options = f"images={coco / 'images'}&annotations={coco / 'annotations.json'}"
    source, same = (
        opened(f"{path}?{options}") for path in (coco / "questions.json", tmp_path / "kinds.json")
    )
    assert (same.ids, same.answers) == (source.ids, source.answers)
    assert same.images.identity == source.images.identity
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = [
            ("1.0", "what\0 is it", "['a', 'b']"),
            ("2", "is\u200b it", '[{"answer": "a", "answer_id": 1}, {"answer": "\ufeffb"}]'),
            ("3", "who", "[sic]"),
            ("4", "when", "1999.0"),
        ]
        csv.writer(file).writerows(
            [("question_id", "question", "answers", "image"), *((*row, "1.png") for row in rows)]
        )
    source = open_items(f"{tmp_path / 'a.csv'}?images={one_picture(tmp_path)}", "vqa", clean=False)
    assert source.ids == ("1", "2", "3", "4")
    assert source.first_texts == ("what  is it", "is it", "who", "when")
    assert source.answers == (("a", "b"), ("a", "b"), ("[sic]",), ("1999.0",))
    write(tmp_path / "b.json", [{"question_id": 1, "question": "\u200b", "image": "1.png", "answer": "a"}])
    with pytest.raises(ValueError, match=r"b\.json entry 0: expected a text in question, got '\\u200b'"):
        opened(f"{tmp_path / 'b.json'}?images={tmp_path}")


def one_picture(folder: Path) -> Path:
    (folder / "1.png").write_bytes(b"")
    return folder


def test_a_set_as_answer_is_one_answer(tmp_path: Path, picture: Picture) -> None:
    """DAQUAR joins the members of a set; ten people's answers beside the most frequent one are no set."""
    (tmp_path / "0.png").write_bytes(picture(0))
    rows = [
        {"path": "0.png", "question": "a", "answer": "cup, pen", "answers": ["cup", "pen"]},
        {"path": "0.png", "question": "b", "answer": "cup", "answers": ["cup", "pen", "cup"]},
        {"path": "0.png", "question": "c", "answer": "cup", "answers": ["cup"]},
        {"path": "0.png", "question": "d", "answer": 3},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert opened(f"{tmp_path}/a.jsonl").answers == (("cup, pen",), ("cup", "pen", "cup"), ("cup",), ("3",))


GOOD = {"question_id": 1, "question": "Where?", "image": "a.jpg", "answer": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": 5}, r"bad\.json entry 1: expected a text in question, got 5"),
        ({"question": " "}, r"bad\.json entry 1: expected a text in question, got ' '"),
        ({"answer": 1.5}, r"bad\.json entry 1: expected an answer, a list of answers or nothing, got 1\.5"),
        ({"answer": ["x", None]}, r"bad\.json entry 1: expected an answer, .* got None"),
        ({"question_id": 1}, r"bad\.json entry 1: expected ids that occur once, got 1 again"),
        ({"question_id": 2.5}, r"bad\.json entry 1: expected a text or a whole number in question_id, got 2\.5"),
        ({"image": None}, r"bad\.json entry 1: expected an image in images or one of path, .*; found quest"),
        ({"image": "http://x/a.jpg"}, r"bad\.json entry 1: the image is a web address"),
        ({"images": ["a.jpg", "b.jpg"]}, r"bad\.json entry 1: expected 1 images as before, got 2"),
        ({"images": "a.jpg"}, r"bad\.json entry 1: expected a list of names as images, got 'a\.jpg'"),
    ],
)  # fmt: skip
def test_malformed_rows(tmp_path: Path, picture: Picture, row: dict[str, Any], message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    path = write(tmp_path / "bad.json", [GOOD, GOOD | {"question_id": 2} | row])
    with pytest.raises(ValueError, match=message):
        opened(path)


def test_what_is_no_file_of_questions(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    one = write(tmp_path / "one.json", [GOOD])
    for description, message in (
        (write(tmp_path / "a.json", [{"image": "a.png", "caption": "x"}]), r"found a .* 1 objects of image"),
        (write(tmp_path / "b.json", [GOOD, 3]), r"b\.json entry 1: expected an object, got 3"),
        (write(tmp_path / "c.json", {"questions": [], "data_subtype": "val2014"}), "lists no item"),
        (one, r"one\.json: none of 1 images exists, the first is .*a\.jpg; say where"),
        (f"{one}?index=x", "ALBEF's questions take the options images, answers, got index"),
        (f"2 * {one}", "sets of items have no weights, got 2"),
        (f"{tmp_path}/0.png", r"0\.png holds no items"),
        ("embedded:digits:test", "embedded:digits:test has no items"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(description)
    single = write(tmp_path / "s.json", [{"image": "0.png", "sentence": "x", "label": "True"}])
    with pytest.raises(ValueError, match=r"must have as many images each: .* has 1, .* has 2"):
        open_items(f"{single} + embedded:scenes:test:3", "nlvr2")
