"""Graphs of encoder and codebook: the codes that `tokenize` writes, for any number of images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import IMAGE_SIZE, tiny_cbvila, tiny_lqae, tiny_vqvae, tiny_words_config
from torch import Tensor, nn

from pixlex.api import ImageTokenizer
from pixlex.api.export import METADATA, program_of
from pixlex.models.lqae import LQAE
from pixlex.nn import LearnedCodebook

# Shape checks would ask for the size of a batch that the graph leaves open.
pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def _words(language: Path) -> LQAE:
    """An LQAE whose words belong to no place."""
    model = LQAE.build(tiny_words_config(language)).eval()
    model.measure(torch.rand(model.num_measured, 3, IMAGE_SIZE, IMAGE_SIZE))
    return model


MODELS: dict[str, Callable[[Path], Any]] = {
    "lqae": tiny_lqae,
    "lqae, raw": lambda language: tiny_lqae(language, search="raw"),
    "lqae, assigned": lambda language: tiny_lqae(language, search="assigned"),
    "lqae, words of whole images": _words,
    "vqvae": lambda _: tiny_vqvae(),
    "cbvila": tiny_cbvila,
    "cbvila, convolutions": lambda language: tiny_cbvila(language, convolutional=True),
}


def _images(count: int) -> Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear")


@pytest.mark.parametrize("kind", MODELS)
def test_programs_write_the_codes_of_the_model(kind: str, language: Path) -> None:
    """Of 1 image and of 33, without decoder, language model and text encoder."""
    tokenizer = ImageTokenizer(MODELS[kind](language))
    program = program_of(tokenizer)
    run = program.module()
    for count in (1, 33):
        assert torch.equal(run(_images(count)), tokenizer(_images(count)))
    names = {name.split(".")[1] for name in program.state_dict if name.startswith("model.")}
    assert names <= {"encoder", "projector", "image_encoder", "code_projector", "layer_weights", "log_scale"}


def test_a_program_in_a_file_says_what_it_takes(language: Path, tmp_path: Path) -> None:
    tokenizer = ImageTokenizer(tiny_lqae(language))
    found = {METADATA: ""}
    loaded = torch.export.load(tokenizer.export(tmp_path / "model.pt2"), extra_files=found)
    assert torch.equal(loaded.module()(_images(3)), tokenizer(_images(3)))
    facts = json.loads(found[METADATA])
    assert facts["fingerprint"] == tokenizer.fingerprint
    assert (facts["image_size"], facts["num_codewords"], facts["grid"]) == (32, 300, 4)
    named = [" ".join(facts["words"][code] for code in row) for row in tokenizer(_images(3)).tolist()]
    assert named == tokenizer.to_words(_images(3))


@pytest.mark.parametrize(
    "kind", ["lqae", "lqae, words of whole images", "vqvae", "cbvila", "cbvila, convolutions"]
)
def test_onnx_writes_the_codes_of_the_model(kind: str, language: Path, tmp_path: Path) -> None:
    """By onnxruntime, for batches of any size; its facts say how pixels become its input."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tokenizer = ImageTokenizer(MODELS[kind](language))
    path = tokenizer.export(tmp_path / "model.onnx")
    assert path.stat().st_size < 400_000
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])
    assert (returned.name, returned.shape) == ("codes", ["batch", tokenizer.num_words])
    described = session.get_modelmeta()
    texts = {"pixlex", "family", "fingerprint", "resize_mode"}
    stored = described.custom_metadata_map
    facts = {key: json.loads(value) for key, value in stored.items() if key not in texts}
    assert stored["fingerprint"] == tokenizer.fingerprint
    assert described.graph_name == f"pixlex {tokenizer.family}"
    assert facts["image_size"] == IMAGE_SIZE
    mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
    for count in (1, 2, 33):
        images = (_images(count) - mean) / std
        codes = session.run(None, {"images": images.numpy()})[0]
        assert torch.equal(torch.from_numpy(codes), tokenizer(_images(count)))
    vocabulary = tokenizer.model.vocabulary
    assert facts.get("words") == (None if vocabulary is None else list(vocabulary.words))


def test_codebooks_in_networks_of_ones_own() -> None:
    """`torch.export` takes an encoder with a codebook behind it as it is."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), LearnedCodebook(50, 8)).eval()
    network[0].weight.data *= 9

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            quantized, codes, _ = self.network(images)
            return codes + 0 * quantized[:, 0].long()

    with torch.no_grad():
        batch = {"images": {0: torch.export.Dim("batch")}}
        program = torch.export.export(Codes(), (_images(2),), dynamic_shapes=batch)
        expected = network(_images(7)).codes
        assert len(expected.unique()) > 5
        assert torch.equal(program.module()(_images(7)), expected)


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ImageTokenizer(tiny_vqvae())
    with pytest.raises(ValueError, match=r"expected the name of a \.onnx or a \.pt2 file, got 'model\.pt'"):
        tokenizer.export(tmp_path / "model.pt")
    for place in (tmp_path / "nothing/model.pt2", Path(__file__) / "model.pt2"):
        with pytest.raises(ValueError, match="expected a file in a folder that is there"):
            tokenizer.export(place)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs onnx and onnxscript: pip install 'pixlex\[export\]'"
    ):
        tokenizer.export(tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]


def test_the_command(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    tokenizer = ImageTokenizer(tiny_vqvae())
    tokenizer.save(tmp_path / "model")
    code, out, _ = call("export", tmp_path / "model", "--out", tmp_path / "vqvae.pt2")
    assert code == 0
    assert "vqvae.pt2: images (B, 3, 32, 32) in [0, 1] -> codes (B, 16), 0." in out
    codes = torch.export.load(tmp_path / "vqvae.pt2").module()(_images(2))
    assert torch.equal(codes, tokenizer(_images(2)))
    code, out, _ = call("export", tmp_path / "model", "--out", tmp_path / "again.pt2", "--json")
    assert json.loads(out)["codes"] == ["batch", 16]
    code, _, complaint = call("export", tmp_path / "model", "--out", tmp_path / "model.pkl")
    assert (code, "expected the name of a .onnx" in complaint) == (2, True)
    code, _, complaint = call("export", tmp_path / "nothing", "--out", tmp_path / "model.pt2")
    assert (code, "no model" in complaint) == (2, True)
