"""Push-T: the environment is gym-pusht, its model exact where physics is known, and symmetric."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from grasp_planner import tasks
from grasp_planner.tasks.push_t import PushTTask
from grasp_planner.tasks.push_t import environment as physics

pytest.importorskip("gym_pusht")


@pytest.fixture(scope="module")
def push_t() -> PushTTask:
    task = tasks.load("push-t")
    assert isinstance(task, PushTTask)
    return task


@pytest.fixture(scope="module")
def pushes(push_t: PushTTask) -> tuple[torch.Tensor, torch.Tensor]:
    """States (60, 31, 8) and actions (60, 30, 2) of the hand."""
    generator = np.random.default_rng(5)
    starts = push_t.environment.random_states(generator, 60)
    episodes = [push_t.environment.episode(start, 30, physics.Hand(generator)) for start in starts]
    states, actions = (np.stack(parts) for parts in zip(*episodes, strict=True))
    return torch.from_numpy(states).float(), torch.from_numpy(actions).float()


def mirrored(states: torch.Tensor) -> torch.Tensor:
    """(..., 8): the table seen in a mirror, left for right; the T is its own mirror image."""
    flipped = states * torch.tensor([-1.0, 1, -1, 1, -1, 1, 1, -1])
    return flipped + 2 * physics.TABLE_CENTRE * torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])


def test_an_action_is_two_steps_of_gym_pusht(push_t: PushTTask) -> None:
    world = push_t.environment
    generator = np.random.default_rng(0)
    for start in world.random_states(generator, 5):
        actions = generator.uniform(-1, 1, (4, 2))
        expected = world.simulate(start[None], actions[None])[0]
        gym = world._world
        world._place(start)
        for action in actions:
            target = np.asarray(gym.agent.position) + physics.REACH * action
            for _ in range(physics.STEPS_PER_ACTION):
                gym.step(np.clip(target, physics.TARGET_LOW, physics.TARGET_HIGH))
        np.testing.assert_array_equal(world._state(), expected[-1])


def test_a_state_is_set_as_it_is_read(push_t: PushTTask) -> None:
    world = push_t.environment
    for state in world.random_states(np.random.default_rng(1), 20):
        world._place(state)
        np.testing.assert_allclose(world._state(), state, atol=1e-9)


def test_a_recorded_state_holds_nearly_all_that_matters(push_t: PushTTask, pushes) -> None:
    """What it leaves out is the last hundredth of a second of the block's motion."""
    states, actions = (value.double().numpy() for value in pushes)
    again = push_t.environment.simulate(states[:, 15], actions[:, 15:20])
    error = np.linalg.norm((again - states[:, 15:21])[..., 4:6], axis=-1)[:, -1]
    moved = np.linalg.norm((states[:, 20] - states[:, 15])[:, 4:6], axis=-1)
    assert (moved > 5).sum() > 10
    assert np.quantile(error, 0.9) < 1.0


def test_the_outline_is_the_block(push_t: PushTTask) -> None:
    world = push_t.environment
    state = world.random_states(np.random.default_rng(2), 1)[0]
    world._place(state)
    keypoints = world._world.get_keypoints(world._world._block_shapes)
    gaps = np.linalg.norm(physics.outline(state)[:, None] - keypoints, axis=-1).min(1)
    np.testing.assert_allclose(gaps, 0.0, atol=1e-6)
    local = physics.turned(keypoints - state[4:6], -physics.block_angle(state))
    np.testing.assert_allclose(physics.block_distance(local), 0.0, atol=1e-6)


def test_the_model_knows_the_agent_exactly(push_t: PushTTask, pushes) -> None:
    states, actions = pushes
    predicted = push_t.world_model(states[:, :-1], actions)
    torch.testing.assert_close(predicted[..., :4], states[:, 1:, :4], rtol=0.0, atol=1e-3)


def test_a_block_that_is_not_touched_stays(push_t: PushTTask, pushes) -> None:
    states, actions = pushes
    far = (states[:, :-1, :2] - states[:, :-1, 4:6]).norm(dim=-1) > 135
    assert int(far.sum()) > 20
    moved = (push_t.world_model(states[:, :-1], actions) - states[:, :-1])[..., 4:][far]
    assert float(moved.abs().max()) < 1e-3


def test_the_model_is_as_symmetric_as_the_table(push_t: PushTTask, pushes) -> None:
    states, actions = pushes[0][:, :-1], pushes[1]
    seen = push_t.world_model(mirrored(states), actions * torch.tensor([-1.0, 1]))
    torch.testing.assert_close(
        seen, mirrored(push_t.world_model(states, actions)), rtol=0.0, atol=2e-2
    )


def test_the_model_turns_any_heading_into_a_pose(push_t: PushTTask, pushes) -> None:
    """A straight line between two poses runs through headings of any length, even none."""
    states, action = pushes[0][:, 0].clone(), pushes[1][:, 0]
    expected = push_t.world_model(states, action)
    states[:, 6:] *= 0.2
    torch.testing.assert_close(push_t.world_model(states, action), expected, rtol=1e-3, atol=1e-2)
    states[:, 6:] = 0.0
    assert bool(push_t.world_model(states, action).isfinite().all())


def test_the_model_vectorises_and_differentiates(push_t: PushTTask, pushes) -> None:
    states, actions = pushes[0][:8, 15], pushes[1][:8, 15]
    jacobian = torch.func.vmap(torch.func.jacrev(push_t.world_model, argnums=1))(states, actions)
    step = torch.tensor([1e-2, 0.0])
    ahead, behind = (push_t.world_model(states, actions + s * step) for s in (1, -1))
    slope = (ahead - behind) / 2e-2
    assert jacobian.shape == (8, 8, 2)
    error = (jacobian[..., 0] - slope).abs().amax(-1)
    assert float(error.median()) < 0.05 * float(slope.abs().max())


def test_distance_is_in_px_of_shift_and_of_a_corner(push_t: PushTTask) -> None:
    problems = push_t.sample_problems(2, horizon=50, seed=0)
    states = problems.goal.clone()
    states[0, 4:6] += torch.tensor([6.0, -8.0])
    states[0, :4] = 0.0  # of the agent nothing is asked
    turn = 0.3
    cos, sin = problems.goal[1, 6:].tolist()
    states[1, 6] = cos * np.cos(turn) - sin * np.sin(turn)
    states[1, 7] = sin * np.cos(turn) + cos * np.sin(turn)
    expected = torch.tensor([10.0, 2 * physics.BLOCK_ARM * np.sin(turn / 2)])
    torch.testing.assert_close(push_t.goal_distance(states, problems), expected.float())
    offset = (states - problems.goal) / push_t.state_scale
    cost = (push_t.goal_weight_features * offset.square()).sum(-1)  # what planners minimise
    torch.testing.assert_close(100 * cost.sqrt(), expected.float())


def test_experts_keep_the_block_off_the_walls(push_t: PushTTask) -> None:
    problems = push_t.sample_problems(10, horizon=50, seed=1)
    states = push_t.rollout(problems.expert, problems)
    assert physics.off_walls(states.double().numpy())
    assert float(problems.expert.abs().max()) <= 1.0
    arrived = push_t.environment_distance(states, problems)
    assert float(arrived.max()) < 1e-3


def test_problems_of_others_have_no_expert(push_t: PushTTask) -> None:
    from dataclasses import replace

    problems = push_t.sample_problems(1, horizon=25, seed=0)
    with pytest.raises(ValueError, match="sample_problems"):
        push_t.expert_actions(replace(problems, expert=None))


def test_without_gym_pusht_the_model_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    task = tasks.load("push-t")
    assert task.world_model(torch.zeros(3, 8), torch.zeros(3, 2)).shape == (3, 8)
    with pytest.raises(tasks.MissingExtraError, match=r"grasp-kernels\[tasks\]"):
        task.sample_problems(1, horizon=50, seed=0)
