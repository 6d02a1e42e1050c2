"""What every task promises: shapes, determinism, honest problems, the real environment."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from grasp_planner import tasks
from grasp_planner.tasks.geometry import crosses
from grasp_planner.tasks.task import Problems

HORIZON = 50


def random_actions(problems: Problems, features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(problems), problems.horizon, features, generator=generator) * 2 - 1


def test_shapes_and_types(task: tasks.Task) -> None:
    d, a = task.state_features, task.action_features
    problems = task.sample_problems(7, horizon=HORIZON, seed=3)
    actions = random_actions(problems, a)
    assert problems.start.shape == problems.goal.shape == (7, d)
    assert problems.start.dtype == problems.goal.dtype == torch.float32
    assert task.world_model(problems.start, actions[:, 0]).shape == (7, d)
    assert task.action_low.shape == task.action_high.shape == (a,)
    assert task.goal_weight_features.shape == (d,)
    assert len(task.state_names) == d
    for states in (task.imagine(actions, problems), task.rollout(actions, problems)):
        assert states.shape == (7, HORIZON + 1, d)
        assert torch.equal(states[:, 0], problems.start)
    executed = task.execute(actions, problems)
    assert executed.shape == (7,)
    assert executed.dtype == torch.bool


def test_the_world_model_is_frozen_and_small(task: tasks.Task) -> None:
    assert not any(parameter.requires_grad for parameter in task.world_model.parameters())
    assert not task.world_model.training
    assert (task.folder / "weights.safetensors").stat().st_size < 250_000


def test_problems_depend_on_the_seed_alone(task: tasks.Task) -> None:
    first = task.sample_problems(20, horizon=HORIZON, seed=5)
    torch.manual_seed(1)
    again = task.sample_problems(12, horizon=HORIZON, seed=5)
    other = task.sample_problems(20, horizon=HORIZON, seed=6)
    assert torch.equal(first.start[:12], again.start)
    assert torch.equal(first.goal[:12], again.goal)
    assert not torch.equal(first.start, other.start)
    assert torch.equal(first[[3, 1]].goal, first.goal[[3, 1]])
    assert len(first[2:5]) == 3


def test_problems_are_blocked_and_leave_room_for_the_body(task: tasks.Task) -> None:
    problems = task.sample_problems(200, horizon=HORIZON, seed=0)
    start, goal = (x[:, :2].double().numpy() for x in (problems.start, problems.goal))
    assert crosses(task.walls, start, goal).all()
    assert (task.clearance(problems.start.double().numpy()) > 0).all()
    assert (task.clearance(problems.goal.double().numpy()) > 0).all()
    assert float(task.goal_distance(problems.start, problems).min()) > task.success_radius
    assert bool((problems.start[:, 2:] == 0).all())
    assert bool((problems.goal[:, 2:] == 0).all())


def waypoints(task: tasks.Task, start: np.ndarray, goal: np.ndarray) -> list[np.ndarray]:
    """The corners of the shortest path, each a little off its wall, and the goal."""
    corners = task.roadmap.path(start, goal)[1:-1]
    for corner in corners:
        for wall in task.walls:
            if np.abs(wall.inflated(task.body_radius).corners - corner).max(1).min() < 1e-9:
                corner += 0.08 * np.sign(corner - wall.corners.mean(0))
                break
    return [*corners, goal]


def steer(task: tasks.Task, problems: Problems) -> torch.Tensor:
    """Drives along the shortest path with a proportional controller: there is a way."""
    environment = task.environment
    moving = task.state_features == 4
    actions = np.zeros((len(problems), problems.horizon, task.action_features))
    for b in range(len(problems)):
        state = problems.start[b].double().numpy()
        ahead = waypoints(task, state[:2], problems.goal[b, :2].double().numpy())
        for t in range(problems.horizon):
            while len(ahead) > 1 and np.abs(ahead[0] - state[:2]).max() < 0.06:
                ahead.pop(0)
            offset = ahead[0] - state[:2]
            push = (offset * 5 - state[2:]) * 0.8 if moving else offset / 0.04
            actions[b, t] = np.clip(push, -1, 1).astype(np.float32)
            state = environment.simulate(state[None], actions[b : b + 1, t : t + 1])[0, -1]
    return torch.from_numpy(actions).float()


def test_problems_are_feasible_in_the_real_environment(task: tasks.Task) -> None:
    problems = task.sample_problems(25, horizon=HORIZON, seed=2)
    assert task.execute(steer(task, problems), problems).float().mean() >= 0.95


def test_short_horizons_fail_clearly(task: tasks.Task) -> None:
    with pytest.raises(ValueError, match="use a longer horizon"):
        task.sample_problems(3, horizon=2, seed=0)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        task.sample_problems(3, horizon=0, seed=0)
    assert len(task.sample_problems(0, horizon=HORIZON, seed=0)) == 0


def test_the_real_environment_is_deterministic(task: tasks.Task) -> None:
    problems = task.sample_problems(4, horizon=HORIZON, seed=1)
    actions = random_actions(problems, task.action_features)
    first = task.rollout(actions, problems)
    alone = torch.cat([task.rollout(actions[b : b + 1], problems[b : b + 1]) for b in (3, 2, 1, 0)])
    assert torch.equal(first, task.rollout(actions, problems))
    assert torch.equal(first, alone.flip(0))


def test_walls_stop_the_body(task: tasks.Task) -> None:
    problems = task.sample_problems(20, horizon=HORIZON, seed=4)
    states = task.rollout(random_actions(problems, task.action_features).sign(), problems)
    clearance = task.clearance(states.reshape(-1, task.state_features).double().numpy())
    assert clearance.min() > -0.05  # MuJoCo's contacts give a little


def test_reached_judges_the_last_state_and_agrees_with_execute(task: tasks.Task) -> None:
    problems = task.sample_problems(25, horizon=HORIZON, seed=2)
    actions = steer(task, problems)
    actual = task.rollout(actions, problems)
    assert torch.equal(task.execute(actions, problems), task.reached(actual, problems))
    assert torch.equal(task.reached(actual[:, -1], problems), task.reached(actual, problems))
    # The plans are gentle: what the model promises holds in the environment.
    promised = task.reached(task.imagine(actions, problems), problems)
    assert (promised == task.execute(actions, problems)).float().mean() >= 0.9
    passing = torch.cat((actual, problems.start[:, None]), dim=1)
    assert not task.reached(passing, problems).any()
    assert not task.reached(torch.full_like(actual, float("nan")), problems).any()


def test_the_map_is_drawable(task: tasks.Task) -> None:
    for wall in task.walls:
        assert wall.x_min < wall.x_max
        assert wall.y_min < wall.y_max
        assert task.extent.x_min <= wall.x_min
        assert wall.x_max <= task.extent.x_max


def test_bad_calls_name_the_argument(task: tasks.Task) -> None:
    problems = task.sample_problems(2, horizon=HORIZON, seed=0)
    actions = random_actions(problems, task.action_features)
    with pytest.raises(ValueError, match="actions must be"):
        task.execute(actions[0], problems)
    with pytest.raises(ValueError, match="not finite"):
        task.execute(actions.log(), problems)
    with pytest.raises(ValueError, match="states must be"):
        task.reached(problems.start[:1], problems)
    foreign = Problems(problems.start, problems.goal, problems.distance, HORIZON, "other", 0)
    with pytest.raises(ValueError, match="are of task 'other'"):
        task.rollout(actions, foreign)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="pointmaze-umaze, wall-single"):
        tasks.load("pointmaze")


def test_missing_weights_say_how_to_train_them(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="grasp train wall-single"):
        tasks.load("wall-single", weights=tmp_path)


def test_weights_of_another_task_are_refused() -> None:
    folder = tasks.task_class("pointmaze-umaze").folder
    with pytest.raises(ValueError, match="pointmaze-umaze"):
        tasks.load("wall-single", weights=folder)


@pytest.mark.parametrize("missing", ["gymnasium", "mujoco", "gymnasium_robotics"])
def test_without_the_simulator_everything_but_execution_works(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    task = tasks.load("pointmaze-umaze")
    problems = task.sample_problems(2, horizon=HORIZON, seed=0)
    actions = random_actions(problems, 2)
    assert task.reached(task.imagine(actions, problems), problems).shape == (2,)
    with pytest.raises(tasks.MissingExtraError, match=r"grasp-kernels\[tasks\]"):
        task.execute(actions, problems)
