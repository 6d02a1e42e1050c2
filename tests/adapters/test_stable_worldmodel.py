"""The solver for stable-worldmodel, on stand-ins with its published signatures; see
`test_stable_worldmodel_package.py` for the package itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import stable_worldmodel_stand_in as swm
import torch
from grasp_planner import (
    CEMConfig,
    CEMPlanner,
    GradientConfig,
    GradientPlanner,
    GraspConfig,
    GraspPlanner,
    ICEMConfig,
    ICEMPlanner,
    LatCoPlanner,
    LiftedNewtonConfig,
    LiftedNewtonPlanner,
    MPPIConfig,
    MPPIPlanner,
)
from grasp_planner.adapters.stable_worldmodel import MAY_BE_NAN, StableWorldModelSolver
from gymnasium.spaces import Box, Discrete
from torch import Tensor

HORIZON, BLOCK = 4, 2
BY_COST = [
    (CEMPlanner, CEMConfig(hold=1, samples=100, iterations=15)),
    (ICEMPlanner, ICEMConfig(samples=100, least_samples=30, iterations=15, colour=1.0)),
    (MPPIPlanner, MPPIConfig(hold=1, samples=100, iterations=15)),
    (GradientPlanner, GradientConfig(hold=1, restarts=4, iterations=60)),
]
LIFTED = [
    (GraspPlanner, GraspConfig(iterations=100)),
    (LiftedNewtonPlanner, LiftedNewtonConfig(hold=1)),
]
HASTY = CEMConfig(hold=1, samples=20, iterations=2, elites=4)  # which arrives nowhere
QUICK = CEMConfig(hold=1, samples=20, iterations=3, elites=4)


def space(count: int, low: float = -1.0, high: float = 1.0) -> Box:
    return Box(low, high, (count, 2))


def observed(count: int, frames: int = 1, seed: int = 0) -> dict[str, Any]:
    """What the policy hands to a solver: `(B, H, ...)`, the action and reward of a reset NaN."""
    random = torch.Generator().manual_seed(seed)
    return {
        "pixels": torch.rand(count, frames, 2, 1, 1, generator=random) + 0.1,
        "goal": 2 + torch.rand(count, 1, 2, 1, 1, generator=random),
        "action": torch.full((count, 1, 2), torch.nan),
        "goal_action": torch.full((count, 1, 2), torch.nan),  # of a goal out of a data set
        "reward": torch.full((count, 1), torch.nan, dtype=torch.float64),
        "step_idx": torch.arange(count)[:, None],
        "terminated": torch.zeros(count, 1, dtype=torch.bool),
        "env_name": [["here"]] * count,
        "note": np.arange(count),
    }


def solver_of(
    model: Any, planner: Any = CEMPlanner, config: Any = None, envs: int = 3, **how: Any
) -> StableWorldModelSolver:
    solver = StableWorldModelSolver(model, planner, config, **how)
    config = swm.PlanConfig(horizon=HORIZON, action_block=BLOCK)
    solver.configure(action_space=space(envs), n_envs=envs, config=config)
    return solver


def true_cost(model: Any, info: dict[str, Any], actions: Tensor) -> Tensor:
    """What the model itself says, one environment after the other."""
    costs = []
    for b in range(len(actions)):
        entries = {n: v[b : b + 1, None] for n, v in info.items() if isinstance(v, Tensor)}
        with torch.no_grad():
            costs.append(model.get_cost(entries, actions[b : b + 1, None])[0, 0])
    return torch.stack(costs).double()


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------ by the cost


@pytest.mark.parametrize(("planner", "config"), BY_COST)
def test_a_cost_alone_is_planned_by(planner: Any, config: Any) -> None:
    model, info = swm.CostAlone(BLOCK), observed(3)
    solver = solver_of(model, planner, config)
    assert solver.way == "cost"
    found = solver(info)
    assert found["actions"].shape == (3, HORIZON, 2 * BLOCK)
    assert found["planned"].all()
    assert max(found["costs"]) < 0.02, "2 to 3 away, 8 steps of at most 1"
    model.candidates.clear()
    want = true_cost(model, info, found["actions"])
    torch.testing.assert_close(doubles(found["costs"]), want, rtol=1e-5, atol=1e-6)


def test_get_cost_sees_what_their_own_solvers_give_it() -> None:
    """Shapes and dtypes of `expanded_infos`: one environment, the same S in every call."""
    model, info = swm.CostAlone(BLOCK), observed(2)
    info["pixels"] = info["pixels"].double()
    solver_of(model, CEMPlanner, QUICK).solve(info)
    assert set(model.candidates) == {(1, 20, HORIZON, 2 * BLOCK)}
    assert len(model.candidates) == 2 * (3 + 1), "iterations, and the mean, of both environments"
    for seen in model.infos:
        assert seen["pixels"] == (1, 20, 1, 2, 1, 1)
        assert seen["action"] == (1, 20, 1, 2)
        assert seen["step_idx"] == (1, 20, 1)
        assert seen["note"] == (1, 20)
        assert seen["env_name"] == [["here"]]


def test_environments_are_planned_together_where_that_is_asked_for() -> None:
    alone, together = swm.CostAlone(BLOCK), swm.CostAlone(BLOCK)
    info = observed(5)
    found = [
        solver_of(model, CEMPlanner, QUICK, envs=5, batch_size=size).solve(info)["actions"]
        for model, size in ((alone, 1), (together, 2))
    ]
    assert {shape[0] for shape in together.candidates} == {1, 2}
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_sampling_planners_need_no_gradient() -> None:
    model = swm.CostAlone(BLOCK, differentiable=False)
    assert solver_of(model, CEMPlanner, QUICK).solve(observed(1))["planned"].all()
    model = swm.CostAlone(BLOCK, differentiable=False)
    with pytest.raises(ValueError, match="get_cost must be differentiable"):
        solver_of(model, GradientPlanner, GradientConfig(restarts=2)).solve(observed(1))


@pytest.mark.parametrize("planner", [GraspPlanner, LiftedNewtonPlanner, LatCoPlanner])
def test_lifted_planners_need_dynamics(planner: Any) -> None:
    with pytest.raises(ValueError, match=f"{planner.__name__} needs its dynamics"):
        StableWorldModelSolver(swm.CostAlone(), planner)
    with pytest.raises(ValueError, match="way must be 'cost'"):
        StableWorldModelSolver(swm.CostAlone(), planner, way="dynamics")


def test_a_model_with_dynamics_can_be_planned_by_its_cost() -> None:
    model = swm.LeWM(BLOCK, num_frames=3)
    found = solver_of(model, CEMPlanner, BY_COST[0][1], way="cost").solve(observed(2))
    assert max(found["costs"]) < 0.02
    assert model.frames_encoded == 4, "the frame and the goal of each: not once per iteration"


# -------------------------------------------------------------------------------- by the dynamics


def models(num_frames: int = 1) -> list[Any]:
    new = swm.Dynamics(BLOCK, num_frames)
    return [swm.LeWM(BLOCK, num_frames), swm.Evaluator(new, swm.GoalMSE())]


def dynamics(model: Any) -> Any:
    return getattr(model, "model", model)


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("api", [0, 1], ids=["0.1.1", "newer"])
@pytest.mark.parametrize(("planner", "config"), [BY_COST[0], *LIFTED])
def test_dynamics_are_planned_through(planner: Any, config: Any, api: int, num_frames: int) -> None:
    """The cost is the model's own; observations are encoded once, whatever the planner does."""
    model, info = models(num_frames)[api], observed(3)
    solver = solver_of(model, planner, config)
    assert solver.way == "dynamics"
    found = solver(info)
    assert dynamics(model).frames_encoded == 3 + 3, "3 observations and 3 goals"
    assert max(found["costs"]) < 0.02
    want = true_cost(model, info, found["actions"])
    torch.testing.assert_close(doubles(found["costs"]), want, rtol=1e-4, atol=1e-5)
    before = dynamics(model).frames_encoded
    solver(info)
    assert dynamics(model).frames_encoded == before + 6, "once more for what is new"


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("api", [0, 1], ids=["0.1.1", "newer"])
def test_windows_grow_from_the_frames_that_were_seen(frames: int, api: int) -> None:
    """As the model's own rollout has them; its predictor refuses more frames than it knows."""
    model, info = models(num_frames=3)[api], observed(2, frames)
    info["action_history"] = torch.rand(2, frames - 1, 2 * BLOCK)
    found = solver_of(model, GraspPlanner, GraspConfig(iterations=10)).solve(info)
    assert dynamics(model).frames_encoded == 2 * frames + 2
    if api == 1:
        want = true_cost(model, info, found["actions"])
    else:  # whose candidates begin with the actions of the frames
        given = torch.cat((info.pop("action_history"), found["actions"]), 1)
        want = true_cost(model, info, given)
    torch.testing.assert_close(doubles(found["costs"]), want, rtol=1e-4, atol=1e-5)


def test_several_frames_need_what_was_done_between_them() -> None:
    solver = solver_of(models(num_frames=3)[1])
    with pytest.raises(ValueError, match=r"action_history.* \(2, 1, 4\) for 2 frames, got None"):
        solver.solve(observed(2, frames=2))


def test_a_rollout_of_one_step_is_all_that_the_newer_api_needs() -> None:
    model = models()[1]
    assert not hasattr(dynamics(model), "predict")
    solver_of(model, GraspPlanner, GraspConfig(iterations=2)).solve(observed(1))
    *steps, plan = dynamics(model).seen
    assert {shape[1:] for shape in steps} == {(1, 1, 2 * BLOCK)}
    assert plan == (1, 1, HORIZON, 2 * BLOCK), "whose cost is compared, without encoding anything"


def test_a_cost_of_its_own_is_not_planned_past() -> None:
    class Far(swm.LeWM):
        def criterion(self, info_dict: Any) -> Tensor:
            return super().criterion(info_dict) + info_dict["predicted_emb"][:, :, -1].sum(-1)

    with pytest.raises(ValueError, match=r"way must be 'cost': model\.get_cost says"):
        solver_of(Far(BLOCK), CEMPlanner, QUICK).solve(observed(2))
    model, info = Far(BLOCK), observed(2)
    found = solver_of(model, *BY_COST[0], way="cost").solve(info)
    want = true_cost(model, info, found["actions"])
    torch.testing.assert_close(doubles(found["costs"]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "planner", "config"),
    [
        (swm.GoalMSE(reduction="mean"), *LIFTED[1]),
        (swm.GoalMSE(reduction="mean"), CEMPlanner, HASTY),
        (swm.WeightedSum([(2.0, swm.GoalMSE()), (0.01, swm.ControlPenalty())]), *LIFTED[0]),
        (swm.WeightedSum([(2.0, swm.GoalMSE()), (0.01, swm.ControlPenalty())]), *LIFTED[1]),
        (swm.WeightedSum([(2.0, swm.GoalMSE()), (0.01, swm.ControlPenalty())]), *BY_COST[0]),
        (swm.ControlPenalty(), *BY_COST[0]),
    ],
)
def test_objectives_are_kept(objective: Any, planner: Any, config: Any) -> None:
    model = swm.Evaluator(swm.Dynamics(BLOCK), objective)
    info = observed(2)
    found = solver_of(model, planner, config).solve(info)
    want = true_cost(model, info, found["actions"])
    torch.testing.assert_close(doubles(found["costs"]), want, rtol=1e-4, atol=1e-5)
    nothing = true_cost(model, info, torch.zeros_like(found["actions"]))
    assert (want <= (0.9 if config is HASTY else 0.1) * nothing).all()


def test_lifted_planners_need_a_goal() -> None:
    model = swm.Evaluator(swm.Dynamics(BLOCK), swm.ControlPenalty())
    with pytest.raises(ValueError, match=r"the model's objective must have a GoalMSE"):
        solver_of(model, GraspPlanner, GraspConfig()).solve(observed(1))


def test_a_goal_may_come_encoded() -> None:
    model = swm.Evaluator(swm.Dynamics(BLOCK), swm.GoalMSE(), encode_goal=None)
    info = observed(2)
    info["goal_emb"] = info.pop("goal").flatten(2)
    assert max(solver_of(model, *BY_COST[0]).solve(info)["costs"]) < 0.02
    assert model.model.frames_encoded == 2


# ------------------------------------------------------------------------- the evaluation's demands


@pytest.mark.parametrize("way", ["dynamics", "cost"])
def test_batches_change_between_calls(way: str) -> None:
    solver = solver_of(swm.LeWM(BLOCK, num_frames=3), CEMPlanner, QUICK, envs=5, way=way)
    for count in (5, 2, 1, 4):
        found = solver(observed(count, seed=count))
        assert found["actions"].shape == (count, HORIZON, 2 * BLOCK)
        assert len(found["costs"]) == count
    assert (solver.n_envs, solver.horizon, solver.action_dim) == (5, HORIZON, 2 * BLOCK)


@pytest.mark.parametrize("entry", ["pixels", "goal"])
@pytest.mark.parametrize("way", ["dynamics", "cost"])
def test_dead_environments_touch_no_other(way: str, entry: str) -> None:
    info, warm = observed(3), torch.rand(3, HORIZON, 2 * BLOCK) - 0.5
    make = {"model": swm.LeWM(BLOCK), "planner": CEMPlanner, "config": QUICK, "way": way}
    want = solver_of(**make).solve(info, warm)
    info[entry] = info[entry].clone()
    info[entry][1] = torch.nan
    warm[1, 1:] = torch.nan
    found = solver_of(**make).solve(info, warm)
    assert found["planned"].tolist() == [True, False, True]
    assert math.isnan(found["costs"][1])
    torch.testing.assert_close(found["actions"][1, 0], warm[1, 0], rtol=0, atol=0)
    assert (found["actions"][1, 1:] == 0).all()
    torch.testing.assert_close(found["actions"][::2], want["actions"][::2], rtol=1e-5, atol=1e-6)


def test_all_may_be_dead() -> None:
    model, info = swm.LeWM(BLOCK), observed(2)
    info["pixels"][:] = torch.nan
    found = solver_of(model).solve(info)
    assert not found["planned"].any()
    assert (found["actions"] == 0).all()
    assert model.frames_encoded == 0


@pytest.mark.parametrize("way", ["dynamics", "cost"])
def test_there_may_be_no_environment(way: str) -> None:
    model = swm.LeWM(BLOCK)
    found = solver_of(model, config=QUICK, way=way).solve(observed(0))
    assert found["actions"].shape == (0, HORIZON, 2 * BLOCK)
    assert found["costs"] == []
    assert model.frames_encoded == 0


def test_an_environment_that_the_model_fails_for_is_not_planned() -> None:
    class Narrow(swm.LeWM):
        def predict(self, emb: Tensor, act_emb: Tensor) -> Tensor:
            if emb.abs().max() > 50:
                raise RuntimeError("too far")
            return super().predict(emb, act_emb)

    info, warm = observed(3), torch.rand(3, HORIZON, 2 * BLOCK) - 0.5
    info["pixels"][1] = 100.0
    with pytest.warns(RuntimeWarning, match=r"1 of 3 problems could not be planned: .*too far"):
        found = solver_of(Narrow(BLOCK), config=QUICK).solve(info, warm)
    assert found["planned"].tolist() == [True, False, True]
    assert found["costs"][1] == math.inf
    torch.testing.assert_close(found["actions"][1], warm[1])


@pytest.mark.parametrize("way", ["dynamics", "cost"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_actions_of_any_model_are_numpys(way: str, dtype: torch.dtype) -> None:
    """float32, as of their solvers, unless the model has more; there is no array of bfloat16."""
    solver = solver_of(swm.LeWM(BLOCK).to(dtype), config=QUICK, way=way)
    actions = solver.solve(observed(2))["actions"]
    wanted = np.float64 if dtype == torch.float64 else np.float32
    assert actions.numpy().dtype == wanted


def test_entries_that_may_be_nan_are_named() -> None:
    info = {**observed(2), "distance": torch.tensor([[1.0], [torch.nan]])}
    model = swm.LeWM(BLOCK)
    assert solver_of(model, config=QUICK).solve(info)["planned"].tolist() == [True, False]
    found = solver_of(model, config=QUICK, may_be_nan=(*MAY_BE_NAN, "distance")).solve(info)
    assert found["planned"].all()


@pytest.mark.parametrize("way", ["dynamics", "cost"])
def test_warm_starts_are_shorter_than_plans(way: str) -> None:
    """A search of no iteration returns the warm start: t steps, and no action after them."""
    solver = solver_of(swm.LeWM(BLOCK), CEMPlanner, CEMConfig(hold=1, iterations=0), way=way)
    for known in (0, 1, HORIZON):
        init = torch.rand(2, known, 2 * BLOCK)
        actions = solver.solve(observed(2), init_action=init)["actions"]
        torch.testing.assert_close(actions[:, :known], init, rtol=0, atol=0)
        assert (actions[:, known:] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 4), (2, HORIZON + 1, 4), (2, 1, 2), (2, 4)])
def test_warm_starts_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"init_action must be \(B, t, A\)"):
        solver_of(swm.LeWM(BLOCK)).solve(observed(2), torch.zeros(shape))


def test_an_actor_completes_a_warm_start() -> None:
    class Actor(swm.LeWM):
        def get_action(
            self, info: Any, horizon: int = 1, prefix_actions: Tensor | None = None
        ) -> Tensor:
            assert prefix_actions is not None
            assert prefix_actions.shape == (2, 1, 2 * BLOCK)
            return torch.full((len(info["pixels"]), horizon, 2 * BLOCK), 0.25)

    solver = solver_of(Actor(BLOCK), CEMPlanner, CEMConfig(hold=1, iterations=0))
    actions = solver.solve(observed(2), torch.zeros(2, 1, 2 * BLOCK))["actions"]
    assert (actions[:, 0] == 0).all()
    assert (actions[:, 1:] == 0.25).all()


def test_an_actor_of_another_shape_is_refused() -> None:
    class Actor(swm.LeWM):
        def get_action(
            self, info: Any, horizon: int = 1, prefix_actions: Tensor | None = None
        ) -> Tensor:
            return torch.zeros(len(info["pixels"]), 1, 2 * BLOCK)

    with pytest.raises(ValueError, match=r"get_action must return \(2, 4, 4\), got \(2, 1, 4\)"):
        solver_of(Actor(BLOCK)).solve(observed(2))


class Scaler:
    """`process["action"]` of a policy: planned actions are standardised, and here turned round."""

    def transform(self, x: Any) -> Any:
        return (x - 0.5) / np.array([0.1, -0.2])


def test_bounds_are_those_of_the_space_for_every_step_of_a_block() -> None:
    box = Box(np.array([[-1.0, 0.0]] * 2), np.array([[0.5, np.inf]] * 2), dtype=np.float64)
    config = swm.PlanConfig(horizon=2, action_block=3)

    def bounds(solver: StableWorldModelSolver) -> tuple[Any, Any]:
        solver.configure(action_space=box, n_envs=2, config=config)
        settings = solver._settings
        assert settings is not None
        return settings.action_low, settings.action_high

    plain = StableWorldModelSolver(swm.LeWM(3))
    assert bounds(plain) == ((-1.0, 0.0) * 3, (0.5, math.inf) * 3)
    low, high = bounds(StableWorldModelSolver(swm.LeWM(3), action_process=Scaler()))
    assert low == pytest.approx((-15.0, -math.inf) * 3)
    assert high == pytest.approx((0.0, 2.5) * 3)
    own = CEMConfig(hold=1, action_low=-0.1, action_high=0.1)
    assert bounds(StableWorldModelSolver(swm.LeWM(3), CEMPlanner, own)) == (-0.1, 0.1)


def test_plans_stay_inside_the_bounds() -> None:
    solver = StableWorldModelSolver(swm.LeWM(BLOCK), CEMPlanner, BY_COST[0][1])
    config = swm.PlanConfig(horizon=2, action_block=BLOCK)
    solver.configure(action_space=space(3, -0.25, 0.5), n_envs=3, config=config)
    actions = solver.solve(observed(3))["actions"]
    assert actions.max() == 0.5, "the goal is out of reach"
    assert actions.min() >= -0.25


def test_the_same_evaluation_again_is_the_same() -> None:
    """Noise is new in every call, and begins anew with `configure`."""
    info, config = observed(2), swm.PlanConfig(horizon=HORIZON, action_block=BLOCK)
    solver = StableWorldModelSolver(swm.LeWM(BLOCK), CEMPlanner, QUICK)
    runs = []
    for _ in range(2):
        solver.configure(action_space=space(2), n_envs=2, config=config)
        runs.append([solver.solve(info)["actions"] for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.parametrize("way", ["dynamics", "cost"])
def test_the_model_is_left_as_it_was_found(way: str) -> None:
    model = swm.LeWM(BLOCK).train()
    with torch.inference_mode():  # their sampling solvers run in it
        solver_of(model, GradientPlanner, GradientConfig(hold=1, iterations=2), way=way).solve(
            observed(1)
        )
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------------------- errors


def test_what_is_wrong_is_named() -> None:
    model = swm.LeWM()
    with pytest.raises(TypeError, match="model must have a method get_cost, got Linear"):
        StableWorldModelSolver(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="planner must be a class of planners"):
        StableWorldModelSolver(model, "cem")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config must be a ICEMConfig, got CEMConfig"):
        StableWorldModelSolver(model, ICEMPlanner, CEMConfig())
    with pytest.raises(ValueError, match="way must be one of 'dynamics', 'cost', got 'both'"):
        StableWorldModelSolver(model, way="both")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        StableWorldModelSolver(model, batch_size=0)
    with pytest.raises(ValueError, match=r"config\.cost must be None"):
        StableWorldModelSolver(
            swm.CostAlone(), CEMPlanner, CEMConfig(cost=lambda states, actions: states[:, 0, 0])
        )
    with pytest.raises(ValueError, match=r"config\.max_rows must be None"):
        StableWorldModelSolver(swm.CostAlone(), CEMPlanner, CEMConfig(max_rows=10), batch_size=2)
    with pytest.raises(TypeError, match="action_process must have a method transform, got int"):
        StableWorldModelSolver(model, action_process=3)
    with pytest.raises(TypeError, match="may_be_nan must be names of entries, got 'action'"):
        StableWorldModelSolver(model, may_be_nan="action")
    solver = StableWorldModelSolver(model)
    with pytest.raises(AttributeError, match="call configure first"):
        solver.solve(observed(1))
    config = swm.PlanConfig(horizon=2)
    with pytest.raises(TypeError, match="action_space must be a Box, got Discrete"):
        solver.configure(action_space=Discrete(3), n_envs=1, config=config)
    with pytest.raises(ValueError, match=r"of all environments, \(2, \.\.\.\), got \(3, 2\)"):
        solver.configure(action_space=space(3), n_envs=2, config=config)
    with pytest.raises(ValueError, match=r"config\.horizon must be at least 1"):
        solver.configure(action_space=space(1), n_envs=1, config=swm.PlanConfig(horizon=0))
    solver.configure(action_space=space(1), n_envs=1, config=config)
    info = observed(1)
    with pytest.raises(TypeError, match=r"info_dict must be a dict of \(B, H, ...\), got None"):
        solver.solve(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"info_dict must have tensors \(B, H, ...\), got"):
        solver.solve({"env_name": "here"})
    with pytest.raises(ValueError, match=r"must have entries 'goal' or 'goal_\.\.\.', got"):
        solver.solve({n: v for n, v in info.items() if not n.startswith("goal")})
    with pytest.raises(ValueError, match=r"info_dict\['goal'\] must have 1 rows, got 2"):
        solver.solve({**info, "goal": info["goal"].repeat(2, 1, 1, 1, 1)})


def test_a_cost_of_the_wrong_shape_is_refused() -> None:
    class Wrong(swm.CostAlone):
        def get_cost(self, info_dict: Any, action_candidates: Tensor) -> Tensor:
            return super().get_cost(info_dict, action_candidates)[:, :, None]

    with pytest.raises(ValueError, match=r"get_cost must return \(B, S\) = \(1, 20\), got"):
        solver_of(Wrong(BLOCK), CEMPlanner, QUICK).solve(observed(1))
