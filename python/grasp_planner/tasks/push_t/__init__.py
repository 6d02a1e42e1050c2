"""Push-T: push a T-shaped block into a pose, in gym-pusht."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from grasp_planner.tasks.push_t import environment
from grasp_planner.tasks.push_t.model import PushTModel
from grasp_planner.tasks.task import Draws, Problems, Task
from grasp_planner.tasks.training import Recipe

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_TABLE, _WALL = "#f4f4f1", "#3b4252"
_VELOCITY, _PLACE, _HEADING = slice(2, 4), slice(4, 6), slice(6, 8)  # columns of a state


class PushTTask(Task):
    """State as of `environment.PushT`, action (2,) in [-1, 1], 0.2 s a step.

    Goals are poses of the block that a scripted hand pushed it into, so they can be reached; where
    the agent ends does not count. The distance to a goal is `√(shift² + (75 px · chord)²)`, with
    `chord = 2 sin(turn / 2)`: 75 px are from the block's centre to its corners. The success radius
    of 25 px allows 25 px of shift or 19° of turn, and less of each where there are both.
    """

    name = "push-t"
    folder = Path(__file__).parent
    recipe = Recipe(
        transitions=500_000,
        learning_rate=4e-3,
        stages=((1, 12_000), (4, 5_000)),
    )
    architecture = PushTModel
    environment_features = 8
    state_names = environment.STATE_NAMES
    feature_groups: ClassVar = {"block position": (4, 5), "block heading": (6, 7)}
    units: ClassVar = {"block heading": "rad"}
    unit = "px"
    step_seconds = environment.STEP_SECONDS
    success_radius = 25.0
    starts = "nine in ten starts with the agent beside the block"
    hard_steps = "touching the block"
    goal_ring = False

    _block = 32  # draws at a time: each is an episode of the environment
    _blocks = 50
    _farther = 2.0
    """Goals are at least this many success radii from the start."""
    _tremor = 0.02
    """Standard deviation of an action noise that the expert's pushes must bear."""

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__(weights)
        self.goal_weight_features[: _PLACE.start] = 0.0  # where the agent ends does not count

    @classmethod
    def make_environment(cls) -> environment.PushT:
        return environment.PushT()

    @classmethod
    def new_model(cls, recipe: Recipe, state_features: int, action_features: int) -> nn.Module:
        model = PushTModel(
            state_features, action_features, hidden=recipe.hidden, layers=recipe.layers
        )
        with torch.no_grad():
            for parameter in model.network[0].parameters():
                parameter.mul_(recipe.input_gain)
        return model

    def is_hard(self, environment_states: Tensor) -> Tensor:
        offset = (environment_states[..., :2] - environment_states[..., _PLACE]).numpy()
        angle = environment.block_angle(environment_states.numpy())
        gap = environment.block_distance(environment.turned(offset, -angle))
        return torch.from_numpy(gap < environment.AGENT_RADIUS + 0.5)

    def draw_problems(self, generator: np.random.Generator, count: int, horizon: int) -> Draws:
        """Episodes of a hand that pushes the block somewhere; its last pose is the goal.

        Kept are those that move the block by two success radii or more, that never press it against
        a wall, and that arrive even with a tremor of half a px in the actions: the T balances on
        edges, and where a hair decides which way it turns, no model can know.
        """
        world: Any = self.environment
        starts = world.random_states(generator, count, beside=0.5)
        starts[:, _VELOCITY] = 0.0
        episodes, actions, distances = [], [], []
        for start in starts.astype(np.float32).astype(np.float64):  # as the problem will say
            states, pushes = world.episode(start, horizon, environment.Hand(generator))
            tremor = self._tremor * generator.standard_normal(pushes.shape)
            goal = torch.from_numpy(states[-1])
            distance = float(self._apart(torch.from_numpy(start), goal))
            if distance < self._farther * self.success_radius or not environment.off_walls(states):
                continue
            shaken = torch.from_numpy(world.simulate(start[None], (pushes + tremor)[None])[0, -1])
            if float(self._apart(shaken, goal)) <= self.success_radius:
                episodes.append(states[[0, -1]])
                actions.append(pushes)
                distances.append(distance)
        ends = np.array(episodes).reshape(-1, 2, self.environment_features)
        expert = np.array(actions).reshape(-1, horizon, 2)
        return Draws(ends[:, 0], ends[:, 1], np.array(distances), expert)

    def why_scarce(self, horizon: int) -> str:
        return (
            f"within horizon {horizon} a hand that starts anywhere hardly ever pushes the block by "
            f"{self._farther * self.success_radius:.0f} {self.unit}; use a longer horizon"
        )

    def expert_actions(self, problems: Problems) -> Tensor:
        """(B, T, A): what the hand did whose outcome the goal is."""
        if problems.expert is None:
            raise ValueError("problems must come from sample_problems, which records the expert")
        return problems.expert

    @staticmethod
    def _apart(states: Tensor, goal: Tensor) -> Tensor:
        """(..., 8) each -> (...): px."""
        shift = (states - goal)[..., _PLACE]
        turn = environment.BLOCK_ARM * (states - goal)[..., _HEADING]
        return torch.cat((shift, turn), dim=-1).norm(dim=-1)

    def goal_distance(self, states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, D) or (B, D) -> (B,): px between the block's pose and the goal's."""
        last = self._last(states, problems.goal, "states", "D")
        return self._apart(last, problems.goal.to(last))

    def positions(self, states: Tensor) -> Tensor:
        """(..., 8) -> (..., 2): the block's centre."""
        return states[..., _PLACE]

    def draw_scene(self, axes: Axes) -> None:
        from matplotlib.patches import Rectangle as Patch

        low, high = environment.WALL_LOW, environment.WALL_HIGH
        axes.set_xlim(0, 511)
        axes.set_ylim(511, 0)  # y points down
        axes.set_facecolor(_WALL)
        axes.add_patch(Patch((low, low), high - low, high - low, color=_TABLE, linewidth=0))

    def draw_pose(self, axes: Axes, environment_state: Tensor, color: str) -> list[Artist]:
        """The T, and the agent as a ring."""
        from matplotlib.patches import Circle, Polygon

        state = environment_state.double().numpy()
        block = Polygon(
            environment.outline(state), facecolor=color, edgecolor=color, alpha=0.45, zorder=4
        )
        agent = Circle(
            (float(state[0]), float(state[1])), environment.AGENT_RADIUS, fill=False,
            edgecolor=color, linewidth=1.5, zorder=5,
        )  # fmt: skip
        return [axes.add_patch(block), axes.add_patch(agent)]
