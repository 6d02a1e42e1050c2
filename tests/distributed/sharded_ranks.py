"""What every rank runs for `test_sharded.py`: plans shared out, beside those of one process.

Prints, by rank 0, JSON objects: {over: of each rank {case: what differs, to the bit}}.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

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
from grasp_planner.distributed import Sharded, ranks
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


def compare(planner: Planner, over: str, count: int = 3, **given: Any) -> list[str]:
    start, goal = problems(count)
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
    }


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


def brittle(state: Tensor, action: Tensor) -> Tensor:
    """Not finite beyond a wall that only goals far away lead to."""
    moved = point(state, action)
    return torch.where(state[:, :1] > 50.0, torch.nan, moved)


def refusing(state: Tensor, action: Tensor) -> Tensor:
    """Raises where a batch has a state that only goals far away lead to."""
    if bool((state[:, 0] > 50.0).any()):
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
}


def main() -> None:
    torch.set_num_threads(1)
    with ranks(timeout=60.0) as world:
        for over, cases in CASES.items():
            found = [None] * world.size
            dist.all_gather_object(found, cases())
            if world.first:
                print(json.dumps({over: found}), flush=True)


if __name__ == "__main__":
    main()
