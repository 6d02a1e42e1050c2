"""`grasp profile`: where the time of a plan goes, what it asks of torch, what it costs a GPU."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from grasp_planner import tasks
from grasp_planner.cli.arguments import device, integer, positive, seed, weight
from grasp_planner.cli.plan import task_config
from grasp_planner.config import GraspConfig
from grasp_planner.profiling.page import page, tables
from grasp_planner.profiling.run import profile
from grasp_planner.tasks import MissingExtraError

USAGE = 2  # exit status: the command could not run as asked
#: Weights that plans are asked for from here, to see what the term costs.
COSTS = {
    "running_goal_weight": "the mean squared distance to the goal on the way",
    "action_weight": "the mean squared action",
    "action_change_weight": "its mean squared change",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `profile` to the subcommands of `grasp`."""
    parser = subparsers.add_parser(
        "profile",
        help="where the time of a plan goes",
        description="Plans through a shipped task's world model, or through your own, and says "
        "where the time goes: model forward and VJP, fused step, what a cost adds to it, action "
        "step, sync, Python; "
        "operator calls, kernel launches, allocations and host synchronisations per iteration; "
        "peak memory; on a GPU also power, energy, clocks and throttling. Writes profile.json, "
        "profile.html and trace.json (chrome://tracing, ui.perfetto.dev).",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help=f"{', '.join(tasks.names())}, or module:attribute, a world model F(state, action) of "
        "your own (or a function without arguments that makes one)",
    )
    add("--horizon", type=positive, default=50, metavar="T", help="steps per plan (50)")
    add("--problems", type=positive, default=8, metavar="B", help="planned in one batch (8)")
    add("--iterations", type=integer(0), metavar="K", help="lifted iterations (the default's)")
    add("--candidates", type=positive, metavar="R", help="plans per problem (the default's)")
    for name, what in COSTS.items():
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=weight, metavar="W", help=f"of {what}, added to the cost (0)")
    add("--state-features", type=positive, metavar="D", help="of a world model of your own")
    add("--action-features", type=positive, metavar="A", help="of a world model of your own")
    add("--general", action="store_true", help="call by call, though whole-plan kernels would do")
    add("--repeats", type=positive, default=5, metavar="N", help="timed plans (5)")
    add("--seed", type=seed, default=0, help="of the problems and of the noise (0)")
    add("--device", type=device, default="cpu", help="where to plan, such as cuda (cpu)")
    add("--threads", type=positive, metavar="N", help="CPU threads (torch's choice)")
    add("--out", type=Path, default=Path("out/profile"), metavar="DIR", help="(out/profile)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Profiles, prints, writes; returns the exit status."""
    console = Console()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        world_model, config, start, goal = load(args)
    except (MissingExtraError, ValueError) as error:
        print(f"grasp profile: {error}", file=sys.stderr)
        return USAGE
    if args.general:
        inner = world_model
        world_model = lambda state, action: inner(state, action)  # noqa: E731
    args.out.mkdir(parents=True, exist_ok=True)
    found = profile(
        world_model,
        config,
        start.to(args.device),
        goal.to(args.device),
        name=args.model,
        trace=args.out / "trace.json",
        repeats=args.repeats,
        progress=lambda what: console.print(f"[dim]{what}[/]"),
    )
    (args.out / "profile.json").write_text(json.dumps(found.as_json(), indent=1) + "\n")
    (args.out / "profile.html").write_text(page(found))
    for table in tables(found):
        console.print(table)
    console.print(f"written to {args.out}: profile.json, profile.html, trace.json")
    return 0


def load(args: argparse.Namespace) -> tuple[Any, GraspConfig, Tensor, Tensor]:
    """World model, settings and problems, as the arguments ask for them."""
    changes = {name: getattr(args, name) for name in ("iterations", "candidates", *COSTS)}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.model in tasks.names():
        task = tasks.load(args.model)
        problems = task.sample_problems(args.problems, horizon=args.horizon, seed=args.seed)
        config = task_config(task, horizon=args.horizon, seed=args.seed, **changes)
        return task.world_model.to(args.device), config, problems.start, problems.goal
    world_model = import_model(args.model)
    features = args.state_features or getattr(world_model, "state_features", None)
    if not isinstance(features, int):
        raise ValueError(f"--state-features is needed: {args.model} has no state_features")
    config = GraspConfig(
        horizon=args.horizon, seed=args.seed, action_features=args.action_features, **changes
    )
    generator = torch.Generator().manual_seed(args.seed % 2**63)
    start, goal = torch.randn(2, args.problems, features, generator=generator).unbind(0)
    if isinstance(world_model, torch.nn.Module):
        world_model = world_model.to(args.device)
    return world_model, config, start, goal


def import_model(path: str) -> Any:
    """`module:attribute`, called if it is a function that makes the model."""
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ValueError(
            f"MODEL must be one of {', '.join(tasks.names())} or module:attribute, got {path!r}"
        )
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {path}: {error}") from error
    finally:
        sys.path.remove("")
    if isinstance(found, type) or getattr(getattr(found, "__code__", None), "co_argcount", 1) == 0:
        found = found()
    if not callable(found):
        raise ValueError(f"{path} is a {type(found).__name__}, not a world model F(state, action)")
    return found
