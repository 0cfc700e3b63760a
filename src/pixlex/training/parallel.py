"""How a step is computed: precision, compiled or recomputed layers, one process, DDP or FSDP2."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pixlex import distributed
from pixlex.batch import ImageBatch
from pixlex.config.fields import TrainConfig
from pixlex.config.run import CONFIG, Run, read_run
from pixlex.nn.bert import BertLayer
from pixlex.nn.transformer import Block, OfficialBlock, multiplies_bfloat16
from pixlex.objectives.phase import LossTerms, Objective, Phase, Step
from pixlex.training.checkpoint import checkpoints, load_newest, save_checkpoint

# Forms of one layer that are compiled before torch computes it uncompiled: cross-attention or none, a padding or
# none, gradients or none (phases, frozen parts), number of sequences and words fixed or any.
_FORMS = 64
# Dropout as torch draws it uncompiled, so that a step has the same masks either way.
_OPTIONS: dict[str, Any] = {"fallback_random": True}


class Parallel:
    """An objective and its optimizer on this process's device: alone, replicated (DDP) or sharded (FSDP2).

    FSDP2 (Zhao et al. 2023) shards the parameters of transformer layers; the others, such as codebooks, heads and
    word embeddings, which objectives use outside of a layer's forward pass, are replicated as by DDP.

    Args:
        objective: what is trained. It is moved to the device; where parameters are sharded it stays on the CPU,
            has the full weights inside `gathered`, and a copy of it is trained.
        config: device, precision, optimizer, and which of the above.

    Attributes:
        device: this process's own.
        processes: those that share each batch.

    Raises:
        ValueError: nothing can be compiled here, or parameters are to be sharded in fp16.
    """

    def __init__(self, objective: Objective, config: TrainConfig) -> None:
        self.config, self.device = config, distributed.pick_device(config.device)
        self.processes = distributed.all_processes()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what pins memory and starts kernels goes by it
        self._full = objective
        sharded = config.shard_parameters and self.processes.size > 1
        scales = pick_precision(config.precision, self.device) == "fp16"
        if scales and sharded:  # torch scales gradients that are whole, or gradients in parts, not both
            raise ValueError("train.precision=fp16: expected bf16 or fp32 with train.shard_parameters=true")
        self.objective = _sharded_copy(objective, self.device) if sharded else objective.to(self.device)
        if config.compile:
            torch.compiler.reset()  # forms of models that this process trained before
            check_compiler(self.device)
        prepare_layers(
            self.objective.model, compiles=config.compile, checkpoints=config.checkpoint_activations
        )
        self.optimizer = build_optimizer(self.objective, config)
        self._precision = mixed_precision(self.device, config.precision)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=scales)
        self._skipped_steps = torch.zeros((), device=self.device)
        self._phase: Phase | None = None
        self._wrapped: nn.Module = self.objective
        self._untrained: list[nn.Parameter] = []

    def forward(self, batch: ImageBatch, phase: Phase, step: Step) -> LossTerms:
        """Return the loss of this process's part of a batch, on its device, in the precision of the run."""
        if phase is not self._phase:
            self._begin(phase)
        with self._precision:
            loss: LossTerms = self._wrapped(batch, phase, step)
        return loss

    def prepare(self, phase: Phase, batches: Callable[[], Iterator[ImageBatch]]) -> None:
        """Let the objective do what must be done before the first step of a phase."""
        self.objective.eval()
        self._phase = None
        with torch.no_grad(), self._precision:
            self.objective.prepare(phase, batches)

    def update(self, loss: LossTerms) -> dict[str, Tensor]:
        """Take the optimizer's step; return the norm of the gradient before it was clipped.

        In fp16 also the scale that keeps gradients from vanishing, and how many steps were left out, with norm 0,
        because they overflowed at their scale; at a scale below 1 it is not the scale's doing: the norm stays.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
        for parameter in self._untrained:
            parameter.grad = None  # sharded parameters get one in every phase
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        self._scaler.unscale_(self.optimizer)
        norm = _clip([one for one in parameters if one.grad is not None], self.config.clip_norm or torch.inf)
        self._scaler.step(self.optimizer)
        if not self._scaler.is_enabled():
            return {"gradient_norm": norm}
        scale = self._scaler.scale(torch.ones((), device=self.device))  # `get_scale` would wait for a GPU
        self._scaler.update()
        overflows = ~norm.isfinite() & (scale >= 1)
        self._skipped_steps = self._skipped_steps + overflows
        norm = norm.masked_fill(overflows, 0.0)
        return {"gradient_norm": norm, "loss_scale": scale, "skipped_steps": self._skipped_steps}

    def anywhere(self, condition: bool) -> bool:
        """Return whether something holds on any process."""
        return condition if self.processes.size == 1 else distributed.anywhere(condition)

    def resume(self, folder: Path) -> int:
        """Load the newest checkpoint of a folder, written by any number of processes; return its finished steps.

        Raises:
            ValueError: it cannot be read, or is of another model or an older version.
        """
        state = load_newest(folder)
        if state is None:
            return 0
        try:
            self._load(state["objective"], _moments_by_name(state["optimizer"]))
            if scaler := state.get("scaler"):  # fp16's alone
                self._scaler.load_state_dict(scaler)
                self._skipped_steps.fill_(scaler["skipped_steps"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} does not fit this configuration or version: {error}") from error
        return int(state["step"])

    def save(self, folder: Path, step: int) -> None:
        """Write a checkpoint of full weights and moments, by the names of parameters, on the first process."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, moments = get_state_dict(self.objective, self.optimizer, options=options)
        if distributed.is_first():
            state = {"objective": weights, "optimizer": moments}
            if scaler := self._scaler.state_dict():
                state["scaler"] = {**scaler, "skipped_steps": int(self._skipped_steps)}
            save_checkpoint(folder, step, state, self.config.keep_checkpoints)

    def _load(self, weights: dict[str, Any], moments: dict[str, Any]) -> None:
        own = self.objective.state_dict()
        if differ := sorted(own.keys() ^ weights.keys()):
            raise ValueError(f"{len(differ)} tensors are in the checkpoint or the model alone: {differ[0]}")
        for name, value in weights.items():
            if own[name].shape != value.shape:
                raise ValueError(f"expected {name} of {tuple(own[name].shape)}, got {tuple(value.shape)}")
        names = dict(self.objective.named_parameters())
        for name, parameter in names.items():
            # What no phase has trained yet has no moments, nor gets any here.
            parameter.requires_grad_(name in moments)
        options = StateDictOptions(full_state_dict=True)
        state: dict[str, Any] = {"state": moments, "param_groups": [{"params": list(names)}]}
        set_optimizer_state_dict(self.objective, self.optimizer, state, options=options)
        set_model_state_dict(self.objective, weights, options=options)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Give the objective of the constructor the full weights, for what evaluates and saves it, uncompiled."""
        is_copy = self._full is not self.objective
        if is_copy:
            options = StateDictOptions(full_state_dict=True)
            self._full.load_state_dict(get_model_state_dict(self.objective, options=options))
        with torch.compiler.set_stance("force_eager"):
            yield
        if is_copy:
            self._full.cpu()
            self.objective.to(self.device)  # both hold the same frozen language model
        self.objective.train()

    def close(self) -> None:
        """Leave the objective of the constructor with the full weights and layers as they were."""
        prepare_layers(self.objective.model)
        with self.gathered():
            distributed.barrier()

    def _begin(self, phase: Phase) -> None:
        """Let gradients reach the parameters of a phase and no others; average them over the processes."""
        self._wrapped, self._phase = self.objective.train(), phase
        gc.collect()  # what was wrapped holds itself, and room for all gradients
        sharded = _sharded(self.objective)
        self._untrained = []
        for name, parameter in self.objective.named_parameters():
            trains = name.startswith(phase.trains)
            # Parameters that FSDP2 gathers keep the setting that they had at first.
            parameter.requires_grad_(trains or name in sharded)
            if not trains:
                self._untrained.append(parameter)
        self._wrapped = share_gradients(self.objective)


def share_gradients(objective: nn.Module) -> nn.Module:
    """Wrap an objective so that processes average the gradients of what FSDP2 does not shard; alone, return it.

    Anew for each phase: DDP waits for the gradient of every parameter that can have one.
    """
    if distributed.world_size() == 1:
        return objective
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(objective, _sharded(objective))  # type: ignore[no-untyped-call]
    # Buffers are moved by after_step alike on every process; broadcasting them would hide it if they were not.
    return DistributedDataParallel(objective, forward_sync_buffers=False)


def pick_precision(
    name: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device
) -> Literal["bf16", "fp16", "fp32"]:
    """Return the precision that `auto`, `bf16`, `fp16` or `fp32` names.

    A processor without units for bfloat16 computes it several times slower than float32 (docs/decisions.md).
    """
    if name != "auto":
        return name
    if multiplies_bfloat16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def with_precision(run: Run, folder: Path) -> Run:
    """Return a run whose precision is decided: that of the run which the folder holds, or the device's own."""
    if run.train.precision != "auto":
        return run
    begun = any(checkpoints(folder / "checkpoints")) or (folder / "model").is_dir()
    began = read_run(folder / CONFIG).train.precision if begun and (folder / CONFIG).is_file() else "auto"
    precision = pick_precision(began, distributed.pick_device(run.train.device))
    return dataclasses.replace(run, train=dataclasses.replace(run.train, precision=precision))


def mixed_precision(
    device: torch.device, precision: Literal["auto", "bf16", "fp16", "fp32"]
) -> AbstractContextManager[object]:
    """Return the autocast of bf16 or fp16, where `precision` names one (see `pick_precision`), else nothing."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(pick_precision(precision, device))
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


def local_batch_size(config: TrainConfig) -> int:
    """Return the images of one process.

    Raises:
        ValueError: when the batch does not divide among the processes.
    """
    processes = distributed.world_size()
    if config.batch_size % processes:
        raise ValueError(
            f"train.batch_size must be a multiple of the {processes} processes, got {config.batch_size}"
        )
    return config.batch_size // processes


def prepare_layers(
    model: nn.Module, *, compiles: bool = False, checkpoints: bool = False, backend: str = "inductor"
) -> int:
    """Let every transformer layer of a model be compiled, or recomputed for its gradients; return their number.

    A recomputed layer keeps its input alone (Chen et al. 2016): the same numbers in less memory. What lies between
    layers is not compiled: search, masks and losses change shape with what they are given.

    Args:
        model: changed in place; names of parameters stay. Layers of a frozen language model that it holds count
            too: gradients pass through them.
        compiles: by `torch.compile`, at the first call of each form.
        checkpoints: whether layers are recomputed; neither puts it back.
    """
    layers = transformer_layers(model)
    if compiles:
        # For the rest of this thread's life. DDP sends gradients between layers, which need not be cut for it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
        torch._dynamo.config.optimize_ddp = False
    for layer in layers:
        vars(layer).pop("forward", None)  # what an earlier call put there
        if compiles:
            options = _OPTIONS if backend == "inductor" else None
            layer.forward = torch.compile(layer.forward, backend=backend, options=options)
        if checkpoints:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def check_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        ValueError: nothing can be compiled here; with the reason.
    """
    try:
        torch.compile(lambda numbers: numbers.exp() + 1, options=_OPTIONS)(torch.zeros(8, device=device))
    except (RuntimeError, ImportError, OSError) as reason:  # TorchDynamoException is a RuntimeError
        said = str(reason).strip().partition("\n")[0]
        raise ValueError(
            "train.compile=true: expected a working C++ compiler with Python's headers, or Triton on a GPU, got "
            f"{type(reason).__name__}: {said}"
        ) from reason


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model, and of a language model that it holds outside its own modules."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (Block, OfficialBlock, BertLayer, GradientCheckpointingLayer)
    language = getattr(model, "language", None)
    modules = dict.fromkeys(model.modules())
    if isinstance(language, nn.Module):
        modules |= dict.fromkeys(language.modules())
    return [module for module in modules if isinstance(module, kinds)]


def _sharded_copy(objective: Objective, device: torch.device) -> Objective:
    """Return a copy on the device whose trained transformer layers are sharded; names of parameters stay."""
    language = getattr(objective.model, "language", None)
    frozen = {id(language): language} if isinstance(language, nn.Module) else {}  # not stored twice
    sharded = copy.deepcopy(objective, frozen).to(device)
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    own, parameters = set(sharded.modules()), set(sharded.parameters())
    for layer in transformer_layers(sharded.model):
        if layer not in own:
            continue
        # Keys and values are computed outside of a layer's forward pass: what computes them is replicated.
        attends = layer.cross_attention if isinstance(layer, BertLayer) else None
        apart = set() if attends is None else set(attends.key_value.parameters())
        parameters -= set(layer.parameters()) - apart
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=apart)
    fully_shard(sharded, mesh=mesh, ignored_params=parameters)
    return sharded


def _sharded(objective: nn.Module) -> set[str]:
    return {name for name, one in objective.named_parameters() if isinstance(one, DTensor)}


def _clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their norm is at most `limit`; return the norm that they had."""
    kinds = (
        [one for one in parameters if isinstance(one, DTensor) == is_sharded] for is_sharded in (False, True)
    )
    together = [some for some in kinds if some]
    norms = [nn.utils.get_total_norm([one.grad for one in some if one.grad is not None]) for some in together]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for some in together:  # torch scales lists of one kind
        nn.utils.clip_grads_with_norm_(some, limit, norm)
    return norm


def _moments_by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the moments of each parameter by its name; checkpoints of older versions number them."""
    moments: dict[Any, Any] = state["state"]
    if not all(isinstance(key, int) for key in moments):
        return moments
    if not all("param_names" in group for group in state["param_groups"]):
        raise ValueError("moments without the names of their parameters, as an older version wrote them")
    return {
        name: moments[number]
        for group in state["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if number in moments
    }


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices, and on everything where the recipe decays all.

    Norms, biases, scales and the positions of sequences have fewer than two axes or a leading axis of 1. Word
    embeddings and learned codewords are decayed.
    """
    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, one in module.named_parameters():
        decays = config.decay_all or (one.ndim >= 2 and one.shape[0] > 1)
        # One call of the fused optimizer takes tensors that are whole, or tensors in parts.
        groups.setdefault((not decays, isinstance(one, DTensor)), []).append((name, one))
    return torch.optim.AdamW(
        [
            {"params": some, "weight_decay": 0.0 if spared else config.weight_decay}
            for (spared, _), some in sorted(groups.items())
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        # One pass over each parameter: four times faster on a CPU, and fewer launches on a GPU.
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig, phase: Phase | None = None) -> float:
    """Return the rate after `step` finished steps: linear warm-up, then a cosine to the final rate at the end.

    Where the phase has a peak of its own, and in the phases behind it, the schedule is that of the phase.
    """
    if phase is not None and (phase.first_step or phase.learning_rate is not None):
        peak = phase.learning_rate or config.learning_rate
        last = config.steps if phase.learning_rate is None else phase.last_step
        steps = last - phase.first_step
        warmup = min(config.warmup_steps, steps - 1)
        config = dataclasses.replace(config, steps=steps, learning_rate=peak, warmup_steps=warmup)
        step -= phase.first_step
    if step < config.warmup_steps:
        rise = config.learning_rate - config.initial_learning_rate
        return config.initial_learning_rate + rise * (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / span)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share
