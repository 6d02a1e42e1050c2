"""Along a trajectory: the distance to the goal, and how far the world model errs at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_planner.diagnostics.setting import Setting, checked
from grasp_planner.world_model import CheckedModel, WorldModel, frozen


@dataclass(frozen=True, eq=False)
class Residuals:
    """A world model's predictions along B trajectories, in the states' dtype.

    Attributes:
        predictions: `(B, T, D)` unscaled, `F(s_t, a_t)` from the given states.
        rollout: `(B, T + 1, D)` unscaled, the model's own rollout from s_0.
        one_step: `(B, T)`, `|F(s_t, a_t) - s_{t+1}|` of scaled states.
        open_loop: `(B, T + 1)`, `|rollout_t - s_t|` of scaled states, 0 at t = 0.
    """

    predictions: Tensor
    rollout: Tensor
    one_step: Tensor
    open_loop: Tensor


def residuals(
    world_model: WorldModel, states: Tensor, actions: Tensor, *, state_scale: Tensor | None = None
) -> Residuals:
    """How far a world model errs along real trajectories, one step at a time and open loop.

    With a plan's virtual states in place of real ones, `one_step` is the plan's defects.

    Args:
        world_model: `F(state (rows, D), action (rows, A)) -> (rows, D)`; called in the states' own
            dtype and left as it was found.
        states: `(B, T + 1, D)`, or `(T + 1, D)` for one; finite.
        actions: `(B, T, A)`, or `(T, A)`.
        state_scale: `(D,)`, the unit of each feature; None is 1.

    Returns:
        `Residuals`; NaN where the model gives NaN.

    Raises:
        TypeError, ValueError: an argument or the model's answer is wrong; it is named.
    """
    given = checked("states", states, "(B, T + 1, D)", 3)
    controls = checked("actions", actions, "(B, T, A)", 3).to(given)
    plans, count, features = given.shape
    if controls.shape[:2] != (plans, count - 1):
        raise ValueError(
            f"actions must be (B, T, A) = ({plans}, {count - 1}, A) for states "
            f"{tuple(given.shape)}, got {tuple(controls.shape)}"
        )
    scale = Setting(world_model, given[:, 0], given[:, -1], state_scale).scale.to(given)
    with torch.no_grad(), frozen(world_model):
        model = CheckedModel(world_model)
        rows = given[:, :-1].flatten(0, 1)
        predictions = model(rows, controls.flatten(0, 1)).view(plans, count - 1, features)
        rollout = model.rollout(given[:, 0], controls)
    return Residuals(
        predictions,
        rollout,
        ((predictions - given[:, 1:]) / scale).norm(dim=-1),
        ((rollout - given) / scale).norm(dim=-1),
    )


@dataclass(frozen=True, eq=False)
class DistanceProfile:
    """The distance to the goal along B trajectories, in the success radius's own measure.

    Attributes:
        distances: `(B, T + 1)` float64 on the CPU.
        detour: `(B,)`, the largest rise of the distance above the least until then, as a share of
            the distance at the start: how much worse things must look before they are good. A
            planner that wants the distance to fall at every step does not find such a way.
        detour_from, detour_to: `(B,)` int64, the steps between which it rises so.
    """

    distances: Tensor
    detour: Tensor
    detour_from: Tensor
    detour_to: Tensor


def distance_profile(setting: Setting, states: Tensor) -> DistanceProfile:
    """The distance to each problem's goal along its trajectory.

    Args:
        setting: world model and B problems.
        states: `(B, T + 1, D)` unscaled: of a rollout, or of the real environment.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """
    if not isinstance(states, Tensor) or states.dim() != 3 or len(states) != len(setting):
        came = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"states must be (B, T + 1, D) with B = {len(setting)}, got {came}")
    plans, count = states.shape[:2]
    index = torch.arange(plans, device=states.device).repeat_interleave(count)
    with torch.no_grad():
        found = setting.distances(setting.scaled(states).flatten(0, 1), index)
    return profile_of(found.view(plans, count).double().cpu())


def profile_of(distances: Tensor) -> DistanceProfile:
    """The same of distances `(B, T + 1)` that are known."""
    least, where = distances.cummin(1)
    rise, at = (distances - least).max(1)
    return DistanceProfile(
        distances, rise / distances[:, 0], where.gather(1, at[:, None])[:, 0], at
    )
