"""What `config.json` says is checked for its form and beside the weights before anything is built."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_cbvila, tiny_frozen, tiny_lqae, tiny_mae, tiny_reasoner, tiny_vqvae

from pixlex.files import CHECKSUM, sealed
from pixlex.models import pretrained
from pixlex.models.described import CONFIG, WEIGHTS, check_shapes

Models = Mapping[str, pretrained.Model]


@pytest.fixture(scope="module")
def models(language: Path, causal_language: Path) -> Models:
    """One of each family, and both kinds of heads."""
    return {
        "lqae": tiny_lqae(language),
        "assigned": tiny_lqae(language, search="assigned"),
        "vqvae": tiny_vqvae(),
        "mae": tiny_mae(),
        "frozen": tiny_frozen(causal_language),
        "cbvila": tiny_cbvila(language),
        "vqa": tiny_reasoner(language),
        "nlvr2": tiny_reasoner(language, "nlvr2"),
    }


@pytest.fixture(scope="module")
def saved(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Their directories."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        pretrained.save(model, folder / name, trained_on=["pictures"])
    return {name: folder / name for name in models}


def changed(
    folder: Path, target: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True
) -> str:
    """Copy a model directory with another configuration, whose checksum fits unless it is not sealed."""
    shutil.copytree(folder, target)
    values = json.loads((folder / CONFIG).read_text())
    if seal:
        del values[CHECKSUM]
    change(values)
    (target / CONFIG).write_text(json.dumps(sealed(values) if seal else values))
    return str(target)


def _set(path: str, value: object) -> Callable[[dict[str, Any]], object]:
    *parents, last = path.split(".")

    def change(values: dict[str, Any]) -> None:
        for one in parents:
            values = values[one]
        values[last] = value

    return change


SIZES = {
    "lqae": ("encoder.depth", "decoder.depth", "encoder.width", "encoder.mlp_ratio", "quantizer.search_dim"),
    "assigned": ("quantizer.search_dim",),
    "vqvae": ("encoder.depth", "decoder.width", "num_codewords", "codebook_dim"),
    "mae": ("encoder.depth", "decoder.depth", "encoder.width", "decoder.mlp_ratio"),
    "frozen": ("encoder.depth", "encoder.width", "num_prefix_tokens"),
    "cbvila": (
        "image.depth", "image.width", "image.mlp_ratio", "text.depth", "text.width", "text.mlp_ratio",
        "text.positions", "fusion.depth", "codebook.num_codewords", "codebook.dim", "contrastive_dim",
    ),
    "vqa": ("body.fusion.depth", "body.text.depth"),
    "nlvr2": ("num_images",),
}  # fmt: skip


@pytest.mark.parametrize(("family", "field"), [(one, field) for one in SIZES for field in SIZES[one]])
def test_a_size_beyond_reason_is_named_and_never_built(
    family: str, field: str, saved: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "build", lambda config: pytest.fail("it was built"))
    name = changed(saved[family], tmp_path / "m", _set(f"model.{field}", 10**12))
    with pytest.raises(ValueError, match=rf"config.json: model\.{field} "):
        pretrained.load_any(name)


@pytest.mark.parametrize("family", SIZES)
def test_what_was_saved_is_loaded(family: str, saved: Mapping[str, Path], models: Models) -> None:
    assert pretrained.fingerprint(pretrained.load_any(str(saved[family]))) == pretrained.fingerprint(
        models[family]
    )


MALFORMED: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (_set("format", 2), "expected model format 1, got 2"),
    "no family": (lambda values: values.pop("family"), "expected family to be one of .*, got None"),
    "a family that is a list": (_set("family", ["lqae"]), "expected family to be one of"),
    "another family": (_set("family", "lqae"), "expected keys and values in language"),
    "no model": (lambda values: values.pop("model"), "keys and values in model, found no such field"),
    "a model that is a list": (_set("model", []), r"keys and values in model, got \[\]"),
    "null for a part": (_set("model.encoder", None), "model.encoder must have a value, got null"),
    "null for a number": (_set("model.patch_size", None), "model.patch_size must have a value, got null"),
    "a text for a number": (_set("model.encoder.depth", "two"), "model.encoder.depth"),
    "a list for a number": (_set("model.encoder.depth", [1]), "model.encoder.depth"),
    "an unknown field": (_set("model.encoder.widht", 5), r"unknown key model\.encoder\.widht; did you mean"),
    "a negative size": (_set("model.encoder.width", -32), "VisionConfig.width must be above 0, got -32"),
    "no end of a size": (_set("model.encoder.mlp_ratio", float("inf")), "mlp_ratio must be finite, got inf"),
    "a size of another world": (_set("model.image_size", 8 * 10**400), "image_size must be at most"),
    "codewords that are a text": (_set("num_codewords", "64"), "a whole number in num_codewords, got '64'"),
    "data that are a text": (_set("trained_on", "x"), "expected list|a list in trained_on"),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_a_malformed_configuration_names_the_field(
    how: str, saved: Mapping[str, Path], tmp_path: Path
) -> None:
    change, message = MALFORMED[how]
    with pytest.raises(ValueError, match=message) as fault:
        pretrained.load_any(changed(saved["vqvae"], tmp_path / "m", change))
    assert len(str(fault.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("field", ["language", "language.name", "language.fingerprint"])
def test_a_language_model_that_is_none(field: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"in {field}, got 5"):
        pretrained.load_any(changed(saved["cbvila"], tmp_path / "m", _set(field, 5)))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"model"', "[" * 5000, "\0"])
def test_a_configuration_that_is_none(text: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["vqvae"], tmp_path / "m")
    (tmp_path / "m" / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        pretrained.load_any(str(tmp_path / "m"))


def test_a_change_by_hand_says_what_to_remove(saved: Mapping[str, Path], tmp_path: Path) -> None:
    """Heads change no shape: nothing but the checksum tells."""
    change = _set("model.encoder.heads", 1)
    with pytest.raises(ValueError, match="remove the field 'crc32'"):
        pretrained.load_any(changed(saved["vqvae"], tmp_path / "m", change, seal=False))

    def removed(values: dict[str, Any]) -> None:
        change(values)
        del values[CHECKSUM]

    assert pretrained.load_any(changed(saved["vqvae"], tmp_path / "n", removed, seal=False)).config


def test_weights_of_another_family_and_of_none(
    saved: Mapping[str, Path], models: Models, tmp_path: Path
) -> None:
    config = models["mae"].config
    with pytest.raises(ValueError, match=r"no network\.vit.*, which model\.patch_size tells of"):
        check_shapes(config, saved["vqvae"])
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="does not hold this model's weights"):
            check_shapes(config, folder)
    size = dataclasses.replace(models["mae"].config, image_size=65_536)
    with pytest.raises(ValueError, match="image_size must be at most 1024 patches, got 8192"):
        check_shapes(size, saved["mae"])


def test_one_bit_of_the_weights_is_found(saved: Mapping[str, Path], tmp_path: Path) -> None:
    """A directory that was written before there were checksums is taken as it is."""
    for folder, change in ((tmp_path / "new", lambda values: None), (tmp_path / "old", _without_checksums)):
        name = changed(saved["vqvae"], folder, change, seal=folder.name == "new")
        weights = bytearray((folder / WEIGHTS).read_bytes())
        assert pretrained.load_any(name)
        weights[-5] ^= 1
        (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was replaced"):
        pretrained.load_any(str(tmp_path / "new"))
    assert pretrained.load_any(str(tmp_path / "old"))


def _without_checksums(values: dict[str, Any]) -> None:
    del values[CHECKSUM], values["weights_sha256"]
