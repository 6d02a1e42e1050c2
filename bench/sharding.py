"""One plan call on one process and on all, in turns; and what the links would carry, on paper.

    torchrun --standalone --nproc-per-node 2 bench/sharding.py [--page docs/distributed.md]
                                                                             (make sharding)

Rank 0 alone and all ranks together take turns on the same call, one thread each, the others asleep
meanwhile; medians. The model on paper counts bytes and multiplies, and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from grasp_bench.options_table import replaced
from grasp_bench.timing import processor
from grasp_planner import GraspConfig, GraspPlanner, LiftedNewtonConfig, LiftedNewtonPlanner
from grasp_planner.base import Planner
from grasp_planner.cli.arguments import positive
from grasp_planner.distributed import Ranks, Sharded, ranks
from grasp_planner.evaluation.results import table
from torch import Tensor, nn

from grasp_kernels import MLPDynamics

BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"
PAPER_BEGIN, PAPER_END = "<!-- on paper: begin -->", "<!-- on paper: end -->"


@dataclass(frozen=True)
class Work:
    """A call of `plan` to share out."""

    name: str
    over: str
    planner: Planner
    problems: int
    features: int


def mlp(features: int, width: int, layers: int) -> MLPDynamics:
    """An MLP world model, described for kernels; weights as torch draws them."""
    torch.manual_seed(0)
    sizes = [features + 2, *[width] * layers]
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.LayerNorm(after), nn.Mish()]
    network = nn.Sequential(*parts, nn.Linear(width, features))
    return MLPDynamics.from_sequential(network, action_features=2, residual=True)


class Called(nn.Module):
    """A world model that is called from Python, as most are: its rows are torch's."""

    action_features = 2

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(features + 2, width), nn.Mish(), nn.Linear(width, width), nn.Mish()]
        self.network = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`(rows, D)`, `(rows, 2)` to `(rows, D)`."""
        moved: Tensor = self.network(torch.cat((state, action), 1))
        return state + 0.01 * moved


def works() -> Iterator[Work]:
    box: dict[str, Any] = {"action_low": -1.0, "action_high": 1.0}
    small, large = mlp(4, 128, 3), mlp(64, 256, 2)
    grasp: dict[str, Any] = {**box, "horizon": 50, "iterations": 100}
    yield Work("GRASP, 32 problems", "problems", GraspPlanner(small, GraspConfig(**grasp)), 32, 4)
    newton = LiftedNewtonConfig(**box, horizon=50)
    yield Work("LiftedNewton, 8 problems", "problems", LiftedNewtonPlanner(small, newton), 8, 4)
    many = GraspConfig(**grasp, candidates=64)
    yield Work("GRASP, 1 problem, 64 candidates", "candidates", GraspPlanner(large, many), 1, 64)
    one: dict[str, Any] = {**box, "kernels": "step", "candidates": 1}
    lifted: dict[str, Any] = {"iterations": 20, "sync_every": 0, "final_sync_steps": 0}
    long = GraspConfig(**one, **lifted, horizon=8192)
    name = "GRASP, T = 8192, 20 iterations and a rollout"
    yield Work(name, "time", GraspPlanner(large, long), 1, 64)
    synced = GraspConfig(**one, horizon=8192, iterations=20, sync_every=0, final_sync_steps=10)
    name = "GRASP, T = 8192, 20 iterations, 10 steps through the rollout"
    yield Work(name, "time", GraspPlanner(large, synced), 1, 64)
    called = GraspConfig(**one, **{**lifted, "iterations": 40}, horizon=4096)
    name = "the same with a model called from Python, T = 4096, 40 iterations and a rollout"
    yield Work(name, "time", GraspPlanner(Called(256, 512), called), 1, 256)


def timed(work: Work, world: Ranks, rounds: int) -> tuple[float, float]:
    """Median milliseconds of rank 0 alone, at its fastest, and of all ranks."""
    start = torch.zeros(work.problems, work.features)
    goal = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    shared = Sharded(work.planner, work.over, whole=False)
    single = work.planner
    if work.over == "time":  # which needs kernels that one process has faster ones than
        single = GraspPlanner(single.world_model, replace(single.config, kernels="whole-plan"))
    alone: list[float] = []
    together: list[float] = []
    for turn in range(rounds + 1):  # the first warms up
        for planner, times in ((single, alone), (shared, together)):
            world.meet("the next turn")
            if planner is shared or world.first:
                begin = time.perf_counter()
                planner.plan(start, goal)
                if turn:
                    times.append(1e3 * (time.perf_counter() - begin))
            world.meet("the end of a turn")
    return (statistics.median(alone or [0.0]), statistics.median(together))


def measured(world: Ranks, rounds: int) -> str:
    rows = []
    for work in works():
        one, all_ = timed(work, world, rounds)
        rows.append([work.name, work.over, f"{one:.0f} ms", f"{all_:.0f} ms", f"{one / all_:.2f}"])
    header = ("work", "over", "1 process", f"{world.size} processes", "times faster")
    return (
        f"{processor()}, {world.size} gloo processes on one machine, one thread each, medians of "
        f"{rounds} turns. One process has its fastest kernels, whole plans in a launch; over time "
        "they are step by step.\n\n" + table(header, rows)
    )


@dataclass(frozen=True)
class Link:
    """Between neighbours: bytes per second one way, and seconds until the first byte is there."""

    name: str
    bandwidth: float
    latency: float


#: Data sheets' bandwidths, one way; latencies are round numbers of their kind. Nothing measured.
NVLINK = Link("8 GPUs, NVLink 4 (450 GB/s, 10 us)", 450e9, 10e-6)
ETHERNET = Link("64 machines, 100 Gb/s (12.5 GB/s, 30 us)", 12.5e9, 30e-6)


@dataclass(frozen=True)
class Shape:
    """A plan of T steps of D features, by a model of so many multiply-adds a row."""

    name: str
    horizon: int
    features: int
    multiplies: float


SHAPES = (
    Shape("MLP latent, D = 512, T = 20,000", 20_000, 512, 2e6),
    Shape("visual tokens, D = 75,264, T = 512", 512, 75_264, 6e9),
)
RATE = 200e12  # operations per second of a GPU on such models: what one may hope for
NUMBER = 4  # bytes


def on_paper() -> str:
    """An iteration over time: what a rank computes, and the row that it waits for."""
    rows = []
    for shape in SHAPES:
        for link, size in ((NVLINK, 8), (ETHERNET, 64)):
            # Forward, and the way back to the actions: twice two operations per multiply-add.
            compute = 4 * shape.multiplies * shape.horizon / size / RATE
            sent = shape.features * NUMBER
            wire = link.latency + sent / link.bandwidth
            rows.append(
                [
                    shape.name,
                    link.name,
                    f"{sent / 1e3:,.0f} kB",
                    f"{1e6 * compute:,.0f} us",
                    f"{1e6 * wire:,.0f} us",
                    f"{compute / (compute + wire):.0%}",
                ]
            )
    header = ("plan", "ranks", "sent", "computing", "on the link", "share computing")
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns (5)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="where to write the tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with ranks() as world:
        found = measured(world, args.rounds)
        if not world.first:
            return
        print(found, on_paper(), sep="\n\n")
        if args.page:
            text = replaced(args.page.read_text(), BEGIN, END, found)
            args.page.write_text(replaced(text, PAPER_BEGIN, PAPER_END, on_paper()))


if __name__ == "__main__":
    main()
