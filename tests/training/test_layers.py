"""Layers that compute again, and compiled ones: the same numbers for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.objectives import TEXTS, built
from tests.tiny import pair_batch, tiny_cbvila
from tests.training.conftest import Alone
from tests.training.running import digest, run, settings
from torch import Tensor

from pixlex.batch import ImageBatch
from pixlex.config.cbvila import CBViLAObjectiveConfig
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.phase import Objective, Step
from pixlex.training.logging import METRICS, read_metrics
from pixlex.training.parallel import check_compiler, prepare_layers

# Case -> its transformer layers: encoder, decoder or fusion, language model.
NUM_LAYERS = {"lqae": 3, "vqvae": 2, "mae": 2, "cbvila dropout": 3}


def _step(objective: Objective, batch: ImageBatch) -> tuple[dict[str, Tensor], int]:
    """Return loss and gradients of a step, and the bytes that the forward pass kept for it."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(0)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step = Step(0, torch.Generator().manual_seed(0))
        loss = objective.train()(batch, objective.phases[-1], step).total
    loss.backward()
    gradients = {name: one.grad for name, one in objective.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **gradients}, kept


@pytest.mark.parametrize("case", NUM_LAYERS)
def test_the_same_gradients_in_less_memory(case: str, language: Path) -> None:
    """To the bit, dropout included."""
    (plain, batch), (changed, _) = (built(case, language, language) for _ in range(2))
    assert prepare_layers(changed.model, checkpoints=True) >= NUM_LAYERS[case]
    assert prepare_layers(changed.model, checkpoints=True) >= NUM_LAYERS[case]  # once more changes nothing
    assert changed.state_dict().keys() == plain.state_dict().keys()
    (expected, before), (found, after) = _step(plain, batch), _step(changed, batch)
    assert found.keys() == expected.keys()
    assert len(found) > 10
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert after < 0.6 * before


@pytest.mark.parametrize("family", ["lqae", pytest.param("vqvae", marks=pytest.mark.campaign)])
def test_the_same_bits_in_the_end(
    family: str, tmp_path: Path, pairs: Path, language: Path, alone: Alone
) -> None:
    """Optimizer, restarts of codewords and the frozen language model included."""
    changed = run(tmp_path, pairs, family, language, settings(checkpoint_activations=True))
    assert digest(changed) == digest(alone(family)[1])


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("checkpoints", [False, True], ids=["kept", "computed again"])
def test_compiled_layers_give_the_same_gradients(checkpoints: bool, language: Path) -> None:
    """To rounding; `aot_eager` traces layers and their gradients as the compiler does."""
    (plain, batch), (changed, _) = (built("lqae", language, language) for _ in range(2))
    found_layers = prepare_layers(changed.model, compiles=True, checkpoints=checkpoints, backend="aot_eager")
    assert found_layers >= NUM_LAYERS["lqae"]
    assert changed.state_dict().keys() == plain.state_dict().keys()
    (expected, _), (found, _) = _step(plain, batch), _step(changed, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda said, name=name: f"{name}: {said}")
    prepare_layers(changed.model)
    assert not any("forward" in vars(module) for module in changed.modules())


@pytest.mark.usefixtures("unchecked_shapes")
def test_phases_masks_and_lengths_of_texts_compile_nothing_anew(language: Path) -> None:
    """Once each phase and two lengths of texts were seen. The losses are those of layers that are not compiled."""
    torch.compiler.reset()
    objective = CBViLAObjective(
        tiny_cbvila(language, dropout_rate=0.1),
        CBViLAObjectiveConfig(burn_in_steps=2, alternate_every=2),
        40,
        12,
    ).train()
    phases, lengths = set(), set()
    for number in range(14):
        phase = objective.phase_at(number)
        for name, parameter in objective.named_parameters():
            parameter.requires_grad_(name.startswith(phase.trains))
        batch = pair_batch(objective.model, [f"{text} {'and ' * (number % 5)}" for text in TEXTS])
        phases.add(phase.name)
        lengths.add(batch.word_ids.shape[1])
        losses = []
        for compiles in (False, True):
            prepare_layers(objective.model, compiles=compiles, backend="eager")
            step = Step(number, torch.Generator().manual_seed(number))
            torch.manual_seed(number)
            with torch.compiler.set_stance("default" if number < 6 else "fail_on_recompile"):
                loss = objective(batch, phase, step)
                loss.total.backward()
            losses.append(loss.total.detach())
        torch.testing.assert_close(losses[1], losses[0])
        objective.after_step(step, loss)
    assert len(lengths) == 5
    assert phases == {"burn_in", "codebook", "encoders"}


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_training_that_is_compiled(tmp_path: Path, pairs: Path, language: Path, alone: Alone) -> None:
    """By the real compiler, with recomputed layers; evaluations are not compiled."""
    try:
        check_compiler(torch.device("cpu"))
    except ValueError as reason:
        pytest.skip(str(reason))
    counters = torch._dynamo.utils.counters
    counters.clear()
    grown = []

    def evaluate(steps: int) -> dict[str, float]:
        before = counters["stats"]["unique_graphs"]
        torch.compile(lambda numbers: numbers + 1)(torch.zeros(3))
        grown.append(counters["stats"]["unique_graphs"] - before)
        return {}

    changes = {"compile": True, "checkpoint_activations": True, "evaluate_every": 1}
    trained = run(tmp_path, pairs, "lqae", language, settings(steps=3, **changes), evaluate=evaluate)
    assert not any("forward" in vars(module) for module in trained.modules())
    # The first two steps have the rates of the longer run.
    found, expected = (
        [line["train/total"] for line in read_metrics(folder / METRICS) if "train/total" in line]
        for folder in (tmp_path, alone("lqae")[0])
    )
    # One to see that there is a compiler, at least one of the vision transformers and one of the language model.
    assert counters["stats"]["unique_graphs"] >= 3
    assert not counters["graph_break"]
    assert grown == [0, 0, 0]
    assert found == pytest.approx(expected[:3], rel=1e-4)


def test_without_a_compiler_training_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(
        ValueError, match=r"train.compile=true: expected a working C\+\+ compiler .* No working"
    ):
        check_compiler(torch.device("cpu"))
