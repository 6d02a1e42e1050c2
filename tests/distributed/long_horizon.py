"""What every rank runs for `test_sharded.py`: a long horizon, and the memory that it takes.

Prints, by rank 0, for every rank a JSON object: the most memory of the search beyond what was there
before, and a hash of the actions and of the states after them, of each stretch of 1000 steps that
it holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from grasp_planner import GraspConfig, GraspPlanner
from grasp_planner.distributed import Sharded, ranks
from grasp_planner.distributed.neighbours import Neighbours
from torch import Tensor

HORIZON, FEATURES, STRETCH = 20_000, 192, 1000
SETTINGS = {
    "action_features": FEATURES,
    "candidates": 1,
    "action_lr": 1e-4,
    "sync_every": 0,
    "sync_lr": 1e-3,
    "final_sync_steps": 1,
}


def drifting(state: Tensor, action: Tensor) -> Tensor:
    return 0.999 * state + 0.05 * action * (1.0 - 0.1 * state * state)


def most_memory() -> float:
    """Of this process so far, in MiB. `ru_maxrss` would be no less than its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def hashes(values: Tensor, first: int) -> dict[int, str]:
    """Of `values (steps, ...)`, by the number of the first step of each stretch."""
    found = {}
    for begin in range(-(-first // STRETCH) * STRETCH, first + len(values), STRETCH):
        part = values[begin - first : begin - first + STRETCH].contiguous()
        if len(part) == STRETCH:
            found[begin] = hashlib.sha256(part.numpy().tobytes()).hexdigest()
    return found


def main() -> None:
    torch.set_num_threads(1)
    start, goal = torch.zeros(1, FEATURES), torch.linspace(-1, 1, FEATURES)[None]
    with ranks(timeout=120.0) as world:
        short = GraspConfig(horizon=8 * world.size, iterations=1, **SETTINGS)
        Sharded(GraspPlanner(drifting, short), "time").plan(start, goal)  # loads what is to load
        before = most_memory()
        long = GraspPlanner(drifting, GraspConfig(horizon=HORIZON, iterations=3, **SETTINGS))
        plan = Sharded(long, "time", whole=False).plan(start, goal)
        taken = most_memory() - before
        steps = Neighbours().everyones(plan.actions.shape[1])
        first = sum(steps[: world.rank])
        report = {
            "rank": world.rank,
            "mebibytes": taken,
            "steps": plan.actions.shape[1],
            "actions": hashes(plan.actions[0], first),
            "states": hashes(plan.states[0, 1:], first),
            "cost": plan.cost.item(),
        }
        report["losses"] = plan.loss_history.flatten().tolist()
        for each in Neighbours().everyones(report):
            if world.first:
                print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
