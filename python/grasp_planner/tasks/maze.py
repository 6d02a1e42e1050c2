"""Tasks in the plane where walls are in the way: shortest paths, and problems that bend."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grasp_planner.tasks.data import Array
from grasp_planner.tasks.geometry import Rectangle, Roadmap, crosses
from grasp_planner.tasks.task import Draws, Problems, Task

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

WALL, FLOOR = "#3b4252", "#f4f4f1"


class MazeTask(Task):
    """A body among walls; its environment's state begins with x and y, in map units."""

    starts = "starts all over the free space"
    hard_steps = "near a wall"

    walls: ClassVar[tuple[Rectangle, ...]]
    extent: ClassVar[Rectangle]
    body_radius: ClassVar[float]
    """Of the agent; 0 for a point."""
    near_wall: ClassVar[float]
    """Clearance below which a wall can act within a step or so; for the model card."""
    _norm: ClassVar[Literal["euclidean", "chebyshev"]] = "euclidean"
    _stride: ClassVar[float]
    """Map units a step that a plan can be expected to make on average, with margin."""
    _clearance: ClassVar[float]
    """Starts and goals keep the body this far from every wall."""
    _detour: ClassVar[float] = 1.25
    """The shortest free path is at least this many straight lines long."""
    _berth: ClassVar[float] = 0.08
    """The expert passes corners this far off, along each axis."""

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__(weights)
        self.goal_weight_features[2:] = 0.0  # where it arrives counts, not how fast
        body = tuple(wall.inflated(self.body_radius) for wall in self.walls)
        self.roadmap = Roadmap(body, self.extent, self._norm)

    @classmethod
    @abstractmethod
    def random_positions(cls, generator: np.random.Generator, count: int, margin: float) -> Array:
        """(count, 2), uniform over the free positions that keep `margin` to the walls."""

    @staticmethod
    @abstractmethod
    def push(offset: Array, states: Array) -> Array:
        """The expert's actions (B, 2), unclipped, towards points `offset` (B, 2) from (B, E)."""

    @classmethod
    def clearance(cls, environment_states: Array) -> Array:
        """(rows, E) -> (rows,): distance from the body's rim to the nearest wall."""
        points = environment_states[:, :2]
        nearest = np.full(len(points), np.inf)
        for wall in cls.walls:
            x = np.maximum(np.maximum(wall.x_min - points[:, 0], points[:, 0] - wall.x_max), 0)
            y = np.maximum(np.maximum(wall.y_min - points[:, 1], points[:, 1] - wall.y_max), 0)
            nearest = np.minimum(nearest, np.hypot(x, y))
        return nearest - cls.body_radius

    def is_hard(self, environment_states: Tensor) -> Tensor:
        rows = environment_states.reshape(-1, environment_states.shape[-1]).numpy()
        near = torch.from_numpy(self.clearance(rows) < self.near_wall)
        return near.reshape(environment_states.shape[:-1])

    def draw_problems(self, generator: np.random.Generator, count: int, horizon: int) -> Draws:
        """Pairs of positions that a straight line does not join and that `horizon` steps can.

        Kept are those whose connecting line runs through a wall, whose shortest free path is a real
        detour (1.25 lines or more), and short enough for the horizon at a moderate pace.
        Velocities, if the task has any, are zero at both ends.
        """
        points = self.random_positions(generator, 2 * count, self._clearance)
        start, goal = points[:count], points[count:]
        blocked = crosses(self.walls, start, goal)
        start, goal = start[blocked], goal[blocked]
        length = self.roadmap.distance(start, goal)
        gap = np.abs(goal - start)
        line = gap.max(-1) if self._norm == "chebyshev" else np.hypot(gap[:, 0], gap[:, 1])
        good = (length <= self._stride * horizon) & (length >= self._detour * line)
        good &= ~self._near_another_side(goal)
        rest = np.zeros((int(good.sum()), self.environment_features - 2))
        return Draws(
            np.concatenate((start[good], rest), axis=1),
            np.concatenate((goal[good], rest), axis=1),
            length[good],
        )

    def _near_another_side(self, points: Array) -> NDArray[np.bool_]:
        """(b, 2) -> (b,): some place on the far side of a wall would count as arrived, too.

        The nearest place on another side is a corner of the free space: where walls meet corner to
        corner.
        """
        corners = self.roadmap.nodes
        gap = corners - points[:, None]
        close = np.hypot(gap[..., 0], gap[..., 1]) <= self.success_radius
        return np.asarray((close & crosses(self.roadmap.walls, points[:, None], corners)).any(1))

    def why_scarce(self, horizon: int) -> str:
        return (
            f"within horizon {horizon} a plan covers about {self._stride * horizon:.2g} "
            f"{self.unit}, and few or no ways around a wall are that short; use a longer horizon"
        )

    def expert_actions(self, problems: Problems) -> Tensor:
        """(B, T, A): drives along the shortest path, watching the environment, and stays there."""
        states = problems.environment_start.double().numpy()
        goals = problems.environment_goal[:, :2].double().numpy()
        ahead = [self._waypoints(*ends) for ends in zip(states[:, :2], goals, strict=True)]
        actions = np.zeros((len(problems), problems.horizon, self.action_features))
        for t in range(problems.horizon):
            for points, state in zip(ahead, states, strict=True):
                while len(points) > 1 and np.abs(points[0] - state[:2]).max() < 0.06:
                    points.pop(0)
            targets = np.array([points[0] for points in ahead]).reshape(-1, 2)
            push = np.clip(self.push(targets - states[:, :2], states), -1, 1)
            actions[:, t] = push.astype(np.float32)
            states = self.environment.simulate(states, actions[:, t : t + 1])[:, -1]
        return torch.from_numpy(actions).float()

    def _waypoints(self, start: Array, goal: Array) -> list[Array]:
        """The corners of the shortest path, each a little off its wall, and the goal."""
        corners = self.roadmap.path(start, goal)[1:-1]
        for corner in corners:
            for wall in self.walls:
                if np.abs(wall.inflated(self.body_radius).corners - corner).max(1).min() < 1e-9:
                    corner += self._berth * np.sign(corner - wall.corners.mean(0))
                    break
        return [*corners, goal]

    def positions(self, states: Tensor) -> Tensor:
        return states[..., :2]

    def draw_scene(self, axes: Axes) -> None:
        from matplotlib.patches import Rectangle as Patch

        axes.set_xlim(self.extent.x_min, self.extent.x_max)
        axes.set_ylim(self.extent.y_min, self.extent.y_max)
        axes.set_facecolor(FLOOR)
        for wall in self.walls:
            size = (wall.x_max - wall.x_min, wall.y_max - wall.y_min)
            axes.add_patch(Patch((wall.x_min, wall.y_min), *size, color=WALL, linewidth=0))

    def draw_pose(self, axes: Axes, environment_state: Tensor, color: str) -> list[Artist]:
        x, y = environment_state[:2].tolist()
        return [*axes.plot(x, y, "o", color=color, markersize=7, zorder=6)]
