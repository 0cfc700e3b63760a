"""Episodes: drawn as the paper says, alike over settings, saved and loaded, refused over other images."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.eval.few_shot.fakes import CLASSES, labeled, paper_settings

from pixlex.data.images import open_source
from pixlex.data.labels import Labels
from pixlex.data.sources import ImageSource
from pixlex.eval.few_shot.episodes import (
    NONSENSE_NAMES,
    EpisodeSet,
    load_episodes,
    read_open_ended,
    sample_episodes,
    save_episodes,
    with_support,
)
from pixlex.eval.few_shot.prompts import PAPER_COLUMNS, Setting, setting_of
from pixlex.files import read_json, sealed


def class_of(images: ImageSource, position: int) -> str:
    return images.key(position).split("/")[0]


@pytest.mark.parametrize("ways", [2, 5])
@pytest.mark.parametrize("shots", [0, 1, 3, 5])
def test_an_episode_is_what_the_paper_says(images: ImageSource, ways: int, shots: int) -> None:
    drawn = sample_episodes(images, Setting(ways=ways, shots=shots), count=60, seed=3)
    for episode in drawn.episodes:
        assert len(set(episode.names)) == ways
        # Interleaved: c1 c2 c1 c2 ...
        assert [shown.name for shown in episode.support] == list(range(ways)) * shots
        assert all(class_of(images, one.image) == episode.names[one.name] for one in episode.support)
        assert class_of(images, episode.query) == episode.names[episode.answer]
        assert len(set(episode.images)) == ways * shots + 1


def test_more_shots_extend_fewer_and_all_settings_ask_the_same(images: ImageSource) -> None:
    settings = (Setting(ways=2, shots=0), *paper_settings(2))
    sets = [sample_episodes(images, setting, count=20, seed=5) for setting in settings]
    again = [sample_episodes(images, setting, count=20, seed=5) for setting in reversed(settings)]
    assert len({one.identity for one in sets}) == len(settings)
    assert [one.episodes for one in sets] == [one.episodes for one in reversed(again)]
    longest = max(sets, key=lambda one: one.setting.shots)
    for one in sets:
        for few, many in zip(one.episodes, longest.episodes, strict=True):
            assert few.support == many.support[: len(few.support)]
            assert (few.query, few.answer, few.names) == (many.query, many.answer, many.names)


def test_more_episodes_extend_fewer_and_another_seed_gives_others(images: ImageSource) -> None:
    setting = Setting(ways=2, shots=1)
    many = sample_episodes(images, setting, count=30, seed=0)
    assert sample_episodes(images, setting, count=7, seed=0).episodes == many.episodes[:7]
    assert sample_episodes(images, setting, count=7, seed=0).questions == many.questions[:7]
    assert sample_episodes(images, setting, count=30, seed=1).episodes != many.episodes


def test_classes_answers_and_orders_are_even(images: ImageSource) -> None:
    """Five standard deviations around evenness, over 2,000 episodes."""
    episodes = sample_episodes(images, Setting(ways=2, shots=1), count=2000, seed=0).episodes
    spread = 5 * np.sqrt(2000 * (1 / 6) * (5 / 6))
    asked = Counter(one.names[one.answer] for one in episodes)
    assert all(abs(asked[name] - 2000 / 6) < spread for name in CLASSES)
    assert abs(sum(one.answer for one in episodes) - 1000) < 5 * np.sqrt(500)
    assert abs(sum(one.names == tuple(sorted(one.names)) for one in episodes) - 1000) < 5 * np.sqrt(500)


def test_nonsense_names_are_dealt_anew_over_the_same_images(images: ImageSource) -> None:
    real = sample_episodes(images, Setting(ways=5, shots=1), count=40, seed=0)
    nonsense = sample_episodes(images, Setting(ways=5, shots=1, naming="nonsense"), count=40, seed=0)
    assert [one.images for one in real.episodes] == [one.images for one in nonsense.episodes]
    assert all(
        set(one.names) <= set(NONSENSE_NAMES) and len(set(one.names)) == 5 for one in nonsense.episodes
    )
    assert len({one.names for one in nonsense.episodes}) > 30
    assert len(set(NONSENSE_NAMES)) == len(NONSENSE_NAMES)


class Relabeled:
    """A source whose labels are others."""

    def __init__(self, images: ImageSource, indices: list[int], names: tuple[str, ...]) -> None:
        self.images, self.class_names = images, names
        self.labels = Labels(np.array(indices, dtype=np.int64), names)
        self.name, self.identity = "relabeled", f"{indices} {names}"

    def __len__(self) -> int:
        return len(self.labels.indices)

    def key(self, index: int) -> str:
        return self.images.key(index)

    def read(self, index: int) -> Any:
        return self.images.read(index)


@pytest.mark.parametrize(
    ("indices", "names", "message"),
    [
        ([-1] * 8, (), "has no labels"),
        ([0] * 4 + [1] * 4, ("camel", ""), "label 1 has no name"),
        ([0] * 6 + [1] * 2, ("camel", "pig"), "class 'pig' has 2 images, but 3 shots .* need 4"),
        ([0] * 8, ("camel",), "2-way episodes need 2 classes, relabeled has 1"),
        ([0] * 4 + [1] * 4, ("crane", "crane"), "2-way episodes need 2 classes, relabeled has 1"),
    ],
)
def test_sources_it_refuses(
    images: ImageSource, indices: list[int], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_episodes(Relabeled(images, indices, names), Setting(ways=2, shots=3), count=2, seed=0)


def test_two_classes_of_one_name_never_meet(images: ImageSource) -> None:
    source = Relabeled(images, [0] * 4 + [1] * 4 + [2] * 4, ("crane", "crane", "pig"))
    episodes = sample_episodes(source, Setting(ways=2, shots=1), count=50, seed=0).episodes
    assert {frozenset(one.names) for one in episodes} == {frozenset(("crane", "pig"))}


def test_without_an_example_one_image_of_a_class_is_enough(images: ImageSource) -> None:
    source = Relabeled(images, [0, 1, 2], ("camel", "pig", "teapot"))
    drawn = sample_episodes(source, Setting(ways=3, shots=0), count=9, seed=0)
    assert {one.query for one in drawn.episodes} == {0, 1, 2}
    assert all(one.names[one.answer] == source.class_names[one.query] for one in drawn.episodes)
    with pytest.raises(
        ValueError, match=r"class 'camel' has 1 images, but 1 shots .* need 2, and so have 2 other"
    ):
        sample_episodes(source, Setting(ways=3, shots=1), count=9, seed=0)


@pytest.mark.usefixtures("unchecked_shapes")
def test_settings_it_refuses() -> None:
    changes = {"ways": 1, "shots": -1, "repeats": -1, "induction": "yes", "naming": "latin"}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=rf"{name} must be .*, got '?{value}"):
            replace(Setting(ways=2, shots=1), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"repeats must be 0 where no image is shown \(0 shots\), got 1"):
        setting_of("0/1", 2)
    with pytest.raises(ValueError, match="nonsense names say nothing of a picture: expected 1 or more shots"):
        setting_of("0/0", 2, "nonsense")


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_columns_name_settings(shots: int, repeats: int, induction: bool) -> None:
    repeats = repeats if shots else 0
    setting = Setting(ways=2, shots=shots, repeats=repeats, induction=induction)
    assert setting_of(setting.column, 2) == setting


def test_support_comes_from_elsewhere(images: ImageSource, tmp_path: Path) -> None:
    """What is asked about is of the one source, what is shown of the other; both of the class that is named."""
    names = (*CLASSES[1:4], "yak")
    support = labeled(tmp_path / "support", per_class=5, classes=names, seed=1)
    (tmp_path / "support/pig/4.png").unlink()
    source = with_support(images, open_source(str(tmp_path / "support")))
    assert source.class_names == ("lobster", "pig", "red panda")
    assert len(source) == 3 * 8 + 2 * 5 + 4
    settings = [Setting(ways=2, shots=shots) for shots in (0, 1, 4)]
    sets = [sample_episodes(source, setting, count=30, seed=2, most_shots=4) for setting in settings]
    for drawn in sets:
        for one in drawn.episodes:
            assert one.query < source.num_queries <= min([shown.image for shown in one.support], default=99)
            keys = {source.key(shown.image): one.names[shown.name] for shown in one.support}
            keys[source.key(one.query)] = one.names[one.answer]
            assert len(keys) == 2 * drawn.setting.shots + 1
            assert all(key.split(":")[1].split("/")[0] == name for key, name in keys.items())
            assert source.class_names[source.read(one.query).label] == one.names[one.answer]
    # Columns share their questions.
    few, more, most = ([(one.names, one.query) for one in drawn.episodes] for drawn in sets)
    assert few == more == most
    assert {name for names, _ in most for name in names} == set(source.class_names)
    # A class with too few is left out, of all columns alike.
    fewer = [sample_episodes(source, one, count=30, seed=2, most_shots=5) for one in settings]
    assert {one.class_names for one in fewer} == {("lobster", "red panda")}
    with pytest.raises(ValueError, match=r"3-way episodes need 3 classes with 5 images to show, .* has 2"):
        sample_episodes(source, Setting(ways=3, shots=5), count=1, seed=0)
    # Episodes belong to both sources.
    save_episodes(sets[1], tmp_path / "set.json")
    assert load_episodes(tmp_path / "set.json", source) == sets[1]
    for other in (with_support(images, support), images, with_support(support, images)):
        with pytest.raises(ValueError, match=r"were drawn from .* support .* with fingerprint"):
            load_episodes(tmp_path / "set.json", other)


def test_no_image_is_asked_about_and_shown(images: ImageSource, tmp_path: Path) -> None:
    """Whatever it is called in the support; a support that is the data itself is none."""
    labeled(tmp_path / "support", per_class=2, seed=1)
    for name in CLASSES:
        (tmp_path / "support" / name / "copy.png").write_bytes(images.read(CLASSES.index(name) * 8).data)
    source = with_support(images, open_source(str(tmp_path / "support")))
    assert len(source) - source.num_queries == 2 * len(CLASSES)
    bytes_of = [source.read(index).data for index in range(len(source))]
    assert not {*bytes_of[: source.num_queries]} & {*bytes_of[source.num_queries :]}
    with pytest.raises(ValueError, match=r"all images of .* that could be shown are asked about"):
        with_support(images, images)


def test_supports_it_refuses(images: ImageSource, tmp_path: Path) -> None:
    other = labeled(tmp_path / "other", per_class=1, classes=("Camel", "yak"))
    message = (
        r"no class of .* \(6, such as 'camel', 'lobster', 'pig'\) is one of .* \(2, such as 'Camel', 'yak'\)"
    )
    with pytest.raises(ValueError, match=message):
        with_support(images, other)
    with pytest.raises(ValueError, match="relabeled has no labels"):
        with_support(images, Relabeled(images, [-1] * 8, ()))


def test_the_papers_columns() -> None:
    assert tuple(one.column for one in paper_settings(5)) == PAPER_COLUMNS
    assert {(one.shots, one.repeats) for one in paper_settings(5) if not one.induction} == {(1, 0)}
    with pytest.raises(ValueError, match="expected a setting like 3/0"):
        setting_of("3", 2)


@pytest.fixture
def saved(images: ImageSource, tmp_path: Path) -> tuple[EpisodeSet, Path]:
    drawn = sample_episodes(images, Setting(ways=3, shots=2, naming="nonsense"), count=9, seed=1)
    save_episodes(drawn, tmp_path / "sub" / drawn.file_name)
    return drawn, tmp_path / "sub" / drawn.file_name


def test_a_saved_set_is_the_set(images: ImageSource, saved: tuple[EpisodeSet, Path]) -> None:
    assert load_episodes(saved[1], images) == saved[0]
    assert load_episodes(saved[1], images).identity == saved[0].identity


def test_a_set_fits_a_copy_and_no_other_images(tmp_path: Path, saved: tuple[EpisodeSet, Path]) -> None:
    assert load_episodes(saved[1], labeled(tmp_path / "copy")) == saved[0]
    for other in (labeled(tmp_path / "more", per_class=9), labeled(tmp_path / "repainted", seed=7)):
        with pytest.raises(ValueError, match=r"were drawn from .* with fingerprint"):
            load_episodes(saved[1], other)


def test_files_it_refuses(images: ImageSource, saved: tuple[EpisodeSet, Path]) -> None:
    """Of another form, or with a question among its own examples."""
    entry = read_json(saved[1])
    own = copy.deepcopy(entry["episodes"])
    own[4]["query"] = own[4]["support"][0][0]
    for change, message in (
        ({"format": 7}, "format 1"),
        ({"setting": {"ways": 3}}, "no file of episodes"),
        ({"episodes": [{"names": []}]}, "no file of episodes"),
        ({"setting": {"ways": 2, "shots": 2}}, "episode 0 is none of 2-way"),
        ({"episodes": own}, "episode 4 is none of"),
    ):
        saved[1].write_text(json.dumps(sealed({**entry, **change})))
        with pytest.raises(ValueError, match=message):
            load_episodes(saved[1], images)
    saved[1].write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_episodes(saved[1], images)


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


def test_questions_it_refuses(tmp_path: Path) -> None:
    """A byte order mark is none of them."""
    for change, message in (
        ({"image_2": None}, "lacks the text 'image_2'; expected 2 images"),
        ({"caption_1": None}, "lacks the text 'caption_1'"),
        ({"answer": "This is a unicorn"}, "question 0: the answer 'unicorn' is none of its names"),
        ({"caption_1": "a dax", "caption_2": "a dax"}, "expected 2 names in its captions"),
    ):
        published(tmp_path, "open_ended_mi", 2, 1, **change)
        with pytest.raises(ValueError, match=message):
            read_open_ended(tmp_path, [setting_of("1/0", 2)])
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
