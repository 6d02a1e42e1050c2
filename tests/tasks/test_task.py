"""What every task promises: shapes, determinism, honest problems, the real environment."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from grasp_planner import tasks
from grasp_planner.tasks.task import Problems

HORIZON = 50


def random_actions(problems: Problems, features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(problems), problems.horizon, features, generator=generator) * 2 - 1


def test_shapes_and_types(task: tasks.Task) -> None:
    d, e, a = task.state_features, task.environment_features, task.action_features
    problems = task.sample_problems(7, horizon=HORIZON, seed=3)
    actions = random_actions(problems, a)
    for state in (problems.start, problems.goal):
        assert state.shape == (7, d)
        assert state.dtype == torch.float32
    assert problems.environment_start.shape == problems.environment_goal.shape == (7, e)
    assert torch.equal(task.observe(problems.environment_start), problems.start)
    assert problems.distance.shape == (7,)
    assert task.world_model(problems.start, actions[:, 0]).shape == (7, d)
    assert task.action_low.shape == task.action_high.shape == (a,)
    assert task.goal_weight_features.shape == task.state_scale.shape == (d,)
    assert bool((task.state_scale > 0).all())
    assert len(task.state_names) == d
    imagined, actual = task.imagine(actions, problems), task.rollout(actions, problems)
    assert imagined.shape == (7, HORIZON + 1, d)
    assert actual.shape == (7, HORIZON + 1, e)
    assert torch.equal(imagined[:, 0], problems.start)
    assert torch.allclose(actual[:, 0], problems.environment_start, atol=1e-6)
    assert task.positions(imagined).shape == task.environment_positions(actual).shape
    assert task.positions(imagined).shape == (7, HORIZON + 1, 2)
    executed = task.execute(actions, problems)
    assert executed.shape == (7,)
    assert executed.dtype == torch.bool


def test_the_world_model_is_frozen_and_small(task: tasks.Task) -> None:
    assert not any(parameter.requires_grad for parameter in task.world_model.parameters())
    assert not task.world_model.training
    assert (task.folder / "weights.safetensors").stat().st_size < 2_500_000


def test_problems_depend_on_the_seed_alone(task: tasks.Task) -> None:
    first = task.sample_problems(20, horizon=HORIZON, seed=5)
    torch.manual_seed(1)
    again = task.sample_problems(12, horizon=HORIZON, seed=5)
    other = task.sample_problems(20, horizon=HORIZON, seed=6)
    assert torch.equal(first.environment_start[:12], again.environment_start)
    assert torch.equal(first.environment_goal[:12], again.environment_goal)
    assert not torch.equal(first.environment_start, other.environment_start)
    assert torch.equal(first[[3, 1]].environment_goal, first.environment_goal[[3, 1]])
    assert len(first[2:5]) == 3
    assert len(task.sample_problems(0, horizon=HORIZON, seed=0)) == 0


def test_problems_are_not_trivial(task: tasks.Task) -> None:
    problems = task.sample_problems(30, horizon=HORIZON, seed=0)
    assert float(task.goal_distance(problems.start, problems).min()) > task.success_radius
    idle = torch.zeros(30, HORIZON, task.action_features)
    assert not task.execute(idle, problems).any()
    lucky = task.execute(random_actions(problems, task.action_features), problems)
    assert lucky.float().mean() <= 0.1


@pytest.mark.parametrize("length", [0, 1])
def test_an_expert_solves_the_problems(task: tasks.Task, length: int) -> None:
    problems = task.sample_problems(40, horizon=task.horizons[length], seed=1)
    share = task.expert_check(problems)
    assert share["environment"] >= 0.95
    assert share["model"] >= 0.9


def test_impossible_horizons_fail_clearly(task: tasks.Task) -> None:
    with pytest.raises(ValueError, match=f"{task.name}: only .* use a longer horizon"):
        task.sample_problems(3, horizon=1, seed=0)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        task.sample_problems(3, horizon=0, seed=0)
    with pytest.raises(ValueError, match="count must not be negative"):
        task.sample_problems(-1, horizon=HORIZON, seed=0)


def test_the_real_environment_is_deterministic(task: tasks.Task) -> None:
    problems = task.sample_problems(4, horizon=HORIZON, seed=1)
    actions = random_actions(problems, task.action_features)
    first = task.rollout(actions, problems)
    alone = torch.cat([task.rollout(actions[b : b + 1], problems[b : b + 1]) for b in (3, 2, 1, 0)])
    assert torch.equal(first, task.rollout(actions, problems))
    assert torch.equal(first, alone.flip(0))


def test_reached_judges_the_last_state_and_agrees_with_execute(task: tasks.Task, solved) -> None:
    problems, actions, actual = solved
    arrived = task.environment_reached(actual, problems)
    assert torch.equal(task.execute(actions, problems), arrived)
    assert torch.equal(task.environment_reached(actual[:, -1], problems), arrived)
    imagined = task.imagine(actions, problems)
    passing = torch.cat((imagined, problems.start[:, None]), dim=1)
    assert not task.reached(passing, problems).any()
    assert not task.reached(torch.full_like(imagined, float("nan")), problems).any()
    assert not task.environment_reached(torch.full_like(actual, float("nan")), problems).any()


def test_pictures_show_the_body_where_it_is(task: tasks.Task, solved) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    problems, _, actual = solved
    figure, axes = pyplot.subplots()
    task.draw_scene(axes)
    for states in (problems.environment_start[:1], actual[0]):
        x, y = task.environment_positions(states).unbind(-1)
        for value, (low, high) in ((x, axes.get_xlim()), (y, axes.get_ylim())):
            assert min(low, high) <= float(value.min()) <= float(value.max()) <= max(low, high)
    for artist in task.draw_pose(axes, actual[0, -1], "#000000"):
        artist.remove()
    pyplot.close(figure)


def test_bad_calls_name_the_argument(task: tasks.Task) -> None:
    problems = task.sample_problems(2, horizon=HORIZON, seed=0)
    actions = random_actions(problems, task.action_features)
    with pytest.raises(ValueError, match="actions must be"):
        task.execute(actions[0], problems)
    with pytest.raises(ValueError, match="not finite"):
        task.execute(actions.log(), problems)
    with pytest.raises(ValueError, match="states must be"):
        task.reached(problems.start[:1], problems)
    with pytest.raises(ValueError, match="environment_states must be"):
        task.environment_reached(problems.environment_start[:1], problems)
    with pytest.raises(ValueError, match="are of task 'other'"):
        task.rollout(actions, replace(problems, task="other"))


def test_aliases_name_the_same_task() -> None:
    for alias in set(tasks.ALIASES) - {"pusht"}:
        assert tasks.task_class(alias) is tasks.task_class(tasks.ALIASES[alias])
    assert tasks.load("wall").name == "wall-single"


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="wall-single, pointmaze-umaze"):
        tasks.load("pointmaze")


def test_missing_weights_say_how_to_train_them(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="grasp train wall-single"):
        tasks.load("wall-single", weights=tmp_path)


def test_weights_of_another_task_are_refused() -> None:
    folder = tasks.task_class("pointmaze-umaze").folder
    with pytest.raises(ValueError, match="pointmaze-umaze"):
        tasks.load("wall-single", weights=folder)


def test_weights_of_another_architecture_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.task_class("wall-single"), "architecture", torch.nn.Linear)
    with pytest.raises(ValueError, match="holds a ResidualMLP, but wall-single is modelled by a L"):
        tasks.load("wall-single")


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
