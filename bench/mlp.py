"""World models inside the kernel: operands, the public call, and the loop in torch around a module.

Of plain torch, "compiled" compiles the model; the loops around it stay in Python, since unrolling
50 steps takes the compiler minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from grasp_planner.tasks.mlp import ResidualMLP
from torch import Tensor

import grasp_kernels
from grasp_kernels import costs
from grasp_kernels.ops import op

from .cases import Case
from .lifted import (
    ACTION_LR,
    BETAS,
    GOAL_WEIGHT,
    HIGH,
    ITERATION,
    LOW,
    NOISE_SCALE,
    SEED,
    STATE_LR,
    adam_memory,
    eager_adam,
    eager_step,
)
from .workload import Compile, Operands, Results, Workload

EPSILON = 1e-2  # of Adam: large, so that the rounding of a tiny gradient is not a whole step
BOX: dict[str, Any] = {"low": LOW, "high": HIGH, "betas": BETAS, "epsilon": EPSILON}


def model_of(case: Case, device: torch.device) -> ResidualMLP:
    """Random weights, and a gentle map whose rollouts stay where states live."""
    shape = case.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResidualMLP(shape.features, shape.actions, hidden=shape.hidden, layers=shape.layers)
    model.change_scale.fill_(0.1)
    return model.eval().requires_grad_(False).to(device, case.dtype)


def operands(case: Case, device: torch.device) -> Operands:
    generator = torch.Generator().manual_seed(1)
    n, t, d, a = case.shape.plans, case.shape.steps, case.shape.features, case.shape.actions

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, case.dtype)

    model = model_of(case, device)
    start = normal(n, d)
    goal = start + 0.3 * normal(n, d)
    line = torch.linspace(0, 1, t + 1, device=device, dtype=case.dtype)[:, None]
    actions = 0.5 * normal(n, t, a)
    dynamics = model.mlp_dynamics()
    given: Operands = {
        "dynamics": dynamics,
        "model": model,
        "start": start,
        "goal": goal,
        "actions": actions,
        "trajectory": torch.lerp(start[:, None], goal[:, None], line),
        "state": {},
        "noise_scale": NOISE_SCALE,
    }
    if case.op == "mlp_rollout_backward":
        given["states"] = grasp_kernels.mlp_rollout(dynamics, start, actions)
        given["cotangent"] = normal(n, t + 1, d)
    if case.op == "mlp_sync_":
        given["best_cost"] = torch.full((n,), torch.inf, device=device, dtype=case.dtype)
        given["best_actions"] = actions.clone()
        given["best_states"] = torch.zeros_like(given["trajectory"])
    if case.op == "mlp_lifted_plan_":
        row = torch.tensor([GOAL_WEIGHT, 1.0], device=device, dtype=case.dtype)
        given["schedule"] = row.repeat(case.parts, 1)
    return given


def roll_out(model: Callable[..., Tensor], start: Tensor, actions: Tensor) -> Tensor:
    states = [start]
    for action in actions.unbind(1):
        states.append(model(states[-1], action))
    return torch.stack(states, 1)


# ------------------------------------------------------------------------- rollout and its adjoint


def fused_rollout(case: Case, given: Operands) -> Results:
    with torch.no_grad():
        return {
            "states": grasp_kernels.mlp_rollout(given["dynamics"], given["start"], given["actions"])
        }


def plain_rollout(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    models = Compiled(compile)

    @torch.no_grad()
    def call(given: Operands) -> Results:
        return {"states": roll_out(models(given), given["start"], given["actions"])}

    return call


def fused_rollout_backward(case: Case, given: Operands) -> Results:
    """The op itself: the public way to it is the backward of `mlp_rollout`."""
    backward = op("mlp_rollout_backward")
    along = backward(
        given["cotangent"], given["states"], given["actions"], *given["dynamics"].packed()
    )
    return dict(zip(("start", "actions"), along, strict=True))


def plain_rollout_backward(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    """The rollout with its graph, and back through it: what autograd offers."""
    models = Compiled(compile)

    def call(given: Operands) -> Results:
        start, actions = (given[name].detach().requires_grad_() for name in ("start", "actions"))
        states = roll_out(models(given), start, actions)
        along = torch.autograd.grad(states, (start, actions), given["cotangent"])
        return dict(zip(("start", "actions"), along, strict=True))

    return call


# ---------------------------------------------------------------------------------- the whole plan


def fused_plan(case: Case, given: Operands) -> Results:
    history = grasp_kernels.mlp_lifted_plan_(
        given["dynamics"],
        given["trajectory"],
        given["actions"],
        given["goal"],
        given["state"],
        schedule=given["schedule"],
        first_iteration=ITERATION,
        state_lr=STATE_LR,
        action_lr=ACTION_LR,
        seed=SEED,
        noise=case.options["noise"],
        noise_factor=given["noise_scale"],
        **BOX,
    )
    return {name: given[name] for name in ("trajectory", "actions")} | {"losses": history}


def plain_plan(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    models = Compiled(compile)

    def call(given: Operands) -> Results:
        model, trajectory, actions = models(given), given["trajectory"], given["actions"]
        losses = []
        for _ in range(len(given["schedule"])):
            free = actions.detach().requires_grad_()
            prediction = model(trajectory[:, :-1], free)
            with torch.no_grad():
                loss, cotangent = eager_step(
                    trajectory, prediction.detach(), given["goal"], given["noise_scale"], None
                )
            (gradient,) = torch.autograd.grad(prediction, free, cotangent)
            memory = adam_memory(given["state"], actions)
            eager_adam(actions, gradient, *memory, EPSILON)
            losses.append(loss)
        return {"trajectory": trajectory, "actions": actions, "losses": torch.stack(losses)}

    return call


def plan_deviation(case: Case, results: Results) -> tuple[Tensor, Tensor | None]:
    return results["trajectory"][:, 1:-1], None


# -------------------------------------------------------------------------------------------- sync

BEST = ("best_cost", "best_actions", "best_states")


def fused_sync(case: Case, given: Operands) -> Results:
    grasp_kernels.mlp_sync_(
        given["dynamics"],
        *(given[name] for name in ("trajectory", "actions", *BEST, "start", "goal")),
        steps=case.parts,
        lr=ACTION_LR,
        blend=1.0,
        **BOX,
    )
    return {name: given[name] for name in ("trajectory", "actions", *BEST)}


def plain_sync(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    models = Compiled(compile)

    def call(given: Operands) -> Results:
        model, actions, start, goal = models(given), given["actions"], given["start"], given["goal"]
        memory: dict[str, Any] = {}
        for step in range(case.parts + 1):
            with torch.set_grad_enabled(step < case.parts):
                free = actions.detach().requires_grad_(step < case.parts)
                states = roll_out(model, start, free)
                cost = (states[:, -1] - goal).square().sum(-1)
            with torch.no_grad():
                better = (cost < given["best_cost"])[:, None, None]
                given["best_cost"].copy_(torch.minimum(cost, given["best_cost"]))
                for best, found in zip(BEST[1:], (actions, states), strict=True):
                    given[best].copy_(torch.where(better, found, given[best]))
            if step < case.parts:
                (gradient,) = torch.autograd.grad(cost.sum(), free)
                eager_adam(actions, gradient, *adam_memory(memory, actions), EPSILON)
        given["trajectory"][:, 1:-1] = states[:, 1:-1]
        return {name: given[name] for name in ("trajectory", "actions", *BEST)}

    return call


class Compiled:
    """The model of some operands, compiled once each."""

    def __init__(self, compile: Compile) -> None:
        self.compile = compile
        self.made: dict[int, Callable[..., Tensor]] = {}

    def __call__(self, given: Operands) -> Callable[..., Tensor]:
        model = given["model"]
        if id(model) not in self.made:
            self.made[id(model)] = self.compile(model)
        return self.made[id(model)]


def structure(case: Case) -> list[int]:
    """Sizes and kinds, as `MLPDynamics.structure` has them, without making the model."""
    shape, layers = case.shape, [case.shape.hidden] * case.shape.layers + [case.shape.features]
    return [
        shape.features,
        shape.actions,
        1,
        len(layers),
        *(n for w in layers for n in (w, 0, 0, 0)),
    ]


def cost(count: Callable[..., costs.Cost], **options: Any) -> Callable[[Case], costs.Cost]:
    """Counted for the model of a case; options of the case of the names given go along."""

    def counted(case: Case) -> costs.Cost:
        shape = case.shape
        chosen = {to: case.options[name] for to, name in options.items()}
        return count(shape.plans, shape.steps, structure(case), dtype=case.dtype, **chosen)

    return counted


LOOSE = 1e-4  # a rollout carries its rounding errors along for T steps
WORKLOADS = {
    "mlp_rollout": Workload(operands, fused_rollout, plain_rollout, cost(costs.mlp_rollout), LOOSE),
    "mlp_rollout_backward": Workload(
        operands,
        fused_rollout_backward,
        plain_rollout_backward,
        cost(costs.mlp_rollout_backward),
        LOOSE,
    ),
    "mlp_lifted_plan_": Workload(
        operands,
        fused_plan,
        plain_plan,
        cost(costs.mlp_lifted_plan_, iterations="iterations", noise="noise"),
        LOOSE,
        plan_deviation,
    ),
    "mlp_sync_": Workload(
        operands, fused_sync, plain_sync, cost(costs.mlp_sync_, steps="sync_steps"), LOOSE
    ),
}
