"""The public calls for MLP world models: arguments checked, named in every error, then the ops.

N plans, T time steps, D state features, A action features, K iterations, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grasp_kernels.checks import (
    OPTIMIZERS,
    TERMINALS,
    Scalar,
    box_bounds,
    check_adam,
    check_choice,
    check_int,
    check_moments,
    check_noise,
    check_tensor,
    check_writable,
    per_plan_columns,
    plan_id_tensor,
    signed_seed,
    weight_vector,
)
from grasp_kernels.mlp import MLPDynamics
from grasp_kernels.ops import op
from grasp_kernels.reference import MLPJacobians, next_moments

rollout_op, rollout_backward_op, lifted_plan_op, sync_op, jacobians_op = map(
    op,
    ("mlp_rollout", "mlp_rollout_backward", "mlp_lifted_plan_", "mlp_sync_", "mlp_jacobians"),
)


class RolloutFunction(torch.autograd.Function):
    """`mlp_rollout` and its adjoint, one call each; no graph of the model is kept."""

    @staticmethod
    def forward(
        start: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
    ) -> Tensor:
        return rollout_op(start, actions, weights, constants, structure)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, actions, weights, constants, ctx.structure = inputs
        ctx.save_for_backward(output, actions, weights, constants)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        states, actions, weights, constants = ctx.saved_tensors
        start_gradient, action_gradient = rollout_backward_op(
            cotangent, states, actions, weights, constants, ctx.structure
        )
        return start_gradient, action_gradient, None, None, None


def mlp_rollout(dynamics: MLPDynamics, start: Tensor, actions: Tensor) -> Tensor:
    """The states that `actions` lead to, in one call; differentiable in `start` and `actions`.

        states_0 = start,  states_{t+1} = F(states_t, actions_t)

    The weights are constants here. For their gradient, call the model itself.

    Args:
        dynamics: the world model.
        start: `(N, D)`, float32 (float64 for float64 weights).
        actions: `(N, T, A)`, same dtype and device. T may be 0.

    Returns:
        states: `(N, T + 1, D)`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    _check_dynamics(dynamics)
    check_tensor("start", start, (None, dynamics.state_features), "(N, D)")
    check_tensor("actions", actions, (len(start), None, dynamics.action_features), "(N, T, A)")
    _check_model_tensor("start", start, dynamics)
    _check_model_tensor("actions", actions, dynamics)
    states: Tensor = RolloutFunction.apply(start, actions, *dynamics.packed())
    return states


@torch.no_grad()
def mlp_jacobians(dynamics: MLPDynamics, state: Tensor, action: Tensor) -> MLPJacobians:
    """`F(state, action)` and its Jacobians in both, for many rows at once; not differentiable.

    Reverse mode, through the same products as `mlp_rollout`'s adjoint: one way forward, and D rows
    of the way back for every row.

    Args:
        dynamics: the world model.
        state: `(..., D)`, float32 (float64 for float64 weights). May be empty.
        action: `(..., A)`, the same leading shape, dtype and device.

    Returns:
        `MLPJacobians(prediction (..., D), state_jacobian (..., D, D), action_jacobian (..., D,
        A))`, with `[i, j]` the derivative of feature i of the next state by input j.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    _check_dynamics(dynamics)
    features, width = dynamics.state_features, dynamics.action_features
    leading = state.shape[:-1] if isinstance(state, Tensor) else ()
    rows = (None,) * len(leading)
    check_tensor("state", state, (*rows, features), "(..., D)")
    check_tensor("action", action, (*leading, width), "(..., A) with the leading shape of state")
    _check_model_tensor("state", state, dynamics)
    _check_model_tensor("action", action, dynamics)
    found = jacobians_op(state.reshape(-1, features), action.reshape(-1, width), *dynamics.packed())
    return MLPJacobians(*(part.reshape(*leading, *part.shape[1:]) for part in found))


@torch.no_grad()
def mlp_lifted_plan_(
    dynamics: MLPDynamics,
    trajectory: Tensor,
    actions: Tensor,
    goal: Tensor,
    state: dict[str, Any] | None = None,
    *,
    schedule: Tensor,
    first_iteration: int,
    state_lr: Scalar,
    action_lr: Scalar,
    seed: int,
    plan_ids: Tensor | None = None,
    noise: str = "white",
    modes: int = 8,
    noise_factor: Scalar = 1.0,
    feature_weight: Tensor | None = None,
    low: Scalar | None = None,
    high: Scalar | None = None,
    terminal: str = "fixed",
    optimizer: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    sound: Tensor | None = None,
    compare_bounds: bool = True,
) -> Tensor:
    """K lifted iterations in one launch: model, losses, noise, states, actions, over all time
    steps.

    Iteration k is, for all t at once (docs/method.md),

        prediction = F(trajectory[:, :-1], actions)
        losses, cotangent, and the move of the states, as `lifted_step_`
        actions    = project(optimizer(actions, (dF/da)^T cotangent)), as `action_step_`

    Args:
        dynamics: the world model.
        trajectory: `(N, T + 1, D)`, float32 (float64 for float64 weights), updated in place.
        actions: `(N, T, A)`, updated in place.
        goal: `(N, D)`.
        state: Adam's memory, as in `action_step_`; not used by "sgd".
        schedule: `(K, 2)`, goal weight and noise scale of every iteration, on the device.
        first_iteration: the number of the first, for the noise; 0 belongs to initialisation.
        state_lr, action_lr, noise_factor: numbers, or one per plan `(N,)`; 0 freezes a plan.
        sound: `(N,)` bool, set to False for plans whose loss or gradient is not finite.
        others: as in `lifted_step_` and `action_step_`.

    Returns:
        The total loss before each iteration's step, `(K, N)`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    _check_dynamics(dynamics)
    _check_plan(dynamics, trajectory, actions, goal)
    plans, steps, _ = actions.shape
    features = dynamics.state_features
    check_tensor("schedule", schedule, (None, 2), "(K, 2)")
    _check_model_tensor("schedule", schedule, dynamics)
    check_int("first_iteration", first_iteration, 0, 2**32 - 1 - len(schedule))
    check_noise(noise, modes, first_iteration, 0, steps, features)
    check_choice("terminal", terminal, TERMINALS)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_adam(betas, epsilon)
    low, high = box_bounds(low, high, actions, compare_bounds)
    rates = per_plan_columns(
        {"state_lr": state_lr, "noise_factor": noise_factor, "action_lr": action_lr}, actions
    )
    sound = _flags(sound, actions)
    plan_ids = plan_id_tensor(plan_ids, plans, actions.device)
    feature_weight = weight_vector("feature_weight", feature_weight, features, "(D,)", actions)
    seed = signed_seed(seed)
    moments: tuple[Tensor | None, Tensor | None] = (None, None)
    first_step = 1
    if optimizer == "adam":  # the last check, since it begins to change `state`
        if state is None:
            raise ValueError('state must be a dict kept between calls when optimizer="adam"')
        if state:
            check_moments(state, actions)
        moments, first_step = next_moments(actions, state), state["step"]
        state["step"] += len(schedule) - 1
    history: Tensor = lifted_plan_op(
        trajectory,
        actions,
        *moments,
        sound,
        goal,
        schedule,
        rates,
        plan_ids,
        feature_weight,
        low,
        high,
        *dynamics.packed(),
        seed,
        first_iteration,
        noise,
        modes,
        terminal == "free",
        *betas,
        epsilon,
        first_step,
    )
    return history


@torch.no_grad()
def mlp_sync_(
    dynamics: MLPDynamics,
    trajectory: Tensor,
    actions: Tensor,
    best_cost: Tensor,
    best_actions: Tensor,
    best_states: Tensor,
    start: Tensor,
    goal: Tensor,
    *,
    steps: int,
    lr: Scalar,
    cost_weight: Tensor | None = None,
    low: Scalar | None = None,
    high: Scalar | None = None,
    optimizer: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    stop_cost: float | None = None,
    blend: float = 0.0,
    terminal: str = "fixed",
    sound: Tensor | None = None,
    compare_bounds: bool = True,
) -> None:
    """The sync phase in one launch: gradient steps on the actions through the true rollout.

    `steps` times: roll out, keep what is best so far, step on `sum_d w_d (s_T - g)_d^2`. Then roll
    out once more, keep the best, and move the free rows of `trajectory` by `blend` to the rollout.
    With `steps=0` and `blend=0` it judges the actions and moves nothing.

    Args:
        trajectory: `(N, T + 1, D)`, updated in place where `blend > 0` and the rollout is finite.
        actions: `(N, T, A)`, updated in place.
        best_cost, best_actions, best_states: `(N,)`, `(N, T, A)`, `(N, T + 1, D)`, updated in place
            where a finite rollout costs less.
        start, goal: `(N, D)`.
        cost_weight: `w (D,)`; None is 1.
        stop_cost: plans whose best cost is at most this do not move; None never stops one.
        sound: `(N,)` bool, set to False for plans that meet a number that is not finite.
        others: as in `action_step_`; Adam starts afresh.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    _check_dynamics(dynamics)
    _check_plan(dynamics, trajectory, actions, goal)
    plans, horizon, _ = actions.shape
    features = dynamics.state_features
    check_tensor("start", start, (plans, features), "(N, D)")
    _check_model_tensor("start", start, dynamics)
    for name, tensor, shape, meaning in (
        ("best_cost", best_cost, (plans,), "(N,)"),
        ("best_actions", best_actions, tuple(actions.shape), "(N, T, A)"),
        ("best_states", best_states, (plans, horizon + 1, features), "(N, T + 1, D)"),
    ):
        check_tensor(name, tensor, shape, meaning)
        _check_model_tensor(name, tensor, dynamics)
        check_writable(name, tensor)
    check_int("steps", steps, 0, 2**31 - 1)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_choice("terminal", terminal, TERMINALS)
    check_adam(betas, epsilon)
    if not isinstance(blend, (int, float)) or not 0.0 <= blend <= 1.0:
        raise ValueError(f"blend must be from 0 to 1, got {blend!r}")
    if stop_cost is not None and not isinstance(stop_cost, (int, float)):
        raise TypeError(f"stop_cost must be a number or None, got {type(stop_cost).__name__}")
    low, high = box_bounds(low, high, actions, compare_bounds)
    sync_op(
        trajectory,
        actions,
        best_cost,
        best_actions,
        best_states,
        _flags(sound, actions),
        start,
        goal,
        per_plan_columns({"lr": lr}, actions)[:, 0],
        weight_vector("cost_weight", cost_weight, features, "(D,)", actions),
        low,
        high,
        *dynamics.packed(),
        steps,
        optimizer == "adam",
        *betas,
        epsilon,
        -torch.inf if stop_cost is None else float(stop_cost),
        float(blend),
        terminal == "free",
    )


def _check_dynamics(dynamics: Any) -> None:
    if not isinstance(dynamics, MLPDynamics):
        raise TypeError(f"dynamics must be an MLPDynamics, got {type(dynamics).__name__}")


def _check_model_tensor(name: str, value: Tensor, dynamics: MLPDynamics) -> None:
    if value.dtype != dynamics.compute_dtype:
        raise TypeError(
            f"{name} must be {dynamics.compute_dtype} for {dynamics.dtype} weights, "
            f"got {value.dtype}"
        )
    if value.device != dynamics.device:
        raise ValueError(f"{name} must be on {dynamics.device}, got {value.device}")


def _check_plan(dynamics: MLPDynamics, trajectory: Tensor, actions: Tensor, goal: Tensor) -> None:
    check_tensor("actions", actions, (None, None, dynamics.action_features), "(N, T, A)")
    plans, steps, _ = actions.shape
    features = dynamics.state_features
    if steps < 1:
        raise ValueError("actions must have at least one time step, got T = 0")
    check_tensor("trajectory", trajectory, (plans, steps + 1, features), "(N, T + 1, D)")
    check_tensor("goal", goal, (plans, features), "(N, D)")
    for name, tensor in (("trajectory", trajectory), ("actions", actions), ("goal", goal)):
        _check_model_tensor(name, tensor, dynamics)
    check_writable("trajectory", trajectory)
    check_writable("actions", actions)


def _flags(sound: Tensor | None, actions: Tensor) -> Tensor:
    if sound is None:
        return torch.ones(len(actions), dtype=torch.bool, device=actions.device)
    check_tensor("sound", sound, (len(actions),), "(N,)")
    if sound.dtype != torch.bool:
        raise TypeError(f"sound must be bool, got {sound.dtype}")
    if sound.device != actions.device:
        raise ValueError(f"sound must be on {actions.device}, got {sound.device}")
    check_writable("sound", sound)
    return sound
