"""Small training runs that tests start, cut off and compare: noise pictures with captions, tiny networks."""

from __future__ import annotations

import hashlib
import io
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tests.tiny import IMAGE_SIZE, english_words, tiny_cbvila, tiny_lqae, tiny_vqvae, tiny_words_config

from pixlex.config.cbvila import CBViLADataConfig, CBViLAObjectiveConfig
from pixlex.config.fields import DataConfig, TrainConfig
from pixlex.config.lqae import LQAEObjectiveConfig, TeacherConfig, VQVAEObjectiveConfig
from pixlex.data.captions import open_pairs
from pixlex.data.images import open_source
from pixlex.data.loader import Images, Loader, LoaderConfig
from pixlex.data.records import Pairs
from pixlex.models.lqae import LQAE
from pixlex.objectives.cbvila import CBViLAObjective
from pixlex.objectives.lqae import LQAEObjective, VQVAEObjective, WordsObjective
from pixlex.objectives.phase import Objective
from pixlex.training import loop
from pixlex.training.loop import fit

STEPS = 12
WORDS = english_words(14)

# Children inherit imports, so that ten of them start in the time of one, but none of this process's locks: a
# child of a plain fork shares the lock of tqdm, and killed while it holds it, it blocks every other process.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.training.running"])


def write_pictures(path: Path, count: int = 20, *, captions: bool = False) -> Path:
    """Write a parquet file of random blotches, with two captions each, of lengths that differ, if asked."""
    rows, texts = [], []
    for number in range(count):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
        rows.append(buffer.getvalue())
        texts.append([" ".join(rng.permutation(WORDS)[: rng.integers(2, 9)]) for _ in range(2)])
    pq.write_table(pa.table({"image": rows} | ({"captions": texts} if captions else {})), path)
    return path


def settings(**changes: object) -> TrainConfig:
    """Return a training of a dozen steps on the CPU in float32."""
    values: dict[str, object] = {
        "steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "fp32",
        "device": "cpu", "log_every": 1, "checkpoint_every": 2, "evaluate_every": 0, "weight_decay": 0.1,
    }  # fmt: skip
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def _pairs(
    estimator: str = "straight_through", *, convolutional: bool = False, **stages: Any
) -> Callable[[Path, int], Objective]:
    values = {"restart_after": 2, "masked_language_ratio": 0.4, **stages}

    def build(language: Path, steps: int) -> Objective:
        model = tiny_cbvila(language, dim=8, estimator=estimator, convolutional=convolutional)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return CBViLAObjective(model, CBViLAObjectiveConfig(**values), steps, 12)

    return build


def _words(language: Path, steps: int) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LQAE.build(tiny_words_config(language))
        return WordsObjective(model, LQAEObjectiveConfig(teacher=TeacherConfig(steps=5)), steps)


# LQAE with all its terms, VQ-VAE with restarts, CB-ViLA in all its phases.
FAMILIES: dict[str, Callable[[Path, int], Objective]] = {
    "lqae": lambda language, steps: LQAEObjective(
        tiny_lqae(language),
        LQAEObjectiveConfig(
            masked_language_weight=0.1, commitment_weight=0.1, entropy_weight=0.1, entropy_temperature=0.5
        ),
        steps,
    ),
    "words": _words,
    "vqvae": lambda language, steps: VQVAEObjective(
        tiny_vqvae(), VQVAEObjectiveConfig(restart_after=2), steps
    ),
    "cbvila": _pairs(burn_in_steps=4),
    "cbvila, gumbel": _pairs("gumbel", burn_in_steps=4),
    "cbvila, averages": _pairs(burn_in_steps=4, codebook_update="ema"),
    "cbvila, in turn": _pairs(burn_in_steps=3, alternate_every=3),
    "cbvila, contrast first": _pairs(
        convolutional=True,
        teacher=TeacherConfig(steps=4, views="drawings"),
        views="drawings",
        mask_stage="latent",
        burn_in_steps=3,
    ),
    # The first phase trains no layer, which parameters that are sharded must not remember.
    "cbvila, codebook first": _pairs(burn_in_steps=0, alternate_every=3),
}


def run(
    folder: Path,
    pictures: Path,
    family: str,
    language: Path,
    config: TrainConfig,
    during: AbstractContextManager[None] | None = None,
    **settings: Any,
) -> Objective:
    """Train from the newest checkpoint in the folder, or from the start, within a context."""
    objective = FAMILIES[family](language, config.steps)

    paired = family.startswith("cbvila")
    loading = LoaderConfig(
        image_size=IMAGE_SIZE, batch_size=config.batch_size, seed=config.seed,
        data=CBViLADataConfig() if paired else DataConfig(),
    )  # fmt: skip
    if paired:
        encode = objective.model.tokenize_texts
        rows = Pairs(open_pairs(str(pictures)).cleaned(), lambda texts: encode(texts, 12))
    else:
        rows = Images(open_source(str(pictures)))
    with during or nullcontext():
        fit(objective, Loader(rows, loading).training, config, folder, **settings)
    return objective


@contextmanager
def before_steps(act: Callable[[int], None]) -> Iterator[None]:
    """Let something happen before each step of the trainings inside, given how many went before."""
    take, seen = loop._take_step, itertools.count()

    def taking(*given: Any) -> Any:
        act(next(seen))
        return take(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_take_step", taking)
        yield


def signaled_before(number: int, which: signal.Signals = signal.SIGINT) -> AbstractContextManager[None]:
    """Send this process a signal, that of Ctrl-C unless said, before step `number` of those inside, from 1 on."""
    return before_steps(lambda seen: os.kill(os.getpid(), which) if seen == number - 1 else None)


def on_two_processes(folder: Path, work: Callable[..., None], *arguments: object) -> None:
    """Let two processes of one group do some work, given the rank and arguments."""
    folder.mkdir(exist_ok=True)
    children = [SERVER.Process(target=_member, args=(rank, folder, work, *arguments)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(280)
    assert [child.exitcode for child in children] == [0, 0]


def _member(rank: int, folder: Path, work: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    work(rank, *arguments)
    if dist.is_initialized():  # a whole run has left it
        dist.destroy_process_group()


def digest(module: torch.nn.Module) -> str:
    """Return a hash of every bit of a module's state."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
