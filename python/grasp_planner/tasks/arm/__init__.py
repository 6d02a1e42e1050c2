"""Arms of 6 and 20 joints: bring the tip to a place that greedy steering does not reach."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.tasks.arm import environment
from grasp_planner.tasks.arm.environment import joints_of, limit, link_points, push_back, states_of
from grasp_planner.tasks.data import BEHAVIOURS, Array, Behaviour, DataEnvironment
from grasp_planner.tasks.task import Draws, Problems, Task
from grasp_planner.tasks.training import Recipe

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_PACE = 0.6
"""Share of the fastest speed that reaches every goal in time."""

_RECIPE = Recipe(
    transitions=800_000,
    hidden=256,
    input_gain=1.0,
    learning_rate=4e-3,
    smooth=0.02,
    stages=((1, 44_000), (8, 11_000)),
)


def _resembling(behaviour: Behaviour) -> Behaviour:
    """The same behaviour with neighbouring joints alike."""

    @wraps(behaviour)
    def act(generator: np.random.Generator, episodes: int, steps: int, features: int) -> Array:
        fresh = behaviour(generator, episodes, steps, features)
        return np.clip(environment.resembling(generator, fresh), -1, 1)

    return act


class ArmTask(Task):
    """State (link directions, their rates, tip), action (n,): commanded joint velocities.

    A goal is the tip of another posture which the joints can take at 0.6 of their speed, at least
    half an arm's length away, and such that greedy steering ends up elsewhere: limits are in the
    way, and the arm must fold or unfold first. Any posture with its tip there counts as arrived.
    """

    joints: ClassVar[int]
    starts = (
        "starts in postures from zigzags to coils, neighbouring joints alike to a random degree"
    )
    behaviours = tuple((_resembling(behaviour), share) for behaviour, share in BEHAVIOURS)
    unit = "arm lengths"
    loss_weights: ClassVar = {"tip": 5.0}
    units: ClassVar = {"directions": "rad", "rates": "rad/s"}
    step_seconds = environment.STEP_SECONDS
    success_radius = 0.05
    _block = 1024
    _distance = 0.5

    def __init_subclass__(cls) -> None:
        links = range(1, cls.joints + 1)
        cls.environment_features = 2 * cls.joints + 2
        cls.state_names = (
            *(f"direction {k}" for k in links), *(f"rate {k}" for k in links), "tip x", "tip y",
        )  # fmt: skip
        cls.feature_groups = {
            "tip": (2 * cls.joints, 2 * cls.joints + 1),
            "directions": tuple(range(cls.joints)),
            "rates": tuple(range(cls.joints, 2 * cls.joints)),
        }

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__(weights)
        self.goal_weight_features[:-2] = 0.0

    @classmethod
    def new_model(cls, recipe: Recipe, state_features: int, action_features: int) -> nn.Module:
        """Each unit of the first layer starts with one link or joint: dense ones learn slowly."""
        model: Any = super().new_model(recipe, state_features, action_features)
        n, first = cls.joints, model.network[0]
        postures = environment.random_angles(np.random.default_rng(0), 4096, n)
        spread = torch.from_numpy(np.cumsum(postures, -1).std(0)).float()
        chain = torch.tril(torch.ones(n, n))  # joints -> links
        bend, action = torch.linalg.inv(chain) / limit(n), 0.6
        weight = 0.02 * torch.randn(first.weight.shape)
        for unit in range(len(weight)):
            k, (a, b, c, d) = unit % n, torch.randn(4)
            if unit // n % 2 == 0:  # a joint: angle, velocity, command
                weight[unit, :n] += 1.5 * a * bend[k] * spread
                weight[unit, n : 2 * n] += 0.3 * b * bend[k] * spread
                weight[unit, 2 * n + 2 + k] += c * action
                first.bias.data[unit] = 0.7 * d
            else:  # a link: direction, commands of all joints before it
                weight[unit, k] += a * spread[k]
                weight[unit, 2 * n + 2 :] += b * chain[k] / (2 * chain[k].norm())
                first.bias.data[unit] = np.pi * (2 * torch.rand(()) - 1)
        first.weight.data.copy_(weight)
        return model

    @classmethod
    def make_environment(cls) -> DataEnvironment:
        return environment.Arm(cls.joints)

    def draw_problems(self, generator: np.random.Generator, count: int, horizon: int) -> Draws:
        start, goal = environment.random_angles(generator, 2 * count, self.joints).reshape(
            2, count, self.joints
        )
        turn = _PACE * limit(self.joints) * environment.STEP_SECONDS * horizon
        start, goal = (x[np.abs(goal - start).max(-1) <= turn] for x in (start, goal))
        rest = np.zeros_like(start)
        start, goal = states_of(start, rest), states_of(goal, rest)
        distance = np.hypot(*(goal - start)[:, -2:].T)
        far = distance >= self._distance
        start, goal, distance = start[far], goal[far], distance[far]
        hard = self._greedy_distance(start, goal, horizon) > 2 * self.success_radius
        return Draws(start[hard], goal[hard], distance[hard])

    def _greedy_distance(self, start: Array, goal: Array, horizon: int) -> Array:
        """(b,): how far from the goal the tip ends if it always heads there.

        Each joint turns by how much that moves the tip towards the goal, the foremost one at full
        speed until the tip is close; without inertia.
        """
        angles, fastest = joints_of(start)[0], limit(self.joints) * environment.STEP_SECONDS
        for _ in range(horizon):
            points = link_points(np.cumsum(angles, axis=-1))
            arms, gap = points[:, -1:] - points[:, :-1], goal[:, None, -2:] - points[:, -1:]
            gain = arms[..., 0] * gap[..., 1] - arms[..., 1] * gap[..., 0]
            close = np.minimum(1.0, 10 * np.hypot(gap[..., 0], gap[..., 1]))
            turn = fastest * close * gain / (np.abs(gain).max(-1, keepdims=True) + 1e-12)
            turn -= push_back(angles) * environment.STEP_SECONDS
            angles = np.clip(angles + turn, -limit(self.joints), limit(self.joints))
        return np.hypot(*(goal[:, -2:] - link_points(np.cumsum(angles, -1))[:, -1]).T)

    def why_scarce(self, horizon: int) -> str:
        return (
            f"within horizon {horizon} a joint turns by up to "
            f"{_PACE * limit(self.joints) * environment.STEP_SECONDS * horizon:.2g} rad, and few "
            "postures that close have their tips half an arm's length apart; use a longer horizon"
        )

    def expert_actions(self, problems: Problems) -> Tensor:
        """(B, T, n): turns all joints evenly, there after 3/4 of the time, watching them."""
        states = problems.environment_start.double().numpy()
        start = joints_of(states)[0]
        way = joints_of(problems.environment_goal.double().numpy())[0] - start
        ramp = max(1, round(problems.horizon * 3 / 4))
        actions = np.empty((len(problems), problems.horizon, self.joints))
        for t in range(problems.horizon):
            angles = joints_of(states)[0]
            late = start + way * min(1.0, t / ramp) - angles
            velocity = (
                push_back(angles)
                + 5 * late
                + way * float(t < ramp) / (ramp * environment.STEP_SECONDS)
            )
            actions[:, t] = np.clip(velocity / limit(self.joints), -1, 1).astype(np.float32)
            states = self.environment.simulate(states, actions[:, t : t + 1])[:, -1]
        return torch.from_numpy(actions).float()

    def positions(self, states: Tensor) -> Tensor:
        return states[..., -2:]

    def draw_scene(self, axes: Axes) -> None:
        from matplotlib.patches import Circle

        axes.set_xlim(-1.15, 1.15)
        axes.set_ylim(-1.15, 1.15)
        axes.add_patch(Circle((0, 0), 1.0, color="#f4f4f1", zorder=0))
        axes.plot(0, 0, "s", color="#3b4252", markersize=7, zorder=6)

    def draw_pose(self, axes: Axes, environment_state: Tensor, color: str) -> list[Artist]:
        points = link_points(environment_state[: self.joints].double().numpy())
        return [
            *axes.plot(*points.T, "-", color=color, linewidth=3, alpha=0.5, zorder=4),
            *axes.plot(*points.T, "o", color=color, markersize=3, zorder=5),
        ]


class Arm6Task(ArmTask):
    """Six joints of 60 degrees to either side; see `ArmTask`."""

    name = "arm-6"
    joints = 6
    folder = Path(__file__).parent / "arm-6"
    recipe = replace(_RECIPE, transitions=200_000, stages=((1, 10_000), (8, 2_000)))


class Arm20Task(ArmTask):
    """Twenty joints of 18 degrees to either side; see `ArmTask`."""

    name = "arm-20"
    joints = 20
    folder = Path(__file__).parent / "arm-20"
    recipe = _RECIPE
