"""What every task offers, and the parts of it that do not depend on which task it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grasp_planner.tasks.data import Array, DataEnvironment
from grasp_planner.tasks.evaluation import open_loop
from grasp_planner.tasks.geometry import Rectangle, Roadmap, crosses
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.training import Recipe
from grasp_planner.tasks.weights import load_weights


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Problems:
    """A batch of B planning problems."""

    start: Tensor
    """(B, D), float32, raw units."""
    goal: Tensor
    """(B, D); `Task.goal_weight_features` says which features count for reaching it."""
    distance: Tensor
    """(B,), length of the shortest free path, in map units."""
    horizon: int
    """Steps T the problems were found feasible in."""
    task: str
    seed: int

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Problems:
        """Some of the problems, as a batch."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.type == "Tensor"}
        return replace(self, **{name: tensor[index] for name, tensor in tensors.items()})


class Task(ABC):
    """An environment, its trained world model, and problems in it; made by `tasks.load`."""

    name: ClassVar[str]
    folder: ClassVar[Path]
    """Where the environment, the recipe, the default weights and the model card live."""
    recipe: ClassVar[Recipe]
    state_names: ClassVar[tuple[str, ...]]
    feature_groups: ClassVar[dict[str, tuple[int, ...]]]
    """Feature columns whose Euclidean error means something, for the model card."""
    position: ClassVar[tuple[int, int]] = (0, 1)
    """The columns of x and y, for drawing."""
    step_seconds: ClassVar[float | None]
    unit: ClassVar[str]
    """Of lengths on the map."""
    walls: ClassVar[tuple[Rectangle, ...]]
    extent: ClassVar[Rectangle]
    body_radius: ClassVar[float]
    """Of the agent; 0 for a point."""
    success_radius: ClassVar[float]
    """A plan reaches its goal if the position at the horizon is this close to it, or closer."""

    near_wall: ClassVar[float]
    """Clearance below which a wall can act within a step or so; for the model card."""
    _norm: ClassVar[Literal["euclidean", "chebyshev"]] = "euclidean"
    _stride: ClassVar[float]
    """Map units a step that a plan can be expected to make on average, with margin."""
    _clearance: ClassVar[float]
    """Starts and goals keep the body this far from every wall."""
    _detour: ClassVar[float] = 1.25
    """The shortest free path is at least this many straight lines long."""

    def __init__(self, weights: str | Path | None = None) -> None:
        """Loads the shipped world model, or that of a folder which `grasp train --out` wrote."""
        self.world_model: ResidualMLP = load_weights(
            self.folder if weights is None else Path(weights), task=self.name
        )
        self.state_features = self.world_model.state_features
        self.action_features = self.world_model.action_features
        self.action_low = -torch.ones(self.action_features)
        self.action_high = torch.ones(self.action_features)
        #: (D,) 1 for the features that must arrive, 0 for the others.
        self.goal_weight_features = torch.zeros(self.state_features)
        self.goal_weight_features[list(self.position)] = 1.0
        body = tuple(wall.inflated(self.body_radius) for wall in self.walls)
        self.roadmap = Roadmap(body, self.extent, self._norm)
        self._environment: DataEnvironment | None = None

    @staticmethod
    @abstractmethod
    def make_environment() -> DataEnvironment:
        """The real environment; raises `MissingExtraError` where its packages are missing."""

    @classmethod
    @abstractmethod
    def random_positions(cls, generator: np.random.Generator, count: int, margin: float) -> Array:
        """(count, 2), uniform over the free positions that keep `margin` to the walls."""

    @classmethod
    def clearance(cls, states: Array) -> Array:
        """(rows, D) -> (rows,): distance from the body's rim to the nearest wall."""
        points = states[:, list(cls.position)]
        nearest = np.full(len(points), np.inf)
        for wall in cls.walls:
            x = np.maximum(np.maximum(wall.x_min - points[:, 0], points[:, 0] - wall.x_max), 0)
            y = np.maximum(np.maximum(wall.y_min - points[:, 1], points[:, 1] - wall.y_max), 0)
            nearest = np.minimum(nearest, np.hypot(x, y))
        return nearest - cls.body_radius

    @property
    def environment(self) -> DataEnvironment:
        """The real environment, made on first use."""
        if self._environment is None:
            self._environment = self.make_environment()
        return self._environment

    def sample_problems(self, count: int, *, horizon: int, seed: int) -> Problems:
        """Draws problems that a straight line does not solve and that `horizon` steps can.

        Kept are pairs of positions whose connecting line runs through a wall, whose shortest free
        path is a real detour (1.25 lines or more), and short enough for the horizon at a moderate
        pace. Velocities, if the task has any, are zero at both ends. The first k problems of a
        seed and horizon are the same however many are asked for.
        """
        if count < 0:
            raise ValueError(f"count must not be negative, not {count}")
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, not {horizon}")
        reach = self._stride * horizon
        generator = np.random.default_rng([seed, horizon])
        pairs, lengths, kept, block, blocks = [], [], 0, 256, 400
        for _ in range(blocks):
            if kept >= count:
                break
            points = self.random_positions(generator, 2 * block, self._clearance)
            start, goal = points[:block], points[block:]
            blocked = crosses(self.walls, start, goal)
            start, goal = start[blocked], goal[blocked]
            length = self.roadmap.distance(start, goal)
            gap = np.abs(goal - start)
            line = gap.max(-1) if self._norm == "chebyshev" else np.hypot(gap[:, 0], gap[:, 1])
            good = (length <= reach) & (length >= self._detour * line)
            pairs.append(np.stack((start[good], goal[good]), axis=1))
            lengths.append(length[good])
            kept += int(good.sum())
        if kept < count:
            raise ValueError(
                f"{self.name}: only {kept} of {count} problems found among {block * blocks} "
                f"draws: within horizon {horizon} a plan covers about {reach:.2g} {self.unit}, and "
                "few or no ways around a wall are that short; use a longer horizon"
            )
        chosen = np.concatenate(pairs)[:count] if pairs else np.empty((0, 2, 2))
        columns = list(self.position)
        start_state = torch.zeros(count, self.state_features)
        goal_state = torch.zeros(count, self.state_features)
        start_state[:, columns] = torch.from_numpy(chosen[:, 0]).float()
        goal_state[:, columns] = torch.from_numpy(chosen[:, 1]).float()
        distance = torch.from_numpy(np.concatenate(lengths or [np.empty(0)])[:count]).float()
        return Problems(start_state, goal_state, distance, horizon, self.name, seed)

    def goal_distance(self, states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, D) or (B, D) -> (B,): from the last position to the goal, in map units."""
        last = states[:, -1] if states.dim() == 3 else states
        if last.shape != problems.goal.shape:
            raise ValueError(
                f"states must be (B, T+1, D) or (B, D) with (B, D) = {tuple(problems.goal.shape)}, "
                f"not {tuple(states.shape)}"
            )
        columns = list(self.position)
        goal = problems.goal.to(last)
        return (last[:, columns] - goal[:, columns]).norm(dim=-1)

    def reached(self, states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, D) or (B, D) -> (B,) bool: the last position is within `success_radius`.

        Stricter than passing by: a plan must be there when its horizon ends. NaN has not arrived.
        """
        return self.goal_distance(states, problems) <= self.success_radius

    def imagine(self, actions: Tensor, problems: Problems) -> Tensor:
        """(B, T, A) -> (B, T+1, D): the rollout of the world model from the problems' starts."""
        self._check(actions, problems)
        return open_loop(self.world_model, problems.start.to(actions), actions)

    def rollout(self, actions: Tensor, problems: Problems) -> Tensor:
        """(B, T, A) -> (B, T+1, D): the same in the real environment, float32 on the CPU."""
        self._check(actions, problems)
        start: NDArray[np.float64] = problems.start.detach().double().cpu().numpy()
        states = self.environment.simulate(start, actions.detach().double().cpu().numpy())
        return torch.from_numpy(states).float()

    def execute(self, actions: Tensor, problems: Problems) -> Tensor:
        """(B, T, A) -> (B,) bool: `reached` at the end of the real `rollout`."""
        return self.reached(self.rollout(actions, problems), problems).cpu()

    def _check(self, actions: Tensor, problems: Problems) -> None:
        if problems.task != self.name:
            raise ValueError(f"problems are of task {problems.task!r}, not {self.name!r}")
        expected = (len(problems), self.action_features)
        if actions.dim() != 3 or (actions.shape[0], actions.shape[2]) != expected:
            raise ValueError(
                f"actions must be (B, T, A) with B = {expected[0]} and A = {expected[1]}, "
                f"not {tuple(actions.shape)}"
            )
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("actions contain a number that is not finite")
