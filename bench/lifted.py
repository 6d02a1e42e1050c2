"""The lifted ops, the noise and the actions' step: operands, the public call, and plain torch.

The plain one is what a careful user writes: temporaries reused, updates in place, and torch's own
random numbers. `compile` is the identity, or `torch.compile` for the part that gains from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import grasp_kernels
from grasp_kernels import costs

from .cases import Case
from .workload import Compile, Operands, Results, Workload

STATE_LR, GOAL_WEIGHT, NOISE_SCALE = 0.05, 0.1, 0.01
ACTION_LR, LOW, HIGH, BETAS, EPSILON = 0.01, -1.0, 1.0, (0.9, 0.999), 1e-8
MODES = 8
SEED, ITERATION = 0, 1


def states(case: Case, device: torch.device) -> Operands:
    """Trajectory, prediction and goal."""
    generator = torch.Generator().manual_seed(0)
    n, t, d = case.shape.plans, case.shape.steps, case.shape.features
    shapes = {"trajectory": (n, t + 1, d), "prediction": (n, t, d), "goal": (n, d)}
    return {
        **{
            name: torch.randn(*shape, generator=generator).to(device, case.dtype)
            for name, shape in shapes.items()
        },
        "noise_scale": NOISE_SCALE,
    }


# ------------------------------------------------------------------------------------ lifted_step_


def fused_step(case: Case, given: Operands) -> Results:
    loss, cotangent = grasp_kernels.lifted_step_(
        given["trajectory"],
        given["prediction"],
        given["goal"],
        state_lr=STATE_LR,
        goal_weight=GOAL_WEIGHT,
        noise_scale=given["noise_scale"],
        seed=SEED,
        iteration=ITERATION,
        **case.options,
    )
    trajectory = given["trajectory"]
    return {"loss": loss.total, "cotangent": cotangent, "trajectory": trajectory}


def bridge_table(steps: int, like: Tensor) -> Tensor:
    """`sin(k pi t / T) / k`, `(T - 1, modes)`: a user makes it once."""
    t = torch.arange(1, steps, device=like.device)[:, None]
    k = torch.arange(1, MODES + 1, device=like.device)
    return torch.sin(math.pi * t * k / steps) / k


def eager_step(
    trajectory: Tensor, prediction: Tensor, goal: Tensor, scale: float, bridge: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Total loss and cotangent; the states move in place. No noise where `scale` is 0."""
    residual = prediction.float() - trajectory[:, 1:]
    goal_error = prediction.float() - goal[:, None]
    loss = residual.square().sum((1, 2)) + GOAL_WEIGHT * goal_error.square().sum((1, 2))
    cotangent = goal_error.mul_(GOAL_WEIGHT).add_(residual).mul_(2).to(prediction.dtype)
    moving = trajectory[:, 1:-1]
    step = residual[:, :-1].mul_(2 * STATE_LR)
    if scale and bridge is None:
        step.add_(torch.randn_like(step), alpha=scale)
    elif scale and bridge is not None:
        modes = torch.randn(len(step), MODES, step.shape[-1], dtype=step.dtype, device=step.device)
        step.add_(bridge @ modes, alpha=scale)
    moving.add_(step)
    return loss, cotangent


def plain_step(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    run, noise = compile(eager_step), case.options["noise"]
    tables: dict[str, Tensor] = {}

    def call(given: Operands) -> Results:
        trajectory = given["trajectory"]
        if noise == "bridge" and not tables:
            tables["bridge"] = bridge_table(case.shape.steps, trajectory)
        loss, cotangent = run(
            trajectory,
            given["prediction"],
            given["goal"],
            0.0 if noise == "none" else given["noise_scale"],
            tables.get("bridge"),
        )
        return {"loss": loss, "cotangent": cotangent, "trajectory": trajectory}

    return call


def step_deviation(case: Case, results: Results) -> tuple[Tensor, Tensor | None]:
    """The rows that noise moves, and the standard deviation of each, in units of its scale."""
    rows = results["trajectory"][:, 1:-1]
    if case.options["noise"] == "bridge":
        return rows, bridge_table(case.shape.steps, rows).square().sum(-1, keepdim=True).sqrt()
    return rows, None


# ------------------------------------------------------------------------------------- lifted_loss


def fused_loss(case: Case, given: Operands) -> Results:
    prediction, trajectory = given["prediction"], given["trajectory"]
    loss = grasp_kernels.lifted_loss(prediction, trajectory, given["goal"], goal_weight=GOAL_WEIGHT)
    along = torch.autograd.grad(loss.total.sum(), (prediction, trajectory))
    return dict(
        zip(("loss", "prediction", "trajectory"), (loss.total.detach(), *along), strict=True)
    )


def eager_loss(prediction: Tensor, trajectory: Tensor, goal: Tensor) -> Tensor:
    dynamics = (prediction - trajectory[:, 1:]).square().sum((1, 2))
    return dynamics + GOAL_WEIGHT * (prediction - goal[:, None]).square().sum((1, 2))


def plain_loss(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    run = compile(eager_loss)

    def call(given: Operands) -> Results:
        prediction, trajectory = given["prediction"], given["trajectory"]
        total = run(prediction, trajectory, given["goal"])
        along = torch.autograd.grad(total.sum(), (prediction, trajectory))
        return dict(
            zip(("loss", "prediction", "trajectory"), (total.detach(), *along), strict=True)
        )

    return call


def with_gradients(case: Case, device: torch.device) -> Operands:
    given = states(case, device)
    return {
        **given,
        **{name: given[name].requires_grad_() for name in ("prediction", "trajectory")},
    }


# ------------------------------------------------------------------------------------ action_step_


def action_operands(case: Case, device: torch.device) -> Operands:
    generator = torch.Generator().manual_seed(1)
    shape = (case.shape.plans, case.shape.steps, case.shape.features)
    actions = torch.rand(*shape, generator=generator) - 0.5
    gradient = torch.randn(*shape, generator=generator)
    gradient += gradient.sign()  # Adam's first step is a quotient: none of it near 0 / 0
    return {
        "actions": actions.to(device, case.dtype),
        "gradient": gradient.to(device, case.dtype),
        "state": {},
    }


def fused_action(case: Case, given: Operands) -> Results:
    actions, state = given["actions"], given["state"]
    grasp_kernels.action_step_(
        actions, given["gradient"], state, lr=ACTION_LR, low=LOW, high=HIGH, **case.options
    )
    return {"actions": actions}


def eager_adam(
    actions: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, epsilon: float
) -> None:
    """Adam and the box in place, as `torch.optim` computes it."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    spread = second.sqrt().mul_((1 - BETAS[1] ** step) ** -0.5).add_(epsilon)
    actions.addcdiv_(first, spread, value=-ACTION_LR / (1 - BETAS[0] ** step)).clamp_(LOW, HIGH)


def eager_sgd(actions: Tensor, gradient: Tensor) -> None:
    actions.add_(gradient, alpha=-ACTION_LR).clamp_(LOW, HIGH)


def adam_memory(state: dict[str, Any], actions: Tensor) -> tuple[Tensor, Tensor, int]:
    """First and second moment and the number of the step that begins."""
    if not state:
        state.update(step=0, first=torch.zeros_like(actions), second=torch.zeros_like(actions))
    state["step"] += 1
    return state["first"], state["second"], state["step"]


def plain_action(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    adam, sgd = compile(eager_adam), compile(eager_sgd)

    def call(given: Operands) -> Results:
        actions, gradient = given["actions"], given["gradient"]
        if case.options["optimizer"] == "adam":
            adam(actions, gradient, *adam_memory(given["state"], actions), EPSILON)
        else:
            sgd(actions, gradient)
        return {"actions": actions}

    return call


# ---------------------------------------------------------------------------------- gaussian_noise


def noise_operands(case: Case, device: torch.device) -> Operands:
    return {"dtype": case.dtype, "device": device, "noise_scale": 1.0}


def fused_noise(case: Case, given: Operands) -> Results:
    shape = (case.shape.plans, case.shape.steps, case.shape.features)
    noise = grasp_kernels.gaussian_noise(
        *shape,
        seed=SEED,
        iteration=ITERATION,
        dtype=given["dtype"],
        device=given["device"],
        noise=case.options["noise"] if given["noise_scale"] else "none",
    )
    return {"noise": noise}


def plain_noise(case: Case, compile: Compile) -> Callable[[Operands], Results]:
    n, t, d = case.shape.plans, case.shape.steps, case.shape.features
    tables: dict[str, Tensor] = {}

    def draw(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(n, rows, d, dtype=dtype, device=device)

    def wave(dtype: torch.dtype, device: torch.device, table: Tensor) -> Tensor:
        return table @ torch.randn(n, MODES, d, dtype=dtype, device=device)

    drawn, waves = compile(draw), compile(wave)

    def call(given: Operands) -> Results:
        kind = given["dtype"], given["device"]
        if not given["noise_scale"]:
            return {"noise": torch.zeros(n, t, d, dtype=kind[0], device=kind[1])}
        if case.options["noise"] == "white":
            return {"noise": drawn(t, *kind)}
        if not tables:
            zero = torch.zeros(1, MODES, device=kind[1])  # row 0, which no bridge moves
            tables["bridge"] = torch.cat((zero, bridge_table(t, zero)))
        return {"noise": waves(*kind, tables["bridge"])}

    return call


def noise_deviation(case: Case, results: Results) -> tuple[Tensor, Tensor | None]:
    rows = results["noise"]
    if case.options["noise"] == "white":
        return rows, None
    rows = rows[:, 1:]
    return rows, bridge_table(case.shape.steps, rows).square().sum(-1, keepdim=True).sqrt()


def shape_cost(count: Callable[..., costs.Cost], case: Case) -> costs.Cost:
    shape = case.shape
    return count(shape.plans, shape.steps, shape.features, dtype=case.dtype, **case.options)


WORKLOADS = {
    "lifted_step_": Workload(
        operands=states,
        fused=fused_step,
        plain=plain_step,
        cost=lambda case: shape_cost(costs.lifted_step_, case),
        tolerance=4e-6,
        deviation=step_deviation,
    ),
    "lifted_loss": Workload(
        operands=with_gradients,
        fused=fused_loss,
        plain=plain_loss,
        cost=lambda case: (
            shape_cost(costs.lifted_loss, case) + shape_cost(costs.lifted_loss_backward, case)
        ),
        tolerance=4e-6,
    ),
    "action_step_": Workload(
        operands=action_operands,
        fused=fused_action,
        plain=plain_action,
        cost=lambda case: shape_cost(costs.action_step_, case),
        tolerance=4e-6,
    ),
    "gaussian_noise": Workload(
        operands=noise_operands,
        fused=fused_noise,
        plain=plain_noise,
        cost=lambda case: shape_cost(costs.gaussian_noise, case),
        tolerance=4e-6,
        deviation=noise_deviation,
    ),
}
