"""The two ways to run a world model: by the MLP kernels where they can, else call by call.

Both offer a planner the same: `rollout`, `jacobians`, and `path`, which says which of them it is.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import MLPDynamics, UnsupportedModel, mlp_jacobians, mlp_rollout
from grasp_kernels.backends import choose
from grasp_kernels.reference import block_sum
from grasp_planner.plan import level_of_caller
from grasp_planner.world_model import CheckedModel, Rows, WorldModel

KERNELS = "MLP kernels"
#: `PlannerConfig.precision` -> what the model is computed in; None is as it is.
PRECISIONS = {"full": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class GeneralPathWarning(UserWarning):
    """An MLP world model is planned through call by call; the message says what stands in the way.

    Given once per model.
    """


class KernelModel:
    """An MLP world model, its rollouts and Jacobians in one launch each."""

    def __init__(self, dynamics: MLPDynamics) -> None:
        self.dynamics = dynamics
        self.path = KERNELS

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """Next states `(rows, D)`: rollouts of one step."""
        return mlp_rollout(self.dynamics, state, action[:, None])[:, 1]

    def action_gradient(self, prediction: Tensor, action: Tensor, cotangent: Tensor) -> Tensor:
        """`(dF/da)^T cotangent`."""
        (gradient,) = torch.autograd.grad(prediction, action, cotangent)
        return gradient

    history, markov = 1, True

    def lifted(self, start: Tensor, states: Tensor, actions: Tensor, first: int) -> Tensor:
        """Next states `(N, t, D)` of states and actions `(N, t, ...)`, as `CheckedModel.lifted`."""
        return self(states.flatten(0, 1), actions.flatten(0, 1)).unflatten(0, states.shape[:2])

    def predict(
        self, start: Tensor, states: Tensor, actions: Tensor, max_rows: int | None = None
    ) -> Tensor:
        """Next states `(N, T, D)`: rollouts of one step."""
        rows, single = states.flatten(0, 1), actions.flatten(0, 1)[:, None]
        return roll_out(self, rows, single, max_rows)[:, 1].view_as(states)

    def rollout(self, start: Tensor, actions: Tensor, max_rows: int | None = None) -> Tensor:
        """States `(N, T + 1, D)`; memory does not grow with T, so `max_rows` is met by itself."""
        return mlp_rollout(self.dynamics, start, actions)

    def jacobians(
        self, states: Tensor, actions: Tensor, max_rows: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction `(..., D)`, dF/ds `(..., D, D)` and dF/da `(..., D, A)`; see `rollout`."""
        prediction, state_jacobian, action_jacobian = mlp_jacobians(self.dynamics, states, actions)
        return prediction, state_jacobian, action_jacobian

    def plain(self, state: Tensor, action: Tensor) -> Tensor:
        """The model in plain torch, for `torch.func` to transform."""
        return self.dynamics(state, action)


def roll_out(
    model: KernelModel | CheckedModel, start: Tensor, actions: Tensor, max_rows: int | None
) -> Tensor:
    """`model.rollout` of at most `max_rows` plans at a time, `(N, T + 1, D)`."""
    if len(start) <= (max_rows or len(start)):
        return model.rollout(start, actions, max_rows)
    parts = zip(start.split(max_rows), actions.split(max_rows), strict=True)
    return torch.cat([model.rollout(*part, max_rows) for part in parts])


def terminal_cost(states: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
    """`sum_d w_d (s_T - g)_d^2` of states `(..., T + 1, D)`; inf where a state is not finite."""
    cost = block_sum(weight * (states[..., -1, :] - goal).square())
    finite = torch.isfinite(states).flatten(-2).all(-1) & torch.isfinite(cost)
    return torch.where(finite, cost, torch.inf)


def open_model(
    world_model: WorldModel,
    start: Tensor,
    state_scale: Tensor | None,
    rows: Rows | None = None,
    precision: str = "full",
    call: Callable[..., Any] | None = None,
) -> KernelModel | CheckedModel:
    """The world model in the planner's units, by kernels where that is possible."""
    dynamics, reason = describe(world_model, start, state_scale, precision)
    if dynamics is None:
        path = f"general path: {reason}"
        return CheckedModel(world_model, state_scale, path, rows, PRECISIONS[precision], call)
    return KernelModel(dynamics)


def describe(
    world_model: Any, start: Tensor, state_scale: Tensor | None, precision: str = "full"
) -> tuple[MLPDynamics | None, str]:
    """The world model's description for kernels, in the planner's units; or None, and why not.

    A world model is an `MLPDynamics`, or offers one by a method `mlp_dynamics()`, which is compared
    with the model itself before it is believed.
    """
    offer = getattr(world_model, "mlp_dynamics", None)
    if isinstance(world_model, MLPDynamics):
        dynamics = world_model
    elif callable(offer):
        try:
            dynamics = offer()
            dynamics.check_against(world_model)
        except (UnsupportedModel, ValueError) as error:
            _tell_once(world_model, str(error))
            return None, str(error)
    else:
        return None, "the world model is no MLPDynamics and offers none"
    backend = choose(start.device, start.dtype)
    if precision == "float16":
        reason = "the model is computed in float16"
    elif start.dtype != dynamics.compute_dtype:
        reason = f"states are {start.dtype}"
    elif start.shape[1] != dynamics.state_features:
        reason = f"states have {start.shape[1]} features"  # the model's own error comes next
    elif backend == "reference":
        reason = "there are no fused kernels here"
    elif not _fits(backend, dynamics):
        reason = "the model is too wide for the GPU kernels"
    else:
        if precision == "bfloat16":
            dynamics = dynamics.to(torch.bfloat16)
        return dynamics.in_units(state_scale), KERNELS
    return None, reason


def _fits(backend: str, dynamics: MLPDynamics) -> bool:
    if backend == "native":
        return True
    from grasp_kernels.triton import mlp_fits

    return bool(mlp_fits(dynamics.structure))


_told: weakref.WeakSet[Any] = weakref.WeakSet()


def _tell_once(world_model: Any, reason: str) -> None:
    if world_model not in _told:
        _told.add(world_model)
        message = f"planning call by call, not by kernels: {reason}"
        warnings.warn(message, GeneralPathWarning, stacklevel=level_of_caller())
