"""The ops for MLP world models: their schemas, fake kernels and dispatch, as in `ops.py`.

All take a packed model (`weights`, `constants`, `structure`, see `reference.mlp_dynamics`). States
and actions are in the compute dtype: float32, or float64 on the reference. Weights are float32 or
bfloat16 (float64 on the reference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.backends import choose
from grasp_kernels.in_place import apart, dense, home

MODEL = "Tensor weights, Tensor constants, int[] structure"
SCHEMAS = {
    "mlp_rollout": f"(Tensor start, Tensor actions, {MODEL}) -> Tensor",
    "mlp_rollout_backward": f"(Tensor cotangent, Tensor states, Tensor actions, {MODEL}) "
    "-> (Tensor start_gradient, Tensor action_gradient)",
    "mlp_lifted_plan_": "(Tensor(a!) trajectory, Tensor(b!) actions, Tensor(c!)? first_moment, "
    "Tensor(d!)? second_moment, Tensor(e!) sound, Tensor goal, Tensor schedule, Tensor rates, "
    f"Tensor plan_ids, Tensor? feature_weight, Tensor? low, Tensor? high, {MODEL}, SymInt seed, "
    "SymInt first_iteration, str noise, SymInt modes, bool free_terminal, float beta1, "
    "float beta2, float epsilon, SymInt first_step) -> Tensor",
    "mlp_sync_": "(Tensor(a!) trajectory, Tensor(b!) actions, Tensor(c!) best_cost, "
    "Tensor(d!) best_actions, Tensor(e!) best_states, Tensor(f!) sound, Tensor start, Tensor goal, "
    f"Tensor lr, Tensor? cost_weight, Tensor? low, Tensor? high, {MODEL}, SymInt steps, bool adam, "
    "float beta1, float beta2, float epsilon, float stop_cost, float blend, bool free_terminal) "
    "-> ()",
    "mlp_jacobians": f"(Tensor states, Tensor actions, {MODEL}) "
    "-> (Tensor prediction, Tensor state_jacobian, Tensor action_jacobian)",
}


def _backend(
    name: str, states: Tensor, weights: Tensor, structure: Sequence[int]
) -> Callable[..., Any]:
    """The function that runs op `name`; what is empty goes to the reference."""
    backend = choose(states.device, states.dtype)
    fits = states.dtype == torch.float32 and weights.dtype in (torch.float32, torch.bfloat16)
    if backend == "native" and fits and states.numel() > 0:
        from grasp_kernels import native

        return getattr(native, name)
    if backend == "triton" and fits and states.numel() > 0:
        from grasp_kernels import triton

        if triton.mlp_fits(structure):
            return getattr(triton, name)
    return getattr(reference, name)


def _mlp_rollout(
    start: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> Tensor:
    run = _backend("mlp_rollout", actions, weights, structure)
    return run(start.contiguous(), actions.contiguous(), weights, constants, structure)


def _mlp_rollout_backward(
    cotangent: Tensor,
    states: Tensor,
    actions: Tensor,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
) -> tuple[Tensor, Tensor]:
    run = _backend("mlp_rollout_backward", actions, weights, structure)
    return run(*dense((cotangent, states, actions)), weights, constants, structure)


def _mlp_lifted_plan_(
    trajectory: Tensor,
    actions: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    sound: Tensor,
    *rest: Any,
) -> Tensor:
    run = _backend("mlp_lifted_plan_", actions, rest[7], rest[9])
    written = (trajectory, actions, first_moment, second_moment, sound)
    through = dense(written)
    goal = apart(rest[:1], written)
    history: Tensor = run(*through, *goal, *dense(rest[1:7]), *rest[7:])
    home(written, through)
    return history


def _mlp_sync_(
    trajectory: Tensor,
    actions: Tensor,
    best_cost: Tensor,
    best_actions: Tensor,
    best_states: Tensor,
    sound: Tensor,
    *rest: Any,
) -> None:
    run = _backend("mlp_sync_", actions, rest[6], rest[8])
    written = (trajectory, actions, best_cost, best_actions, best_states, sound)
    through = dense(written)
    ends = apart(rest[:2], written)
    run(*through, *ends, *dense(rest[2:6]), *rest[6:])
    home(written, through)


def _mlp_jacobians(
    states: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    run = _backend("mlp_jacobians", states, weights, structure)
    return run(states.contiguous(), actions.contiguous(), weights, constants, structure)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "mlp_rollout": _mlp_rollout,
    "mlp_rollout_backward": _mlp_rollout_backward,
    "mlp_lifted_plan_": _mlp_lifted_plan_,
    "mlp_sync_": _mlp_sync_,
    "mlp_jacobians": _mlp_jacobians,
}


def _fake_mlp_rollout(start: Tensor, actions: Tensor, *model: Any) -> Tensor:
    return start.new_empty(start.shape[0], actions.shape[1] + 1, start.shape[1])


def _fake_mlp_rollout_backward(
    cotangent: Tensor, states: Tensor, actions: Tensor, *model: Any
) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape[0], states.shape[2]), actions.new_empty(actions.shape)


def _fake_mlp_lifted_plan_(trajectory: Tensor, *rest: Any) -> Tensor:
    schedule: Tensor = rest[5]
    return trajectory.new_empty(schedule.shape[0], trajectory.shape[0])


def _fake_mlp_sync_(*arguments: Any) -> None:
    return None


def _fake_mlp_jacobians(
    states: Tensor, actions: Tensor, *model: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = states.shape
    return (
        states.new_empty(rows, features),
        states.new_empty(rows, features, features),
        states.new_empty(rows, features, actions.shape[1]),
    )


FAKES: dict[str, Callable[..., Any]] = {
    "mlp_rollout": _fake_mlp_rollout,
    "mlp_rollout_backward": _fake_mlp_rollout_backward,
    "mlp_lifted_plan_": _fake_mlp_lifted_plan_,
    "mlp_sync_": _fake_mlp_sync_,
    "mlp_jacobians": _fake_mlp_jacobians,
}
