"""Options in combination: every two values of every two options meet, for every planner.

What is promised of every plan is checked of each: its shapes, its bounds, that it is its own
rollout, and costs and violates what the formulas of `docs/planning.md` say; that it is the same
again, alone, in other chunks, watched or not; and that the model is as it was.
"""

from __future__ import annotations

import copy
from itertools import combinations, product
from pathlib import Path
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import (
    Alternatives,
    Ball,
    Constraint,
    Moment,
    Plan,
    Planner,
    Region,
    Schedule,
    Subset,
    Waypoints,
)
from grasp_planner.blocks import average_blocks
from grasp_planner.tasks.mlp import ResidualMLP
from pairwise import pairwise
from reference_cost import cost_and_violation
from torch import Tensor, nn

from grasp_kernels import native

ON = [False, True]
COMMON: dict[str, list[Any]] = {
    "goal": [
        "state",
        "subset",
        "region",
        "ball",
        "alternatives",
        "waypoints",
        "timed waypoints",
    ],
    "added": ["nothing", "running", "action", "change", "own", "schedule"],
    "constraints": ["none", "penalty", "inequality", "equality"],
    "hold": [1, 3],
    "bounds": ["none", "box", "per feature"],
    "max_rows": [None, 5],
    "stop_cost": [None, 1e-2, 1e9],
    "warm": ON,
    "watched": ON,
    "time_budget_ms": [None, 1e9],
    "scaled": ON,
    "precision": ["full", "bfloat16"],
    "numbers": ["float32", "float64", "kernels"],
    "horizon": [6, 1],
    "problems": [3, 1],
}
#: Options of each planner's own: what `planner_cases.KINDS` tells apart is among them.
OWN: dict[str, dict[str, list[Any]]] = {
    "cem": {"momentum": [0.3, 0.0], "min_std": [0.05, 0.0]},
    "icem": {"kept": [0.5, 0.0], "colour": [3.5, 0.0]},
    "mppi": {"temperature": [0.1, 1.0]},
    "gradient": {"optimizer": ["adam", "sgd"], "restarts": [3, 1]},
    "latco": {"initialization": ["rollout", "linear"], "restarts": [2, 1]},
    "lifted-newton": {
        "refinement": ["lifted", "rollout"],
        "products": ["auto", "jacobians", "matrix-free"],
        "jacobians_every": [None, 2],
        "score_rollouts": [2, 0],
        "rounds": [2, 1],
        "enough": [0.3, 0.0],
    },
    "grasp": {
        "terminal": ["fixed", "free"],
        "noise": ["bridge", "white", "none"],
        "state_optimizer": ["sgd", "adam"],
        "action_optimizer": ["adam", "sgd"],
        "state_gradient_scale": [0.0, 0.5],
        "sync_optimizer": ["adam", "sgd", "gauss-newton"],
        "initialization": ["linear", "rollout"],
        "sync_every": [3, 0],
        "sync_blend": [1.0, 0.5],
        "initial_actions_scale": [0.0, 0.3],
        "feature_weight": [None, (1.0, 0.5, 2.0, 1.0)],
        "kernels": ["whole-plan", "step"],
    },
}
#: Few of everything: a combination is to take hundredths of a second.
SMALL: dict[str, dict[str, Any]] = {
    "cem": {"samples": 8, "iterations": 3},
    "icem": {"samples": 8, "least_samples": 5, "iterations": 3},
    "mppi": {"samples": 8, "iterations": 3},
    "gradient": {"iterations": 4, "lr": 0.1, "last_lr": 0.05},
    "latco": {"iterations": 6},
    "lifted-newton": {"samples": 8, "resamples": 6, "refine_steps": 2, "cost_steps": 4},
    "grasp": {"iterations": 7, "sync_steps": 2, "final_sync_steps": 2, "action_lr": 0.05},
}


def factors(kind: str) -> dict[str, list[Any]]:
    found = {**COMMON, **OWN[kind]}
    if not native.status().available:  # and no bits without the kernels: matrices are torch's
        found["numbers"] = ["float32", "float64"]
    return found


CASES = [(kind, n, row) for kind in OWN for n, row in enumerate(pairwise(factors(kind)))]


@pytest.mark.parametrize("kind", OWN)
def test_every_two_values_meet(kind: str) -> None:
    options = factors(kind)
    rows = pairwise(options)
    assert rows == pairwise(options)
    for a, b in combinations(options, 2):
        met = {(repr(row[a]), repr(row[b])) for row in rows}
        assert met == {(repr(x), repr(y)) for x, y in product(options[a], options[b])}


def test_every_planner_is_among_them() -> None:
    assert {kind.split()[0] for kind in cases.KINDS} == set(OWN)


# ------------------------------------------------------------------------------- one combination


class Thrust(nn.Module):
    """`cases.arithmetic` with a weight to learn, and all that a careless planner would disturb."""

    action_features = cases.ACTION

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.force = nn.Parameter(torch.ones(2, dtype=dtype))
        self.fixed = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.register_buffer("drag", torch.ones(2, dtype=dtype))
        self.force.grad = torch.full_like(self.force, 7.0)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return cases.arithmetic(state, self.fixed * self.force * self.drag * action)


def model_of(numbers: str) -> nn.Module:
    if numbers != "kernels":
        return Thrust(torch.float64 if numbers == "float64" else torch.float32)
    torch.manual_seed(1)
    return ResidualMLP(cases.STATE, cases.ACTION, hidden=8, layers=1)


def snapshot(model: nn.Module) -> list[Any]:
    """All of a model that a planner is to leave as it was."""
    tensors = [*model.parameters(), *model.buffers()]
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    return [[(t.tolist(), t.requires_grad) for t in tensors], gradients, modes]


def goal_of(name: str, states: Tensor) -> Any:
    """Around states `(B, T + 1, D)` that can be reached."""
    end, steps = states[:, -1], states.shape[1] - 1
    between = states[:, [steps // 2, steps]] if steps > 1 else states[:, -1:]
    if name == "state":
        return end
    if name == "subset":
        return Subset(end, features=(0, 3))
    if name == "region":
        low, high = end - 0.1, end + 0.1
        low[:, 2], high[:, 1] = -torch.inf, torch.inf
        return Region(low, high)
    if name == "ball":
        return Ball(end, 0.1)
    if name == "alternatives":
        return Alternatives(torch.stack((end + 3.0, end), 1))
    steps_of = (steps // 2,) if steps > 1 else ()
    return Waypoints(between, steps_of if name == "timed waypoints" else None, weight=0.5)


def settings_of(row: dict[str, Any], own: list[str]) -> dict[str, Any]:
    """The config's part of a combination."""
    bounds = {
        "none": (None, None),
        "box": (-0.9, 0.8),
        "per feature": ((-0.5, -torch.inf), (0.25, 1 / 3)),
    }
    added: dict[str, dict[str, Any]] = {
        "nothing": {},
        "running": {"running_goal_weight": 0.3},
        "action": {"action_weight": 0.2},
        "change": {"action_change_weight": 0.4},
        "own": {"cost": near_the_spot, "cost_weight": 0.5},
        "schedule": {
            "action_weight": Schedule(2.0, 0.1, "linear"),
            "running_goal_weight": Schedule(0.0, 0.2, "cosine"),
        },
    }
    bent = dict.fromkeys(("cost_weight", "penalty_weight"), Schedule(1.0, 2.0, "linear"))
    slow = Constraint(lambda s, a, *given: s[:, 1:, 2:].flatten(1) - 0.3)
    same = Constraint(lambda s, a, *given: (a[:, :, 0] - a[:, :, 1]).mean(1), "equality")
    constrained: dict[str, dict[str, Any]] = {
        "none": {},
        "penalty": {"constraints": slow, "constraint_method": "penalty"},
        "inequality": {"constraints": slow, **(bent if row["added"] == "schedule" else {})},
        "equality": {"constraints": (same, slow), "constraint_every": 2},
    }
    scaled = {
        "state_scale": (2.0, 1.0, 0.5, 1.0),
        "goal_feature_weight": (1.0, 0.5, 2.0, 0.25),
    }
    low, high = bounds[row["bounds"]]
    direct = ("hold", "max_rows", "stop_cost", "horizon", *own)
    return {
        "seed": 5,
        "action_low": low,
        "action_high": high,
        **added[row["added"]],
        **constrained[row["constraints"]],
        **(scaled if row["scaled"] else {}),
        **{name: row[name] for name in direct},
    }


def near_the_spot(states: Tensor, actions: Tensor, context: dict[str, Tensor]) -> Tensor:
    """The end of a plan is to be near a spot of each problem's own; negative far from it."""
    apart = (states[:, -1, :2] - context["spot"]).square().sum(-1)
    return apart - 0.5 * actions[:, :, 0].square().mean(1)


def planner_of(kind: str, model: Any, settings: dict[str, Any]) -> Planner:
    make, config, defaults = cases.KINDS[kind]
    return make(model, config(**{**cases.PROBLEM, **defaults, **SMALL[kind], **settings}))


@pytest.mark.parametrize(
    ("kind", "row"), [(kind, row) for kind, _, row in CASES], ids=[f"{k}-{n}" for k, n, _ in CASES]
)
def test_a_combination(kind: str, row: dict[str, Any], tmp_path: Path) -> None:
    model, count, steps = model_of(row["numbers"]), row["problems"], row["horizon"]
    dtype = torch.float64 if row["numbers"] == "float64" else torch.float32
    start = cases.problems(count, dtype)[0] * 0.5
    turn = torch.tensor([[0.2, -0.4], [-0.4, 0.3], [0.2, 0.3]], dtype=dtype)[:count]
    goal = goal_of(row["goal"], cases.roll_out(model, start, turn[:, None].repeat(1, steps, 1)))
    settings = settings_of(row, list(OWN[kind]))
    given: dict[str, Any] = {"plan_ids": torch.tensor([4, 0, 9])[:count]}
    if row["warm"]:
        ramp = torch.linspace(-1, 1, 2 * steps, dtype=dtype).view(1, steps, 2)
        given["actions"] = ramp * torch.tensor([0.3, 0.5, -0.7], dtype=dtype)[:count, None, None]
    if "cost" in settings:
        given["context"] = {"spot": torch.randn(count, 2, dtype=dtype)}
    seen: list[Moment] = []
    iterations: list[int] = []
    watching: dict[str, Any] = {"time_budget_ms": row["time_budget_ms"]}
    if row["watched"]:
        watching |= {"callback": seen.append, "progress": iterations.append}
        watching |= {"checkpoint": str(tmp_path / "search.pt"), "checkpoint_every": 2}
    before = snapshot(model)

    planner = planner_of(kind, model, settings)
    plan = planner.plan(start, goal, **given, **watching)

    assert snapshot(model) == before
    check_plan(kind, planner, model, plan, start, goal, given)
    if row["watched"]:
        assert iterations == list(range(1, plan.iterations + 1))
        assert seen[-1].model_calls <= plan.model_calls
        saved = planner.plan(start, goal, **given, **watching)  # of the checkpoint: nothing is made
        assert cases.same_plans(saved, plan)
        assert iterations == list(range(1, plan.iterations + 1))
    # Again: all rows at once, nobody watches, no clock runs.
    assert ("MLP kernels" in plan.path) == (row["numbers"] == "kernels")
    free = planner_of(kind, model, {**settings, "max_rows": None}).plan(start, goal, **given)
    assert cases.same_plans(free, plan)
    assert cases.same_bits(free.violation, plan.violation)
    alone_as_in_the_batch(planner, plan, start, goal, given, count - 1)


def check_plan(
    kind: str,
    planner: Planner,
    model: nn.Module,
    plan: Plan,
    start: Tensor,
    goal: Any,
    given: dict[str, Any],
) -> None:
    """What a plan is by itself."""
    config = planner.config
    count, steps, hold = len(start), config.horizon, config.hold
    candidates = config.candidates if kind == "grasp" else 1
    assert plan.actions.shape == (count, steps, cases.ACTION)
    assert plan.states.shape == (count, steps + 1, cases.STATE)
    assert plan.cost.shape == plan.violation.shape == plan.finite.shape == (count,)
    assert plan.candidate_cost.shape == (count, candidates)
    assert plan.loss_history.shape == (plan.iterations, count, candidates)
    assert plan.actions.dtype == plan.states.dtype == start.dtype
    assert plan.finite.all()
    assert not plan.failures
    assert not plan.out_of_time
    if config.stop_cost == 1e9 and not config.constraints:
        assert plan.iterations <= 1
    elif config.stop_cost is None and getattr(config, "enough", 0.0) == 0.0:
        assert plan.iterations == planner._iterations()

    actions = plan.actions.double()
    for bound, inside in ((config.action_low, actions.ge), (config.action_high, actions.le)):
        if bound is not None:
            assert inside(torch.tensor(bound, dtype=torch.float64)).all()
    for first in range(0, steps, hold):
        block = plan.actions[:, first : first + hold]
        assert torch.equal(block, block[:, :1].expand_as(block))

    exact = copy.deepcopy(model).double()
    states = cases.roll_out(exact, start.double(), actions)
    torch.testing.assert_close(plan.states.double(), states, rtol=1e-4, atol=1e-4)
    context = given.get("context")
    cost, violation = cost_and_violation(config, goal, states, actions, context)
    torch.testing.assert_close(
        plan.cost.double(), torch.from_numpy(cost), rtol=1e-4, atol=1e-4, msg="cost"
    )
    torch.testing.assert_close(
        plan.violation.double(), torch.from_numpy(violation), rtol=1e-4, atol=1e-4, msg="violation"
    )
    if "actions" in given and kind != "lifted-newton":  # that one compares by a robust cost
        warm = average_blocks(given["actions"].double(), hold)
        for name, limit in (("action_low", torch.maximum), ("action_high", torch.minimum)):
            if getattr(config, name) is not None:
                warm = limit(warm, torch.tensor(getattr(config, name), dtype=torch.float64))
        states = cases.roll_out(exact, start.double(), warm)
        rivals = cost_and_violation(config, goal, states, warm, context)
        no_worse_than(config, plan, *rivals)


def no_worse_than(config: Any, plan: Plan, cost: Any, violation: Any) -> None:
    """Plans that violate less, or nothing beyond the tolerance and cost no more."""
    tolerance = config.constraint_tolerance + 1e-4  # and what rounding makes of it
    for b in range(len(cost)):
        ours, theirs = float(plan.violation[b]), float(violation[b])
        if theirs <= config.constraint_tolerance - 1e-4 or not config.constraints:
            assert ours <= tolerance
            assert float(plan.cost[b]) <= cost[b] + 1e-4 * (1 + abs(cost[b]))
        else:
            assert ours <= max(theirs, tolerance) + 1e-4


def alone_as_in_the_batch(
    planner: Planner, plan: Plan, start: Tensor, goal: Any, given: dict[str, Any], n: int
) -> None:
    """Problem n by itself, under its own plan id, is planned to the same bits."""
    row = torch.tensor([n])
    parts = {
        name: {k: v[row] for k, v in value.items()} if isinstance(value, dict) else value[row]
        for name, value in given.items()
    }
    its_goal = goal[row] if isinstance(goal, Tensor) else goal.take(row)
    alone = planner.plan(start[row], its_goal, **parts)
    for name in ("actions", "states", "cost", "violation", "candidate_cost"):
        assert cases.same_bits(getattr(alone, name)[0], getattr(plan, name)[n]), name
