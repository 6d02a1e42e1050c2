"""What every rank runs for `test_sharded.py`: plans shared out, beside those of one process.

Prints, by rank 0, JSON objects: {over: of each rank {case: what differs, to the bit}}.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from grasp_planner import (
    MPC,
    Alternatives,
    CEMConfig,
    CEMPlanner,
    Constraint,
    GraspConfig,
    GraspPlanner,
    LiftedNewtonConfig,
    LiftedNewtonPlanner,
    Plan,
    Planner,
)
from grasp_planner.compiled import Accelerated
from grasp_planner.distributed import Sharded, ranks
from grasp_planner.distributed.neighbours import Neighbours
from torch import Tensor

A = {"action_features": 2, "action_low": -1.0, "action_high": 1.0}
SMALL = {
    **A,
    "candidates": 5,
    "iterations": 12,
    "sync_every": 5,
    "sync_steps": 2,
    "final_sync_steps": 3,
}
NEVER_SAME = ("backend", "path")  # words, which `compare` does not look at


def point(state: Tensor, action: Tensor) -> Tensor:
    """A point with velocity, in sums and products of entries alone: each row's bits are its own."""
    position, velocity = state[:, :2], state[:, 2:]
    velocity = velocity + 0.3 * action * (1.0 - 0.1 * position * position)
    return torch.cat([position + 0.3 * velocity, velocity], -1)


def differences(found: Plan, wanted: Plan) -> list[str]:
    """The names of the parts of two plans that are not the same to the bit."""
    names = []
    for part in fields(Plan):
        if part.name in NEVER_SAME:
            continue
        one, other = getattr(found, part.name), getattr(wanted, part.name)
        if isinstance(one, Tensor):
            same = one.shape == other.shape and torch.equal(bits(one), bits(other))
        elif part.name == "failures":  # whose messages have the shapes that they met
            same = one.keys() == other.keys()
        elif part.name == "snapshots":
            same = one.keys() == other.keys() and all(
                torch.equal(bits(one[k]), bits(other[k])) for k in one
            )
        else:
            same = one == other
        if not same:
            names.append(part.name)
    return names


def bits(values: Tensor) -> Tensor:
    """NaNs are equal, whatever their bits; and so are zeros."""
    return torch.nan_to_num(values.double(), nan=1e300) if values.is_floating_point() else values


def problems(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(count, 4, generator=generator)
    goal = torch.randn(count, 4, generator=generator)
    return start, goal


def compare(
    planner: Planner, over: str, count: int = 3, dtype: torch.dtype = torch.float32, **given: Any
) -> list[str]:
    start, goal = (states.to(dtype) for states in problems(count))
    goal = given.pop("goal", goal)
    shared = Sharded(given.pop("other", planner), over)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [planner.plan(start, goal, **given) if dist.get_rank() == 0 else None]
        found = shared.plan(start, goal, **given)
    dist.broadcast_object_list(alone)
    wanted = alone[0]
    assert wanted is not None
    if wanted.failures:  # to know whose fault it is, some were planned again: how often, depends
        found = replace(found, model_calls=wanted.model_calls)
    return differences(found, wanted)


def grasp(model: Callable[..., Tensor] = point, **changes: Any) -> GraspPlanner:
    return GraspPlanner(model, GraspConfig(**{**SMALL, "horizon": 9, **changes}))


def warm(count: int, horizon: int) -> Tensor:
    return torch.randn(count, horizon, 2, generator=torch.Generator().manual_seed(3))


# -------------------------------------------------------------------------------------- the cases


def over_problems() -> dict[str, Any]:
    newton = LiftedNewtonConfig(**A, horizon=8, samples=12, resamples=8, refine_steps=2)
    cem = CEMConfig(**A, horizon=8, samples=12, iterations=3)
    ids = torch.tensor([7, 3, 9, 1, 5])
    return {
        "grasp": compare(grasp(), "problems", 5, snapshots=(0, 5, 12)),
        "plan ids and a warm start": compare(
            grasp(initial_actions_scale=0.3), "problems", 5, plan_ids=ids, actions=warm(5, 9)
        ),
        "fewer problems than ranks": compare(grasp(), "problems", 1),
        "no problems": compare(grasp(), "problems", 0),
        "lifted newton": compare(LiftedNewtonPlanner(point, newton), "problems", 5),
        "cem": compare(CEMPlanner(point, cem), "problems", 5),
        "alternatives": compare(
            grasp(), "problems", 5, goal=Alternatives(torch.randn(5, 3, 4, generator=seeded(1)))
        ),
        "early stop": compare(grasp(stop_cost=0.5), "problems", 5),
        "early stop, fewer than ranks": compare(grasp(stop_cost=100.0), "problems", 1),
        "lifted newton, early stop": compare(
            LiftedNewtonPlanner(point, replace(newton, stop_cost=1.0)), "problems", 5
        ),
        "one problem breaks": compare(grasp(brittle), "problems", goal=far(3)),
        "one problem fails": compare(grasp(refusing), "problems", goal=far(3)),
        "another seed": compare(grasp(), "problems", other=grasp(seed=1)),
    }


def over_candidates() -> dict[str, Any]:
    low = Constraint(lambda states, actions: states[..., 1:, 0].amax(-1) - 0.5)
    scattered = {"initial_actions_scale": 0.3}
    return {
        "grasp": compare(grasp(), "candidates", snapshots=(0, 5, 12)),
        "warm": compare(grasp(**scattered), "candidates", actions=warm(3, 9)),
        "one candidate": compare(grasp(candidates=1), "candidates"),
        "alternatives": compare(
            grasp(), "candidates", goal=Alternatives(torch.randn(3, 3, 4, generator=seeded(1)))
        ),
        "constraint": compare(grasp(constraints=low, running_goal_weight=0.1), "candidates"),
        "equal candidates": compare(grasp(noise="none", initial_noise_scale=0.0), "candidates"),
        "one problem breaks": compare(grasp(brittle), "candidates", goal=far(3)),
        "one problem fails": compare(grasp(refusing), "candidates", goal=far(3)),
        "one candidate fails": compare(
            grasp(timid, candidates=2, **TIMID), "candidates", goal=far(3), snapshots=(0, 1)
        ),
        "no problems": compare(grasp(), "candidates", 0),
    }


def over_time() -> dict[str, Any]:
    once = {"candidates": 1, "iterations": 2, "sync_every": 0, "final_sync_steps": 1}
    return {
        "grasp": compare(grasp(), "time", snapshots=(0, 5, 12)),
        "white": compare(grasp(noise="white", goal_weight=0.1), "time"),
        "no noise, free end": compare(grasp(noise="none", terminal="free"), "time"),
        "sgd": compare(grasp(action_optimizer="sgd", sync_optimizer="sgd", sync_blend=0.5), "time"),
        "held": compare(grasp(horizon=14, hold=3), "time", actions=warm(3, 14)),
        "scattered": compare(grasp(initial_actions_scale=0.3), "time"),
        "rolled out": compare(grasp(initialization="rollout"), "time"),
        "max rows": compare(grasp(max_rows=4), "time"),
        "scaled": compare(grasp(state_scale=(1.0, 2.0, 0.5, 1.0)), "time"),
        "early stop": compare(grasp(stop_cost=0.5), "time", 5),
        "a step a rank": compare(grasp(horizon=4), "time"),
        "kernels": compare(grasp(mlp(), kernels="step"), "time"),
        "long": compare(grasp(horizon=1024 * dist.get_world_size() + 100, **once), "time", 2),
        "one problem breaks": compare(grasp(brittle), "time", goal=far(3)),
        "one problem fails": compare(grasp(refusing), "time", goal=far(3), snapshots=(0, 5)),
        "bfloat16": compare(grasp(), "time", dtype=torch.bfloat16),
        "no problems": compare(grasp(), "time", 0),
        "slices": slices(),
    }


def slices() -> list[str]:
    """Without the whole plan, each rank's own steps of it, from the state before them on."""
    start, goal = problems(3)
    wanted = grasp().plan(start, goal, snapshots=(0, 12))
    found = Sharded(grasp(), "time", whole=False).plan(start, goal, snapshots=(0, 12))
    steps = Neighbours().everyones(found.actions.shape[1])
    first = sum(steps[: dist.get_rank()])
    rows = slice(first, first + found.actions.shape[1] + 1)
    same = {
        "actions": torch.equal(found.actions, wanted.actions[:, rows.start : rows.stop - 1]),
        "states": torch.equal(found.states, wanted.states[:, rows]),
        "snapshots": all(
            torch.equal(found.snapshots[k], wanted.snapshots[k][:, :, rows]) for k in (0, 12)
        ),
    }
    return [name for name, equal in same.items() if not equal]


def control() -> dict[str, Any]:
    """MPC over a sharded planner: the same controls, step by step."""
    state, goal = problems(3)
    alone, shared = MPC(grasp(), execute=3), MPC(Sharded(grasp()), execute=3)
    for _ in range(5):
        one, other = alone.act(state, goal), shared.act(state, goal)
        if not torch.equal(one.actions, other.actions):
            return {"mpc": ["actions"]}
        state = point(state, 0.9 * one.actions)
    return {"mpc": []}


def errors() -> dict[str, Any]:
    """What each rank is told where not all is well; none waits for ever, and all stay in step."""
    one, last = dist.get_rank() == 1, warm(3, 9)
    last[1, -1] = torch.nan  # a number of the last rank's steps

    def failing(moment: Any) -> None:
        if one:
            raise KeyError("mine")

    found: dict[str, Any] = {}
    for over in ("problems", "candidates", "time"):
        nothing = {"goal": far(2)[1:], "words": "WorldModelError: world_model failed on .* wall"}
        found[f"no problem, {over}"] = told(grasp(refusing), over, 1, **nothing)
        found[f"arguments, {over}"] = told(
            grasp(candidates=1), over, 1, callback_at=2, words="ValueError: callback_at is given"
        )
        found[f"inference mode, {over}"] = inferred(over)
        found[f"compiled once, {over}"] = accelerated(over)
        found[f"in step, {over}"] = compare(grasp(), over)
    for over in ("problems", "candidates"):
        words = "KeyError: 'mine'" if one else "RankLostError: rank 1 of . raised KeyError: 'mine'"
        found[f"callback, {over}"] = told(grasp(), over, 4, callback=failing, words=words)
    wrong = "ValueError: world_model must return next states of shape"
    found["model, time"] = told(grasp(lambda s, a: s[:, :3] + a.sum()), "time", words=wrong)
    wrong = "ValueError: actions must be finite, got NaN or infinity in row 1"
    found["actions, time"] = told(grasp(), "time", actions=last, words=wrong)
    found["warnings"] = warned()
    found["group"] = outside()
    return found


def told(planner: Planner, over: str, count: int = 3, *, words: str, **given: Any) -> list[str]:
    """What this rank was told by an error, unless that begins with `words`, a pattern."""
    start, goal = problems(count)
    try:
        Sharded(planner, over).plan(start, given.pop("goal", goal), **given)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return [] if re.match(words, found) else [found]
    return ["nothing"]


def inferred(over: str) -> list[str]:
    """Plans asked for in inference mode are tensors like any other."""
    with torch.inference_mode():
        plan = Sharded(grasp(), over).plan(*problems(3), snapshots=(0,))
    values = {"cost": plan.cost, "actions": plan.actions, "snapshots": plan.snapshots[0]}
    return [name for name, value in values.items() if value.is_inference()]


def accelerated(over: str) -> list[str]:
    """A model is compiled once, not in every call."""
    shared, made = Sharded(grasp(), over), []
    with patch("grasp_planner.base.Accelerated", side_effect=Accelerated) as new:
        for _ in range(2):
            shared.plan(*problems(3))
            made.append(new.call_count)
    return [] if made == [1, 1] else [f"made {made}"]


def warned() -> list[str]:
    """Where all problems of a rank fail, it says so, as in one process; the others need not."""
    size, mine = dist.get_world_size(), dist.get_rank()
    start, goal = problems(size)
    goal[1] = 1000.0
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        plan = Sharded(grasp(refusing)).plan(start, goal)
    names = [type(warning.message).__name__ for warning in found]
    wanted = ["ModelFailureWarning"] if mine == 1 else []
    return [] if names == wanted and list(plan.failures) == [1] else [f"{names}"]


def outside() -> list[str]:
    """A part of the ranks, not from 0 on; others are told that they are none of it."""
    last = dist.get_world_size() - 1
    group = dist.new_group([last])
    if dist.get_rank() == last:
        return [] if Sharded(grasp(), group=group).neighbours.rank == 0 else ["rank"]
    try:
        Sharded(grasp(), group=group)
    except ValueError as error:
        return [] if "group must have this rank in it" in str(error) else [str(error)]
    return ["nothing"]


def brittle(state: Tensor, action: Tensor) -> Tensor:
    """Not finite beyond a wall that only goals far away lead to."""
    moved = point(state, action)
    return torch.where(state[:, :1] > 50.0, torch.nan, moved)


def refusing(state: Tensor, action: Tensor) -> Tensor:
    """Raises where a batch has a state that only goals far away lead to."""
    if bool((state[:, 0] > 50.0).any()):
        raise RuntimeError("beyond the wall")
    return point(state, action)


TIMID = {
    "iterations": 1,
    "sync_every": 0,
    "final_sync_steps": 0,
    "initial_actions_scale": 0.3,
    "initial_noise_scale": 0.0,
}


def timid(state: Tensor, action: Tensor) -> Tensor:
    """Raises where `refusing` does, unless there is no action, as the first candidate begins."""
    if bool(((state[:, 0] > 50.0) & (action.abs().amax(1) > 1e-3)).any()):
        raise RuntimeError("beyond the wall")
    return point(state, action)


def far(count: int) -> Tensor:
    goal = problems(count)[1]
    goal[1] = 1000.0
    return goal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> Any:
    from grasp_kernels import MLPDynamics

    torch.manual_seed(5)
    network = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    return MLPDynamics.from_sequential(network, action_features=2, residual=True)


CASES = {
    "problems": over_problems,
    "candidates": over_candidates,
    "time": over_time,
    "control": control,
    "errors": errors,
}


def main() -> None:
    torch.set_num_threads(1)
    with ranks(timeout=60.0) as world:
        for over, cases in CASES.items():
            found = [None] * world.size
            dist.all_gather_object(found, cases())
            if world.first:
                print(json.dumps({over: found}), flush=True)
    left = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in left if "gloo" in name], left  # one that is left aborts the end


if __name__ == "__main__":
    main()
