"""Encoder and codebook as a graph for programs without pixlex: ONNX, or a program of torch.export."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixlex import __version__
from pixlex.files import write_atomically
from pixlex.messages import not_installed, quoted
from pixlex.nn.nearest import highest_scores

if TYPE_CHECKING:
    from pixlex.api import ImageTokenizer
    from pixlex.models.checkpoint import Tokenizer

METADATA = "pixlex.json"
# What `code_vectors` of any family runs.
_PARTS = ("encoder", "projector", "image_encoder", "code_projector")


class Encoder(nn.Module):
    """Images to codes: what of a model `tokenize` needs, in evaluation, with nothing that depends on a value.

    Whitening and search are one linear map in float64, whose highest score is the code that `tokenize` writes, but
    where the rounding of float32 products decides between two. The model is copied to the CPU.
    """

    weight: Tensor
    bias: Tensor
    rows: Tensor | None

    def __init__(self, model: Tokenizer) -> None:
        super().__init__()
        part = copy.copy(model)
        part._modules = {name: child for name, child in model.named_children() if name in _PARTS}
        part._frozen = model._frozen[1:] and (None, *model._frozen[1:])  # a teacher, no language model
        self.model = copy.deepcopy(part).cpu().eval()
        # A frozen vision model stands outside the tree of modules.
        self.teacher = getattr(self.model, "teacher", None)
        weight, bias = model.codebook.scores()
        self.register_buffer("weight", weight.cpu())
        self.register_buffer("bias", bias.cpu())
        rows = getattr(model.codebook, "rows", None)
        self.register_buffer("rows", None if rows is None else rows.cpu())

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B N"]:
        """Return codes in [0, K), rows of the grid first, or the nearest first where they belong to no place."""
        vectors, each = self.model.code_vectors(images), self.model.num_words
        if self.rows is not None:
            return self.rows[highest_scores(vectors, self.weight, self.bias, each)]
        return highest_scores(vectors.flatten(0, 1), self.weight, self.bias).view(-1, each)


def program_of(tokenizer: ImageTokenizer) -> torch.export.ExportedProgram:
    """Return encoder and codebook of a tokenizer as torch.export's program, for batches of any size.

    Raises:
        ValueError: a model without codes.
    """
    encoder = Encoder(tokenizer.coder).requires_grad_(False)
    size = tokenizer.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch = {"images": {0: torch.export.Dim("batch")}}
        return torch.export.export(encoder, (images,), dynamic_shapes=batch)


def metadata_of(tokenizer: ImageTokenizer) -> dict[str, Any]:
    """Return what a program has to know that runs the graph.

    `mean` and `std` are what pixels in [0, 1] have to be normalized with before: nothing, the graph does it.
    `words` names each code, where codes are words.
    """
    vocabulary = tokenizer.model.vocabulary
    return {
        "pixlex": __version__,
        "family": tokenizer.family,
        "fingerprint": tokenizer.fingerprint,
        "image_size": tokenizer.image_size,
        "resize_mode": tokenizer.model.config.resize_mode,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "num_words": tokenizer.num_words,
        "grid": tokenizer.grid,
        "num_codewords": tokenizer.num_codewords,
        **({} if vocabulary is None else {"words": list(vocabulary.words)}),
    }


def export(tokenizer: ImageTokenizer, path: Path) -> Path:
    """Write a graph of one input, `images`: RGB in [0, 1], (B, 3, H, W), and one output, `codes`: (B, N) integers.

    B is left open, H and W are the model's. Facts of `metadata_of` go with it as JSON: one by one in an ONNX
    file's `metadata_props`, as `pixlex.json` in a .pt2 file's `extra_files`. Scores take B N K 8 bytes.

    Args:
        path: FILE.onnx or FILE.pt2.

    Raises:
        ValueError: another ending, no folder to write in, or a model without codes.
        ModuleNotFoundError: FILE.onnx without the packages of the extra `export`.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"expected the name of a .onnx or a .pt2 file, got {quoted(path.name)}")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"expected a file in a folder that is there, got {quoted(str(path))}")
    if path.suffix == ".onnx":
        try:
            import onnxscript  # noqa: F401  # what torch writes ONNX with
        except ImportError as error:
            raise not_installed("a .onnx file", "onnx and onnxscript", "export") from error
    program, facts = program_of(tokenizer), metadata_of(tokenizer)
    if path.suffix == ".pt2":
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files={METADATA: json.dumps(facts)})
        write_atomically(path, lambda temporary: temporary.write_bytes(stream.getvalue()))
        return path
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    try:
        registry.setLevel(logging.ERROR)  # it would miss torchvision
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch, about itself
            graph = torch.onnx.export(
                program,
                dynamo=True,
                output_names=["codes"],
                dynamic_shapes={"images": {0: "batch"}},
                verbose=False,
            )
    finally:
        registry.setLevel(level)
    assert graph is not None
    graph.model.graph.name = f"pixlex {tokenizer.family}"
    graph.model.metadata_props.update(
        (key, value if isinstance(value, str) else json.dumps(value)) for key, value in facts.items()
    )
    write_atomically(path, graph.save)
    return path
