"""How fast are whole-plan kernels on this CPU, next to the general path and to the arithmetic?

    python bench/plan.py [--json FILE] [--rounds N] [--no-compile]        (make bench-plan)

One thread, float32, horizon 50, MLP world models with random weights. All variants run interleaved
in one process with warm caches; numbers are medians. Before any number is printed, the whole-plan
path must give the losses of the general path.

- general, eager: `GraspPlanner`'s loop, call by call: the model in torch, the fused step native
- general, compiled: the same with `torch.compile(model)`
- whole plan: `mlp_lifted_plan_`, `mlp_sync_`, `mlp_rollout`
- floor: the multiply-adds of the model alone, at the rate of a large matrix product measured in the
  same turns

Exit status: 0 if every required ratio is met, 1 if one is missed, 2 if there is no native backend.
A miss is the verdict of this machine under its present load: look at the quartiles first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from grasp_bench.timing import (
    UNAVAILABLE,
    Bar,
    Timing,
    bars_table,
    measure,
    processor,
    times_table,
    verdict,
)
from grasp_planner import GraspConfig, GraspPlanner, whole_plan
from grasp_planner.cli.arguments import positive
from grasp_planner.inputs import check_problem
from grasp_planner.lifted_plans import LiftedPlans
from grasp_planner.search import Search
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.world_model import frozen
from rich.console import Console
from torch import Tensor

from grasp_kernels import MLPDynamics, mlp_rollout, native

HORIZON = 50
ITERATIONS = 20  # per launch
SYNC_STEPS = 10  # per launch
SQUARE = 1024  # of the product that measures the arithmetic


@dataclass(frozen=True)
class Shape:
    """A world model: D state features, A action features, hidden layers."""

    state: int
    action: int
    hidden: int
    layers: int

    def __str__(self) -> str:
        return f"D={self.state} A={self.action} H={self.hidden}x{self.layers} T={HORIZON}"

    def model(self) -> ResidualMLP:
        torch.manual_seed(0)
        model = ResidualMLP(self.state, self.action, hidden=self.hidden, layers=self.layers).eval()
        model.change_scale.fill_(0.1)  # a gentle map, whose rollouts stay where states live
        return model.requires_grad_(False)

    @property
    def forward(self) -> int:
        """Floating-point operations of one row's prediction: two per weight."""
        inputs = self.state + self.action
        inner = (self.layers - 1) * self.hidden**2
        return 2 * (inputs * self.hidden + inner + self.hidden * self.state)

    @property
    def iteration(self) -> int:
        """And with the VJP for the action."""
        inner = (self.layers - 1) * self.hidden**2
        return self.forward + 2 * (self.state * self.hidden + inner + self.hidden * self.action)


SHAPES = (Shape(4, 2, 128, 3), Shape(64, 2, 256, 2))


def settings(**changes: Any) -> GraspConfig:
    given: dict[str, Any] = {
        "horizon": HORIZON,
        "candidates": 1,
        "action_low": -1.0,
        "action_high": 1.0,
        "iterations": 400,
        "sync_every": 100,
        "sync_steps": 10,
        "final_sync_steps": 50,
        **changes,
    }
    return GraspConfig(**given)


def problems(shape: Shape, plans: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(plans, shape.state, generator=generator)
    return start, start + 0.3 * torch.randn(plans, shape.state, generator=generator)


def search(model: Any, shape: Shape, plans: int) -> LiftedPlans:
    """The planner's variables, before the first iteration; of a general model, or of kernels."""
    given = model if isinstance(model, MLPDynamics) else lambda s, a: model(s, a)
    planner = GraspPlanner(given, settings(action_features=shape.action))
    start, goal = problems(shape, plans)
    problem = check_problem(given, planner.config, start, goal, None, None)
    # A launch ends where a snapshot is wanted.
    found = Search(planner, problem, snapshots=frozenset((ITERATIONS,))).algorithm
    assert isinstance(found, LiftedPlans)
    found.begin()
    return found


def launches(found: LiftedPlans) -> Callable[[], object]:
    """One iteration of a general model, `ITERATIONS` of kernels."""
    return lambda: found.iterate(1)


def check(shape: Shape, model: ResidualMLP, dynamics: MLPDynamics) -> None:
    """The whole-plan path against the general path: the losses of the first iterations."""
    plans = []
    for world_model in (dynamics, lambda s, a: model(s, a)):
        config = settings(
            iterations=20, sync_every=0, final_sync_steps=2, action_features=shape.action
        )
        plans.append(GraspPlanner(world_model, config).plan(*problems(shape, 3)))
    assert plans[0].path == whole_plan.WHOLE_PLAN, plans[0].path
    assert plans[1].path != whole_plan.WHOLE_PLAN
    torch.testing.assert_close(plans[0].loss_history, plans[1].loss_history, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plans[0].cost, plans[1].cost, rtol=1e-3, atol=1e-6)


def large_product() -> Callable[[], object]:
    left, right, out = (torch.randn(SQUARE, SQUARE) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def per_call(timings: dict[str, Timing], **calls: int) -> dict[str, Timing]:
    """Divides the times of launches that do several iterations or steps."""

    def scaled(timing: Timing, by: int) -> Timing:
        return Timing(timing.median / by, timing.low / by, timing.high / by)

    return {
        name: scaled(timing, calls["whole"]) if name.startswith("whole") else timing
        for name, timing in timings.items()
    }


class Report:
    """Prints case after case, and remembers."""

    def __init__(self, console: Console, rounds: int) -> None:
        self.console, self.rounds = console, rounds
        self.cases: list[dict[str, Any]] = []
        self.missed: list[str] = []

    def case(
        self,
        title: str,
        functions: dict[str, Callable[[], object]],
        bars: Callable[[dict[str, float]], list[Bar]],
        *,
        operations: int = 0,
        whole: int = 1,
        unit: str = "row",
        units: int = 1,
    ) -> None:
        """Measures; with `operations` the floor is measured beside it and listed."""
        beside = {"large product": large_product()} if operations else {}
        timings = per_call(measure({**functions, **beside}, self.rounds), whole=whole)
        if operations:
            timings["floor"] = timings.pop("large product")
            scale = operations / (2 * SQUARE**3)
            floor = timings["floor"]
            timings["floor"] = Timing(floor.median * scale, floor.low * scale, floor.high * scale)
        results = bars({name: timing.median for name, timing in timings.items()})
        self.console.print(times_table(title, timings, unit, units))
        self.console.print(bars_table(results), "")
        self.missed += [f"{title}: {bar.name}" for bar in results if bar.met is False]
        self.cases.append(
            {
                "case": title,
                "seconds": {name: asdict(timing) for name, timing in timings.items()},
                "bars": [{**asdict(bar), "met": bar.met} for bar in results],
            }
        )


def iterations(report: Report, shape: Shape, plans: int, models: dict[str, Any]) -> None:
    dynamics = models["dynamics"]
    narrow = dynamics.to(torch.bfloat16)
    functions = {
        f"general, {name}": launches(search(models[name], shape, plans))
        for name in ("eager", "compiled")
        if name in models
    }
    functions["whole plan"] = launches(search(dynamics, shape, plans))
    functions["whole plan, bfloat16"] = launches(search(narrow, shape, plans))

    def bars(t: dict[str, float]) -> list[Bar]:
        alone = plans == 1
        found = [Bar("eager / whole", t["general, eager"] / t["whole plan"], 4 if alone else None)]
        if "general, compiled" in t:
            found.append(Bar("compiled / whole", t["general, compiled"] / t["whole plan"], None))
        ratio = t["whole plan"] / t["floor"]
        found.append(Bar("whole / floor", ratio, None if alone else 1.5, at_most=True))
        narrow_gain = t["whole plan"] / t["whole plan, bfloat16"]
        found.append(Bar("float32 / bfloat16", narrow_gain, None if alone else 1.5))
        return found

    rows = plans * HORIZON
    report.case(
        f"lifted iteration, N={plans}, {shape}",
        functions,
        bars,
        operations=rows * shape.iteration,
        whole=ITERATIONS,
        units=rows,
    )


def sync_steps(report: Report, shape: Shape, plans: int, models: dict[str, Any]) -> None:
    dynamics = models["dynamics"]

    def general(found: LiftedPlans) -> Callable[[], object]:
        memory: dict[str, Any] = {}

        def step() -> None:
            config = found.config
            gradient = found.judge(with_gradient=True)
            found.move_actions(gradient, memory, config.sync_lr, config.sync_optimizer)

        return step

    functions: dict[str, Callable[[], object]] = {
        f"general, {name}": general(search(models[name], shape, plans))
        for name in ("eager", "compiled")
        if name in models
    }
    found = search(dynamics, shape, plans)
    functions["whole plan"] = lambda: found.sync(SYNC_STEPS)

    def bars(t: dict[str, float]) -> list[Bar]:
        required = 15 if plans == 1 else None
        results = [Bar("eager / whole", t["general, eager"] / t["whole plan"], required)]
        if "general, compiled" in t:
            results.append(Bar("compiled / whole", t["general, compiled"] / t["whole plan"], None))
        return results

    title = f"sync step, N={plans}, {shape} (whole plan: {SYNC_STEPS} and the last rollout)"
    report.case(title, functions, bars, whole=SYNC_STEPS, units=plans * HORIZON)


def complete_plan(report: Report, shape: Shape, models: dict[str, Any]) -> None:
    start, goal = problems(shape, 1)
    config = settings(action_features=shape.action)
    names = [name for name in ("eager", "compiled") if name in models]
    functions: dict[str, Callable[[], object]] = {}
    for name in names:
        model = models[name]
        planner = GraspPlanner(lambda s, a, model=model: model(s, a), config)
        functions[f"general, {name}"] = partial(planner.plan, start, goal)
    whole = GraspPlanner(models["dynamics"], config)
    functions["whole plan"] = lambda: whole.plan(start, goal)

    def bars(t: dict[str, float]) -> list[Bar]:
        results = [Bar("eager / whole", t["general, eager"] / t["whole plan"], 8)]
        if "general, compiled" in t:
            results.append(Bar("compiled / whole", t["general, compiled"] / t["whole plan"], None))
        return results

    title = f"complete plan, N=1, {shape}: 400 iterations, sync 3 x 10, final 50"
    report.case(title, functions, bars, unit="iteration", units=400)


def many_rollouts(report: Report, shape: Shape, models: dict[str, Any]) -> None:
    plans, dynamics = 64 * 300, models["dynamics"]
    start, _ = problems(shape, plans)
    actions = torch.rand(plans, HORIZON, shape.action) * 2 - 1
    rows = plans * HORIZON

    def bars(t: dict[str, float]) -> list[Bar]:
        return [Bar("whole / floor", t["whole plan"] / t["floor"], 1.3, at_most=True)]

    report.case(
        f"rollouts of 64 x 300 plans, {shape}",
        {"whole plan": lambda: mlp_rollout(dynamics, start, actions)},
        bars,
        operations=rows * shape.forward,
        units=rows,
    )


def products(report: Report) -> None:
    """The measurement that decided for a microkernel: the products the MLP kernels are made of."""
    repeats = 100
    for width in (128, 256):
        matrix = torch.randn(width, width)
        for rows in (1, 4, 14, 50):
            left = torch.randn(rows, width)
            out = torch.empty(rows, width)
            expected = left.double() @ matrix.double()
            torch.testing.assert_close(
                native.small_product(left, matrix).double(), expected, rtol=1e-5, atol=1e-3
            )

            def library(left: Tensor = left, matrix: Tensor = matrix, out: Tensor = out) -> None:
                for _ in range(repeats):
                    torch.mm(left, matrix, out=out)

            def ours(left: Tensor = left, matrix: Tensor = matrix) -> None:
                native.small_product(left, matrix, repeats)

            def bars(t: dict[str, float]) -> list[Bar]:
                return [Bar("torch.mm / microkernel", t["torch.mm"] / t["microkernel"], None)]

            report.case(
                f"{repeats} products, {rows} rows by {width} x {width}",
                {"microkernel": ours, "torch.mm": library},
                bars,
                unit="row",
                units=repeats * rows,
            )
    functions: dict[str, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(SQUARE, SQUARE).to(dtype) for _ in range(2))
        functions[str(dtype).removeprefix("torch.")] = partial(torch.mm, left, right)
    report.case(
        f"torch.mm of {SQUARE} x {SQUARE}: what this processor makes of bfloat16",
        functions,
        lambda t: [Bar("float32 / bfloat16", t["float32"] / t["bfloat16"], None)],
        unit="row",
        units=SQUARE,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="write every number to this file (none)")
    parser.add_argument("--rounds", type=positive, default=15, help="turns per case (15)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    available, reason = native.status()
    if not available:
        console.print(f"the native backend is not available: {reason}")
        return UNAVAILABLE
    torch.set_num_threads(1)
    console.print(f"{processor()}; native: {reason}; torch {torch.__version__}; one thread\n")

    report = Report(console, options.rounds)
    products(report)
    for shape in SHAPES:
        model = shape.model()
        with frozen(model):
            models: dict[str, Any] = {"eager": model, "dynamics": model.mlp_dynamics()}
            check(shape, model, models["dynamics"])
            for plans in (1, 16, 64):
                if not options.no_compile:
                    torch._dynamo.reset()
                    models["compiled"] = torch.compile(model, dynamic=False)
                iterations(report, shape, plans, models)
                sync_steps(report, shape, plans, models)
                if plans == 1:
                    complete_plan(report, shape, models)
            many_rollouts(report, shape, models)
    if options.json:
        machine = {"processor": processor(), "native": reason, "torch": torch.__version__}
        text = json.dumps({"machine": machine, "cases": report.cases}, indent=1)
        options.json.write_text(text + "\n")
    return verdict(console, report.missed)


if __name__ == "__main__":
    raise SystemExit(main())
