"""The public calls: arguments checked, named in every error, then handed to the ops.

Symbols throughout: N plans, T time steps, D state features, A action features. A trajectory has T +
1 rows, of which row 0 is the start and row T the goal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grasp_kernels.autograd import LiftedLossFunction
from grasp_kernels.checks import (
    DTYPES,
    OPTIMIZERS,
    TERMINALS,
    Scalar,
    box_bounds,
    check_adam,
    check_choice,
    check_int,
    check_like,
    check_moments,
    check_noise,
    check_states,
    check_tensor,
    check_writable,
    horizon_or_end,
    per_plan_columns,
    plan_id_tensor,
    signed_seed,
    weight_vector,
)
from grasp_kernels.ops import op
from grasp_kernels.reference import LiftedLoss, block_sum, next_moments

# Resolved once: a look-up by name at every call would cost as much as a small kernel.
lifted_step_op, action_step_op, gaussian_noise_op = map(
    op, ("lifted_step_", "action_step_", "gaussian_noise")
)


def _loss(dynamics: Tensor, goal_error: Tensor, goal_weight: Tensor, per_step: bool) -> LiftedLoss:
    """Per-step losses `(N, T)` as they are, or summed over time."""
    if per_step:
        return LiftedLoss(dynamics, goal_error, dynamics + goal_weight[:, None] * goal_error)
    dynamics, goal_error = block_sum(dynamics), block_sum(goal_error)
    return LiftedLoss(dynamics, goal_error, torch.addcmul(dynamics, goal_weight, goal_error))


def lifted_loss(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    *,
    goal_weight: Scalar,
    feature_weight: Tensor | None = None,
    time_weight: Tensor | None = None,
    per_step: bool = False,
) -> LiftedLoss:
    """The lifted objective of every plan; differentiable, and its backward is the reshaped
    gradient.

        dynamics = sum_t w . (prediction_t - trajectory_{t+1})^2
        goal     = sum_t v_t w . (prediction_t - goal)^2
        total    = dynamics + goal_weight * goal                        (arXiv 2602.00475)

    Args:
        prediction: `(N, T, D)`, `F(trajectory_t, a_t)`; float32, bfloat16, float64 or float16.
        trajectory: `(N, T + 1, D)`, same dtype and device. Any strides.
        goal: `(N, D)`, same dtype and device.
        goal_weight: a number >= 0, or one per plan `(N,)`.
        feature_weight: `w`, `(D,)`, floating; None is 1. Not differentiated.
        time_weight: `v`, `(T,)`, floating; None is 1. Not differentiated.
        per_step: return losses `(N, T)` in place of `(N,)`.

    Returns:
        `LiftedLoss(dynamics, goal, total)`, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    check_states(trajectory, prediction, goal)
    steps, features = prediction.shape[1:]
    w = weight_vector("feature_weight", feature_weight, features, "(D,)", prediction)
    v = weight_vector("time_weight", time_weight, steps, "(T,)", prediction)
    weight = per_plan_columns({"goal_weight": goal_weight}, prediction)[:, 0]
    dynamics, goal_error = LiftedLossFunction.apply(prediction, trajectory, goal, w, v)
    return _loss(dynamics, goal_error, weight, per_step)


@torch.no_grad()
def lifted_step_(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    *,
    state_lr: Scalar,
    goal_weight: Scalar,
    noise_scale: Scalar,
    seed: int,
    iteration: int,
    plan_ids: Tensor | None = None,
    noise: str = "white",
    modes: int = 8,
    feature_weight: Tensor | None = None,
    time_weight: Tensor | None = None,
    state_gradient: Tensor | None = None,
    state_gradient_scale: float = 0.0,
    terminal: str = "fixed",
    first_step: int = 0,
    horizon: int | None = None,
    per_step: bool = False,
) -> tuple[LiftedLoss, Tensor]:
    """One fused state step: losses, cotangent, and the noisy descent of `trajectory`, in one pass.

        cotangent_t      = 2 w (residual_t + goal_weight v_t goal_error_t)
        gradient_{t+1}   = -2 w residual_t + state_gradient_scale state_gradient_{t+1}
        trajectory_{t+1} += -state_lr gradient_{t+1} + noise_scale xi_{t+1}

    Row 0 never moves, the terminal row only with `terminal="free"`. Nothing is differentiated: hand
    the cotangent to the model's VJP.

    Args:
        trajectory: `(N, T + 1, D)`, updated in place. May be a view (a slice in plans or time).
        prediction: `(N, T, D)`, same dtype and device; a view of `trajectory` is copied first.
        goal: `(N, D)`, same dtype and device.
        state_lr, goal_weight, noise_scale: numbers, or one per plan `(N,)` on the device.
        seed: 0 to 2**64 - 1. iteration: 0 to 2**32 - 1 (0 belongs to initialisation).
        plan_ids: `(N,)` int64, 0 to 2**63 - 1, the name of each plan for its noise; None is 0 ... N
            - 1.
        noise: "white" (one normal per state entry), "bridge" (`modes` sine waves in time, zero at
            both ends), or "none".
        feature_weight, time_weight: `w (D,)` and `v (T,)`, floating; None is 1.
        state_gradient: `(N, T + 1, D)`, what flows back through the model's state input, aligned
            with `trajectory`; read only where `state_gradient_scale` is not 0.
        terminal: "fixed" (row `horizon` is the goal and stays) or "free".
        first_step, horizon: where this slice of time lies in the plan: its row 0 is step
            `first_step` of `horizon`. By default it is the whole plan.
        per_step: return losses `(N, T)` in place of `(N,)`.

    Returns:
        `LiftedLoss` at the trajectory before the step, and the cotangent `(N, T, D)` in the dtype
        of `prediction`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device; it is named.
    """
    check_states(trajectory, prediction, goal)
    check_writable("trajectory", trajectory)
    plans, steps, features = prediction.shape
    check_noise(noise, modes, iteration, first_step, steps, features)
    check_choice("terminal", terminal, TERMINALS)
    if state_gradient is not None:
        check_tensor(
            "state_gradient", state_gradient, (plans, steps + 1, features), "(N, T + 1, D)"
        )
        check_like("state_gradient", state_gradient, "trajectory", trajectory)
        state_gradient = state_gradient.contiguous()
    elif state_gradient_scale != 0.0:
        raise ValueError("state_gradient_scale is not 0, so state_gradient must be given")
    coefficients = per_plan_columns(
        {"state_lr": state_lr, "goal_weight": goal_weight, "noise_scale": noise_scale}, prediction
    )
    dynamics, goal_error, cotangent = lifted_step_op(
        trajectory,
        prediction,
        goal,
        coefficients,
        plan_id_tensor(plan_ids, plans, prediction.device),
        weight_vector("feature_weight", feature_weight, features, "(D,)", prediction),
        weight_vector("time_weight", time_weight, steps, "(T,)", prediction),
        state_gradient if state_gradient_scale != 0.0 else None,
        float(state_gradient_scale),
        signed_seed(seed),
        iteration,
        noise,
        modes,
        first_step,
        horizon_or_end(horizon, first_step, steps),
        terminal == "free",
    )
    return _loss(dynamics, goal_error, coefficients[:, 1], per_step), cotangent


@torch.no_grad()
def action_step_(
    actions: Tensor,
    gradient: Tensor,
    state: dict[str, Any] | None = None,
    *,
    lr: Scalar,
    low: Scalar | None = None,
    high: Scalar | None = None,
    optimizer: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    compare_bounds: bool = True,
) -> None:
    """One fused, projected optimiser step on the actions, in place.

    Args:
        actions: `(N, T, A)`, float32, bfloat16, float64 or float16, updated in place.
        gradient: `(N, T, A)`, same dtype and device.
        state: Adam's memory, a dict that the caller keeps between calls and that starts empty; it
            holds `step` and the two moments `(N, T, A)` in float32 (float64 for float64). Not used
            by "sgd".
        lr: step size, a number or one per plan `(N,)`.
        low, high: the box, a number or `(A,)`; None is unbounded. A bound that the dtype of
            `actions` cannot hold is rounded to the inside of the box, so that no action ever leaves
            it.
        optimizer: "adam" (Kingma & Ba, arXiv 1412.6980) or "sgd" (plain descent, as in GRASP's
            paper).
        betas, epsilon: Adam's, each beta in [0, 1), epsilon > 0.
        compare_bounds: refuse bounds that cross, which reads them (on CPU; those on a GPU are never
            read). A loop that has compared its own once passes False.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device, or the bounds
            cross; it is named.
    """
    check_tensor("actions", actions, (None, None, None), "(N, T, A)")
    if actions.dtype not in DTYPES:
        raise TypeError(f"actions must be one of {DTYPES}, got {actions.dtype}")
    check_writable("actions", actions)
    check_tensor("gradient", gradient, tuple(actions.shape), "of actions")
    check_like("gradient", gradient, "actions", actions)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    low, high = box_bounds(low, high, actions, compare_bounds)
    step_size = per_plan_columns({"lr": lr}, actions)[:, 0]
    check_adam(betas, epsilon)
    moments: tuple[Tensor | None, Tensor | None] = (None, None)
    step = 1
    if optimizer == "adam":  # the last check, since it begins to change `state`
        if state is None:
            raise ValueError('state must be a dict kept between calls when optimizer="adam"')
        if state:
            check_moments(state, actions)
        moments, step = next_moments(actions, state), state["step"]
    action_step_op(
        actions,
        gradient,
        *moments,
        step_size,
        low,
        high,
        *betas,
        epsilon,
        step,
    )


@torch.no_grad()
def gaussian_noise(
    plans: int,
    steps: int,
    features: int,
    *,
    seed: int,
    iteration: int,
    plan_ids: Tensor | None = None,
    noise: str = "white",
    modes: int = 8,
    first_step: int = 0,
    horizon: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise as a pure function of (seed, plan id, iteration, step, feature), `(plans, steps,
    features)`.

    It is Philox4x32-10 through Box-Muller, so it does not depend on batch, chunk, tile, thread
    count or device. Rows are the steps `first_step ... first_step + steps - 1`.

    Args:
        seed: 0 to 2**64 - 1. iteration: 0 to 2**32 - 1.
        plan_ids: `(plans,)` int64, which also gives the device; None is 0 ... plans - 1 on
            `device`.
        noise: "white": independent standard normals. "bridge": `sum_k sin(k pi t / horizon) / k
            z_k` over `modes` waves, zero at steps 0 and `horizon` (default `first_step + steps`).
            "none": zeros.

    Raises:
        TypeError, ValueError: an argument is out of range or of the wrong type; it is named.
    """
    for name, value in (("plans", plans), ("steps", steps), ("features", features)):
        check_int(name, value, 0, 2**63 - 1)
    check_noise(noise, modes, iteration, first_step, steps, features)
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {DTYPES}, got {dtype}")
    device = plan_ids.device if isinstance(plan_ids, Tensor) else torch.device(device)
    ids = plan_id_tensor(plan_ids, plans, device)
    return gaussian_noise_op(
        ids,
        steps,
        features,
        signed_seed(seed),
        iteration,
        noise,
        modes,
        first_step,
        # Row `horizon` itself may be asked for: it is where the bridge ends.
        horizon_or_end(horizon, first_step, steps if horizon is None else max(steps - 1, 0)),
        dtype,
    )
