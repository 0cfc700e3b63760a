"""Training of CB-ViLA: resumed equals uninterrupted in every phase, two processes equal one in every term."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tests.tiny import IMAGE_SIZE, tiny_cbvila
from tests.train.running import digest, interrupted_before, settings

from pixlex.config.cbvila import CBViLADataConfig, CBViLAObjectiveConfig
from pixlex.config.train import TrainConfig
from pixlex.data.captions import open_pairs
from pixlex.data.loader import Loader, LoaderConfig
from pixlex.data.rows import Pairs
from pixlex.objectives.cbvila import BURN_IN, CODEBOOK, ENCODERS, JOINT, CBViLAObjective
from pixlex.train.checkpoint import checkpoints
from pixlex.train.logging import METRICS, read_metrics
from pixlex.train.loop import Callbacks, fit

# Children inherit imports; see tests/train/test_loop.py.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.train.running"])

WORDS = [
    "about",
    "above",
    "access",
    "across",
    "action",
    "active",
    "actual",
    "add",
    "after",
    "again",
    "all",
    "allow",
    "also",
    "always",
]
JOINTLY: dict[str, Any] = {"burn_in_steps": 4}
IN_TURN: dict[str, Any] = {"burn_in_steps": 3, "alternate_every": 3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures with two captions each, of lengths that differ."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    rows, captions = [], []
    for number in range(20):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append(buffer.getvalue())
        captions.append([" ".join(rng.permutation(WORDS)[: rng.integers(2, 9)]) for _ in range(2)])
    pq.write_table(pa.table({"image": rows, "captions": captions}), path)
    return path


def _run(
    folder: Path,
    pairs: Path,
    language: Path,
    config: TrainConfig,
    stages: dict[str, Any],
    callbacks: Callbacks | None = None,
    **codebook: Any,
) -> CBViLAObjective:
    """Train from the newest checkpoint in the folder, or from the start."""
    model = tiny_cbvila(language, dim=8, **codebook)
    values = {"restart_after": 2, "masked_language_ratio": 0.4, **stages}
    objective = CBViLAObjective(model, CBViLAObjectiveConfig(**values), config.steps, 12)
    source = open_pairs(str(pairs)).cleaned()

    loading = LoaderConfig(
        image_size=IMAGE_SIZE, batch_size=config.batch_size, seed=config.seed, data=CBViLADataConfig()
    )
    loader = Loader(Pairs(source, lambda texts: model.tokenize_texts(texts, 12)), loading)
    fit(objective, loader.training, config, folder, callbacks)
    return objective


@pytest.mark.parametrize(
    "stages",
    [JOINTLY, {**JOINTLY, "codebook_update": "ema"}, IN_TURN],
    ids=["jointly", "averages", "in turn"],
)
def test_interrupted_in_every_phase_and_resumed_equals_uninterrupted(
    tmp_path: Path, pairs: Path, language: Path, stages: dict[str, Any]
) -> None:
    """Stopped after steps 1 (behind k-means), 2, 5, 8 and 11: burn-in, both turns, their borders."""
    config = settings(precision="bf16")
    whole = _run(tmp_path / "whole", pairs, language, config, stages)
    for steps in (1, 1, 3, 3, 3):
        _run(tmp_path / "cut", pairs, language, config, stages, interrupted_before(steps))
    assert checkpoints(tmp_path / "cut/checkpoints")[-1].name == "step-00000011.pt"
    resumed = _run(tmp_path / "cut", pairs, language, config, stages)
    assert digest(resumed) == digest(whole)
    names = {key.split("/")[0] for line in read_metrics(tmp_path / "cut" / METRICS) for key in line}
    assert {BURN_IN, *((CODEBOOK, ENCODERS) if "alternate_every" in stages else (JOINT,))} <= names


def _killed(folder: Path, pairs: Path, language: Path, step: int) -> None:
    torch.set_num_threads(1)
    seen = 0

    def observe(batch: object) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    _run(folder, pairs, language, settings(checkpoint_every=1), IN_TURN, Callbacks(observe=observe))


def test_killed_in_every_phase_goes_on_to_the_same_bits(tmp_path: Path, pairs: Path, language: Path) -> None:
    """kill -9 in burn-in, in the codebook's turn and in the encoders'."""
    for step in (2, 4, 5):
        child = SERVER.Process(target=_killed, args=(tmp_path / "killed", pairs, language, step))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
    resumed = _run(tmp_path / "killed", pairs, language, settings(checkpoint_every=1), IN_TURN)
    whole = _run(tmp_path / "whole", pairs, language, settings(checkpoint_every=1), IN_TURN)
    assert digest(resumed) == digest(whole)


def test_phases_leave_other_parameters_bit_equal(tmp_path: Path, pairs: Path, language: Path) -> None:
    """In the codebook's turn the codewords move and nothing else; in the encoders' they stay."""
    states: list[dict[str, torch.Tensor]] = []
    objective: list[CBViLAObjective] = []
    fit_ = CBViLAObjective.forward

    def observed(self: CBViLAObjective, *arguments: Any) -> Any:
        states.append({name: one.detach().clone() for name, one in self.named_parameters()})
        objective.append(self)
        return fit_(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CBViLAObjective, "forward", observed)
        _run(tmp_path, pairs, language, settings(steps=10), {**IN_TURN, "restart_after": 0})
    moved = {
        step: {name for name in states[step] if not torch.equal(states[step][name], states[step + 1][name])}
        for step in (0, 4, 7)
    }
    assert moved[4] == {"model.codebook.weight"}
    assert "model.codebook.weight" not in moved[7]
    assert "model.masked_patch_head.transform.weight" in moved[7]
    assert not any("masked_" in name for name in moved[0])


def _train_one_of_two(
    rank: int,
    folder: Path,
    pairs: Path,
    language: Path,
    stages: dict[str, Any],
    estimator: str,
    in_parts: bool,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    target = folder / f"rank{rank}" if rank else folder
    _run(target, pairs, language, settings(shard_parameters=in_parts), stages, estimator=estimator)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("stages", "estimator", "in_parts"),
    [
        (IN_TURN, "straight_through", False),
        ({**JOINTLY, "codebook_update": "ema"}, "straight_through", False),
        (JOINTLY, "gumbel", False),
        # The first phase trains no layer, which what is put together of parts must not remember.
        ({"burn_in_steps": 0, "alternate_every": 3}, "straight_through", True),
    ],
    ids=["in turn", "averages", "gumbel", "in parts"],
)
def test_two_processes_equal_one(
    tmp_path: Path, pairs: Path, language: Path, stages: dict[str, Any], estimator: str, in_parts: bool
) -> None:
    """Same global batch on one and two processes: same codewords' health, same weights but for rounding."""
    alone = _run(tmp_path / "alone", pairs, language, settings(), stages, estimator=estimator)
    folder = tmp_path / "two"
    folder.mkdir()
    children = [
        SERVER.Process(
            target=_train_one_of_two, args=(rank, folder, pairs, language, stages, estimator, in_parts)
        )
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(180)
    assert [child.exitcode for child in children] == [0, 0]
    state = torch.load(checkpoints(folder / "checkpoints")[-1], weights_only=True)["objective"]
    for name, value in alone.state_dict().items():
        if name.endswith("key_value.bias"):
            continue  # a bias of keys moves no softmax: its gradient is rounding, which Adam blows up
        torch.testing.assert_close(
            state[name], value, rtol=5e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    lines = (read_metrics(path / METRICS) for path in (tmp_path / "alone", folder))
    for one, two in zip(*lines, strict=True):
        for name in one:
            if name.rpartition("/")[2] in ("distinct_codewords", "perplexity", "gradient_norm", "restarted"):
                assert one[name] == pytest.approx(two[name], rel=2e-3), name
