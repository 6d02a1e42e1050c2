"""The second-order ops: Jacobians of a world model, and the lifted Gauss-Newton step.

The plain ones are what torch offers: `vmap(jacrev(model))`, and the step in batched products, all
plans at once, one time step after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import grasp_kernels
from grasp_kernels import costs

from . import mlp
from .cases import Case
from .workload import Compile, Operands, Results, Workload

DAMPING, LIMIT, HIGH = 0.05, 0.5, 0.75  # a bound that every dtype holds

# ----------------------------------------------------------------------------------- the Jacobians


def jacobian_operands(case: Case, device: torch.device) -> Operands:
    given = mlp.operands(case, device)
    given["states"] = given["trajectory"][:, :-1].contiguous()
    return {name: given[name] for name in ("dynamics", "model", "states", "actions")}


def fused_jacobians(case: Case, given: Operands) -> Results:
    found = grasp_kernels.mlp_jacobians(given["dynamics"], given["states"], given["actions"])
    return found._asdict()


def plain_jacobians(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    def all_of(model: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def one(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
            prediction = model(state, action)
            return prediction, prediction

        return torch.func.vmap(torch.func.jacrev(one, argnums=(0, 1), has_aux=True))

    made: dict[int, Callable[..., tuple[Tensor, ...]]] = {}

    def call(given: Operands) -> Results:
        model, states, actions = given["model"], given["states"], given["actions"]
        if id(model) not in made:
            made[id(model)] = compile(all_of(model))
        (by_state, by_action), prediction = made[id(model)](
            states.flatten(0, 1), actions.flatten(0, 1)
        )
        names = ("prediction", "state_jacobian", "action_jacobian")
        found = (prediction, by_state, by_action)
        return {n: f.unflatten(0, states.shape[:2]) for n, f in zip(names, found, strict=True)}

    return call


# ---------------------------------------------------------------------------------------- the step


TENSORS = (
    "trajectory",
    "actions",
    "prediction",
    "state_jacobian",
    "action_jacobian",
    "goal",
)


def step_operands(case: Case, device: torch.device) -> Operands:
    """A model near the identity, states with defects, and held actions, some at their bounds."""
    generator = torch.Generator().manual_seed(2)
    n, t, d, a = case.shape.plans, case.shape.steps, case.shape.features, case.shape.actions
    hold = case.options["hold"]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, case.dtype)

    trajectory = normal(n, t + 1, d)
    knots = normal(n, -(-t // hold), a).clamp(-HIGH, HIGH)
    return {
        "trajectory": trajectory,
        "actions": knots.repeat_interleave(hold, 1)[:, :t].contiguous(),
        "prediction": trajectory[:, 1:] + 0.1 * normal(n, t, d),
        "state_jacobian": torch.eye(d).to(trajectory) + 0.1 / d**0.5 * normal(n, t, d, d),
        "action_jacobian": 0.3 * normal(n, t, d, a),
        "goal": normal(n, d),
    }


def fused_step(case: Case, given: Operands) -> Results:
    found = grasp_kernels.lifted_newton_step_(
        *(given[name] for name in TENSORS),
        damping=DAMPING,
        low=-HIGH,
        high=HIGH,
        max_action_step=LIMIT,
        max_state_step=LIMIT,
        **case.options,
    )
    return {name: given[name] for name in ("trajectory", "actions")} | found._asdict()


def eager_step(
    x: Tensor, actions: Tensor, p: Tensor, a: Tensor, b: Tensor, goal: Tensor, hold: int
) -> tuple[Tensor, Tensor, Tensor]:
    """goal_error, defect and step; states and actions move in place."""
    steps, eye = p.shape[1], torch.eye(p.shape[2], device=p.device, dtype=p.dtype)
    defect, error, through = p - x[:, 1:], x[:, -1] - goal, eye.expand(len(x), -1, -1)
    influence = []
    for t in reversed(range(steps)):
        error = torch.baddbmm(error[..., None], through, defect[:, t, :, None])[..., 0]
        influence.append(through @ b[:, t])
        through = through @ a[:, t]
    blocks = torch.stack(influence[::-1], 1).split(hold, 1)
    slope = torch.stack([block.sum(1) for block in blocks], 2)
    held = actions[:, ::hold]
    mu = DAMPING * slope.square().sum((1, 2, 3)) / p.shape[2]
    delta, free = torch.zeros_like(held), torch.ones_like(held)
    for _ in range(2):
        outward = ((held <= -HIGH) & (delta < 0)) | ((held >= HIGH) & (delta > 0))
        free = free * ~outward
        kept = (slope * free[:, None]).flatten(2)
        factor = torch.linalg.cholesky(kept @ kept.mT + mu[:, None, None] * eye)
        delta = -(kept.mT @ torch.cholesky_solve(error[..., None], factor)).view_as(held)
    moved = (held + delta.clamp(-LIMIT, LIMIT)).clamp(-HIGH, HIGH)
    moved = moved.repeat_interleave(hold, 1)[:, :steps]
    step = moved - actions
    actions.copy_(moved)
    drive = (b @ step[..., None])[..., 0] + defect
    change = torch.zeros_like(goal)
    for t in range(steps):
        change = torch.baddbmm(drive[:, t, :, None], a[:, t], change[..., None])[..., 0]
        change = change.clamp(-LIMIT, LIMIT)
        x[:, t + 1] += change
    return error.square().sum(-1), defect.square().sum((1, 2)), step.abs().amax((1, 2))


def plain_step(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    """Not compiled: unrolling the scans takes the compiler minutes."""

    @torch.no_grad()
    def call(given: Operands) -> Results:
        trajectory, actions, *linear, goal = (given[name] for name in TENSORS)
        prediction, by_state, by_action = linear
        found = eager_step(
            trajectory, actions, prediction, by_state, by_action, goal, case.options["hold"]
        )
        written = {name: given[name] for name in ("trajectory", "actions")}
        return written | dict(zip(("goal_error", "defect", "step"), found, strict=True))

    return call


def step_cost(case: Case) -> costs.Cost:
    shape = case.shape
    sizes = shape.plans, shape.steps, shape.features, shape.actions
    return costs.lifted_newton_step_(*sizes, dtype=case.dtype, **case.options)


WORKLOADS = {
    "mlp_jacobians": Workload(
        jacobian_operands,
        fused_jacobians,
        plain_jacobians,
        mlp.cost(costs.mlp_jacobians),
        2e-5,
    ),
    "lifted_newton_step_": Workload(step_operands, fused_step, plain_step, step_cost, mlp.LOOSE),
}
