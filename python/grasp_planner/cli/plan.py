"""`grasp plan`: draw problems of a task, plan them, execute the plans in the real environment."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from grasp_planner import tasks
from grasp_planner.cli.arguments import device, fraction, integer, positive, seed, task_name
from grasp_planner.cli.launched import USAGE, naming_the_lost, run_by_ranks
from grasp_planner.config import GraspConfig
from grasp_planner.distributed.launch import Ranks
from grasp_planner.distributed.sharded import OVER, Sharded
from grasp_planner.plan import Plan, moved
from grasp_planner.planner import GraspPlanner
from grasp_planner.plots import animate_execution, draw_plan
from grasp_planner.presets import planner_config
from grasp_planner.tasks import MissingExtraError, Problems, Task
from grasp_planner.tasks.requirements import require

TOO_FEW = 1  # exit status: fewer plans reached the goal than --min-success asks for


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `plan` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "plan",
        help="plan problems of a task and execute the plans in its real environment",
        description="Draws problems that are neither trivial nor impossible, plans them all in one "
        "batch through the task's world model, and executes the actions, open loop, in the real "
        "environment. Writes plan.json, plan.png and plan.gif. Under torchrun the ranks share out "
        "the work, and rank 0 executes and writes. Exit status 1 if too few plans reach their goal "
        "(of rank 0), 3 if a rank was lost.",
    )
    ours, papers = GraspConfig(), GraspConfig.paper()
    add = parser.add_argument
    add("task", type=task_name, metavar="TASK", help=f"one of {', '.join(tasks.names())}")
    add("--horizon", type=positive, metavar="T", help=f"steps per plan ({horizons()})")
    add("--problems", type=positive, default=30, metavar="B", help="how many (30)")
    add("--seed", type=seed, default=0, help="of the problems and of the noise (0)")
    add("--out", type=Path, default=Path("out/plan"), metavar="DIR", help="(out/plan)")
    add(
        "--weights",
        type=Path,
        metavar="DIR",
        help="a world model that `grasp train --out` wrote (the shipped one)",
    )
    add("--paper", action="store_true", help="the paper's settings in place of the defaults")
    add(
        "--candidates",
        type=positive,
        metavar="R",
        help=f"plans per problem ({ours.candidates}; with --paper {papers.candidates})",
    )
    add(
        "--iterations",
        type=integer(0),
        metavar="K",
        help=f"lifted iterations ({ours.iterations}; with --paper {papers.iterations})",
    )
    add(
        "--max-rows",
        type=positive,
        metavar="ROWS",
        help="most (plan, time step) pairs that the world model evaluates at once: bounds the "
        "memory of its activations and gradients, changes no plan (no bound)",
    )
    add("--device", type=device, default="cpu", help="where to plan, such as cuda (cpu)")
    add(
        "--threads",
        type=positive,
        metavar="N",
        help=f"CPU threads (torch's choice, here {torch.get_num_threads()})",
    )
    add(
        "--min-success",
        type=fraction,
        default=0.6,
        metavar="F",
        help="fraction that must reach the goal in the environment for exit status 0 (0.6)",
    )
    add("--no-pictures", action="store_true", help="write plan.json only")
    add("--shard", choices=OVER, default="problems",
        help="what ranks share out; 'time' plans with the kernels step (problems)")  # fmt: skip
    add("--timeout", type=positive, default=600, metavar="S",
        help="seconds that ranks wait for one another (600)")  # fmt: skip
    parser.set_defaults(run=run)


def horizons() -> str:
    """Every task's own horizon, for the help."""
    by_steps: dict[int, list[str]] = {}
    for name in tasks.names():
        by_steps.setdefault(tasks.task_class(name).horizons[0], []).append(name)
    if len(by_steps) == 1:
        return str(*by_steps)
    return ", ".join(f"{steps} for {' and '.join(names)}" for steps, names in by_steps.items())


def run(args: argparse.Namespace) -> int:
    """Plans, executes, reports; returns the exit status."""
    return run_by_ranks(
        "grasp plan",
        args.device,
        args.timeout,
        lambda ranks: plan_and_execute(args, ranks),
        interrupted="nothing is written",
    )


def plan_and_execute(args: argparse.Namespace, ranks: Ranks) -> int:
    """All ranks plan; the first does the rest, and its status counts."""
    console = Console(quiet=not ranks.first)
    changes = {name: getattr(args, name) for name in ("candidates", "iterations", "max_rows")}
    changes = {name: value for name, value in changes.items() if value is not None}
    if ranks.size > 1 and args.shard == "time":
        changes["kernels"] = "step"
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        if not args.no_pictures:  # before the work, not after it
            require("matplotlib", task=args.task)
        task = tasks.load(args.task, weights=args.weights)
        horizon = args.horizon or task.horizons[0]
        problems = task.sample_problems(args.problems, horizon=horizon, seed=args.seed)
        config = task_config(task, horizon=horizon, seed=args.seed, paper=args.paper, **changes)
        if ranks.first:
            args.out.mkdir(parents=True, exist_ok=True)
        last = config.iterations
        wanted = {min(k, last) for k in (0, 5, 25, last // 4, last)}
        with naming_the_lost(ranks, "its share of the plans"):
            plan, seconds = timed_plan(
                task, problems, config, console, ranks, over=args.shard, snapshots=wanted
            )
        if not ranks.first:
            return 0
        executed = task.rollout(plan.actions, problems)
    except (ValueError, TypeError, MissingExtraError, OSError) as error:
        print(f"grasp plan: {error}", file=sys.stderr)
        return USAGE

    report = make_report(args, ranks, task, problems, config, plan, executed, seconds)
    (args.out / "plan.json").write_text(json.dumps(report, indent=1) + "\n")
    if not args.no_pictures:
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


def task_config(
    task: Task, *, horizon: int, seed: int = 0, paper: bool = False, **changes: Any
) -> GraspConfig:
    """The planner's settings for this task, the default ones or the paper's, with `changes`."""
    name = "grasp-paper" if paper else "grasp"
    config: GraspConfig = planner_config(name, task, horizon=horizon, seed=seed, **changes)
    return config


def timed_plan(
    task: Task,
    problems: Problems,
    config: GraspConfig,
    console: Console,
    ranks: Ranks,
    *,
    over: str = "problems",
    snapshots: Collection[int] = (),
) -> tuple[Plan, float]:
    """The plan of the whole batch, on the CPU, and the seconds it took after a warm-up."""
    world_model = task.world_model.to(ranks.device)
    start, goal = problems.start.to(ranks.device), problems.goal.to(ranks.device)
    # Builds the native kernels and fills caches outside the timing.
    warm_up = GraspConfig(horizon=1, iterations=1, sync_steps=1, final_sync_steps=1)
    GraspPlanner(world_model, warm_up).plan(start[:1], goal[:1])
    planner = Sharded(GraspPlanner(world_model, config), over)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("iterations"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    ) as progress:
        bar = progress.add_task("planning", total=config.iterations)
        ranks.meet("the beginning of planning")
        begin = time.perf_counter()
        plan = planner.plan(
            start,
            goal,
            snapshots=snapshots,
            progress=lambda k: progress.update(bar, completed=k),
        )
        plan = moved(plan, "cpu")  # which waits for the device
        return plan, time.perf_counter() - begin


def make_report(
    args: argparse.Namespace,
    ranks: Ranks,
    task: Task,
    problems: Problems,
    config: GraspConfig,
    plan: Plan,
    executed: Tensor,
    seconds: float,
) -> dict[str, Any]:
    """Everything measured, ready for JSON."""
    in_model = task.reached(plan.states, problems)
    in_environment = task.environment_reached(executed, problems)
    count = len(problems)
    return {
        "task": task.name,
        "horizon": problems.horizon,
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
        "path": plan.path,
        "device": str(args.device),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size,
        "shard": args.shard if ranks.size > 1 else None,
        "torch": torch.__version__,
        "success_radius": task.success_radius,
        "goal_distance_model": task.goal_distance(plan.states, problems).tolist(),
        "goal_distance_environment": task.environment_distance(executed, problems).tolist(),
        "reached_environment": in_environment.tolist(),
        "start": problems.start.tolist(),
        "goal": problems.goal.tolist(),
        "environment_start": problems.environment_start.tolist(),
        "environment_goal": problems.environment_goal.tolist(),
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
        ("path", report["path"]),
        ("device", f"{report['device']}, {report['threads']} CPU threads{shares(report)}"),
        ("written to", str(out)),
    ):
        table.add_row(name, value)
    console.print(table)


def shares(report: dict[str, Any]) -> str:
    """Who planned, where it was not one process."""
    ranks = report["ranks"]
    return f", each of {ranks} ranks a share of the {report['shard']}" if ranks > 1 else ""


def most_telling(task: Task, problems: Problems, executed: Tensor) -> int:
    """The problem to draw: of those that succeeded, the one with the longest way round."""
    reached = task.environment_reached(executed, problems)
    way = torch.where(reached, problems.distance, problems.distance - problems.distance.max() - 1)
    return int(way.argmax())
