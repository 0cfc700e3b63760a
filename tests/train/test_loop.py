"""Training: resumed equals uninterrupted to the bit, frozen stays frozen, two processes equal one."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.tiny import evaluation_batches
from tests.train.running import STEPS, digest, interrupted_before, objective, run, settings

from pixlex.config.train import TrainConfig
from pixlex.data.images import open_source
from pixlex.objectives.phase import Phase
from pixlex.train.checkpoint import checkpoints
from pixlex.train.logging import METRICS, read_metrics
from pixlex.train.loop import Callbacks, LossNotFinite, fit

# Children inherit imports, so that ten of them start in the time of one, but none of this process's locks: a
# child of a plain fork shares the lock of tqdm, and killed while it holds it, it blocks every other process.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.train.running"])


# Whitening takes the mean away: these shifts have no gradient but rounding, which Adam blows up to full steps.
SHIFTS = ("model.encoder.trunk.norm.bias", "model.projector.bias", "model.quantizer.whitening.mean")


@pytest.mark.parametrize("family", ["lqae", "vqvae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, pictures: Path, language: Path, family: str, precision: str
) -> None:
    """Ctrl-C finishes the step, saves it, and the run goes on to the same bits, optimizer included."""
    config, model = settings(precision=precision), language if family == "lqae" else None
    whole = run(tmp_path / "whole", pictures, model, config)
    run(tmp_path / "cut", pictures, model, config, interrupted_before(5))
    assert checkpoints(tmp_path / "cut/checkpoints")[-1].name == "step-00000005.pt"
    resumed = run(tmp_path / "cut", pictures, model, config)
    assert digest(resumed) == digest(whole)
    states = [
        torch.load(checkpoints(tmp_path / name / "checkpoints")[-1], weights_only=True)["optimizer"]["state"]
        for name in ("whole", "cut")
    ]
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    kept = [line for line in read_metrics(tmp_path / "cut" / METRICS) if "train/total" in line]
    assert [line["step"] for line in kept] == list(range(1, STEPS + 1))
    expected = read_metrics(tmp_path / "whole" / METRICS)
    assert [line["train/total"] for line in kept] == [line["train/total"] for line in expected]


def _train_slowly(folder: Path, pictures: Path, language: Path, started: Path) -> None:
    torch.set_num_threads(1)
    started.touch()
    run(folder, pictures, language, settings(), Callbacks(observe=lambda batch: time.sleep(0.05)))


def test_killed_at_ten_random_moments(tmp_path: Path, pictures: Path, language: Path) -> None:
    """kill -9, ten times over one run, also during checkpoints: it ends with the bits of a run left alone."""
    draw = random.Random(0)
    kills = 0
    for attempt in range(60):
        started = tmp_path / f"started-{attempt}"
        child = SERVER.Process(target=_train_slowly, args=(tmp_path / "killed", pictures, language, started))
        child.start()
        while not started.exists() and child.is_alive():
            time.sleep(0.01)
        child.join(0.2 + 0.9 * draw.random() if kills < 10 else None)
        if child.exitcode is None:
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
            child.join()
        elif kills < 10:
            # The run ended before its tenth kill: take away the last steps and go on killing.
            assert child.exitcode == 0
            checkpoints(tmp_path / "killed/checkpoints")[-1].unlink()
        else:
            assert child.exitcode == 0
            break
    assert kills == 10
    whole = run(tmp_path / "whole", pictures, language, settings())
    resumed = run(tmp_path / "killed", pictures, language, settings())
    assert digest(resumed) == digest(whole)
    assert not list((tmp_path / "killed/checkpoints").glob(".*"))[10:]


def test_frozen_language_model_is_bit_equal_and_unsaved(
    tmp_path: Path, pictures: Path, language: Path
) -> None:
    """After training with weight decay: language model untouched, the rest moved, checkpoint without it."""
    trained = run(tmp_path, pictures, language, settings(decay_all=True))
    fresh = objective(language, settings())
    before, after = fresh.model.language.state_dict(), trained.model.language.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(trained.model.quantizer.embedding, fresh.model.quantizer.embedding)
    moved = [
        n for n, p in trained.named_parameters() if not torch.equal(p, dict(fresh.named_parameters())[n])
    ]
    assert len(moved) == len(list(trained.named_parameters()))
    state = torch.load(checkpoints(tmp_path / "checkpoints")[-1], weights_only=True)
    assert not [name for name in state["objective"] if "language" in name or "embedding" in name]


def test_phases_leave_other_parameters_bit_equal(tmp_path: Path, pictures: Path, language: Path) -> None:
    """A phase that trains the decoder moves the decoder alone; the next one moves all."""
    config = settings(steps=4)
    trained = objective(language, config)
    trained.phases = (Phase("decoder", 2, ("model.decoder.",)), Phase("all", 4))
    before = {name: value.detach().clone() for name, value in trained.named_parameters()}
    from tests.tiny import training_batches

    from pixlex.config.data import DataConfig
    from pixlex.data.images import open_source
    from pixlex.train.loop import fit

    middle: dict[str, torch.Tensor] = {}
    seen = 0

    def observe(batch: object) -> None:
        nonlocal seen
        if seen == 2:
            middle.update({name: value.detach().clone() for name, value in trained.named_parameters()})
        seen += 1

    source = open_source(str(pictures))
    fit(
        trained,
        lambda first: training_batches(
            source, config=DataConfig(), image_size=32, batch_size=4, seed=0, first_step=first
        ),
        config,
        tmp_path,
        Callbacks(observe=observe),
    )
    for name, value in before.items():
        assert torch.equal(middle[name], value) == (not name.startswith("model.decoder.")), name
    after = dict(trained.named_parameters())
    assert not torch.equal(after["model.encoder.patches.weight"], before["model.encoder.patches.weight"])
    names = {key.split("/")[0] for line in read_metrics(tmp_path / METRICS) for key in line}
    assert {"decoder", "all"} <= names


def test_a_loss_that_is_not_finite_stops_and_is_written_down(
    tmp_path: Path, pictures: Path, language: Path
) -> None:
    """Step, term and images are named; the checkpoint before stays usable."""
    config = settings(steps=4, checkpoint_every=1)
    run(tmp_path, pictures, language, config, interrupted_before(2))
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    state["objective"]["model.decoder.pixels.bias"].fill_(float("nan"))
    torch.save(state, path)
    with pytest.raises(LossNotFinite, match=r"step 2: .*reconstruction"):
        run(tmp_path, pictures, language, config)
    record = json.loads((tmp_path / "not-finite.json").read_text())
    assert record["step"] == 2
    assert "reconstruction" in record["not_finite"]
    assert len(record["images"]) == 4
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-00000002.pt"


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("model.encoder.patches.weight", "z: expected finite values"),
        ("model.codebook.weight", "codebook: expected finite values"),
    ],
)
def test_a_search_that_meets_what_is_not_finite_first_is_reported_alike(
    key: str, what: str, tmp_path: Path, pictures: Path
) -> None:
    """Step and images are named, in training and in evaluation."""
    trained = objective(None, settings())
    trained.get_parameter(key).data.fill_(torch.nan)
    images = evaluation_batches(open_source(str(pictures)), image_size=32, batch_size=4, limit=4)
    (batch,) = images
    with pytest.raises(LossNotFinite, match=rf"step 0: patches or codewords \({what}.*train.learning_rate"):
        fit(trained, lambda first: itertools.repeat(batch), settings(), tmp_path)
    record = json.loads((tmp_path / "not-finite.json").read_text())
    assert record["step"] == 0
    assert record["images"] == list(batch.keys)
    good = objective(None, settings())

    def evaluate(step: int) -> dict[str, float]:
        return {"eval/loss": float(trained.model.quantize(batch.images).codes.sum())}

    callbacks = Callbacks(evaluate=evaluate)
    with pytest.raises(LossNotFinite, match=rf"step 1: the evaluation \({what}"):
        fit(good, lambda first: itertools.repeat(batch), settings(evaluate_every=1), tmp_path, callbacks)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, pictures: Path, language: Path) -> None:
    """LQAE does not go on from VQ-VAE's checkpoint."""
    run(tmp_path, pictures, None, settings(steps=2))
    with pytest.raises(ValueError, match="does not fit this configuration"):
        run(tmp_path, pictures, language, settings(steps=2))


def _train_one_of_two(
    rank: int, folder: Path, pictures: Path, language: Path | None, config: TrainConfig
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run(folder / f"rank{rank}" if rank else folder, pictures, language, config)
    dist.destroy_process_group()


def _train_on_two(folder: Path, pictures: Path, model: Path | None, config: TrainConfig) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    children = [
        SERVER.Process(target=_train_one_of_two, args=(rank, folder, pictures, model, config))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("lqae", {}),
        ("vqvae", {}),
        ("lqae", {"shard_parameters": True}),
        ("vqvae", {"shard_parameters": True, "checkpoint_activations": True}),
    ],
)
def test_two_processes_equal_one(
    tmp_path: Path, pictures: Path, language: Path, family: str, changes: dict[str, bool]
) -> None:
    """Same global batch on one and two processes, whole or in parts: same terms, same weights but for rounding."""
    config, model = settings(**changes), language if family == "lqae" else None
    alone = run(tmp_path / "alone", pictures, model, config)
    folder = tmp_path / "two"
    _train_on_two(folder, pictures, model, config)
    state = torch.load(checkpoints(folder / "checkpoints")[-1], weights_only=True)["objective"]
    for name, value in alone.state_dict().items():
        if name not in SHIFTS:
            torch.testing.assert_close(
                state[name], value, rtol=2e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
    lines = (read_metrics(path / METRICS) for path in (tmp_path / "alone", folder))
    for one, two in zip(*lines, strict=True):
        for term in ("total", "reconstruction", "distinct_codewords", "perplexity", "gradient_norm"):
            assert one[f"train/{term}"] == pytest.approx(two[f"train/{term}"], rel=1e-3), term


def test_the_log_has_speed_and_wait(tmp_path: Path, pictures: Path, language: Path) -> None:
    """Every line tells images per second and the share of time spent waiting for data."""
    run(tmp_path, pictures, language, settings(steps=2))
    for line in read_metrics(tmp_path / METRICS):
        assert line["speed/images"] > 0
        assert 0 <= line["data/wait"] <= 1
    assert list((tmp_path / "tensorboard").glob("events*"))
