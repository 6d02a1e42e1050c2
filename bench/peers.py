"""Planners of other projects on the same world model, where they are installed.

One complete plan of one problem, T = 50, through the small MLP: `grasp_planner` with its default
settings, pytorch-mppi's MPPI and stable-worldmodel's CEM with 300 samples and 30 iterations each,
on one thread. Different algorithms do different work, so each row says what cost its plan reaches
by a rollout of the model, beside that of doing nothing. Its gate: finite, and cheaper than that.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from grasp_planner import GraspConfig, GraspPlanner
from torch import Tensor

from .cases import SMALL_MODEL, Case
from .gate import GREEN
from .lifted import HIGH, LOW
from .mlp import operands, roll_out
from .runner import Row, Settings, one_turn, rounds_for
from .timing import measure
from .workload import Operands

SAMPLES, ITERATIONS, ELITES = 300, 30, 30
CASE = Case("complete plan", SMALL_MODEL)
Plan = Callable[[], Tensor]


def problem() -> Operands:
    """Start and model of one problem, and a goal that can be reached."""
    given = operands(CASE, torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    actions = torch.rand(given["actions"].shape, generator=generator) * (HIGH - LOW) + LOW
    steady = actions.mean(1, keepdim=True).expand_as(actions).sign() * 0.8
    given["goal"] = roll_out(given["model"], given["start"], steady)[:, -1]
    return given


def grasp(given: Operands) -> Plan:
    config = GraspConfig(horizon=CASE.shape.steps, action_low=LOW, action_high=HIGH)
    planner = GraspPlanner(given["dynamics"], config)
    return lambda: planner.plan(given["start"], given["goal"]).actions


def pytorch_mppi(given: Operands) -> Plan:
    """`MPPI.command` without shifting: each call is one more iteration on the same plan."""
    module = importlib.import_module("pytorch_mppi")
    start, goal, model = given["start"], given["goal"], given["model"]
    bound = torch.full((CASE.shape.actions,), HIGH)
    temperature = 0.002 * cost(given, torch.zeros_like(given["actions"]))

    def plan() -> Tensor:
        planner = module.MPPI(
            model,
            lambda state, action: state.new_zeros(len(state)),
            CASE.shape.features,
            0.25 * torch.eye(CASE.shape.actions),
            num_samples=SAMPLES,
            horizon=CASE.shape.steps,
            terminal_state_cost=lambda states, actions: (
                (states[..., -1, :] - goal).square().sum(-1)
            ),
            lambda_=temperature,
            u_min=-bound,
            u_max=bound,
            U_init=torch.zeros(CASE.shape.steps, CASE.shape.actions),
        )
        for _ in range(ITERATIONS):
            planner.command(start[0], shift_nominal_trajectory=False)
        return planner.U[None].clamp(LOW, HIGH)

    return plan


def stable_worldmodel(given: Operands) -> Plan:
    """`CEMSolver.solve`; its samples have no box, so its plan is clamped to it."""
    solvers = importlib.import_module("stable_worldmodel.solver")
    spaces = importlib.import_module("gymnasium.spaces")
    steps, size = CASE.shape.steps, CASE.shape.actions

    class Model:
        def get_cost(self, info: dict[str, Tensor], candidates: Tensor) -> Tensor:
            actions = candidates.flatten(0, 1).clamp(LOW, HIGH)
            start = info["start"].flatten(0, 1)
            error = roll_out(given["model"], start, actions)[:, -1] - info["goal"].flatten(0, 1)
            return error.square().sum(-1).unflatten(0, candidates.shape[:2])

        criterion = get_cost

    solver = solvers.CEMSolver(
        Model(), num_samples=SAMPLES, n_steps=ITERATIONS, topk=ELITES, var_scale=0.5
    )
    space = spaces.Box(LOW, HIGH, shape=(1, size))
    config = SimpleNamespace(horizon=steps, receding_horizon=steps, action_block=1)
    solver.configure(action_space=space, n_envs=1, config=config)
    info = {"start": given["start"], "goal": given["goal"]}

    def plan() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its time
            return solver.solve(info)["actions"].clamp(LOW, HIGH)

    return plan


PEERS: dict[str, tuple[str, Callable[[Operands], Plan]]] = {
    "grasp_planner": ("grasp-kernels", grasp),
    "pytorch_mppi": ("pytorch-mppi", pytorch_mppi),
    "stable_worldmodel": ("stable-worldmodel", stable_worldmodel),
}


def rows(settings: Settings, absent: dict[str, str]) -> list[Row]:
    """A row per planner that is installed; the others go into `absent`."""
    given = problem()
    torch.set_num_threads(1)
    found: list[Row] = []
    plans: dict[str, Plan] = {}
    for package, (distribution, make) in PEERS.items():
        try:
            version = importlib.metadata.version(distribution)
            importlib.import_module(package)
        except Exception as error:  # whatever a foreign package raises while it is imported
            missing = isinstance(error, importlib.metadata.PackageNotFoundError)
            why = "not installed" if missing else f"{type(error).__name__}: {error}"
            absent[distribution] = why.split("\n", 1)[0][:200]
            continue
        name = f"{package} {version}"
        plan, gate, note = judged(make, given)
        shape, dtype = str(CASE.shape), "float32"
        found.append(Row(CASE.name, CASE.op, shape, dtype, name, "cpu", 1, gate, note=note))
        if plan is not None:
            plans[name] = plan
    _time(settings, found, plans)
    return found


def judged(
    make: Callable[[Operands], Plan], given: Operands
) -> tuple[Plan | None, str, str | None]:
    """The plan's call (None if its gate is red), the gate, and the cost that it reaches."""
    idle = cost(given, torch.zeros_like(given["actions"]))
    try:
        plan = make(given)
        reached = cost(given, plan())
    except Exception as error:  # another project's API may have moved
        first = str(error).strip().split("\n", 1)[0]
        return None, f"not run: {type(error).__name__}: {first[:200]}", None
    note = f"cost {reached:.2g}; doing nothing {idle:.2g}"
    if not reached < idle:  # also for NaN
        return None, f"failed: {note}", note
    return plan, GREEN, note


def cost(given: Operands, actions: Tensor) -> float:
    """Squared distance of the true rollout to the goal."""
    if actions.shape != given["actions"].shape:
        raise ValueError(f"the plan has shape {tuple(actions.shape)}")
    states = roll_out(given["model"], given["start"], actions.float())
    return float((states[:, -1] - given["goal"]).square().sum())


def _time(settings: Settings, found: list[Row], plans: dict[str, Any]) -> None:
    if not plans:
        return
    turn = one_turn(plans, dict.fromkeys(plans, 1))
    rounds = rounds_for(turn, settings.seconds, min(3, settings.rounds), settings.rounds)
    times = measure({name: partial(plan) for name, plan in plans.items()}, rounds, warm_up=1)
    for row in found:
        if row.backend in times:
            timing = times[row.backend]
            row.median_ms, row.q1_ms, row.q3_ms = (
                1e3 * seconds for seconds in (timing.median, timing.low, timing.high)
            )
            row.rounds = rounds
