"""The op of the second-order lifted step: its schema, fake kernel and dispatch, as in `ops.py`.

It knows no model: predictions and Jacobians come in as tensors, from `mlp_jacobians` or from
anything else. float32, or float64 on the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import reference
from grasp_kernels.backends import choose
from grasp_kernels.in_place import apart, dense, home

SCHEMAS = {
    "lifted_newton_step_": "(Tensor(a!) trajectory, Tensor(b!) actions, Tensor prediction, "
    "Tensor state_jacobian, Tensor action_jacobian, Tensor goal, Tensor damping, "
    "Tensor? goal_weight, Tensor? low, Tensor? high, SymInt hold, float max_action_step, "
    "float max_state_step, SymInt solves) -> (Tensor goal_error, Tensor defect, Tensor step)",
}


def _backend(name: str, trajectory: Tensor, actions: Tensor) -> Callable[..., Any]:
    """The function that runs op `name`; what is empty goes to the reference."""
    backend = choose(trajectory.device, trajectory.dtype)
    fits = trajectory.dtype == torch.float32 and trajectory.numel() > 0
    if backend == "native" and fits:
        from grasp_kernels import native

        return getattr(native, name)
    if backend == "triton" and fits:
        from grasp_kernels import triton

        if triton.newton_fits(trajectory.shape[-1], actions.shape[-1]):
            return getattr(triton, name)
    return getattr(reference, name)


def _lifted_newton_step_(
    trajectory: Tensor, actions: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    run = _backend("lifted_newton_step_", trajectory, actions)
    written = (trajectory, actions)
    through = dense(written)
    result: tuple[Tensor, Tensor, Tensor] = run(
        *through, *apart(rest[:5], written), *dense(rest[5:8]), *rest[8:]
    )
    home(written, through)
    return result


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"lifted_newton_step_": _lifted_newton_step_}


def _fake_lifted_newton_step_(trajectory: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    plans = trajectory.shape[0]
    return trajectory.new_empty(plans), trajectory.new_empty(plans), trajectory.new_empty(plans)


FAKES: dict[str, Callable[..., Any]] = {"lifted_newton_step_": _fake_lifted_newton_step_}
