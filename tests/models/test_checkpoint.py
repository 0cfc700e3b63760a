"""Model directories: checked before anything is built, loaded without computing what the weights hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import (
    tiny_cbvila,
    tiny_cbvila_config,
    tiny_frozen,
    tiny_language,
    tiny_lqae,
    tiny_mae,
    tiny_reasoner,
    tiny_vqvae,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pixlex.config.cbvila import CBViLAConfig, ReasonerConfig
from pixlex.files import CHECKSUM, sealed
from pixlex.models import checkpoint
from pixlex.models.baselines import MAE
from pixlex.models.cbvila import CBViLA
from pixlex.models.checkpoint import check_shapes
from pixlex.models.finetuned import Reasoner, started
from pixlex.models.initialization import _PREFIX, CONFIG, WEIGHTS, Published
from pixlex.nn.language_model import load_language_words

_COMPUTED = ("normal", "uniform", "_linalg_eigh")


class _Computed(TorchDispatchMode):
    """Collects draws and decompositions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0].rstrip("_")
        if name in _COMPUTED and args[0].device.type != "meta":  # where transformers builds
            self.found.append(name)
        return func(*args, **(kwargs or {}))


Models = Mapping[str, checkpoint.Model]


@pytest.fixture(scope="module")
def models(language: Path, causal_language: Path) -> Models:
    """One of each family, and both kinds of heads."""
    return {
        "lqae": tiny_lqae(language),
        "assigned": tiny_lqae(language, search="assigned"),
        "vqvae": tiny_vqvae(),
        "mae": tiny_mae(),
        "frozen": tiny_frozen(causal_language),
        "cbvila": tiny_cbvila(language, masked_image_head="class"),
        "vqa": tiny_reasoner(language),
        "nlvr2": tiny_reasoner(language, "nlvr2"),
    }


@pytest.fixture(scope="module")
def saved(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Their directories."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        checkpoint.save(model, folder / name, trained_on=["pictures"])
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
    for kind in checkpoint.MODELS.values():
        monkeypatch.setattr(kind, "build", lambda *_, **__: pytest.fail("it was built"))
    name = changed(saved[family], tmp_path / "m", _set(f"model.{field}", 10**12))
    with pytest.raises(ValueError, match=rf"config.json: model\.{field} "):
        checkpoint.load_any(name)


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
def test_a_bad_configuration_names_the_field(how: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    change, message = MALFORMED[how]
    with pytest.raises(ValueError, match=message) as fault:
        checkpoint.load_any(changed(saved["vqvae"], tmp_path / "m", change))
    assert len(str(fault.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("field", ["language", "language.name", "language.fingerprint"])
def test_a_language_model_that_is_none(field: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"in {field}, got 5"):
        checkpoint.load_any(changed(saved["cbvila"], tmp_path / "m", _set(field, 5)))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"model"', "[" * 5000, "\0"])
def test_a_configuration_that_is_none(text: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["vqvae"], tmp_path / "m")
    (tmp_path / "m" / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        checkpoint.load_any(str(tmp_path / "m"))


def test_a_change_by_hand_says_what_to_remove(saved: Mapping[str, Path], tmp_path: Path) -> None:
    """Heads change no shape: nothing but the checksum tells."""
    change = _set("model.encoder.heads", 1)
    with pytest.raises(ValueError, match="remove the field 'crc32'"):
        checkpoint.load_any(changed(saved["vqvae"], tmp_path / "m", change, seal=False))

    def removed(values: dict[str, Any]) -> None:
        change(values)
        del values[CHECKSUM]

    assert checkpoint.load_any(changed(saved["vqvae"], tmp_path / "n", removed, seal=False)).config


def test_weights_of_another_family(saved: Mapping[str, Path], models: Models, tmp_path: Path) -> None:
    config = models["mae"].config
    with pytest.raises(ValueError, match=r"no network\.vit.*, which model\.patch_size tells of"):
        check_shapes(MAE, config, saved["vqvae"])
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="does not hold this model's weights"):
            check_shapes(MAE, config, folder)
    size = dataclasses.replace(models["mae"].config, image_size=65_536)
    with pytest.raises(ValueError, match="image_size must be at most 1024 patches, got 8192"):
        check_shapes(MAE, size, saved["mae"])


def test_one_bit_of_the_weights_is_found(saved: Mapping[str, Path], tmp_path: Path) -> None:
    """A directory that was written before there were checksums is taken as it is."""
    for folder, change in ((tmp_path / "new", lambda values: None), (tmp_path / "old", _without_checksums)):
        name = changed(saved["vqvae"], folder, change, seal=folder.name == "new")
        weights = bytearray((folder / WEIGHTS).read_bytes())
        assert checkpoint.load_any(name)
        weights[-5] ^= 1
        (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was replaced"):
        checkpoint.load_any(str(tmp_path / "new"))
    assert checkpoint.load_any(str(tmp_path / "old"))


def _without_checksums(values: dict[str, Any]) -> None:
    del values[CHECKSUM], values["weights_sha256"]


@pytest.mark.parametrize("name", SIZES)
def test_nothing_is_computed_that_weights_hold(name: str, saved: Mapping[str, Path], models: Models) -> None:
    """No draw and no eigendecomposition, and every weight is the one that was saved."""
    model = models[name]
    with _Computed() as computed:
        loaded = checkpoint.load_any(str(saved[name]))
    assert not computed.found
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(model)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(value, dict(loaded.named_buffers())[key]) for key, value in model.named_buffers())
    with _Computed() as computed:  # what is drawn anew is
        type(model).build(model.config)
    assert computed.found


def test_convolutions_come_back(language: Path, tmp_path: Path) -> None:
    """Though the objective that a run has by default hides patches from the encoder, which they cannot."""
    model = tiny_cbvila(language, convolutional=True)
    checkpoint.save(model, tmp_path)
    images = torch.rand(2, 3, model.config.image_size, model.config.image_size)
    assert torch.equal(checkpoint.load_any(str(tmp_path)).embed(images), model.embed(images))


def test_a_start_draws_no_body(language: Path) -> None:
    """Fine-tuning draws its head alone."""
    body = tiny_cbvila(language)
    with _Computed() as computed:
        again = started(body.config, body)
    assert not computed.found
    assert all(torch.equal(one, again.state_dict()[key]) for key, one in body.state_dict().items())
    config = tiny_reasoner(language, "nlvr2").config
    with _Computed() as computed:
        model = Reasoner.start(config, body)
    assert computed.found == ["normal"] * 2
    assert model.class_head is not None
    assert float(model.class_head[2].weight.detach().std()) == pytest.approx(
        0.02 * (768 / 32) ** 0.5, rel=0.3
    )


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_mae()
    weight = model.network.decoder.decoder_pred.weight
    with torch.no_grad():
        weight[0, 0] = torch.inf
    checkpoint.save(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"safetensors: network\.decoder\.decoder_pred\.weight is not finite"
    ):
        checkpoint.load_any(str(tmp_path))


@pytest.mark.parametrize("checksum", [True, False])
def test_weights_that_are_no_file_are_never_waited_for(tmp_path: Path, *, checksum: bool) -> None:
    """Directories from before there were checksums are read for their shapes first."""
    checkpoint.save(tiny_mae(), tmp_path)
    if not checksum:
        config = tmp_path / "config.json"
        values = json.loads(config.read_text())
        config.write_text(json.dumps({name: values[name] for name in ("format", "family", "model")}))
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    weights.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"model\.safetensors is no file but a device"):
        checkpoint.load_any(str(tmp_path))


@pytest.mark.parametrize(("bits", "size", "farthest"), [(16, 0.55, 1e-3), (8, 0.36, 1e-2)])
def test_smaller_weights_are_near(
    models: Models, saved: Mapping[str, Path], tmp_path: Path, bits: int, size: float, farthest: float
) -> None:
    """Each weight within a step of its row; what starts from such a directory reads the same."""
    for name, model in models.items():
        checkpoint.save(model, tmp_path / name, bits=bits)
        small, large = ((folder / name / WEIGHTS).stat().st_size for folder in (tmp_path, saved[name].parent))
        assert small < size * large
        found = checkpoint.load_any(str(tmp_path / name)).state_dict()
        parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        for key, weight in model.state_dict().items():
            assert found[key].dtype == weight.dtype
            if weight.ndim < 2 or key not in parameters:  # statistics: a covariance that is rounded is none
                assert torch.equal(found[key], weight), key
            else:
                largest = weight.flatten(1).abs().amax(1).clamp_min(1e-4)
                off = (found[key] - weight).flatten(1).abs().amax(1) / largest
                assert off.max() <= farthest, key
    read = Published(str(tmp_path / "cbvila")).weights
    weights = checkpoint.load_any(str(tmp_path / "cbvila")).state_dict()
    assert read.keys() == {_PREFIX.sub("", key) for key in weights}
    assert all(torch.equal(read[_PREFIX.sub("", key)], one.float()) for key, one in weights.items())


@pytest.mark.parametrize(("bits", "value"), [(16, 7e4), (16, torch.inf), (8, torch.nan), (8, torch.inf)])
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path: Path, bits: int, value: float) -> None:
    model = tiny_vqvae()
    checkpoint.save(model, tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    model.codebook.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=rf"codebook\.weight: expected weights that {bits} bits hold"):
        checkpoint.save(model, tmp_path, bits=bits)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_configuration_of_another_form_is_named(saved: Mapping[str, Path], tmp_path: Path) -> None:
    folder = changed(saved["lqae"], tmp_path / "list", lambda values: values.update(model=[1, 2]))
    with pytest.raises(ValueError, match="expected keys and values in model"):
        checkpoint.load_any(folder)


def test_other_numbers_of_bits_are_refused(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bits must be 32, 16 or 8, got 4"):
        checkpoint.save(models["vqvae"], tmp_path, bits=4)


def frozen_words(language: Path, **changes: Any) -> CBViLAConfig:
    """A CB-ViLA whose word embeddings stay those of a BERT."""
    config = tiny_cbvila_config(language, **changes)
    text = dataclasses.replace(config.text, words="frozen", pretrained=str(language))
    return dataclasses.replace(config, text=text)


def test_frozen_words_are_named_not_stored(language: Path, tmp_path: Path) -> None:
    """No gradient, no weight in the file; the same vectors after loading, also where the BERT has moved."""
    shutil.copytree(language, tmp_path / "bert")
    model = CBViLA.start(frozen_words(tmp_path / "bert")).eval()
    words = load_language_words(str(language)).word_embedding
    assert torch.equal(model.text_encoder.words.weight, words[: model.tokenizer.vocab_size])
    assert "text_encoder.words.weight" not in dict(model.named_parameters())
    texts = ["the class", "about others"]
    expected = model.joint_texts(texts)
    checkpoint.save(model, tmp_path / "model")
    assert "text_encoder.words.weight" not in load_file(tmp_path / "model" / WEIGHTS)
    loaded = checkpoint.load_any(str(tmp_path / "model"))
    assert isinstance(loaded, CBViLA)
    assert torch.equal(loaded.joint_texts(texts), expected)
    assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(model)
    assert torch.equal(checkpoint.untrained_copy(model, torch.rand(64, 3, 32, 32)).text_encoder.words.weight,
                       model.text_encoder.words.weight)  # fmt: skip
    (tmp_path / "bert").rename(tmp_path / "moved")
    moved = checkpoint.load_any(str(tmp_path / "model"), language_model=str(tmp_path / "moved"))
    assert isinstance(moved, CBViLA)
    assert torch.equal(moved.joint_texts(texts), expected)
    with pytest.raises(ValueError, match="bert"):
        checkpoint.load_any(str(tmp_path / "model"))


def test_other_frozen_words_are_refused(language: Path, tmp_path: Path) -> None:
    other = tiny_language(tmp_path / "other", seed=1)
    checkpoint.save(CBViLA.build(frozen_words(language)), tmp_path / "model")
    with pytest.raises(ValueError, match=r"was trained with the vocabulary .* has "):
        checkpoint.load_any(str(tmp_path / "model"), language_model=str(other))
    with pytest.raises(ValueError, match=r"TextTowerConfig\.words must be trained without pretrained"):
        dataclasses.replace(tiny_cbvila_config(language).text, words="frozen")
    wide = dataclasses.replace(frozen_words(language).text, width=64)
    with pytest.raises(ValueError, match="expected word embeddings of width 64, got 32"):
        CBViLA.build(dataclasses.replace(frozen_words(language), text=wide))


def test_frozen_words_go_on_into_finetuning(language: Path, tmp_path: Path) -> None:
    """The body of a fine-tuned model has them from the same place."""
    body = CBViLA.start(frozen_words(language))
    answers = ("about", "about the")
    model = Reasoner.start(ReasonerConfig(body=body.config, task="vqa", answers=answers), body)
    checkpoint.save(model, tmp_path / "vqa")
    loaded = checkpoint.load_any(str(tmp_path / "vqa"))
    assert isinstance(loaded, Reasoner)
    assert torch.equal(loaded.body.text_encoder.words.weight, body.text_encoder.words.weight)
    assert "body.text_encoder.words.weight" not in loaded.state_dict()
