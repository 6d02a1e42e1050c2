"""`grasp_planner.evaluate`: the same episodes, whatever is beside them and however they reset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grasp_planner
import numpy as np
import pytest
import torch
from grasp_planner import MPC, CEMConfig, CEMPlanner, Evaluation, LatentModel, Plan, Subset, tasks
from grasp_planner.presets import make_planner
from torch import Tensor, nn

gymnasium = pytest.importorskip("gymnasium")

import gymnasium_cases as cases  # noqa: E402
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode  # noqa: E402

RESETTING = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
every_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)


def as_found(result: Evaluation) -> list[tuple[float, int, bool]]:
    assert result.success is not None
    return list(
        zip(result.returns.tolist(), result.lengths.tolist(), result.success.tolist(), strict=True)
    )


# ------------------------------------------------------------------------ episodes, whoever is near


@every_mode
@pytest.mark.parametrize("count", [1, 3, 8])
def test_an_episode_depends_on_its_number_alone(mode: AutoresetMode, count: int) -> None:
    """Bits: in whatever mode, beside however many, as by hand one at a time."""
    planner = cases.planner()
    result = grasp_planner.evaluate(
        cases.slides(count, mode), planner, episodes=7, seed=4, success="is_success", execute=2
    )
    assert result.episodes.tolist() == list(range(7))
    expected = cases.by_hand(planner, 7, seed=4, execute=2)
    assert as_found(result) == expected
    assert len({length for _, length, _ in expected}) > 2
    assert result.plans.tolist() == [-(-length // 2) for _, length, _ in expected]


@pytest.mark.parametrize("mode", RESETTING)
def test_environments_that_only_reset_themselves(mode: AutoresetMode) -> None:
    """After the first of each, episodes are as the environments' own generators make them."""
    planner = cases.planner()
    controller = MPC(planner, execute=3)
    result = grasp_planner.evaluate(
        cases.Plain(3, mode), controller, episodes=8, seed=2, success="is_success"
    )
    assert as_found(result) == cases.by_hand(planner, 8, seed=2, streams=3, execute=3)
    with pytest.raises(ValueError, match="max_steps needs environments that can be reset one by"):
        grasp_planner.evaluate(cases.Plain(3, mode), planner, max_steps=5)


def test_what_a_vector_says_of_all_its_environments_is_said_to_each() -> None:
    """A number or a word in infos, as of vectors that are not Gymnasium's."""

    class Told(cases.Plain):
        def step(self, actions: Any) -> Any:
            *found, infos = super().step(actions)
            return *found, {**infos, "clock": 3, "place": "here", "episode": {"seed": 7}}

    seen: list[Any] = []

    def success(observation: Any, infos: Any) -> Any:
        seen.extend((info["clock"], info["place"], info["episode"]["seed"]) for info in infos)
        return np.zeros(2, np.bool_)

    mode = AutoresetMode.SAME_STEP
    grasp_planner.evaluate(Told(2, mode), cases.planner(), success=success, execute=6)
    assert set(seen) == {(3, "here", 7)}


def test_other_processes() -> None:
    planner = cases.planner()
    environments = AsyncVectorEnv([cases.Slide] * 2)
    result = grasp_planner.evaluate(
        environments, planner, episodes=3, seed=1, success="is_success", execute=6
    )
    environments.close()
    assert as_found(result) == cases.by_hand(planner, 3, seed=1, execute=6)


def test_a_single_environment_stays_open() -> None:
    planner, world = cases.planner(), cases.Slide()
    world.close = lambda: pytest.fail("closed by someone else")  # type: ignore[method-assign]
    result = grasp_planner.evaluate(world, planner, episodes=3, success="is_success", execute=6)
    assert as_found(result) == cases.by_hand(planner, 3, seed=0, execute=6)


def test_the_same_again_and_the_controller_as_it_was() -> None:
    controller = MPC(cases.planner(), execute=2, environment_ids=[5])
    state = torch.zeros(1, 2)
    before = MPC(cases.planner(), execute=2, environment_ids=[5])
    for one in (controller, before):
        one.act(state, state + 1)
    first, second = (grasp_planner.evaluate(cases.slides(2), controller) for _ in range(2))
    assert torch.equal(first.returns, second.returns)
    assert torch.equal(
        controller.act(state, state + 1).actions, before.act(state, state + 1).actions
    )


def test_episodes_are_cut_off() -> None:
    whole = grasp_planner.evaluate(cases.slides(2), cases.planner(), episodes=5, execute=6)
    result = grasp_planner.evaluate(
        cases.slides(2, "Disabled"), cases.planner(), episodes=5, max_steps=3, execute=6
    )
    assert result.lengths.tolist() == whole.lengths.clamp_max(3).tolist()
    assert (whole.lengths > 3).any()
    assert not result.terminated[whole.lengths > 3].any()
    assert result.success is None


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended by then is returned; all else is as it would have been."""
    planner, steps = cases.planner(), [0]
    whole = grasp_planner.evaluate(cases.slides(2), planner, episodes=6, execute=6)
    real = cases.Slide.step

    def step(self: Any, action: Any) -> Any:
        steps[0] += 1
        if steps[0] > 20:
            raise KeyboardInterrupt
        return real(self, action)

    monkeypatch.setattr(cases.Slide, "step", step)
    seen: list[int] = []
    result = grasp_planner.evaluate(
        cases.slides(2), planner, episodes=6, execute=6, progress=seen.append
    )
    assert result.interrupted
    assert 1 <= len(result.episodes) < 6
    assert torch.equal(result.returns, whole.returns[result.episodes])
    assert seen[-1] == len(result.episodes)
    assert f"{len(result.episodes)} episodes, then interrupted: return" in str(result)


# ----------------------------------------------------------- observations, goals, what is judged


class Encoder(nn.Module):
    """A linear encoder that counts its observations, and minds its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.rows: list[int] = []

    def forward(self, observation: Tensor) -> Tensor:
        assert not self.training
        self.rows.append(len(observation))
        return observation * self.scale


@every_mode
def test_an_encoder_is_called_once_per_observation(mode: AutoresetMode) -> None:
    """Of whoever acts on it; and once per goal. Halving units doubles the actions' reach."""
    encoder = Encoder()

    def twice(state: Tensor, action: Tensor) -> Tensor:
        return state + 0.4 * action

    planner = CEMPlanner(twice, cases.planner().config)
    result = grasp_planner.evaluate(
        cases.slides(3, mode), planner, episodes=7, encode=encoder, success="is_success"
    )
    assert sum(encoder.rows) == int(result.lengths.sum()) + 7
    assert encoder.training
    assert result.success is not None
    assert result.success.double().mean() > 0.5


@pytest.mark.parametrize("mode", RESETTING)
def test_an_encoder_where_environments_reset_themselves(mode: AutoresetMode) -> None:
    encoder = Encoder()
    result = grasp_planner.evaluate(
        cases.Plain(2, mode), cases.planner(), episodes=6, encode=encoder, execute=6
    )
    assert sum(encoder.rows) == int(result.lengths.sum()) + 6


def test_observations_may_lie_backwards() -> None:
    """Views of arrays with negative strides, as of images that are turned round."""
    planner, found = cases.planner(), []
    for turn in (lambda o: o[:, ::-1], lambda o: o[:, ::-1].copy()):
        result = grasp_planner.evaluate(
            cases.slides(2),
            planner,
            observe=lambda o, turn=turn: turn(o["observation"]),
            goal=lambda o, infos, turn=turn: turn(o["desired_goal"]),
            execute=6,
        )
        found.append(result.returns)
    assert torch.equal(*found)


def test_observations_and_goals_may_be_a_number_each() -> None:
    """As of environments that observe one: a column, which the others are not."""
    planner = CEMPlanner(lambda state, action: state + 0.2 * action[:, :1], cases.planner().config)
    number, column = (
        grasp_planner.evaluate(
            cases.slides(2),
            planner,
            observe=lambda o, shape=shape: o["observation"][:, 0].reshape(shape),
            goal=lambda o, infos, shape=shape: o["desired_goal"][:, 0].reshape(shape),
            execute=3,
        )
        for shape in ((2,), (2, 1))
    )
    assert torch.equal(number.returns, column.returns)
    assert torch.equal(number.plans, column.plans)


class Recorder(CEMPlanner):
    """What it was asked to plan from."""

    def plan(self, start: Any, goal: Any, **given: Any) -> Plan:
        self.asked.append((start, goal, given.get("past_actions")))
        return super().plan(start, goal, **given)


def recorder(world_model: Any, **changes: Any) -> Recorder:
    found = Recorder(world_model, cases.planner(**changes).config)
    found.asked = []
    return found


def test_windows_of_a_world_model_that_looks_back() -> None:
    """States two steps apart, as each action is held for two; an episode begins standing still."""

    def newest(states: Tensor, actions: Tensor) -> Tensor:
        return states[:, -1] + 0.4 * actions[:, -1]

    seen: list[np.ndarray] = []
    done: list[Tensor] = []

    def observe(observation: Any) -> Any:
        seen.append(observation["observation"].copy())
        return observation["observation"]

    def action(actions: Tensor) -> Any:
        done.append(actions.clone())
        return actions.numpy()

    planner = recorder(LatentModel(newest, history=3, action_features=2))
    result = grasp_planner.evaluate(
        cases.Slide(), planner, episodes=2, repeat=2, observe=observe, action=action, execute=1
    )
    length = int(result.lengths[0])
    assert length > 5
    states, given = torch.from_numpy(np.stack(seen))[:, 0], torch.stack(done)[:, 0]
    clock = 0
    for n, number in enumerate(result.lengths.tolist()):
        for t in range(0, number, 2):
            window, _, past = planner.asked[clock]
            times = [clock_of(clock, t, back, length, n) for back in (4, 2, 0)]
            assert torch.equal(window[0], states[times])
            expected = [
                given[clock_of(clock, t, back, length, n)] if t >= back else torch.zeros(2)
                for back in (4, 2)
            ]
            assert past is None or torch.equal(past[0], torch.stack(expected))
            assert past is not None or t == 0
            clock += 1


def clock_of(clock: int, t: int, back: int, length: int, episode: int) -> int:
    """The place among all observations of that, `back` steps before step t of an episode."""
    return episode * length + max(t - back, 0)


@every_mode
def test_goals_by_name_and_by_function(mode: AutoresetMode) -> None:
    """ "target" is said at resets alone; a function sees what the environments said."""

    def one_feature(observation: Any, infos: Any) -> Subset:
        return Subset(torch.tensor(np.stack([info["target"] for info in infos])), [0, 1])

    found = [
        grasp_planner.evaluate(
            cases.slides(3, mode), cases.planner(), episodes=5, goal=goal, execute=6
        ).returns
        for goal in (None, "target", "desired_goal", one_feature)
    ]
    assert all(torch.equal(found[0], other) for other in found[1:])
    still = grasp_planner.evaluate(
        cases.slides(3, mode), cases.planner(), episodes=5, goal=torch.zeros(2), execute=6
    )
    assert not torch.equal(still.returns, found[0])


def test_no_goal_but_a_cost() -> None:
    """A cost of the state alone: to the left, whatever goal there is."""

    class Blind(cases.Slide):
        observation_space = cases.Slide._box

        def seen(self) -> Any:
            return self.at

        def step(self, action: Any) -> Any:
            seen, _, _, late, info = super().step(action)
            self.steps = info["steps"]
            return seen, -float(action[0]), False, late, info

    left = cases.planner(cost=lambda states, actions: states[:, -1, 0], running_goal_weight=0.0)
    result = grasp_planner.evaluate(Blind(), left, episodes=2, execute=6)
    assert (result.returns > 0.6 * cases.STEPS).all()
    with pytest.raises(ValueError, match="there is no goal: observation has no"):
        grasp_planner.evaluate(Blind(), cases.planner())


@every_mode
def test_the_last_observation_is_judged(mode: AutoresetMode) -> None:
    """Who judges by observations alone finds what the environment's own flag says."""

    def near(observation: Any, infos: Any) -> Any:
        away = observation["observation"] - observation["desired_goal"]
        found = np.abs(away).max(1) < cases.NEAR
        said = [info.get("is_success") for info in infos]
        judged.extend(zip(found.tolist(), said, strict=True))
        return found

    judged: list[Any] = []
    make = cases.slides if mode is AutoresetMode.DISABLED else cases.Plain
    both = [
        grasp_planner.evaluate(
            make(3, mode), cases.planner(), episodes=6, seed=3, success=success, execute=6
        ).success
        for success in ("is_success", near)
    ]
    assert both[0] is not None
    assert torch.equal(both[0], both[1])
    assert both[0].any()
    assert any(found for found, _ in judged)


def test_a_shipped_world_model_in_somebody_elses_environment() -> None:
    """PointMaze's own vector, a simulator step a fifth of the model's, goals of two of four."""
    pytest.importorskip("mujoco")
    task = tasks.load("pointmaze-umaze")
    task.environment  # registers PointMaze, and is quiet about it  # noqa: B018
    mazes = gymnasium.make_vec("PointMaze_UMaze-v3", num_envs=3, continuing_task=False)
    for path in mazes.unwrapped.get_attr("tmp_xml_file_path"):
        Path(path).unlink(missing_ok=True)  # left behind by the maze's constructor

    def there(observation: Any, infos: Any) -> Subset:
        goal = torch.tensor(observation["desired_goal"], dtype=torch.float32)
        return Subset(torch.cat((goal, torch.zeros_like(goal)), 1), [0, 1])

    planner = make_planner("lifted-newton", task, horizon=50)
    result = grasp_planner.evaluate(
        mazes, planner, episodes=6, goal=there, repeat=5, execute=50, success="success"
    )
    mazes.close()
    assert result.success is not None
    assert result.success.all()
    assert torch.equal(result.returns, torch.ones(6, dtype=torch.float64))


# -------------------------------------------------------------------------------------- the summary


def test_summary() -> None:
    result = Evaluation(
        episodes=torch.arange(4),
        returns=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
        lengths=torch.tensor([10, 20, 30, 40]),
        success=torch.tensor([True, True, True, False]),
        terminated=torch.tensor([True] * 4),
        plans=torch.tensor([2, 2, 2, 2]),
        milliseconds=torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64),
        out_of_time=torch.tensor([0, 1, 0, 2]),
    )
    assert str(result) == (
        "4 episodes: success 75 % (30-95), return 2.5 ± 0.65 (standard error), length 25, "
        "3 ms per replanning (median episode), 3 of 8 plans out of time"
    )


def test_time_budgets_are_counted() -> None:
    def slow(state: Tensor, action: Tensor) -> Tensor:
        import time

        time.sleep(1e-3)
        return cases.model(state, action)

    planner = CEMPlanner(slow, CEMConfig(**{**vars(cases.planner().config), "iterations": 500}))
    result = grasp_planner.evaluate(cases.slides(1), planner, time_budget_ms=20.0, execute=6)
    assert torch.equal(result.out_of_time, result.plans)
    assert (result.milliseconds >= 19).all()


# ------------------------------------------------------------------------------------------- errors


def test_clear_errors() -> None:
    planner = cases.planner()
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"env": 3}, TypeError, "env must be a gymnasium.vector.VectorEnv or a gymnasium.Env, got"),
        ({"planner": 3}, TypeError, "planner must be a Planner or an MPC, got int"),
        ({"episodes": 0}, ValueError, "episodes must be from 1 to the most, 1048576, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"execute": 9}, ValueError, "execute must be from 1 to the horizon, 6, got 9"),
        ({"encode": 3}, TypeError, "encode must be callable, got int"),
        ({"success": 3}, TypeError, "success must be a name or a function, got int"),
        ({"success": "won"}, ValueError, "success is 'won', which info never had: .'is_success'"),
        ({"success": lambda o, i: True}, ValueError, r"success must return \(2,\) bool, got \(\)"),
        ({"goal": 3}, TypeError, "goal must be a name, a function, a Goal"),
        ({"goal": "aim"}, ValueError, "goal is 'aim', which is in none of .'achieved_goal', 'de"),
        ({"goal": lambda o, i: np.zeros((2, 1))}, ValueError, "goal must have D = 2 features as a"),
        ({"observe": lambda o: "?"}, TypeError, "observe must give arrays"),
        ({"observe": lambda o: np.zeros((4, 2))}, ValueError, r"observe must give a row for each"),
        ({"goal": lambda o, i: np.zeros((1, 2))}, ValueError, r"goal must give a row for each of"),
        ({"goal": lambda o, i: 3.0}, ValueError, r"goal must give a row .*, got \(\)"),
        ({"encode": lambda o: o.sum()}, ValueError, r"encode must return 2 rows, got \(\)"),
        ({"encode": lambda o: 3}, TypeError, "encode must return a tensor or a dict of them, got"),
        ({"encode": lambda o: o[:1]}, ValueError, "encode must return 2 rows, got"),
        ({"planner": cases.planner(action_low=-3.0, action_high=-2.0)}, ValueError, "is outside"),
        ({"planner": MPC(planner), "execute": 2}, TypeError, "an MPC has its own execute: give"),
        ({"progress": 3}, TypeError, "progress must be a function, True or None, got 3"),
    ]  # fmt: skip
    for given, error, words in wrong:
        asked = {"env": cases.slides(2), "planner": planner, **given}
        with pytest.raises(error, match=words):
            grasp_planner.evaluate(asked.pop("env"), asked.pop("planner"), **asked)


def test_environments_whose_actions_are_others() -> None:
    class Buttons(cases.Slide):
        action_space = spaces.Discrete(3)

    with pytest.raises(TypeError, match=r"env takes Discrete\(3\): give action"):
        grasp_planner.evaluate(Buttons(), cases.planner())

    class Whole(cases.Slide):
        action_space = spaces.Box(-1, 1, (2,), np.int64)

    with pytest.raises(TypeError, match=r"env takes Box\(-1, 1, \(2,\), int64\): give action"):
        grasp_planner.evaluate(Whole(), cases.planner())

    class One(cases.Slide):
        action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    with pytest.raises(ValueError, match=r"actions have 2 features, and env takes \(1,\)"):
        grasp_planner.evaluate(One(), cases.planner())


def test_nothing_foreign_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, grasp_planner\n"
        "assert 'evaluate' in grasp_planner.__all__\n"
        "foreign = lambda: [n for n in sys.modules if n.startswith(('gymnasium', "
        "'grasp_planner.adapters'))]\n"
        "assert not foreign(), foreign()\n"
        "grasp_planner.evaluate\n"
        "assert 'gymnasium' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        grasp_planner.evaluat  # noqa: B018
