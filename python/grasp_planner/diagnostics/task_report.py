"""All diagnostics of one task, as one report ready for JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grasp_planner.diagnostics.adversarial import adversarial_steps
from grasp_planner.diagnostics.curvature import conditioning
from grasp_planner.diagnostics.failure import Attempts, Executed, explain_plans
from grasp_planner.diagnostics.gradients import gradient_norms
from grasp_planner.diagnostics.setting import Setting
from grasp_planner.diagnostics.slices import landscape
from grasp_planner.diagnostics.trajectory import profile_of, residuals
from grasp_planner.plan import Plan
from grasp_planner.presets import PLANNERS, make_planner, planner_config
from grasp_planner.tasks import MissingExtraError, Problems, Task

Report = dict[str, Any]
Say = Callable[[str], object]

QUARTILES = (0.25, 0.5, 0.75)
ATTACKED = 4  # plans along which adversarial steps are searched
WIDER = 2.0


@dataclass(frozen=True)
class Asked:
    """What is to be diagnosed; see `grasp diagnose --help`."""

    planner: str
    horizon: int
    problems: int
    seed: int
    horizons: tuple[int, ...]
    parts: tuple[str, ...]


def task_setting(task: Task, problems: Problems) -> Setting:
    """A task's problems as the diagnostics take them, success measured as the task does."""

    def distance(states: Tensor, rows: Tensor) -> Tensor:
        return task.goal_distance(states.float(), problems[rows]).to(states)

    return Setting(
        task.world_model,
        problems.start,
        problems.goal,
        state_scale=task.state_scale,
        goal_feature_weight=task.goal_weight_features,
        action_low=task.action_low,
        action_high=task.action_high,
        success_radius=task.success_radius,
        distance=distance,
    )


class Study:
    """A task's problems, their plans, and what became of them; one method for each part."""

    def __init__(self, task: Task, asked: Asked, say: Say) -> None:
        self.task, self.asked, self.say = task, asked, say
        self.problems = task.sample_problems(asked.problems, horizon=asked.horizon, seed=asked.seed)
        self.setting = task_setting(task, self.problems)
        say(f"planning {asked.problems} problems")
        planner = make_planner(asked.planner, task, horizon=asked.horizon, seed=asked.seed)
        self.plan: Plan = planner.plan(self.problems.start, self.problems.goal)
        with torch.no_grad():
            self.imagined = task.imagine(self.plan.actions, self.problems)
        self.in_model = task.reached(self.imagined, self.problems)
        self.executed: Tensor | None = None
        self.no_environment = ""
        say("executing the plans in the environment")
        try:
            self.executed = task.rollout(self.plan.actions, self.problems)
        except MissingExtraError as error:
            self.no_environment = str(error)
        self.in_truth = (
            None
            if self.executed is None
            else task.environment_reached(self.executed, self.problems)
        )
        self.shown = self._most_telling()

    def _most_telling(self) -> int:
        """Of the plans that arrive, the one with the longest way; if none does, the cheapest."""
        arrived = self.in_model if self.in_truth is None else self.in_model & self.in_truth
        arrived = arrived if bool(arrived.any()) else self.in_model
        if bool(arrived.any()):
            return int(torch.where(arrived, self.problems.distance, -torch.inf).argmax())
        return int(self.plan.cost.nan_to_num(torch.inf).argmin())

    def summary(self) -> Report:
        """What was asked, and how the plans did."""
        _, dtype, reason = self.setting.precise(self.task.action_features)
        count = len(self.problems)
        return {
            "task": self.task.name,
            **asdict(self.asked),
            "unit": self.task.unit,
            "success_radius": self.task.success_radius,
            "state_features": self.task.state_features,
            "action_features": self.task.action_features,
            "precision": str(dtype).removeprefix("torch."),
            "precision_reason": reason,
            "success_model": int(self.in_model.sum()) / count,
            "success_environment": (
                None if self.in_truth is None else int(self.in_truth.sum()) / count
            ),
            "no_environment": self.no_environment,
            "shown_problem": self.shown,
            "shown_arrives": bool(self.in_model[self.shown]),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    # ----------------------------------------------------------------------------- what is hard

    def conditioning(self) -> Any:
        """Of the shown plan, against the horizon."""
        return conditioning(
            self.setting,
            self.plan.actions[self.shown],
            self.asked.horizons,
            problem=self.shown,
        )

    def gradients(self) -> Report:
        """Where a search begins: idle actions, virtual states on the straight line."""
        found = gradient_norms(self.setting, torch.zeros_like(self.plan.actions))
        return {
            name: torch.nanquantile(values, torch.tensor(QUARTILES).double(), dim=0)
            for name, values in vars(found).items()
        }

    def adversarial(self) -> Report:
        """Along the first plans that arrive, else along the first; all their states in a row."""
        chosen = self.in_model.nonzero().flatten()[:ATTACKED].tolist()
        chosen = chosen or list(range(min(ATTACKED, len(self.problems))))
        parts = []
        for problem in chosen:
            self.say(f"adversarial states along plan {problem}")
            path, actions = self.imagined[problem], self.plan.actions[problem]
            if bool(path.isfinite().all()):
                parts.append(
                    adversarial_steps(
                        self.setting, path, actions, problem=problem, seed=self.asked.seed
                    )
                )
        if not parts:
            raise ValueError("no plan has a finite rollout to search along")
        joined: Report = {"plans": chosen}
        for name in vars(parts[0]):
            values = [getattr(part, name) for part in parts]
            joined[name] = values[0] if name == "shares" else torch.cat(values)
        return joined

    def landscape(self) -> Any:
        """Around the shown plan."""
        actions = self.plan.actions[self.shown]
        return landscape(self.setting, actions, problem=self.shown, seed=self.asked.seed)

    # ------------------------------------------------------------------------- along trajectories

    def distance(self) -> Report:
        """Every plan's distance to its goal, under the model and in truth."""
        model = _by_step(self.task.goal_distance, self.imagined, self.problems)
        report: Report = {"model": profile_of(model), "environment": None}
        if self.executed is not None:
            real = _by_step(self.task.environment_distance, self.executed, self.problems)
            report["environment"] = profile_of(real)
        return report

    def residuals(self) -> Report:
        """The model's errors along the executed plans, in its own units and in the task's."""
        if self.executed is None:
            raise ValueError(f"the real environment is needed: {self.no_environment}")
        real = self.task.observe(self.executed)
        scale = self.task.state_scale
        found = residuals(self.task.world_model, real, self.plan.actions, state_scale=scale)
        one_step = torch.cat([real[:, :1], found.predictions], dim=1)
        return {
            "one_step": found.one_step,
            "open_loop": found.open_loop,
            "one_step_in_unit": self._apart(one_step)[:, 1:],
            "open_loop_in_unit": self._apart(found.rollout),
        }

    def _apart(self, states: Tensor) -> Tensor:
        """`(B, T + 1)`: the model's states `(B, T + 1, D)` from the real ones, as the task measures
        distances to a goal: the real state of each step is made the goal."""
        assert self.executed is not None
        columns = []
        for step, real in enumerate(self.executed.unbind(1)):
            there = replace(self.problems, goal=self.task.observe(real), environment_goal=real)
            columns.append(self.task.goal_distance(states[:, step], there))
        return torch.stack(columns, 1)

    # ---------------------------------------------------------------------------- why plans fail

    def failures(self) -> Any:
        """A verdict for each plan."""
        executed = None
        if self.executed is not None:
            distance = self.task.environment_distance(self.executed, self.problems)
            executed = Executed(distance, self._apart(self.imagined))
        return explain_plans(
            self.setting, self.plan.actions, self._attempts(), executed, progress=self.say
        )

    def _attempts(self) -> Attempts:
        horizon = self.asked.horizon
        middle = (self.task.action_high + self.task.action_low) / 2
        reach = WIDER * (self.task.action_high - self.task.action_low) / 2
        box = {
            "action_low": tuple((middle - reach).tolist()),
            "action_high": tuple((middle + reach).tolist()),
        }
        return Attempts(
            stronger={
                "lifted-newton with 4 times the samples": self._larger("lifted-newton", horizon, 4),
                "icem with 3 times the samples": self._larger("icem", horizon, 3),
                "gradient with 2 times the restarts": self._larger("gradient", horizon, 2),
            },
            wider={
                "lifted-newton in twice the box": self._larger("lifted-newton", horizon, 2, **box)
            },
            longer={
                steps: self._larger("lifted-newton", steps, 2)
                for steps in (math.ceil(1.5 * horizon), 2 * horizon)
            },
        )

    def _larger(self, name: str, horizon: int, factor: int, **changes: Any) -> Any:
        """A planner with `factor` times the samples, or restarts, and noise of its own."""
        seed = (self.asked.seed + 1) % 2**64
        config = planner_config(name, self.task, horizon=horizon, seed=seed, **changes)
        field = "samples" if hasattr(config, "samples") else "restarts"
        config = replace(config, **{field: factor * getattr(config, field)})
        return PLANNERS[name][0](self.task.world_model, config)


#: Part -> what is said while it is under way.
PARTS = {
    "conditioning": "conditioning of shooting and of lifting",
    "gradients": "gradients by time step",
    "adversarial": "adversarial states",
    "landscape": "slices of the landscape",
    "distance": "distance to the goal",
    "residuals": "errors of the world model",
    "failures": "why plans failed",
}


def diagnose(task: Task, asked: Asked, say: Say) -> Report:
    """The whole report. A part that cannot be made leaves its reason, and the others go on.

    Raises:
        ValueError, TypeError: the problems cannot be drawn or planned.
    """
    study = Study(task, asked, say)
    report: Report = {**study.summary(), "seconds": {}, "not_made": {}}
    for part in asked.parts:
        say(PARTS[part])
        began = time.perf_counter()
        try:
            report[part] = getattr(study, part)()
        except (ValueError, RuntimeError, ImportError) as error:  # also what the model raises
            report["not_made"][part] = str(error)
        report["seconds"][part] = time.perf_counter() - began
    ready: Report = plain(report)
    return ready


def plain(value: Any) -> Any:
    """As JSON has it: tensors and dataclasses as lists and objects, what is not finite as null."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _by_step(
    distance: Callable[[Tensor, Problems], Tensor], states: Tensor, problems: Problems
) -> Tensor:
    """`(B, T + 1)`, of states `(B, T + 1, ...)`."""
    with torch.no_grad():
        return torch.stack([distance(row, problems) for row in states.unbind(1)], 1).double()


def chosen_horizons(wanted: Sequence[int] | None, horizon: int) -> tuple[int, ...]:
    """Those at which conditioning is measured: the ones asked for, else some up to `horizon`."""
    if wanted is not None:
        return tuple(sorted(set(wanted)))
    return tuple(sorted({steps for steps in (5, 10, 20, 50) if steps < horizon} | {horizon}))
