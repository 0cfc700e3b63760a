"""The reader of the published episodes, over a generated folder of their layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixlex.eval.few_shot.episodes import read_open_ended
from pixlex.eval.few_shot.prompts import setting_of


def published(folder: Path, task: str, ways: int, shots: int, count: int = 3, **change: Any) -> Path:
    """Write `count` questions and their pictures."""
    names, stem = ("dax", "blicket", "wug", "fep", "perpo")[:ways], f"{task}_shots_{shots}_ways_{ways}"
    questions = []
    for number in range(count):
        question: dict[str, Any] = {"question_id": number, "question": "Q: What is this? A: This is a"}
        for place in range(ways * shots):
            question[f"image_{place + 1}"] = f"{stem}_id_{number}_image_{place + 1}.jpg"
            question[f"caption_{place + 1}"] = f"This is a {names[(place + number) % ways]}."
        question["question_image"] = f"{stem}_id_{number}_question.jpg"
        question["answer"] = f"This is a {names[number % ways]}"
        questions.append({key: value for key, value in (question | change).items() if value is not None})
        for key, name in question.items():
            if "image" in key:
                pixels = np.random.default_rng((number, len(key))).integers(
                    0, 256, (16, 16, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(folder / name)
    path = folder / f"{stem}_all_questions.json"
    path.write_text(json.dumps(questions))
    return path


def test_questions_become_episodes(tmp_path: Path) -> None:
    for ways, shots in ((2, 1), (2, 3), (5, 1)):
        published(tmp_path, "open_ended_mi", ways, shots)
    settings = [
        setting_of(column, ways) for ways, column in ((2, "1/0"), (2, "bare:1/0"), (2, "3/5"), (5, "1/0"))
    ]
    images, sets = read_open_ended(tmp_path, settings)
    assert [one.setting.column for one in sets] == ["1/0", "bare:1/0", "3/5", "1/0"]
    assert {one.setting.naming for one in sets} == {"nonsense"}
    for one in sets:
        one.check(images)
        stem = f"open_ended_mi_shots_{one.setting.shots}_ways_{one.setting.ways}_id"
        assert len(one.episodes) == 3
        for number, episode in enumerate(one.episodes):
            keys = [images.key(position) for position in episode.images]
            assert keys == [
                *(f"{stem}_{number}_image_{place + 1}.jpg" for place in range(len(episode.support))),
                f"{stem}_{number}_question.jpg",
            ]
            shown = [episode.names[one.name] for one in episode.support]
            assert shown[0] == ("dax", "blicket", "wug")[number % one.setting.ways]
            assert episode.names[episode.answer] == ("dax", "blicket", "wug")[number % one.setting.ways]
            assert images.read(episode.query).data


def test_real_names_and_a_limit(tmp_path: Path) -> None:
    published(tmp_path, "real_name_mi", 2, 1, answer="fruit bat", caption_1="this is a fruit bat")
    _, (episodes,) = read_open_ended(tmp_path, [setting_of("1/0", 2)], limit=2)
    assert episodes.setting.naming == "real"
    assert len(episodes.episodes) == 2
    assert all(one.names[one.answer] == "fruit bat" for one in episodes.episodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_2": None}, "lacks the text 'image_2'; expected 2 images"),
        ({"caption_1": None}, "lacks the text 'caption_1'"),
        ({"answer": "This is a unicorn"}, "question 0: the answer 'unicorn' is none of its names"),
        ({"caption_1": "a dax", "caption_2": "a dax"}, "expected 2 names in its captions"),
    ],
)
def test_questions_it_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    published(tmp_path, "open_ended_mi", 2, 1, **change)
    with pytest.raises(ValueError, match=message):
        read_open_ended(tmp_path, [setting_of("1/0", 2)])


def test_questions_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = published(tmp_path, "open_ended_mi", 2, 1)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_open_ended(tmp_path, [setting_of("1/0", 2)])[1]
    path.write_bytes("[é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"questions\.json: expected UTF-8 text, got 0xe9 at byte 1"):
        read_open_ended(tmp_path, [setting_of("1/0", 2)])


def test_folders_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no published episodes"):
        read_open_ended(tmp_path, [setting_of("1/0", 2)])
    published(tmp_path, "open_ended_mi", 2, 1)
    with pytest.raises(ValueError, match="no 2-way 3-shot questions; it has 2-way 1-shot"):
        read_open_ended(tmp_path, [setting_of("3/0", 2)])
    published(tmp_path, "real_name_mi", 2, 1)
    with pytest.raises(ValueError, match="several tasks, name one of open_ended_mi, real_name_mi"):
        read_open_ended(tmp_path, [setting_of("1/0", 2)])
    assert read_open_ended(tmp_path, [setting_of("1/0", 2)], task="real_name_mi")[1]
