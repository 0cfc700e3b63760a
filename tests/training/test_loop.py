"""Training: resumed equals uninterrupted to the bit, frozen stays frozen, what is not finite stops it."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.tiny import evaluation_batches
from tests.training.conftest import Alone
from tests.training.running import (
    FAMILIES,
    SERVER,
    STEPS,
    before_steps,
    digest,
    run,
    settings,
    signaled_before,
)

from pixlex.data.images import open_source
from pixlex.training.checkpoint import checkpoints
from pixlex.training.logging import METRICS, RunLog, peak_memory, read_metrics
from pixlex.training.loop import LossNotFinite, fit


@pytest.mark.parametrize(
    ("family", "precision", "stops"),
    [
        ("lqae", "fp32", (5,)),
        ("vqvae", "bf16", (5,)),
        # Stopped between teacher and words, and behind that.
        ("words", "fp32", (5, 3)),
        pytest.param("cbvila, averages", "fp32", (5,), marks=pytest.mark.campaign),
        # Stopped in the contrast of views, behind it, behind burn-in.
        ("cbvila, contrast first", "fp32", (3, 1, 4)),
        # Stopped after steps 1 (behind k-means), 5 and 8: burn-in and both turns.
        ("cbvila, in turn", "fp32", (1, 4, 3)),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    family: str,
    precision: str,
    stops: tuple[int, ...],
    tmp_path: Path,
    pairs: Path,
    language: Path,
    alone: Alone,
) -> None:
    """Ctrl-C finishes the step, saves it, and the run goes on to the same bits, optimizer included."""
    config = settings(precision=precision)
    if precision == "fp32":
        folder, whole = alone(family)
    else:
        folder, whole = tmp_path / "whole", run(tmp_path / "whole", pairs, family, language, config)
    cut = tmp_path / "cut"
    for steps in stops:
        run(cut, pairs, family, language, config, signaled_before(steps))
    assert checkpoints(cut / "checkpoints")[-1].name == f"step-{sum(stops):08d}.pt"
    resumed = run(cut, pairs, family, language, config)
    assert digest(resumed) == digest(whole)
    one, other = (
        torch.load(checkpoints(each / "checkpoints")[-1], weights_only=True)["optimizer"]["state"]
        for each in (folder, cut)
    )
    assert one.keys() == other.keys() <= dict(whole.named_parameters()).keys()
    for name, moments in one.items():
        assert all(torch.equal(value, other[name][kind]) for kind, value in moments.items())
    lines, expected = read_metrics(cut / METRICS), read_metrics(folder / METRICS)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, before in zip(lines, expected, strict=True):
        assert {key: line[key] for key in line if key.endswith(("/total", "/perplexity"))} == {
            key: before[key] for key in before if key.endswith(("/total", "/perplexity"))
        }
    names = {key.split("/")[0] for line in lines for key in line}
    assert {phase.name for phase in resumed.phases} <= names


def test_fp16_leaves_out_steps_that_overflow_and_counts_them(
    tmp_path: Path, pairs: Path, language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale that is too large is halved and nothing moves; stopped there and resumed it is the same run."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20))
    config = settings(steps=8, precision="fp16", checkpoint_every=1, keep_checkpoints=9)
    folder, cut = tmp_path / "whole", tmp_path / "cut"
    whole = run(folder, pairs, "lqae", language, config)
    for steps in (1, 5):
        run(cut, pairs, "lqae", language, config, signaled_before(steps))
    assert digest(run(cut, pairs, "lqae", language, config)) == digest(whole)
    states = [torch.load(path, weights_only=True) for path in checkpoints(folder / "checkpoints")]
    again = torch.load(checkpoints(cut / "checkpoints")[-1], weights_only=True)
    assert states[-1]["scaler"] == again["scaler"]
    moments, expected = again["optimizer"]["state"], states[-1]["optimizer"]["state"]
    assert moments.keys() == expected.keys()
    for name, one in moments.items():
        assert all(torch.equal(value, expected[name][kind]) for kind, value in one.items())
    lines = read_metrics(folder / METRICS)
    scales, norms, skipped = (
        [value for line in lines for key, value in line.items() if key.endswith(f"/{name}")]
        for name in ("loss_scale", "gradient_norm", "skipped_steps")
    )
    assert scales[0] == 2.0**20
    assert 0 < skipped[-1] < 8
    assert states[-1]["scaler"]["skipped_steps"] == skipped[-1]
    for step in range(1, 8):
        overflowed = skipped[step] > skipped[step - 1]
        assert overflowed == (norms[step] == 0) == (states[step]["scaler"]["scale"] < scales[step])
        moved = [
            name for name, _ in whole.named_parameters()
            if not torch.equal(states[step]["objective"][name], states[step - 1]["objective"][name])
        ]  # fmt: skip
        assert overflowed != bool(moved)


def _train_slowly(folder: Path, pairs: Path, language: Path, started: Path) -> None:
    torch.set_num_threads(1)
    started.touch()
    run(folder, pairs, "lqae", language, settings(), before_steps(lambda step: time.sleep(0.05)))


@pytest.mark.parametrize("most", [2, pytest.param(8, marks=pytest.mark.campaign)])
def test_killed_at_random_moments(
    most: int, tmp_path: Path, pairs: Path, language: Path, alone: Alone
) -> None:
    """kill -9, also during checkpoints: a run ends with the bits of one left alone."""
    draw = random.Random(0)
    kills, folder = 0, tmp_path / "killed"
    for attempt in range(30):
        started = tmp_path / f"started-{attempt}"
        child = SERVER.Process(target=_train_slowly, args=(folder, pairs, language, started))
        child.start()
        while not started.exists() and child.is_alive():
            time.sleep(0.01)
        child.join(0.2 + 0.9 * draw.random() if kills < most else None)
        if child.exitcode is None:
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
            child.join()
            continue
        assert child.exitcode == 0
        if kills == most:
            break
        checkpoints(folder / "checkpoints")[-1].unlink()  # ended before its last kill: go on killing
    assert kills == most
    resumed = run(folder, pairs, "lqae", language, settings())
    assert digest(resumed) == digest(alone("lqae")[1])
    assert len(list((folder / "checkpoints").glob(".*"))) <= most


def test_a_frozen_language_model_stays_the_same(tmp_path: Path, pairs: Path, language: Path) -> None:
    """After training with weight decay: language model untouched, the rest moved, checkpoint without it."""
    trained = run(tmp_path, pairs, "lqae", language, settings(steps=2, decay_all=True))
    fresh = FAMILIES["lqae"](language, 2)
    before, after = fresh.model.language.state_dict(), trained.model.language.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(trained.model.quantizer.embedding, fresh.model.quantizer.embedding)
    assert not any(torch.equal(one, fresh.get_parameter(name)) for name, one in trained.named_parameters())
    state = torch.load(checkpoints(tmp_path / "checkpoints")[-1], weights_only=True)
    assert not [name for name in state["objective"] if "language" in name or "embedding" in name]


def test_phases_leave_other_parameters_bit_equal(alone: Alone) -> None:
    """In the codebook's turn the codewords move and nothing else; in the encoders' they stay."""
    folder, objective = alone("cbvila, in turn")

    def moved(step: int) -> set[str]:
        before, after = (
            torch.load(folder / f"checkpoints/step-{number:08d}.pt", weights_only=True)["objective"]
            for number in (step, step + 1)
        )
        return {
            name for name, _ in objective.named_parameters() if not torch.equal(before[name], after[name])
        }

    assert moved(4) == {"model.codebook.weight"}
    assert "model.codebook.weight" not in moved(7)
    assert "model.masked_patch_head.transform.weight" in moved(7)
    assert not any("masked_" in name for name in moved(1))


def test_a_loss_that_is_not_finite_is_written_down(tmp_path: Path, pairs: Path, language: Path) -> None:
    """Step, term and images are named; the checkpoint before stays usable."""
    config = settings(steps=4, checkpoint_every=1)
    run(tmp_path, pairs, "lqae", language, config, signaled_before(2))
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    state["objective"]["model.decoder.pixels.bias"].fill_(float("nan"))
    torch.save(state, path)
    with pytest.raises(LossNotFinite, match=r"step 2: .*reconstruction"):
        run(tmp_path, pairs, "lqae", language, config)
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
    key: str, what: str, tmp_path: Path, pairs: Path, language: Path
) -> None:
    """Step and images are named, in training and in evaluation."""
    trained, good = (FAMILIES["vqvae"](language, STEPS) for _ in range(2))
    trained.get_parameter(key).data.fill_(torch.nan)
    (batch,) = evaluation_batches(open_source(str(pairs)), image_size=32, batch_size=4, limit=4)
    with pytest.raises(LossNotFinite, match=rf"step 0: patches or codewords \({what}.*train.learning_rate"):
        fit(trained, lambda first: itertools.repeat(batch), settings(), tmp_path)
    record = json.loads((tmp_path / "not-finite.json").read_text())
    assert (record["step"], record["images"]) == (0, list(batch.keys))

    def evaluate(step: int) -> dict[str, float]:
        return {"eval/loss": float(trained.model.quantize(batch.images).codes.sum())}

    with pytest.raises(LossNotFinite, match=rf"step 1: the evaluation \({what}"):
        fit(
            good,
            lambda first: itertools.repeat(batch),
            settings(evaluate_every=1),
            tmp_path,
            evaluate=evaluate,
        )


def test_waiting_is_a_fraction_of_the_time(tmp_path: Path) -> None:
    """Since the last line; the time of an evaluation does not count."""
    log = RunLog(tmp_path, 0, settings(batch_size=6), torch.device("cpu"), None)
    for step in (1, 2):
        time.sleep(0.1)
        log.waited += 0.05
        log.steps += 1
        if step == 1:
            log.write_step(1, "train", {"total": 0.5})
            time.sleep(0.3)
        log.write(step, {"eval/psnr": 20.0 + step})
    log.write_step(3, "train", {"total": 0.25})
    log.close()
    first, *evaluations, last = read_metrics(tmp_path / METRICS)
    assert first["train/total"] == 0.5
    assert 0.2 < first["data/wait"] < 0.6
    assert 12 < first["speed/images"] < 60
    assert 50 < first["memory/peak"] == pytest.approx(peak_memory(torch.device("cpu")) / 2**20, rel=0.2)
    assert [line["eval/psnr"] for line in evaluations] == [21.0, 22.0]
    assert last["data/wait"] == last["speed/images"] == 0
    assert list((tmp_path / "tensorboard").glob("events*"))
