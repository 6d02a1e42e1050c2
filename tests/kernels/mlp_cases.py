"""Models and arguments for the tests of the MLP ops, and the planner's phases written as loops.

The loops call the model as a torch module and the older ops one by one: they are what the fused
ops are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grasp_kernels
from grasp_kernels import MLPDynamics, action_step_, lifted_step_
from grasp_kernels.mlp import MLPLayer

SMOOTH = ("silu", "gelu", "mish", "tanh", "elu", "simnorm")
ACTIVATIONS = ("identity", "relu", *SMOOTH)
SEED = 2**64 - 5
BACKENDS = [
    ("reference", torch.float64),
    ("reference", torch.float32),
    ("native", torch.float32),
]


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """As `kernel_cases.use_backend`, for the ops too that ask for their backend themselves."""
    if backend == "reference":
        for module in ("ops", "mlp_ops", "newton_ops"):
            monkeypatch.setattr(f"grasp_kernels.{module}.choose", lambda *_: "reference")
    else:
        found = grasp_kernels.backends()[backend]
        if not found:
            pytest.skip(f"{backend} {found}")


# ------------------------------------------------------------------------------------------ models


class SimNorm(nn.Module):
    """As in TD-MPC2: a softmax over groups of `dim` neighbours."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.view(*x.shape[:-1], -1, self.dim), dim=-1).view(x.shape)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def group_of(width: int) -> int:
    """The largest group of at most 8 that divides the width, or all of it."""
    return max((g for g in range(2, 9) if width % g == 0), default=width)


def network(
    features: int,
    actions: int,
    widths: Sequence[int],
    *,
    activation: str = "mish",
    norm: bool = False,
    bias: bool = True,
    last: str = "identity",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> nn.Sequential:
    """The torch module, its weights of a size that keeps rollouts from growing."""
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    inputs = features + actions
    for index, width in enumerate([*widths, features]):
        linear = nn.Linear(inputs, width, bias=bias)
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / inputs**0.5)
        modules.append(linear)
        kind = last if index == len(widths) else activation
        if norm and index < len(widths):
            layer_norm = nn.LayerNorm(width, eps=1e-3)
            with torch.no_grad():
                layer_norm.weight.copy_(0.3 + 0.4 * torch.rand(width, generator=generator))
                layer_norm.bias.copy_(0.3 * torch.randn(width, generator=generator))
            modules.append(layer_norm)
        if kind == "simnorm":
            modules.append(SimNorm(group_of(width)))
        elif kind != "identity":
            modules.append(MODULES[kind]())
        inputs = width
    return nn.Sequential(*modules).to(dtype)


def scales(
    features: int, actions: int, dtype: torch.dtype = torch.float32, residual: bool = False
) -> dict[str, Any]:
    """Normalisation of inputs and outputs, as arguments of `MLPDynamics`."""
    generator = torch.Generator().manual_seed(features * 10 + actions)

    def draw(size: int) -> Tensor:
        return torch.rand(size, generator=generator).to(dtype)

    return {
        "input_mean": draw(features + actions) - 0.5,
        "input_scale": draw(features + actions) + 0.8,
        "output_scale": (draw(features) + 0.5) * (0.1 if residual else 1.0),
        "output_shift": 0.2 * draw(features),
        "residual": residual,
    }


def model(
    features: int,
    actions: int,
    widths: Sequence[int] = (20,),
    *,
    residual: bool = False,
    scaled: bool = True,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> MLPDynamics:
    """An `MLPDynamics` with the numbers of `network`; `dtype` is that of the weights."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = scales(features, actions, compute, residual) if scaled else {"residual": residual}
    built = network(features, actions, widths, dtype=compute, **options).requires_grad_(False)
    dynamics = MLPDynamics.from_sequential(built, action_features=actions, **numbers)
    return dynamics if dtype == compute else dynamics.to(dtype)


def module_of(
    built: nn.Module, numbers: dict[str, Any] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """What `MLPDynamics` says it is, written with the torch module."""
    numbers = numbers or {}
    given = {name: value for name, value in numbers.items() if value is not None}

    def call(state: Tensor, action: Tensor) -> Tensor:
        u = torch.cat((state, action), -1)
        u = (u - given.get("input_mean", 0)) / given.get("input_scale", 1)
        following = given.get("output_scale", 1) * built(u) + given.get("output_shift", 0)
        return following + state if given.get("residual") else following

    return call


def selecting(
    activation: str, features: int, dtype: torch.dtype = torch.float32, group: int = 0
) -> MLPDynamics:
    """`next state = activation(state)`, exactly: the weights are the identity."""
    weight = torch.eye(features, features + 1, dtype=dtype)
    return MLPDynamics((MLPLayer(weight, activation=activation, group=group),), action_features=1)


# --------------------------------------------------------------------------------------- arguments


def ids(plans: int) -> Tensor:
    """Plan ids of more than 32 bits, all different."""
    return 2**40 * torch.arange(plans) + 2**61 + 7


def plan_tensors(
    plans: int, steps: int, features: int, actions: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """trajectory, actions, goal."""
    generator = torch.Generator().manual_seed(plans * 1000 + steps * 10 + features)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    trajectory = draw(plans, steps + 1, features)
    return trajectory, 0.5 * draw(plans, steps, actions), draw(plans, features)


def schedule(iterations: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Goal weight and noise scale of every iteration."""
    k = torch.arange(iterations, dtype=torch.float32)[:, None]
    return (torch.tensor([0.3, 0.1]) / (1 + k)).to(dtype)


def bests(plans: int, steps: int, features: int, actions: int, dtype: torch.dtype) -> list[Tensor]:
    """best_cost, best_actions, best_states of plans that were never judged."""
    cost = torch.full((plans,), torch.inf, dtype=dtype)
    kept = torch.full((plans, steps, actions), 7.0, dtype=dtype)
    return [cost, kept, torch.full((plans, steps + 1, features), 8.0, dtype=dtype)]


def lifted_options(iterations: int, dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of `mlp_lifted_plan_` for three plans."""
    return {
        "schedule": schedule(iterations, dtype),
        "first_iteration": 4,
        "state_lr": 0.2,
        "action_lr": 0.1,
        "seed": SEED,
        "plan_ids": ids(3),
        **changes,
    }


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit; NaN and signed zero included."""
    if one.dtype == torch.bool:
        return torch.equal(one, other)
    size = {8: torch.int64, 4: torch.int32}[one.element_size()]
    return torch.equal(one.contiguous().view(size), other.contiguous().view(size))


# ------------------------------------------------------------------------------ the phases as loops


def rollout_loop(
    call: Callable[[Tensor, Tensor], Tensor], start: Tensor, actions: Tensor
) -> Tensor:
    states = [start]
    for action in actions.unbind(1):
        states.append(call(states[-1], action))
    return torch.stack(states, 1)


def lifted_loop_(
    call: Callable[[Tensor, Tensor], Tensor],
    trajectory: Tensor,
    actions: Tensor,
    goal: Tensor,
    state: dict[str, Any] | None,
    *,
    schedule: Tensor,
    first_iteration: int,
    state_lr: Any,
    action_lr: Any,
    noise_factor: Any = 1.0,
    low: Any = None,
    high: Any = None,
    optimizer: str = "adam",
    **step: Any,
) -> Tensor:
    """`mlp_lifted_plan_` from the ops for one iteration, and autograd."""
    history = []
    for k, (goal_weight, noise_scale) in enumerate(schedule):
        leaf = actions.clone().requires_grad_()
        prediction = call(trajectory[:, :-1].clone(), leaf)
        loss, cotangent = lifted_step_(
            trajectory,
            prediction.detach(),
            goal,
            state_lr=state_lr,
            goal_weight=goal_weight,
            noise_scale=noise_scale * noise_factor,
            iteration=first_iteration + k,
            **step,
        )
        (gradient,) = torch.autograd.grad(prediction, leaf, cotangent)
        history.append(loss.total)
        action_step_(
            actions, gradient, state, lr=action_lr, low=low, high=high, optimizer=optimizer
        )
    return torch.stack(history)


def sync_loop_(
    call: Callable[[Tensor, Tensor], Tensor],
    trajectory: Tensor,
    actions: Tensor,
    best: list[Tensor],
    start: Tensor,
    goal: Tensor,
    *,
    steps: int,
    lr: Any,
    cost_weight: Tensor | None = None,
    stop_cost: float | None = None,
    blend: float = 0.0,
    terminal: str = "fixed",
    **optimiser: Any,
) -> None:
    """`mlp_sync_`, plan by plan in plain Python."""
    plans, horizon = actions.shape[:2]
    state: dict[str, Any] = {}
    w = 1 if cost_weight is None else cost_weight
    rates = torch.as_tensor(lr, dtype=actions.dtype).expand(plans)
    for step in range(steps + 1):
        leaf = actions.clone().requires_grad_()
        states = rollout_loop(call, start, leaf)
        cost = (w * (states[:, -1] - goal) ** 2).sum(-1)
        (gradient,) = torch.autograd.grad(cost.sum(), leaf)
        for n in range(plans):
            if cost[n] < best[0][n]:
                for kept, found in zip(best, (cost, actions, states), strict=True):
                    kept[n] = found[n].detach()
        if step < steps:
            moving = best[0] > (-torch.inf if stop_cost is None else stop_cost)
            action_step_(actions, gradient, state, lr=rates * moving, **optimiser)
    rows = slice(1, horizon + (terminal == "free"))
    trajectory[:, rows] += blend * (states.detach()[:, rows] - trajectory[:, rows])
