"""Few-shot tables, figure, page: numbers where they belong, published ones marked as such."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.eval.few_shot.fakes import FakeReader, labeled, paper_settings
from tests.eval.test_linear_probe import part_of
from tests.tiny import write_classes

from pixlex.batch import Skipped
from pixlex.data.images import open_source
from pixlex.data.sources import ImageSource
from pixlex.eval.evaluate import wilson_interval
from pixlex.eval.few_shot.episodes import sample_episodes
from pixlex.eval.few_shot.prompts import Answer, Setting, setting_of
from pixlex.eval.few_shot.run import Cell
from pixlex.eval.linear_probe import Fit, linear_probe
from pixlex.eval.probe_features import ProbeRow
from pixlex.eval.probe_sets import ProbeSets, open_sets
from pixlex.report.few_shot import (
    draw_accuracies,
    draw_episode_examples,
    draw_episodes,
    notes_of,
    table_lines,
    warnings_of,
    write_few_shot,
    write_few_shot_page,
)
from pixlex.report.page import markdown_table
from pixlex.report.tables import PROBES_NOTE, write_linear_probe


def cell(setting: Setting, accuracy: float | None = 0.625, **change: object) -> Cell:
    values: dict[str, object] = {
        "classifier": "words <b>|", "scorer": "strict", "setting": setting, "num_episodes": 40, "num_failed": 2,
        "accuracy": accuracy, "low": None if accuracy is None else accuracy - 0.1,
        "high": None if accuracy is None else accuracy + 0.1, "accuracy_with_failures": 0.59, "answers": (),
    }  # fmt: skip
    return Cell(**(values | change))  # type: ignore[arg-type]


def test_a_table_has_the_papers_shape() -> None:
    cells = [cell(setting, accuracy=0.1 * number) for number, setting in enumerate(paper_settings(2))]
    head, ours, *published = table_lines(list(reversed(cells)), 2)
    assert len(head) == len(ours) == 10
    assert head[2] == "1 shot, 0 rep., no ind."
    assert ours[2:4] == ["0.0 [-10.0, 10.0], 2 failed", "10.0 [0.0, 20.0], 2 failed"]
    assert ours[-1] == "30.0"
    assert all(line[0].startswith("published: ") for line in published)
    row = "published: LQAE (LQAE, Table 1)|strict|1.5|35.2|68.2|69.8|68.5|68.7|65.9|54.0"
    assert row.split("|") in published


def test_what_was_not_asked_says_why_in_its_cell() -> None:
    """Zero shots come first; a line of its own is for what a setting can mend."""
    empty = {"accuracy": None, "accuracy_with_failures": None}
    cells = [
        cell(setting_of("1/0", 5), does_not_fit="does not fit: 5-way, 1 shot: too long", **empty),
        cell(setting_of("0/0", 5), does_not_fit="needs an example: 5-way, 0 shots", **empty),
    ]
    head, ours, *_ = table_lines(cells, 5)
    assert head[2:4] == ["0 shots, 0 rep.", "1 shot, 0 rep."]
    assert ours[2:4] == ["needs an example", "does not fit"]
    assert warnings_of(cells) == ["words <b>|: does not fit: 5-way, 1 shot: too long"]


def test_a_part_of_the_columns_has_no_average_of_ours() -> None:
    cells = [cell(setting_of("3/0", 5)), cell(setting_of("2/2", 5), accuracy=None)]
    head, ours, *published = table_lines(cells, 5)
    lines = markdown_table([head, ours]).splitlines()
    assert "words <b>\\|" in lines[2]
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert head == ["", "scorer", "3 shots, 0 rep.", "2 shots, 2 rep.", "avg."]
    assert ours[2:] == ["62.5 [52.5, 72.5], 2 failed", "no answer, 2 failed", ""]
    assert all(line[3] == "" for line in published)
    # Nor has it one of a paper's, which would be over other columns.
    assert {line[-1] for line in published} == {""}


def test_cells_that_do_not_fit_or_were_cut_off_say_so() -> None:
    """Beside the number, and once for each row with what to set."""
    cut = tuple(
        Answer(episode=number, credit=credit, text=text, detail=detail)
        for number, (credit, text, detail) in enumerate(
            [
                (0.0, "the boat is", "it did not end"),
                (0.0, " ", ""),
                (None, "", "no text within"),
                (1.0, "dax", ""),
            ]
        )
    )
    cells = [
        cell(setting_of("1/0", 2), accuracy=None, classifier="ascii", does_not_fit="does not fit: 2-way ..."),
        cell(setting_of("3/0", 2), accuracy=None, classifier="ascii", does_not_fit="does not fit: 3/0 ..."),
        cell(setting_of("1/0", 2), answers=cut),
        cell(setting_of("3/0", 2), answers=(*cut[3:] * 4, *cut[:1])),
    ]
    _, ascii_row, row, *_ = table_lines(cells, 2)
    assert ascii_row[2:] == ["does not fit", "does not fit", ""]
    assert row[2:4] == ["62.5 [52.5, 72.5], 2 failed, 3 CUT OFF OR EMPTY", "62.5 [52.5, 72.5], 2 failed"]
    not_fitting, cut_off = warnings_of(cells)
    assert not_fitting == "ascii: does not fit: 2-way ... (and 1 more cells)"
    assert re.search(r"2-way, 1 shot.* 3 of 4 answers were cut off .*--llm-answer-tokens", cut_off)
    assert {not_fitting, cut_off} < set(notes_of(cells))
    assert "4 of 80 questions" in " ".join(notes_of(cells))
    assert "Scorer strict: " in " ".join(notes_of(cells))


def test_cells_of_nothing_and_of_all_are_drawn(tmp_path: Path) -> None:
    cells = []
    for column, accuracy in (("1/0", 0.0), ("3/0", 1.0)):
        low, high = wilson_interval(accuracy, 500)
        cells.append(
            cell(setting_of(column, 2), accuracy, low=low, high=high, classifier="caf\udce9 $x$ \x1b[31m")
        )
    with Image.open(draw_accuracies(cells, tmp_path / "a.png")) as picture:
        assert picture.width > 300


def test_files(tmp_path: Path) -> None:
    cells = [cell(setting_of(column, ways)) for ways in (2, 5) for column in ("1/0", "5/0")]
    write_few_shot(tmp_path, cells, {"data": "here"})
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["data"] == "here"
    assert values["results"][3]["setting"] == {
        "ways": 5, "shots": 5, "repeats": 0, "induction": True, "naming": "real",
    }  # fmt: skip
    assert values["results"][0]["accuracy_with_failures"] == 0.59
    assert len(values["published"]) == 15
    assert (tmp_path / "table.md").read_text().count("published: ") == 14  # V2L has 3/0 alone
    figure = draw_accuracies(cells, tmp_path / "accuracy.png")
    page = write_few_shot_page(
        tmp_path / "report.html",
        cells,
        title="A <title>",
        commands=["pixlex <x>"],
        about={"seed": 0},
        pictures={"Accuracy": figure},
    )
    html = page.read_text()
    assert "<b>|" not in html.replace("&lt;b&gt;|", "")
    assert "A &lt;title&gt;" in html
    assert html.count("data:image/png;base64,") == 1
    assert "<script" not in html
    assert "http" not in html.split("<body>")[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    return labeled(tmp_path_factory.mktemp("labeled"))


def test_a_picture_of_episodes(images: ImageSource, tmp_path: Path) -> None:
    """The question stands in its place, and verdicts differ in color."""
    episodes = sample_episodes(images, Setting(ways=2, shots=1), count=1, seed=0)
    drawn = []
    for credit in (1.0, 0.0, 0.5, None):
        answers = {"who": Answer(episode=0, credit=credit, text="dax", detail="lost")}
        path = draw_episodes([(episodes.episodes[0], answers)], images, {}, tmp_path / f"{credit}.png")
        drawn.append(Image.open(path).tobytes())
    assert len(set(drawn)) == 4
    picture = Image.open(tmp_path / "1.0.png")
    # Third picture: margin, two pictures with gaps, the gap before the question; its middle.
    found = picture.getpixel((16 + 2 * 156 + 12 + 72, 16 + 72))
    key = images.key(episodes.episodes[0].query)
    expected = (
        Image.open(Path(images.name) / key).resize((144, 144), Image.Resampling.NEAREST).getpixel((72, 72))
    )
    assert found == expected


def test_examples_show_the_answers_of_their_setting(images: ImageSource, tmp_path: Path) -> None:
    episodes = sample_episodes(images, Setting(ways=2, shots=1), count=6, seed=0)
    answers = tuple(Answer(episode=number, credit=1.0, text="dax") for number in range(6))
    cells = [cell(episodes.setting, answers=answers), cell(setting_of("3/0", 2))]
    reader = FakeReader()
    path = draw_episode_examples(episodes, cells, images, reader, tmp_path / "few.png", count=2)
    assert set(reader.asked) == {image for one in episodes.episodes[:2] for image in one.images}
    assert Image.open(path).width > 500


NAMES = ("blue", "green & <b>gray", "red")


def row_of(num_classes: int, features: str = "layers", *, repeats: int = 1, each: int = 8) -> ProbeRow:
    train, test = (
        part_of(num_classes, each * num_classes, 24),
        part_of(num_classes, each * num_classes, 24, seed=1),
    )
    result = linear_probe(train, test, num_classes, Fit(repeats=repeats))
    return ProbeRow(model="mine", features=features, result=result, skipped=(Skipped("x.png", "no image"),))


@pytest.fixture
def sets(tmp_path: Path) -> ProbeSets:
    parts = [
        write_classes(tmp_path / name, 3, names=NAMES, seed=seed)
        for seed, name in enumerate(("train", "test"))
    ]
    return open_sets(*(open_source(str(part)) for part in parts))


def test_the_page_holds_everything(sets: ProbeSets, tmp_path: Path) -> None:
    rows = [row_of(3), row_of(3, "layer 0"), row_of(3, "layer 1"), row_of(3, "codes", repeats=4)]
    page = write_linear_probe(tmp_path / "out", rows, sets, commands=["pixlex a b"], notes=["mind <the> gap"])
    text = page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "accuracy.png", "confusion-mine-codes-x-4.png", "confusion-mine-layers.png", "layers.png",
        "report.html", "results.json", "strength.png",
    ]  # fmt: skip
    assert text.count("data:image/png;base64,") == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "<script" not in text
    assert text.count(PROBES_NOTE) == 2
    assert "39.7 %" in text
    assert "18.4 %" in text
    assert "mine, codes x 4" in text
    assert "mind &lt;the&gt; gap" in text
    assert "<b>gray" not in text
    assert f"{100 * rows[0].result.top1:.1f} % (" in text


def test_results_are_plain_json(sets: ProbeSets, tmp_path: Path) -> None:
    row = row_of(3)
    row.result.class_accuracy[1] = np.nan
    page = write_linear_probe(tmp_path, [row], sets, commands=[], notes=[])
    values = json.loads(page.with_name("results.json").read_text(), parse_constant=pytest.fail)
    (read,) = values["rows"]
    assert read["top1"] == row.result.top1
    assert read["top1_interval"] == list(row.result.top1_interval)
    assert read["class_accuracy"][NAMES[1]] is None
    assert np.sum(read["confusion"]) == row.result.num_test
    assert read["validation_accuracy"] == list(row.result.validation_accuracy)
    assert read["skipped"] == [{"key": "x.png", "reason": "no image"}]
    assert "not comparable" in values["published"][0]["note"]
