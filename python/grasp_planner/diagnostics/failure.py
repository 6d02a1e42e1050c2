"""Why a plan failed: model error, bounds, a local minimum, too little time, or too little search.

A verdict is what experiments say, in this order: does the plan arrive under the model; does it in
truth; does gradient descent from where it ended arrive; does a stronger search, within the same
horizon and bounds; does one with wider bounds; does one with more time. What no experiment
separates stays "undecided".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from grasp_planner.diagnostics.setting import Setting, checked, checked_actions
from grasp_planner.diagnostics.verdict import VERDICTS, Evidence, Verdict, judge
from grasp_planner.plan import Plan

__all__ = ["VERDICTS", "Attempts", "Evidence", "Executed", "Verdict", "explain_plans"]

REFINEMENTS = 100  # steps of Adam through the rollout, from where the plan ended
REFINEMENT_LR = 0.05  # of half the box, falling to 0
AT_BOUND = 1e-3  # of half the box: an action so near its bound is at it

Say = Callable[[str], object]


class AnyPlanner(Protocol):
    """What `explain_plans` asks of a planner; every planner of this package offers it."""

    def plan(self, start: Tensor, goal: Tensor, *, plan_ids: Tensor | None = None) -> Plan: ...


@dataclass(frozen=True)
class Attempts:
    """Planners that try the failed problems again. Any of the three may be left out.

    Attributes:
        stronger: name -> planner, of the same horizon and bounds and a larger budget, or another
            algorithm.
        wider: name -> planner, of the same horizon and wider bounds.
        longer: horizon -> planner, of the same bounds.
    """

    stronger: Mapping[str, AnyPlanner] = field(default_factory=dict)
    wider: Mapping[str, AnyPlanner] = field(default_factory=dict)
    longer: Mapping[int, AnyPlanner] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Executed:
    """What happened when the plans were executed, in the success radius's own measure.

    Attributes:
        distance: `(B,)`, from where it ended to the goal, in truth.
        error: `(B, T + 1)`, how far the model's rollout of the plan is from what happened.
    """

    distance: Tensor
    error: Tensor

    @classmethod
    def of_states(cls, setting: Setting, actions: Tensor, states: Tensor) -> Executed:
        """Of real states `(B, T + 1, D)` unscaled, for settings without a `distance` of their own:
        distances are then square roots of `sum_d w_d (s - s')_d^2`, of scaled states."""
        if setting.distance is not None:
            raise ValueError(
                "the setting measures distance in its own way: make Executed(distance, error)"
            )
        actions = checked_actions(setting, actions, plans=len(setting))
        real = setting.scaled(checked("states", states, "(B, T + 1, D)", 3))
        with torch.no_grad():
            imagined = setting.rollout(actions).double()
        if real.shape != imagined.shape:
            raise ValueError(f"states must be {tuple(imagined.shape)}, got {tuple(real.shape)}")
        index = torch.arange(len(setting), device=real.device)
        error = (setting.weight * (imagined - real).square()).sum(-1).sqrt()
        return cls(setting.distances(real[:, -1], index), error)


def explain_plans(
    setting: Setting,
    actions: Tensor,
    attempts: Attempts | None = None,
    executed: Executed | None = None,
    *,
    progress: Say | None = None,
) -> list[Verdict]:
    """Why each of B plans failed, or that it did not.

    Args:
        setting: world model and B problems, with a `success_radius`.
        actions: `(B, T, A)`, one plan for each problem.
        attempts: who tries the problems again whose plans fail under the model. They are planned in
            the dtype of the setting's `start`, with the problem's index as plan id.
        executed: what the plans did in the real environment; None where there is none.
        progress: called with a few words before each attempt.

    Returns:
        A `Verdict` for each plan.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """
    actions = checked_actions(setting, actions, plans=len(setting))
    attempts = Attempts() if attempts is None else attempts
    radius, count = setting.radius(), len(setting)
    index = torch.arange(count, device=actions.device)
    if executed is not None:
        _check_executed(executed, actions)
    with torch.no_grad():
        states = setting.rollout(actions)
    distance = setting.distances(states[:, -1], index)
    broken = ~states.isfinite().all(-1)  # (B, T + 1)
    failed = (~(distance <= radius) & ~broken.any(1)).nonzero().flatten()

    press = _Pressure.of(setting, actions, index)
    refined = torch.full_like(press.cost, torch.nan)
    refined_distance = torch.full_like(distance, torch.nan)
    if failed.numel():
        if progress is not None:
            progress("gradient descent from where the plans ended")
        refined[failed], refined_distance[failed] = _refine(setting, actions[failed], failed)

    tried = {
        kind: {
            name: _distances_of(setting, planner, failed, f"{kind}: {name}", progress)
            for name, planner in planners.items()
        }
        for kind, planners in vars(attempts).items()
    }
    place = {int(problem): row for row, problem in enumerate(failed)}

    def found(kind: str, problem: int) -> dict[str, float]:
        if problem not in place:
            return {}
        return {str(name): float(d[place[problem]]) for name, d in tried[kind].items()}

    verdicts = []
    for b in range(count):
        bad = broken[b].nonzero().flatten()
        error = None if executed is None else executed.error[b].double()
        outside = [] if error is None else (~(error <= radius)).nonzero().flatten().tolist()
        verdicts.append(
            judge(
                Evidence(
                    horizon=actions.shape[1],
                    success_radius=radius,
                    distance_model=float(distance[b]),
                    distance_real=None if executed is None else float(executed.distance[b]),
                    non_finite_step=int(bad[0]) if len(bad) else None,
                    model_error=None if error is None else float(error[-1]),
                    model_error_step=outside[0] if outside else None,
                    at_bounds=float(press.at_bounds[b]),
                    outward=float(press.outward[b]),
                    free_gradient=float(press.free_gradient[b]),
                    refined_distance=float(refined_distance[b]),
                    refined_gain=float(1 - refined[b] / press.cost[b]),
                    stronger=found("stronger", b),
                    wider=found("wider", b),
                    longer={int(name): d for name, d in found("longer", b).items()},
                )
            )
        )
    return verdicts


def _check_executed(executed: Executed, actions: Tensor) -> None:
    count, steps = actions.shape[:2]
    for name, value, shape in (
        ("executed.distance", executed.distance, (count,)),
        ("executed.error", executed.error, (count, steps + 1)),
    ):
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of shape {shape}, got {found}")


@dataclass(frozen=True, eq=False)
class _Pressure:
    """How plans lie in the box. `(B,)` each.

    `at_bounds`: share of the action numbers at a bound; `outward`: share of all action numbers that
    are at a bound beyond which the cost would fall; `free_gradient`: the norm of the cost's
    gradient without those, as a share of the whole.
    """

    cost: Tensor
    at_bounds: Tensor
    outward: Tensor
    free_gradient: Tensor

    @classmethod
    def of(cls, setting: Setting, actions: Tensor, problems: Tensor) -> _Pressure:
        width = actions.shape[2]
        _, dtype, _ = setting.precise(width)
        low, high = setting.bounds(width, dtype)
        with torch.enable_grad():
            controls = actions.to(dtype).requires_grad_()
            cost = setting.costs(setting.rollout(controls, problems)[:, -1], problems)
            (gradient,) = torch.autograd.grad(cost.sum(), controls, materialize_grads=True)
        margin = AT_BOUND * setting.half_box(width, dtype)
        at_low, at_high = controls <= low + margin, controls >= high - margin
        outward = (at_low & (gradient > 0)) | (at_high & (gradient < 0))
        whole = gradient.flatten(1).norm(dim=1)
        free = gradient.masked_fill(outward, 0.0).flatten(1).norm(dim=1)

        def share(flags: Tensor) -> Tensor:
            return flags.flatten(1).double().mean(1)

        return cls(cost.detach(), share(at_low | at_high), share(outward), free / whole)


def _refine(setting: Setting, actions: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
    """The least cost `(N,)` that Adam, clipped to the box, meets from there, and its distance."""
    width = actions.shape[2]
    _, dtype, _ = setting.precise(width)
    low, high = setting.bounds(width, dtype)
    half = setting.half_box(width, dtype)
    with torch.enable_grad():
        units = (actions.to(dtype) / half).clone().requires_grad_()
        optimizer = torch.optim.Adam([units], lr=REFINEMENT_LR)
        best = units.new_full((len(units),), torch.inf)
        distance = torch.full_like(best, torch.nan)
        for k in range(REFINEMENTS + 1):
            last = setting.rollout(units * half, problems)[:, -1]
            cost = setting.costs(last, problems)
            here = setting.distances(last.detach(), problems)
            better = cost.detach() < best
            best = torch.where(better, cost.detach(), best)
            distance = torch.where(better, here.to(best), distance)
            (units.grad,) = torch.autograd.grad(cost.sum(), units, materialize_grads=True)
            optimizer.param_groups[0]["lr"] = REFINEMENT_LR * (1 - k / (REFINEMENTS + 1))
            optimizer.step()
            with torch.no_grad():
                units.copy_((units * half).clamp(low, high) / half)
    return best, distance


def _distances_of(
    setting: Setting, planner: AnyPlanner, failed: Tensor, name: str, progress: Say | None
) -> Tensor:
    """How close to the goal a planner comes for the failed problems, by our own rollout."""
    if failed.numel() == 0:
        return torch.empty(0)
    if progress is not None:
        progress(name)
    plan = planner.plan(setting.start[failed], setting.goal[failed], plan_ids=failed)
    with torch.no_grad():
        last = setting.rollout(plan.actions, failed)[:, -1]
    return setting.distances(last, failed)
