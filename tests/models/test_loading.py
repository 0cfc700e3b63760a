"""Loading a model computes nothing that its weights hold, and refuses weights that are not finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_cbvila, tiny_frozen, tiny_lqae, tiny_mae, tiny_reasoner, tiny_vqvae
from torch.utils._python_dispatch import TorchDispatchMode

from pixlex.models import pretrained
from pixlex.models.pretrained import Model
from pixlex.models.reasoner import Reasoner
from pixlex.models.resized import started

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


MODELS: dict[str, Callable[[Path, Path], Model]] = {
    "lqae": lambda masked, causal: tiny_lqae(masked),
    "lqae, assigned": lambda masked, causal: tiny_lqae(masked, search="assigned"),
    "vqvae": lambda masked, causal: tiny_vqvae(),
    "mae": lambda masked, causal: tiny_mae(),
    "frozen": lambda masked, causal: tiny_frozen(causal),
    "cbvila": lambda masked, causal: tiny_cbvila(masked, masked_image_head="class"),
    "vqa": lambda masked, causal: tiny_reasoner(masked),
    "nlvr2": lambda masked, causal: tiny_reasoner(masked, "nlvr2"),
}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_computed_that_weights_hold(
    name: str, language: Path, causal_language: Path, tmp_path: Path
) -> None:
    """No draw and no eigendecomposition, and every weight is the one that was saved."""
    model = MODELS[name](language, causal_language)
    pretrained.save(model, tmp_path)
    with _Computed() as computed:
        loaded = pretrained.load_any(str(tmp_path))
    assert not computed.found
    weights = loaded.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(value, dict(loaded.named_buffers())[key]) for key, value in model.named_buffers())
    with _Computed() as computed:  # what is drawn anew is
        pretrained.build(model.config)
    assert computed.found


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
    pretrained.save(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"safetensors: network\.decoder\.decoder_pred\.weight is not finite"
    ):
        pretrained.load_any(str(tmp_path))


@pytest.mark.parametrize("checksum", [True, False])
def test_weights_that_are_no_file_are_never_waited_for(tmp_path: Path, *, checksum: bool) -> None:
    """Directories from before there were checksums are read for their shapes first."""
    pretrained.save(tiny_mae(), tmp_path)
    if not checksum:
        config = tmp_path / "config.json"
        values = json.loads(config.read_text())
        config.write_text(json.dumps({name: values[name] for name in ("format", "family", "model")}))
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    weights.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"model\.safetensors is no file but a device"):
        pretrained.load_any(str(tmp_path))
