"""Recipes: read, checked, written and read back; every mistake is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pixlex.config.run import (
    FAMILIES,
    LQAERun,
    VQVAERun,
    describe_fields,
    find_recipe,
    read_run,
    run_from,
    write_run,
)


def test_written_and_read_back_is_the_same(tmp_path: Path) -> None:
    """Defaults included, a recipe of each family; that every recipe is read, the test of their commands shows."""
    for name in ("lqae/official", "lqae/vqvae", "mae/tiny", "frozen/tiny", "cbvila/paper", "finetune/vqa"):
        run = read_run(name)
        write_run(run, tmp_path / "run.yaml")
        assert read_run(tmp_path / "run.yaml") == run


def test_overrides_win_in_order(tmp_path: Path) -> None:
    """Numbers in any notation, switches and text."""
    overrides = ["train.learning_rate=3e-4", "train.steps=5", "train.steps=7", "data.horizontal_flip=false"]
    run = read_run("lqae/tiny", [*overrides, "model.language.name=some/model", 'data.train="2024"'])
    assert run.train.learning_rate == pytest.approx(3e-4)
    assert run.train.steps == 7
    assert run.data.horizontal_flip is False
    assert isinstance(run, LQAERun)
    assert run.model.language.name == "some/model"
    assert run.data.train == "2024"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stesp=5", "unknown key train.stesp; did you mean train.steps?"),
        ("model.encoder.widht=5", "did you mean model.encoder.width?"),
        ("model.width=5", "unknown key model.width; did you mean model.encoder.width?"),
        ("train.steps=many", '"train.steps": .*int.* many'),
        ("train.steps=-1", "TrainConfig.steps must be above 0, got -1"),
        ("model.encoder.heads=5", "VisionConfig.heads must divide the width 128, got 5"),
        ("model.patch_size=7", "image_size must be a multiple of the patch size 7, got 64"),
        ("model.quantizer.metric=dot", "cosine.*euclidean.* dot"),
        ("objective.mask_ratio_min=0.9", "mask_ratio_max must be at least mask_ratio_min = 0.9"),
        ("data.max_broken_share=1.5", r"max_broken_fraction must lie in \[0, 1\], got 1.5"),
        ("train", "expected key=value, got 'train'"),
        ("train.steps.more=1", "steps holds a value"),
        ("train=3", "train must hold keys and values"),
        ("train.steps=null", "train.steps must have a value, got null"),
        ("train=~", "train must have a value, got null"),
        ("data.train=null", "data.train must have a value, got null"),
        ("train.steps=[", r"train.steps: '\[' is not valid YAML"),
        ("train.steps='3", "train.steps: .* is not valid YAML"),
        ("train.steps=*x", "train.steps: '.x' is not valid YAML"),
        ("train.steps=!!python/object:os.system x", "train.steps: .* is not valid YAML"),
        ("train.beta1=\0", "train.beta1: .* is not valid YAML"),
        ("train.steps=" + "[" * 5000, "train.steps: .* is not valid YAML"),
        ("train.steps=2026-13-45", "train.steps: .* is not valid YAML"),
        ("train.learning_rate=.inf", "TrainConfig.learning_rate must be finite, got inf"),
        ("train.seed=99999999999999999999", "TrainConfig.seed must be 0 or more and below"),
        ("model.image_size=1000000", "image_size must be at most 65536"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    """Field, rule and value; a misspelt key names the nearest right one."""
    with pytest.raises(ValueError, match=message):
        read_run("lqae/tiny", [override])


def test_unknown_recipe_family_and_broken_yaml(tmp_path: Path) -> None:
    """What there is instead is listed."""
    with pytest.raises(ValueError, match=r"no recipe 'nothing'.*lqae/tiny"):
        find_recipe("nothing")
    with pytest.raises(ValueError, match=r"family must be one of lqae, vqvae, .*got 'x'"):
        run_from({"family": "x"}, "here")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_run(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ValueError, match="keys and values, got list"):
        read_run(tmp_path / "list.yaml")


def test_every_field_has_a_sentence_and_configurations_are_frozen() -> None:
    """What `pixlex describe` prints."""
    for kind in FAMILIES.values():
        described = list(describe_fields(kind))
        assert len({name for name, _, _ in described}) == len(described)
        for name, _, sentence in described:
            assert sentence.endswith("."), name
            assert len(sentence) > 10, name
    run = VQVAERun()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.family = "other"  # type: ignore[misc]


def test_recipes_state_the_papers_values() -> None:
    """Sections 3.2 and 5.1 of the paper, and the flags of the released command."""
    paper, official = read_run("lqae/paper"), read_run("lqae/official")
    assert isinstance(paper, LQAERun)
    assert isinstance(official, LQAERun)
    assert (paper.model.image_size, paper.model.patch_size, paper.model.grid) == (256, 16, 16)
    assert (paper.model.quantizer.search, paper.model.quantizer.metric) == ("raw", "cosine")
    assert paper.model.language.vocabulary == "all"
    assert (paper.objective.mask_ratio_min, paper.objective.mask_ratio_max) == (0.5, 0.5)
    assert (paper.objective.commitment_weight, paper.objective.masked_language_weight) == (0.005, 0.001)
    assert (paper.train.batch_size, paper.train.weight_decay, paper.train.clip_norm) == (512, 5e-4, 0)
    assert paper.train.steps == 100 * (1_281_167 // 512)
    assert paper.train.warmup_steps == 5 * (1_281_167 // 512)
    assert (official.objective.commitment_weight, official.objective.masked_language_weight) == (0.01, 1e-4)
    assert official.model.encoder.block == official.model.decoder.block == "official"
    assert official.train.decay_all
    prepared = [
        (run.model.resize_mode, run.data.augment, run.data.horizontal_flip, run.train.learning_rate)
        for run in (paper, read_run("lqae/vqvae"), official)
    ]
    assert prepared[:2] == [("squash", "resize", False, 1.5e-4)] * 2
    assert prepared[2] == ("center", "random_resized_crop", True, 3e-4)


def test_a_setting_of_an_earlier_version_is_ignored() -> None:
    assert run_from({"family": "lqae", "data": {"keep_decoded": 0, "workers": 2}}, "here").data.workers == 2
    with pytest.warns(UserWarning, match=r"^here: data\.keep_decoded is no longer a setting, ignored"):
        run_from({"family": "lqae", "data": {"keep_decoded": 5}}, "here")
    with pytest.warns(UserWarning, match=r"^data\.keep_decoded is no longer"):
        read_run("lqae/tiny", ["data.keep_decoded=true"])


def test_a_setting_is_read_by_its_earlier_name() -> None:
    """In files of earlier versions and on the command line; of two names the later one counts."""
    assert run_from({"family": "lqae", "model": {"cut": "squash"}}, "here").model.resize_mode == "squash"
    body = {"body": {"cut": "squash"}}
    assert run_from({"family": "reasoning", "model": body}, "here").model.resize_mode == "squash"
    assert read_run("lqae/official", ["model.cut=squash"]).model.resize_mode == "squash"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=many", '"train.steps": Expected int. Got value: many'),
        ("train.precision=fp8", '"train.precision": Expected one of auto, bf16, fp16, fp32. Got value: fp8'),
        ("model.cut=sqush", '"model.resize_mode": Expected one of'),
        ("train.lr=5", "unknown key train.lr; known: steps, "),
    ],
)
def test_what_the_command_line_says_is_not_blamed_on_the_recipe(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_run("lqae/tiny", [override])


def test_what_the_recipe_says_is_not_blamed_on_the_command_line(tmp_path: Path) -> None:
    """Although the error speaks of a setting that was typed, too."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("family: lqae\ntrain: {stesp: 5}\n")
    with pytest.raises(ValueError, match=rf"^{recipe}: unknown key train.stesp; did you mean train.steps"):
        read_run(recipe, ["train.steps=5"])
