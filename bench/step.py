"""How fast is one fused lifted step on this CPU, next to eager torch, `torch.compile`, and a copy?

    python bench/step.py [--json FILE] [--rounds N]        (make bench-step)

float32, white noise. All variants run interleaved in one process, in turns, with warm caches and
warm allocations; the numbers are medians, with the interquartile range as the noise of the machine.
Before any number is printed the native step is compared with the float64 reference.

The floor: the step reads prediction and trajectory and writes cotangent and trajectory, four
arrays. "copy" moves as many bytes by `Tensor.copy_`, two arrays in and two out.

Exit status: 0 if every required ratio is met, 1 if one is missed, 2 if there is no native backend.
A miss is the verdict of this machine under its present load: look at the quartiles first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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
from grasp_planner.cli.arguments import positive
from rich.console import Console
from torch import Tensor

import grasp_kernels
from grasp_kernels import native, reference

STATE_LR, GOAL_WEIGHT, NOISE_SCALE = 0.05, 0.1, 0.01


@dataclass(frozen=True)
class Case:
    """A size, and the bars that the native step must clear: at least this many times faster."""

    plans: int
    steps: int
    features: int
    eager: float | None = None
    compiled: float | None = None
    copy: float | None = None  # at most this many times the copy
    second_thread: float | None = None

    def __str__(self) -> str:
        return f"N={self.plans} T={self.steps} D={self.features:,}"


CASES = (
    Case(1, 50, 75264, eager=10, compiled=20, copy=2.2, second_thread=1.6),
    Case(64, 50, 64, eager=6),
    Case(1, 50, 4),
)


def eager_step(trajectory: Tensor, prediction: Tensor, goal: Tensor) -> tuple[Tensor, ...]:
    """The same step as a careful user writes it in torch: temporaries reused, updates in place."""
    residual = prediction - trajectory[:, 1:]
    goal_error = prediction - goal[:, None]
    dynamics = residual.square().sum(-1)
    goal_loss = goal_error.square().sum(-1)
    cotangent = goal_error.mul_(GOAL_WEIGHT).add_(residual).mul_(2)
    states = trajectory[:, 1:-1]
    states.add_(residual[:, :-1], alpha=2 * STATE_LR)
    states.add_(torch.randn_like(states), alpha=NOISE_SCALE)
    return dynamics, goal_loss, cotangent


def native_step(trajectory: Tensor, prediction: Tensor, goal: Tensor) -> tuple[Tensor, ...]:
    """Through the public call, checks and dispatch included."""
    loss, cotangent = grasp_kernels.lifted_step_(
        trajectory,
        prediction,
        goal,
        state_lr=STATE_LR,
        goal_weight=GOAL_WEIGHT,
        noise_scale=NOISE_SCALE,
        seed=0,
        iteration=1,
    )
    return *loss, cotangent


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Trajectory, prediction and goal."""
    generator = torch.Generator().manual_seed(0)
    n, t, d = case.plans, case.steps, case.features
    trajectory = torch.randn(n, t + 1, d, generator=generator)
    prediction = torch.randn(n, t, d, generator=generator)
    return trajectory, prediction, torch.randn(n, d, generator=generator)


def check(case: Case) -> None:
    """Native against the reference; and eager, without its own noise, against the same."""
    trajectory, prediction, goal = operands(case)

    def truth(noise_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        states = trajectory.double()
        loss, cotangent = reference.lifted_step_(
            states,
            prediction.double(),
            goal.double(),
            state_lr=STATE_LR,
            goal_weight=GOAL_WEIGHT,
            noise_scale=noise_scale,
            seed=0,
            iteration=1,
        )
        return loss.dynamics, cotangent, states

    def compare(name: str, results: tuple[Tensor, ...], truths: tuple[Tensor, ...]) -> None:
        for what, result, expected in zip(
            ("loss", "cotangent", "trajectory"), results, truths, strict=False
        ):
            torch.testing.assert_close(
                result.double(),
                expected,
                rtol=1e-5,
                atol=1e-5,
                msg=f"{case}: {what} of {name} differs from the reference",
            )

    states = trajectory.clone()
    dynamics, _, _, cotangent = native_step(states, prediction, goal)
    compare("native", (dynamics, cotangent, states), truth(NOISE_SCALE))

    states, expected = trajectory.clone(), truth(0.0)
    dynamics, _, cotangent = eager_step(states, prediction, goal)
    noise = states - expected[2]  # what is left must be noise of the right size
    assert abs(noise[:, 1:-1].std() / NOISE_SCALE - 1) < 0.2, f"{case}: eager noise"
    compare("eager", (dynamics.sum(-1), cotangent), expected[:2])


def variants(case: Case) -> dict[str, Callable[[], object]]:
    trajectory, prediction, goal = operands(case)
    compiled_step = torch.compile(eager_step, dynamic=False)
    source = torch.empty_like(prediction).copy_(prediction)
    targets = [torch.empty_like(prediction) for _ in range(2)]

    def copy() -> None:
        targets[0].copy_(prediction)
        targets[1].copy_(source)

    def two_threads() -> None:
        native_step(trajectory, prediction, goal)

    return {
        "native": lambda: native_step(trajectory, prediction, goal),
        "native, 2 threads": two_threads,
        "eager": lambda: eager_step(trajectory, prediction, goal),
        "compiled": lambda: compiled_step(trajectory, prediction, goal),
        "copy": copy,
    }


def bars(case: Case, timings: dict[str, Timing]) -> list[Bar]:
    t = {name: timing.median for name, timing in timings.items()}
    return [
        Bar("eager / native", t["eager"] / t["native"], case.eager),
        Bar("compiled / native", t["compiled"] / t["native"], case.compiled),
        Bar("native / copy", t["native"] / t["copy"], case.copy, at_most=True),
        Bar("1 thread / 2 threads", t["native"] / t["native, 2 threads"], case.second_thread),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="write every number to this file (none)")
    parser.add_argument("--rounds", type=positive, default=25, help="turns per case (25)")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 100)

    available, reason = native.status()
    if not available:
        console.print(f"the native backend is not available: {reason}")
        return UNAVAILABLE
    torch.set_num_threads(1)
    console.print(f"{processor()}; native: {reason}; torch {torch.__version__}; one thread")
    console.print("ratios of times above 1 favour native, except native / copy\n")

    report, missed = [], []
    for case in CASES:
        check(case)
        timings = measure(variants(case), options.rounds, {"native, 2 threads": 2})
        results = bars(case, timings)
        elements = case.plans * case.steps * case.features
        console.print(times_table(str(case), timings, "element", elements))
        console.print(bars_table(results), "")
        missed += [f"{case}: {bar.name}" for bar in results if bar.met is False]
        report.append(
            {
                "case": str(case),
                "seconds": {name: asdict(timing) for name, timing in timings.items()},
                "bars": [{**asdict(bar), "met": bar.met} for bar in results],
            }
        )
    if options.json:
        machine = {"processor": processor(), "native": reason, "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "cases": report}, indent=1) + "\n")
    return verdict(console, missed)


if __name__ == "__main__":
    raise SystemExit(main())
