"""What the gradient of a plan costs: implicit, beside unrolled steps, in time, memory and error.

    python bench/learning.py [--rounds N]
    python bench/learning.py --task pointmaze-umaze     # how soon are plans stationary there?
    python bench/learning.py --precision                # what float32 makes of a singular Hessian

A random MLP of 128 x 2 units, 4 state and 2 action features; 8 problems of 50 steps, action weight
0.1, float64, one thread. Each plan begins at a minimum (`search=False`), so times are those of the
derivative: forward is one check of the minimum (and the unrolled steps), backward the gradient for
start, goal and weights. Time is the process's own on the processor, medians of turns in which all
variants follow one another. Products: with the Hessian, of the solve. Held: bytes that autograd
keeps for the way back. Error: of the gradient for all of these, against the implicit one.

With `--task`, 8 problems of 30 steps through its world model, in float64, action weight 0.01: how
many plans are stationary, and their mean cost, after so many Newton steps from where a search ends.

With `--precision`, random singular systems of 20 unknowns and 4 curvatures from 1 to 1/1000: the
relative error of the least solution, against the pseudo-inverse.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from grasp_planner import (
    DerivativeWarning,
    LiftedNewtonConfig,
    LiftedNewtonPlanner,
    differentiable_plan,
    tasks,
)
from grasp_planner.cli.arguments import positive
from grasp_planner.presets import planner_config
from grasp_planner.stationary import Derivatives, least_solution
from torch import Tensor, nn

HORIZON, PROBLEMS = 50, 8
VARIANTS: dict[str, dict[str, Any]] = {
    "implicit": {},
    **{f"unroll {k}": {"method": "unroll", "unroll": k} for k in (5, 20, 80)},
}


class World(nn.Module):
    action_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4)
        )

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        change: Tensor = self.net(torch.cat((state, action), -1))
        return state + 0.1 * change


@dataclass(frozen=True)
class Measured:
    """Seconds forward and backward, products with H on the way back, bytes held, the gradient."""

    forward: float
    backward: float
    products: int
    held: int
    gradient: Tensor


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def measure(world: World, given: tuple[Tensor, Tensor, Tensor], how: dict[str, Any]) -> Measured:
    start, goal, actions = given
    config = LiftedNewtonConfig(horizon=HORIZON, hold=1, action_weight=0.1)
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        held = Kept(tensor)
        kept.add(held)
        return held

    begun = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
        plan = differentiable_plan(
            world, start, goal, config=config, actions=actions, search=False, **how
        )
    planned = time.process_time()
    storages = {held.tensor.untyped_storage() for held in kept}
    sizes = {storage._cdata: storage.nbytes() for storage in storages}
    inputs = [start, goal, *world.parameters()]
    products = 0
    product = Derivatives.product

    def counted(derivatives: Derivatives, direction: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return product(derivatives, direction)

    before = time.process_time()
    with mock.patch.object(Derivatives, "product", counted):
        found = torch.autograd.grad(plan.actions.square().sum(), inputs)
    ended = time.process_time()
    gradient = torch.cat([part.flatten() for part in found])
    times = planned - begun, ended - before
    return Measured(*times, products, sum(sizes.values()), gradient)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the gradient of a plan costs.")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--task")
    parser.add_argument("--precision", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.precision:
        precision()
    elif given.task is None:
        compare(given.rounds)
    else:
        polished(given.task)


def precision() -> None:
    systems, unknowns = 1000, 20
    curvatures = torch.logspace(0, -3, 4, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(systems, unknowns, 4, dtype=torch.float64)).Q
    hessian = basis * curvatures @ basis.mT
    right = torch.randn(systems, unknowns, dtype=torch.float64)
    exact = torch.einsum("bij,j,bkj,bk->bi", basis, 1 / curvatures, basis, right)
    print("| | median error | worst |", "| --- | --: | --: |", sep="\n")
    for dtype in (torch.float64, torch.float32):
        product = partial(torch.einsum, "bij,bj->bi", hessian.to(dtype))
        found, _ = least_solution(product, right.to(dtype), 200)
        error = (found.double() - exact).norm(dim=1) / exact.norm(dim=1)
        print(f"| {str(dtype)[6:]} | {error.median():.1g} | {error.max():.1g} |")


def polished(name: str) -> None:
    task = tasks.load(name)
    problems = task.sample_problems(PROBLEMS, horizon=30, seed=0)
    start, goal = problems.start.double(), problems.goal.double()
    world = copy.deepcopy(task.world_model).double()
    config = planner_config("lifted-newton", task, horizon=30, action_weight=0.01)
    print("| Newton steps | stationary | mean cost | time |", "| --: | --: | --: | --: |", sep="\n")
    warnings.simplefilter("ignore", DerivativeWarning)
    searched = LiftedNewtonPlanner(world, config).plan(start, goal)
    for steps in (0, 10, 30, 100, 300):
        begun = time.process_time()
        with torch.no_grad():
            plan = differentiable_plan(
                world,
                start,
                goal,
                config=config,
                actions=searched.actions,
                search=False,
                polish_steps=steps,
            )
        seconds = time.process_time() - begun
        stationary = f"{int(plan.converged.sum())} of {PROBLEMS}"
        print(f"| {steps} | {stationary} | {float(plan.cost.mean()):.4f} | {seconds:.1f} s |")


def compare(rounds: int) -> None:
    world = World().double()
    start, goal = (torch.randn(PROBLEMS, 4, dtype=torch.float64) for _ in range(2))
    config = LiftedNewtonConfig(horizon=HORIZON, hold=1, action_weight=0.1)
    with torch.no_grad():
        plan = differentiable_plan(world, start, goal, config=config)
    asked = start.requires_grad_(), goal.requires_grad_(), plan.actions
    turns = [
        {name: measure(world, asked, how) for name, how in VARIANTS.items()} for _ in range(rounds)
    ]
    exact = turns[0]["implicit"].gradient
    print("| | forward | backward | products | held | error |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, first in turns[0].items():
        forward = 1e3 * statistics.median(turn[name].forward for turn in turns)
        backward = 1e3 * statistics.median(turn[name].backward for turn in turns)
        error = float((first.gradient - exact).norm() / exact.norm())
        print(
            f"| {name} | {forward:.0f} ms | {backward:.0f} ms | {first.products or ''} "
            f"| {first.held / 2**20:.1f} MiB | {error:.2g} |"
        )


if __name__ == "__main__":
    main()
