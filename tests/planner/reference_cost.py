"""What a plan costs, by the formulas of `docs/planning.md`, one plan and one step at a time.

In float64 and NumPy, and without a line of the planner's: what plans are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from grasp_planner import (
    Alternatives,
    Ball,
    PlannerConfig,
    Region,
    Schedule,
    Subset,
    Waypoints,
)
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float64]]


def cost_and_violation(
    config: PlannerConfig, goal: Any, states: Tensor, actions: Tensor, context: Any = None
) -> tuple[Array, Array]:
    """`(B,)` each, of float64 `states (B, T + 1, D)` and `actions (B, T, A)`, the user's units."""
    rows = [one(config, goal, states, actions, context, b) for b in range(len(states))]
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def one(
    config: PlannerConfig, goal: Any, states: Tensor, actions: Tensor, context: Any, b: int
) -> tuple[float, float]:
    """Of problem b."""
    features = states.shape[2]
    scale = np.array(config.state_scale or [1.0] * features)
    of_lifted_loss = getattr(config, "feature_weight", None)
    weight = np.array(config.goal_feature_weight or of_lifted_loss or [1.0] * features)
    distance = distance_to(goal, b, scale, weight)
    path, moves = states[b].numpy() / scale, actions[b].numpy()
    steps = len(moves)
    cost = distance(path[steps])
    between = [distance(path[t]) for t in range(1, steps)]
    if between:
        cost += last(config.running_goal_weight) * float(np.mean(between))
    cost += on_the_way(goal, b, path, scale, weight)
    cost += last(config.action_weight) * float(np.mean([a @ a for a in moves]))
    changes = [moves[t] - moves[t - 1] for t in range(1, steps)]
    if changes:
        cost += last(config.action_change_weight) * float(np.mean([c @ c for c in changes]))
    row = [states[b : b + 1], actions[b : b + 1]]
    if context is not None:
        row.append({name: value[b : b + 1] for name, value in context.items()})
    if config.cost is not None:
        cost += last(config.cost_weight) * float(config.cost(*row))
    violation = 0.0
    for constraint in config.constraints:
        for value in constraint.function(*row).flatten().tolist():
            over = abs(value) if constraint.kind == "equality" else max(value, 0.0)
            violation = max(violation, over)
    return cost, violation


def last(weight: Any) -> float:
    """A weight in the last iteration: what plans are compared by."""
    assert isinstance(weight, Schedule)
    return weight.start if weight.end is None else weight.end


def row_of(value: Any, b: int, single: int) -> Array:
    """What belongs to problem b; all share what has only `single` dimensions."""
    array = torch.as_tensor(value).double().numpy()
    return array if array.ndim == single else array[b]


def distance_to(goal: Any, b: int, scale: Array, weight: Array) -> Callable[[Array], float]:
    """`|s - g|^2_w` of a scaled state `(D,)`, `g` the goal's nearest state."""

    def apart(one: Array, other: Array) -> float:
        return float((weight * (one - other) ** 2).sum())

    if isinstance(goal, Subset):
        chosen = list(goal.features)
        wanted = row_of(goal.state, b, 1) / scale
        return lambda s: float((weight * (s - wanted) ** 2)[chosen].sum())
    if isinstance(goal, Region):
        low, high = row_of(goal.low, b, 1) / scale, row_of(goal.high, b, 1) / scale
        return lambda s: apart(s, np.minimum(np.maximum(s, low), high))
    if isinstance(goal, Ball):
        centre, radius = row_of(goal.centre, b, 1) / scale, float(row_of(goal.radius, b, 0))
        return lambda s: max(apart(s, centre) ** 0.5 - radius, 0.0) ** 2
    if isinstance(goal, Alternatives):
        states = row_of(goal.states, b, 2) / scale
        return lambda s: min(apart(s, state) for state in states)
    end = row_of(goal.states, b, 2)[-1] if isinstance(goal, Waypoints) else row_of(goal, b, 1)
    return lambda s: apart(s, end / scale)


def on_the_way(goal: Any, b: int, path: Array, scale: Array, weight: Array) -> float:
    """What waypoints before the last cost: at their steps, or at the best of all rising ones."""
    if not isinstance(goal, Waypoints):
        return 0.0
    points = row_of(goal.states, b, 2)[:-1] / scale

    def passed(steps: tuple[int, ...]) -> float:
        apart = [weight @ (path[t] - p) ** 2 for t, p in zip(steps, points, strict=True)]
        return goal.weight * float(sum(apart))

    if goal.steps is not None:
        return passed(tuple(goal.steps))
    return min(passed(steps) for steps in combinations(range(1, len(path) - 1), len(points)))
