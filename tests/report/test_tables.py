"""Page and pictures of linear probes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.eval.classes import write_classes
from tests.eval.test_linear_probe import part_of

from pixlex.batch import Skipped
from pixlex.data.images import open_source
from pixlex.eval.linear_probe import Fit, linear_probe
from pixlex.eval.probe_features import ProbeRow
from pixlex.eval.probe_sets import ProbeSets, open_sets
from pixlex.report.tables import PROBES_NOTE, draw_confusion, write_linear_probe

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


@pytest.mark.parametrize("num_classes", [2, 12, 60])
def test_confusions_of_few_and_many_classes(num_classes: int, tmp_path: Path) -> None:
    names = [f"class number {number} with a long name" for number in range(num_classes)]
    with Image.open(draw_confusion(row_of(num_classes, each=4), names, tmp_path / "one.png")) as picture:
        assert picture.width < 2000
        assert picture.width > 400 + 6 * num_classes
        assert len(set(picture.convert("L").tobytes())) > 20
