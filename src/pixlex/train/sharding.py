"""Weights, gradients and moments in parts, one on each process: FSDP2, for models that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pixlex import distributed
from pixlex.nn.bert import BertLayer
from pixlex.objectives.phase import Objective
from pixlex.train.layers import LAYERS


def sharded_copy(objective: Objective, device: torch.device) -> Objective:
    """Return an objective whose transformer layers are shared out among the processes (Zhao et al. 2023).

    A layer is put together when its turn comes and given up behind it. What lies outside of layers, such as
    codebooks, heads and word embeddings, and what makes keys and values apart from its layer, stays whole
    everywhere: `finish_gradients` averages its gradients. Names of parameters stay.

    Args:
        objective: stays as it is: what evaluates and saves takes it, with the weights of `whole_state`.
        device: this process's own.
    """
    language = getattr(objective.model, "language", None)
    frozen = {id(language): language} if isinstance(language, nn.Module) else {}  # not stored twice
    sharded = copy.deepcopy(objective, frozen).to(device)
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    shared: set[nn.Parameter] = set()
    for layer in [module for module in sharded.modules() if isinstance(module, LAYERS)]:
        looks = layer.cross_attention if isinstance(layer, BertLayer) else None
        apart = set() if looks is None else set(looks.key_value.parameters())
        shared |= set(layer.parameters()) - apart
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=apart)
    fully_shard(sharded, mesh=mesh, ignored_params=set(sharded.parameters()) - shared)
    return sharded


def finish_gradients(objective: nn.Module, trains: tuple[str, ...]) -> None:
    """Drop the gradients of what a phase does not train, and average those of what each process holds whole.

    Parameters in parts get gradients in every phase, averaged already; the others are averaged in one exchange.

    Args:
        objective: in parts.
        trains: how the names of the parameters begin that are trained.
    """
    gradients = []
    for name, parameter in objective.named_parameters():
        if not name.startswith(trains):
            parameter.grad = None
        elif parameter.grad is not None and not isinstance(parameter, DTensor):
            gradients.append(parameter.grad)
    if gradients:
        flat = distributed.all_sum(torch.cat([one.flatten() for one in gradients])) / distributed.world_size()
        for one, part in zip(gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True):
            one.copy_(part.view_as(one))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their norm is at most `limit`; return the norm that they had."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    whole = [one for one in gradients if not isinstance(one, DTensor)]
    parts = [one.to_local() for one in gradients if isinstance(one, DTensor)]
    square = torch.zeros((), device=gradients[0].device)
    if parts:
        square = distributed.all_sum(nn.utils.get_total_norm(parts).square())
    if whole:
        square = square + nn.utils.get_total_norm(whole).square()
    norm = square.sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*whole, *parts):
        gradient.mul_(scale)
    return norm


@torch.no_grad()
def whole_state(state: Any) -> Any:
    """Return a state with its shared tensors put together, on the CPU; all processes must ask for it.

    Args:
        state: of an objective or an optimizer.
    """
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, Mapping):
        return {name: whole_state(value) for name, value in state.items()}
    return [whole_state(value) for value in state] if isinstance(state, list) else state


def shared_like(state: Any, example: Any) -> Any:
    """Return a whole state shared out as an example of it is; the opposite of `whole_state`."""
    if isinstance(example, DTensor):
        return distribute_tensor(state.to(example.device), example.device_mesh, example.placements)
    if isinstance(example, Mapping):
        return {name: shared_like(value, example.get(name)) for name, value in state.items()}
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the whole moments of an optimizer, shared out as its parameters are, which go by their names.

    So a run in parts goes on whole, and the other way round.

    Args:
        optimizer: made for named parameters.
        state: its state, or that of another number of processes.

    Raises:
        ValueError: it has other parameters, or parameters without names.
    """
    own = optimizer.state_dict()
    names, theirs = _names(own), _names(state)
    if names.keys() != theirs.keys():
        differ = sorted(names.keys() ^ theirs.keys())
        raise ValueError(
            f"{len(differ)} parameters are in the checkpoint or the model alone, first {differ[0]}"
        )
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    moments = {
        number: {
            kind: shared_like(value, parameters[number]) if value.ndim else value
            for kind, value in state["state"][theirs[name]].items()
        }
        for name, number in names.items()
        if theirs[name] in state["state"]
    }
    optimizer.load_state_dict({**own, "state": moments})


def _names(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of each parameter in the state of an optimizer."""
    if not all("param_names" in group for group in state["param_groups"]):
        raise ValueError(
            "moments of the optimizer without the names of their parameters, as an older version wrote them"
        )
    return {
        name: number
        for group in state["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
