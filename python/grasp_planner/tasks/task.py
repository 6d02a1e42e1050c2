"""What every task offers, and the parts of it that do not depend on which task it is.

Two kinds of state: the environment's, `(…, E)`, and the world model's, `(…, D)`, which `observe`
makes of it. In a maze they are the same numbers; where the model sees features, or a latent of
pictures, they are not. Goals are judged in both: under the model, and in truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grasp_planner.interruptible import Report, ShouldStop, never, no_report
from grasp_planner.surrogate import Surrogate
from grasp_planner.tasks import training
from grasp_planner.tasks.data import BEHAVIOURS, Array, Behaviour, DataEnvironment
from grasp_planner.tasks.evaluation import open_loop
from grasp_planner.tasks.mlp import ResidualMLP
from grasp_planner.tasks.surrogates import load_surrogate
from grasp_planner.tasks.training import Recipe
from grasp_planner.tasks.weights import load_weights

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Problems:
    """A batch of B planning problems; float32, raw units."""

    start: Tensor
    """(B, D), the model's state."""
    goal: Tensor
    """(B, D); `Task.goal_weight_features` says which features count for reaching it."""
    environment_start: Tensor
    """(B, E), the environment's state."""
    environment_goal: Tensor
    """(B, E)."""
    distance: Tensor
    """(B,), how far the way is, in the task's units: in a maze, the shortest free path."""
    horizon: int
    """Steps T the problems were found feasible in."""
    task: str
    seed: int
    expert: Tensor | None = None
    """(B, T, A), actions that solve the problems, where the sampler itself knows some."""

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Problems:
        """Some of the problems, as a batch."""
        rows: dict[str, Any] = {
            name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **rows)


class Draws(NamedTuple):
    """Problems before the model has seen them; the b of a block that are worth keeping."""

    start: Array
    """(b, E)."""
    goal: Array
    """(b, E)."""
    distance: Array
    """(b,)."""
    expert: Array | None = None
    """(b, T, A)."""


class Task(ABC):
    """An environment, its trained world model, and problems in it; made by `tasks.load`."""

    name: ClassVar[str]
    folder: ClassVar[Path]
    """Where the environment, the recipe, the default weights and the model card live."""
    recipe: ClassVar[Recipe]
    architecture: ClassVar[type[nn.Module]] = ResidualMLP
    """Built with the keywords that its instances offer as `sizes`."""
    environment_features: ClassVar[int]
    """E."""
    state_names: ClassVar[tuple[str, ...]]
    """Of the model's D features."""
    feature_groups: ClassVar[dict[str, tuple[int, ...]]]
    """Columns of the model's state whose Euclidean error means something, for the model card."""
    unit: ClassVar[str]
    """Of lengths, and so of distances to the goal."""
    units: ClassVar[dict[str, str]] = {}
    """Of the feature groups that are no lengths."""
    step_seconds: ClassVar[float | None]
    success_radius: ClassVar[float]
    """A plan reaches its goal if the distance at the horizon is this or less."""
    horizons: ClassVar[tuple[int, ...]] = (50, 80)
    """Steps that its problems are meant for; the first is the default."""

    loss_weights: ClassVar[dict[str, float]] = {}
    """How much more than others the errors of some feature groups count in training."""
    behaviours: ClassVar[tuple[tuple[Behaviour, float], ...]] = BEHAVIOURS
    """What the data's episodes do, and each one's share."""
    starts: ClassVar[str]
    """Where the data's episodes start, in words."""
    hard_steps: ClassVar[str | None] = None
    """What makes steps hard to predict ("near a wall"); the model card sums them up alone."""
    goal_ring: ClassVar[bool] = True
    """Whether `success_radius` is a circle in pictures, around the goal's position."""

    _block: ClassVar[int] = 256
    """Draws of problems at a time."""
    _blocks: ClassVar[int] = 400
    """Blocks before the sampler gives up."""

    def __init__(self, weights: str | Path | None = None) -> None:
        """Loads the shipped world model, or that of a folder which `grasp train --out` wrote."""
        #: F(state, action) -> next state, a frozen `nn.Module` of any leading shape.
        self.world_model = load_weights(
            self.folder if weights is None else Path(weights), type(self)
        )
        self.state_features: int = self.world_model.state_features
        self.action_features: int = self.world_model.action_features
        self.action_low = -torch.ones(self.action_features)
        self.action_high = torch.ones(self.action_features)
        #: (D,) the weight of each feature at the goal, in units of `state_scale`.
        self.goal_weight_features = torch.ones(self.state_features)
        self._environment: DataEnvironment | None = None

    @property
    def state_scale(self) -> Tensor:
        """(D,), the unit in which a planner measures each feature: its spread in the data."""
        scale: Tensor = self.world_model.state_scale
        return scale

    @classmethod
    @abstractmethod
    def make_environment(cls) -> DataEnvironment:
        """The real environment; raises `MissingExtraError` where its packages are missing."""

    @property
    def environment(self) -> DataEnvironment:
        """The real environment, made on first use."""
        if self._environment is None:
            self._environment = self.make_environment()
        return self._environment

    # The world model ------------------------------------------------------------------------------

    def observe(self, environment_states: Tensor) -> Tensor:
        """(..., E) -> (..., D): the model's state of an environment's."""
        return environment_states

    @classmethod
    def new_model(cls, recipe: Recipe, state_features: int, action_features: int) -> nn.Module:
        """An untrained world model; the caller has seeded torch."""
        model: Any = cls.architecture(
            state_features, action_features, hidden=recipe.hidden, layers=recipe.layers
        )
        with torch.no_grad():
            for parameter in model.network[0].parameters():
                parameter.mul_(recipe.input_gain)
        return model

    @classmethod
    def train(
        cls,
        recipe: Recipe,
        folder: Path,
        *,
        report: Report = no_report,
        should_stop: ShouldStop = never,
    ) -> nn.Module:
        """Collects data and trains a world model in `folder`, from where an earlier call stopped.

        Raises TrainingInterrupted, everything saved, soon after `should_stop()` is true.
        """
        return training.train(cls, recipe, folder, report=report, should_stop=should_stop)

    def surrogate(self, folder: str | Path | None = None) -> Surrogate:
        """Of the world model's state gradient: the shipped one, or that of a folder which
        `grasp train-surrogate --out` wrote. Raises what `load_surrogate` does.
        """
        return load_surrogate(self, None if folder is None else Path(folder))

    def quantities(self, states: Tensor) -> dict[str, Tensor]:
        """(..., D) -> name: (..., n): what the model card gives errors of."""
        return {name: states[..., list(columns)] for name, columns in self.feature_groups.items()}

    def environment_quantities(self, environment_states: Tensor) -> dict[str, Tensor]:
        """(..., E) -> the true `quantities`."""
        return self.quantities(self.observe(environment_states))

    def is_hard(self, environment_states: Tensor) -> Tensor:
        """(..., E) -> (...) bool: a step that begins or ends here is one of the `hard_steps`."""
        return torch.zeros(environment_states.shape[:-1], dtype=torch.bool)

    @classmethod
    def describe_training(cls, recipe: dict[str, Any]) -> str:
        """One paragraph for the model card, of the recipe's fields."""
        return training.describe(recipe)

    # Problems -------------------------------------------------------------------------------------

    @abstractmethod
    def draw_problems(self, generator: np.random.Generator, count: int, horizon: int) -> Draws:
        """Draws `count` candidates, keeps those that are neither too easy nor infeasible."""

    @abstractmethod
    def why_scarce(self, horizon: int) -> str:
        """What makes problems of this horizon rare and what to do, for the sampler's error."""

    def sample_problems(self, count: int, *, horizon: int, seed: int) -> Problems:
        """Draws problems that are neither trivial nor impossible in `horizon` steps.

        The first k problems of a seed and horizon are the same however many are asked for.

        Raises:
            ValueError: count < 0, horizon < 1, or hardly any draw is a problem of that horizon.
        """
        if count < 0:
            raise ValueError(f"count must not be negative, not {count}")
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, not {horizon}")
        generator = np.random.default_rng([seed, horizon])
        blocks: list[Draws] = []
        kept = 0
        while not blocks or (kept < count and len(blocks) < self._blocks):
            blocks.append(self.draw_problems(generator, self._block, horizon))
            kept += len(blocks[-1].start)
        if kept < count:
            raise ValueError(
                f"{self.name}: only {kept} of {count} problems found among "
                f"{self._block * self._blocks} draws: {self.why_scarce(horizon)}"
            )
        start, goal, distance, expert = (
            None if parts[0] is None else torch.from_numpy(np.concatenate(parts)[:count]).float()
            for parts in zip(*blocks, strict=True)
        )
        assert start is not None
        assert goal is not None
        assert distance is not None
        return Problems(
            self.observe(start),
            self.observe(goal),
            start,
            goal,
            distance,
            horizon,
            self.name,
            seed,
            expert,
        )

    @abstractmethod
    def expert_actions(self, problems: Problems) -> Tensor:
        """(B, T, A) in [-1, 1]: of an expert that knows the environment."""

    def expert_check(self, problems: Problems) -> dict[str, float]:
        """The share of problems that the expert's actions solve: in truth, and under the model."""
        actions = self.expert_actions(problems)
        arrived = self.reached(self.imagine(actions, problems), problems)
        return {
            "environment": float(self.execute(actions, problems).double().mean()),
            "model": float(arrived.double().mean()),
        }

    # Judging plans --------------------------------------------------------------------------------

    def goal_distance(self, states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, D) or (B, D) -> (B,): from the model's last state to the goal.

        By default of `positions`, in the task's unit.
        """
        last = self._last(states, problems.goal, "states", "D")
        goal = self.environment_positions(problems.environment_goal.to(last))
        return (self.positions(last) - goal).norm(dim=-1)

    def environment_distance(self, environment_states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, E) or (B, E) -> (B,): the true `goal_distance`."""
        last = self._last(environment_states, problems.environment_goal, "environment_states", "E")
        return self.goal_distance(self.observe(last), problems)

    def reached(self, states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, D) or (B, D) -> (B,) bool: the last state is within `success_radius`.

        Stricter than passing by: a plan must be there when its horizon ends. NaN has not arrived.
        """
        return self.goal_distance(states, problems) <= self.success_radius

    def environment_reached(self, environment_states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, E) or (B, E) -> (B,) bool: `reached` in truth."""
        return self.environment_distance(environment_states, problems) <= self.success_radius

    def imagine(self, actions: Tensor, problems: Problems) -> Tensor:
        """(B, T, A) -> (B, T+1, D): the rollout of the world model from the problems' starts."""
        self._check(actions, problems)
        return open_loop(self.world_model, problems.start.to(actions), actions)

    def rollout(self, actions: Tensor, problems: Problems) -> Tensor:
        """(B, T, A) -> (B, T+1, E): the same in the real environment, float32 on the CPU."""
        self._check(actions, problems)
        start: NDArray[np.float64] = problems.environment_start.detach().double().cpu().numpy()
        states = self.environment.simulate(start, actions.detach().double().cpu().numpy())
        return torch.from_numpy(states).float()

    def execute(self, actions: Tensor, problems: Problems) -> Tensor:
        """(B, T, A) -> (B,) bool: `environment_reached` at the end of the real `rollout`."""
        return self.environment_reached(self.rollout(actions, problems), problems).cpu()

    # Pictures -------------------------------------------------------------------------------------

    @abstractmethod
    def positions(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., 2): the point whose path is drawn."""

    def environment_positions(self, environment_states: Tensor) -> Tensor:
        """(..., E) -> (..., 2)."""
        return self.positions(self.observe(environment_states))

    @abstractmethod
    def draw_scene(self, axes: Axes) -> None:
        """The limits and all that does not move."""

    @abstractmethod
    def draw_pose(self, axes: Axes, environment_state: Tensor, color: str) -> list[Artist]:
        """The body in a state (E,); returns what it added, for animations to take away."""

    # Checks ---------------------------------------------------------------------------------------

    @staticmethod
    def _last(states: Tensor, goal: Tensor, name: str, letter: str) -> Tensor:
        last = states[:, -1] if states.dim() == 3 else states
        if last.shape != goal.shape:
            raise ValueError(
                f"{name} must be (B, T+1, {letter}) or (B, {letter}) with (B, {letter}) = "
                f"{tuple(goal.shape)}, not {tuple(states.shape)}"
            )
        return last

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
