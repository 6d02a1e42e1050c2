"""`grasp plan`: draw problems of a task, plan them, execute the plans in the real environment."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from grasp_planner import tasks
from grasp_planner.config import GraspConfig
from grasp_planner.plan import Plan
from grasp_planner.planner import GraspPlanner
from grasp_planner.plots import animate_execution, draw_plan
from grasp_planner.tasks import MissingExtraError, Problems, Task

TOO_FEW = 1  # exit status: fewer plans reached the goal than --min-success asks for
USAGE = 2  # exit status: the command could not run as asked


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `plan` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "plan",
        help="plan problems of a task and execute the plans in its real environment",
        description="Draws problems whose straight line is blocked, plans them all in one batch "
        "through the task's world model, and executes the actions, open loop, in the real "
        "environment. Writes plan.json, plan.png and plan.gif. Exit status 1 if too few plans "
        "reach their goal.",
    )
    parser.add_argument("task", choices=tasks.names(), help="which task")
    parser.add_argument("--horizon", type=int, default=50, metavar="T", help="steps per plan (50)")
    parser.add_argument("--problems", type=int, default=30, metavar="B", help="how many (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the problems and of the noise (0)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/plan"), metavar="DIR", help="(out/plan)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="a world model that `grasp train --out` wrote"
    )
    parser.add_argument(
        "--paper", action="store_true", help="the paper's settings in place of the defaults"
    )
    parser.add_argument("--candidates", type=int, metavar="R", help="plans per problem")
    parser.add_argument("--iterations", type=int, metavar="K", help="lifted iterations")
    parser.add_argument(
        "--max-rows", type=int, metavar="ROWS", help="memory bound, see GraspConfig"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (torch's default)")
    parser.add_argument(
        "--min-success",
        type=float,
        default=0.6,
        metavar="F",
        help="fraction that must reach the goal in the environment for exit status 0 (0.6)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write plan.json only")


def run(args: argparse.Namespace) -> int:
    """Plans, executes, reports; returns the exit status."""
    console = Console()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        task = tasks.load(args.task, weights=args.weights)
        problems = task.sample_problems(args.problems, horizon=args.horizon, seed=args.seed)
        config = task_config(task, args)
        args.out.mkdir(parents=True, exist_ok=True)
        plan, seconds = timed_plan(task, problems, config, console)
        executed = task.rollout(plan.actions, problems)
    except (ValueError, TypeError, MissingExtraError, OSError) as error:
        print(f"grasp plan: {error}", file=sys.stderr)
        return USAGE

    report = make_report(args, task, problems, config, plan, executed, seconds)
    (args.out / "plan.json").write_text(json.dumps(report, indent=1) + "\n")
    if not args.no_pictures and len(problems):
        shown = most_telling(task, problems, executed)
        draw_plan(args.out / "plan.png", task, problems, plan, executed, shown)
        animate_execution(args.out / "plan.gif", task, problems, plan, executed)
    print_table(console, report, args.out)
    enough = report["success_environment"] >= args.min_success
    if not enough:
        print(
            f"grasp plan: only {report['success_environment']:.0%} of the plans reached their goal "
            f"in the environment, --min-success is {args.min_success:.0%}",
            file=sys.stderr,
        )
    return 0 if enough else TOO_FEW


def task_config(task: Task, args: argparse.Namespace) -> GraspConfig:
    """The planner's settings for this task, with what the command line changes."""
    changes: dict[str, Any] = {
        "horizon": args.horizon,
        "seed": args.seed,
        "action_low": tuple(task.action_low.tolist()),
        "action_high": tuple(task.action_high.tolist()),
        "state_scale": tuple(task.world_model.state_scale.tolist()),
        "goal_feature_weight": tuple(task.goal_weight_features.tolist()),
    }
    for name in ("candidates", "iterations", "max_rows"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    return GraspConfig.paper(**changes) if args.paper else GraspConfig(**changes)


def timed_plan(
    task: Task, problems: Problems, config: GraspConfig, console: Console
) -> tuple[Plan, float]:
    """The plan of the whole batch, and the seconds it took (after one warm-up iteration)."""
    planner = GraspPlanner(task.world_model, config)
    if len(problems):  # builds the native kernels and fills caches outside the timing
        GraspPlanner(task.world_model, GraspConfig(horizon=1, iterations=1)).plan(
            problems.start[:1], problems.goal[:1]
        )
    wanted = sorted({0, 5, 25, config.iterations // 4, config.iterations})
    with Progress(
        TextColumn("planning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("iterations"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("planning", total=config.iterations)
        begin = time.perf_counter()
        plan = planner.plan(
            problems.start,
            problems.goal,
            snapshots=wanted,
            progress=lambda k: progress.update(bar, completed=k),
        )
        return plan, time.perf_counter() - begin


def make_report(
    args: argparse.Namespace,
    task: Task,
    problems: Problems,
    config: GraspConfig,
    plan: Plan,
    executed: torch.Tensor,
    seconds: float,
) -> dict[str, Any]:
    """Everything measured, ready for JSON."""
    in_model = task.reached(plan.states, problems)
    in_environment = task.reached(executed, problems)
    count = max(len(problems), 1)
    return {
        "task": task.name,
        "horizon": args.horizon,
        "problems": len(problems),
        "seed": args.seed,
        "settings": "paper" if args.paper else "default",
        "candidates": config.candidates,
        "iterations": plan.iterations,
        "success_environment": float(in_environment.float().sum()) / count,
        "success_model": float(in_model.float().sum()) / count,
        "seconds": seconds,
        "milliseconds_per_plan": 1e3 * seconds / count,
        "iterations_per_second": plan.iterations / seconds,
        "backend": plan.backend,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "success_radius": task.success_radius,
        "goal_distance_model": task.goal_distance(plan.states, problems).tolist(),
        "goal_distance_environment": task.goal_distance(executed, problems).tolist(),
        "reached_environment": in_environment.tolist(),
        "start": problems.start.tolist(),
        "goal": problems.goal.tolist(),
        "actions": plan.actions.tolist(),
        "states_model": plan.states.tolist(),
        "states_environment": executed.tolist(),
    }


def print_table(console: Console, report: dict[str, Any], out: Path) -> None:
    table = Table(
        title=f"{report['task']}: {report['problems']} problems, horizon {report['horizon']}, "
        f"{report['candidates']} candidates each, {report['settings']} settings",
        title_justify="left",
        show_header=False,
    )
    for name, value in (
        ("success under the model", f"{report['success_model']:.0%}"),
        ("success in the environment", f"{report['success_environment']:.0%}"),
        ("milliseconds per plan", f"{report['milliseconds_per_plan']:.0f} (one batch, wall clock)"),
        (
            "iterations per second",
            f"{report['iterations_per_second']:.1f} (of the whole batch, syncs included)",
        ),
        ("backend", report["backend"]),
        ("CPU threads", str(report["threads"])),
        ("written to", str(out)),
    ):
        table.add_row(name, value)
    console.print(table)


def most_telling(task: Task, problems: Problems, executed: torch.Tensor) -> int:
    """The problem to draw: of those that succeeded, the one with the longest way round."""
    reached = task.reached(executed, problems)
    way = torch.where(reached, problems.distance, problems.distance - problems.distance.max() - 1)
    return int(way.argmax())
