"""The solver in stable-worldmodel 0.1.1 itself: its World, its policy, its LeWM, beside its CEM.

`make test-stable-worldmodel` runs this in an environment of its own, for the package is large.

The world model is exact, and made by hand of their LeWM: the room is seen as an image of 56 x 56
pixels, its encoder finds the red dot, its latent is where that is, and each of three frames counts.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grasp_planner import (
    CEMConfig,
    CEMPlanner,
    GradientConfig,
    GradientPlanner,
    GraspConfig,
    GraspPlanner,
    LiftedNewtonConfig,
    LiftedNewtonPlanner,
)
from grasp_planner.adapters.stable_worldmodel import (
    StableWorldModelSolver,
    import_stable_worldmodel,
)
from torch import Tensor, nn

if importlib.util.find_spec("stable_worldmodel") is None:
    pytest.skip(
        "stable_worldmodel is not installed: make test-stable-worldmodel", allow_module_level=True
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of games that are not installed
    swm = import_stable_worldmodel()
    from stable_worldmodel.wm.lewm import LeWM
    from stable_worldmodel.wm.pldm import PLDM
    from stable_worldmodel.wm.prejepa import PreJEPA
    from torchvision.transforms import v2

# Warnings of the package and of gymnasium about its environments are not of this code.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:gymnasium",
    "ignore:The given buffer is not writable:UserWarning",  # of its images, once they are read
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
)

SIZE, SPEED, EPISODES, BLOCK = 56, 5.0, 4, 2
ROOM = {
    "state": np.array([50.0, 112.0], np.float32),
    "target_state": np.array([190.0, 190.0], np.float32),
}
CEM = CEMConfig(hold=1, samples=300, iterations=30, elites=30)


class Eye(nn.Module):
    """Where the red dot is, in hundreds of the room's pixels, as the token of a vision model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(224.0 / SIZE / 100))
        self.frames = 0

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool = False) -> SimpleNamespace:
        assert pixels.shape[1:] == (3, SIZE, SIZE)
        self.frames += len(pixels)
        red = (pixels[:, 0] - pixels[:, 1]).clamp_min(0)
        red = red / red.sum((1, 2), keepdim=True)
        at = torch.arange(SIZE) + 0.5
        place = torch.stack(((red * at).sum((1, 2)), (red * at[:, None]).sum((1, 2))), 1)
        return SimpleNamespace(last_hidden_state=(place * self.scale)[:, None])


class Push(nn.Module):
    """How far an action block goes."""

    def forward(self, action: Tensor) -> Tensor:
        return action.unflatten(-1, (BLOCK, 2)).sum(-2) * (SPEED / 100)


class Walk(nn.Module):
    """Where a step ends: places of up to three frames, of which the last counts most."""

    num_frames = 3

    def forward(self, emb: Tensor, push: Tensor) -> Tensor:
        assert emb.shape == push.shape
        assert emb.shape[1] <= self.num_frames
        return emb + push + 0.01 * (emb - emb[:, :1])


def lewm() -> Any:
    return LeWM(encoder=Eye(), predictor=Walk(), action_encoder=Push())


class Walks(swm.policy.BasePolicy):
    """Each of the environments goes its own way."""

    def get_action(self, info_dict: dict[str, Any], **kwargs: Any) -> np.ndarray:
        ways = np.linspace(-1, 1, self.env.num_envs)
        return np.stack((-0.15 * np.ones_like(ways), ways), 1).astype(np.float32)


class Seen:
    """A model and what it is given, as names, shapes and types."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, []

    def parameters(self) -> Any:
        return self.model.parameters()

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        shown = {
            name: (type(value), tuple(value.shape), value.dtype)
            for name, value in info_dict.items()
            if isinstance(value, (Tensor, np.ndarray))
        }
        given = action_candidates
        self.calls.append((shown, tuple(given.shape), given.dtype, info_dict["env_name"]))
        return self.model.get_cost(info_dict, action_candidates)


def world(count: int = EPISODES) -> Any:
    return swm.World("swm/TwoRoom-v1", num_envs=count, image_shape=(SIZE, SIZE))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Episodes of 30 steps, recorded and read by the package."""
    path = tmp_path_factory.mktemp("episodes") / "walks.lance"
    recorder = swm.World(
        "swm/TwoRoom-v1", num_envs=EPISODES, image_shape=(SIZE, SIZE), max_episode_steps=30
    )
    recorder.set_policy(Walks())
    recorder.collect(path, episodes=EPISODES, seed=0, options=ROOM, progress=False)
    recorder.close()
    return swm.data.LanceDataset(path=Path(path))


def plan_config(**changes: Any) -> Any:
    given = {"horizon": 6, "receding_horizon": 3, "action_block": BLOCK, **changes}
    return swm.PlanConfig(**given)


def of_solver(solver: Any) -> Any:
    """Their policy, from pixels."""
    looks = v2.ToDtype(torch.float32, scale=True)
    return swm.policy.WorldModelPolicy(
        solver=solver, config=plan_config(), transform={"pixels": looks, "goal": looks}
    )


def evaluated(policy: Any, dataset: Any) -> dict[str, Any]:
    """Their evaluation of states and goals out of a data set."""
    rooms = world()
    rooms.set_policy(policy)
    places = [
        {"method": "_set_state", "args": {"state": {"value": "state"}}},
        {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_state"}}},
    ]
    found = rooms.evaluate(
        dataset=dataset,
        episodes_idx=list(range(EPISODES)),
        start_steps=[0] * EPISODES,
        goal_offset=20,
        eval_budget=24,
        callables=places,
    )
    rooms.close()
    return found


def of_planner(model: Any, planner: Any, config: Any, **how: Any) -> StableWorldModelSolver:
    return StableWorldModelSolver(model, planner, config, **how)


@pytest.mark.parametrize(
    ("planner", "config", "way"),
    [
        (LiftedNewtonPlanner, LiftedNewtonConfig(hold=1, rounds=2), "dynamics"),
        (GraspPlanner, GraspConfig(iterations=100), "dynamics"),
        (CEMPlanner, CEM, "dynamics"),
        (CEMPlanner, CEM, "cost"),
        (GradientPlanner, GradientConfig(hold=1, restarts=4, iterations=30), "cost"),
    ],
)
def test_their_evaluation_runs_with_our_solver(
    planner: Any, config: Any, way: str, dataset: Any
) -> None:
    model = lewm()
    solver = of_planner(model, planner, config, way=way)
    assert isinstance(solver, swm.solver.Solver) is False, "not before it is configured"
    found = evaluated(of_solver(solver), dataset)
    assert isinstance(solver, swm.solver.Solver)
    assert found["success_rate"] == 100.0
    assert model.encoder.frames <= 2 * EPISODES * 4, "4 plans of 2 encodings each, at most"


def test_their_own_solver_does_no_better_and_no_plan_does_worse(dataset: Any) -> None:
    theirs = swm.solver.CEMSolver(lewm(), n_steps=30, num_samples=300, topk=30)
    assert evaluated(of_solver(theirs), dataset)["success_rate"] == 100.0
    assert evaluated(swm.policy.RandomPolicy(seed=0), dataset)["success_rate"] < 50.0


def problems(count: int) -> dict[str, Any]:
    """What the policy hands to a solver for rooms that were just entered, and a goal in reach."""
    rooms = world(count)
    rooms.reset(seed=0, options=ROOM)
    looks = v2.ToDtype(torch.float32, scale=True)
    policy = swm.policy.BasePolicy(transform={"pixels": looks, "goal": looks})
    shifted = np.roll(rooms.infos["pixels"], (5, 2), (2, 3))
    info = policy._prepare_info({**rooms.infos, "goal": shifted})
    rooms.close()
    return info


def configured(solver: Any, count: int, **changes: Any) -> Any:
    rooms = world(count)
    solver.configure(action_space=rooms.envs.action_space, n_envs=count, config=plan_config())
    rooms.close()
    return solver


@pytest.mark.parametrize("way", ["dynamics", "cost"])
def test_plans_cost_as_little_as_theirs(way: str) -> None:
    """Our CEM in their place. Theirs has no bounds, so the goal is near enough not to need them."""
    info, count = problems(2), 2
    theirs = configured(swm.solver.CEMSolver(lewm(), n_steps=30, num_samples=300, topk=30), count)
    ours = configured(of_planner(lewm(), CEMPlanner, CEM, way=way), count)
    plans = [solver(dict(info))["actions"] for solver in (theirs, ours)]
    costs = []
    for actions in plans:
        assert actions.shape == (count, 6, 2 * BLOCK)
        assert actions.dtype == torch.float32
        cost = []
        for b in range(count):
            entries = {n: v[b : b + 1, None] for n, v in info.items() if isinstance(v, Tensor)}
            with torch.no_grad():
                cost.append(lewm().get_cost(entries, actions[b : b + 1, None])[0, 0])
        costs.append(torch.stack(cost))
    nothing = torch.tensor(0.2**2 + 0.08**2)  # (5, 2) pixels of 56 in the units of the latent
    assert (costs[0] < 0.01 * nothing).all()
    assert (costs[1] <= costs[0] + 1e-4 * nothing).all()
    reported = torch.tensor(ours(dict(info))["costs"])
    assert (reported < 0.01 * nothing).all()


def test_their_pldm_is_planned_through_too() -> None:
    """Its encoder is called once more, by the `get_cost` that the first plan is compared with."""
    info, model = problems(2), PLDM(encoder=Eye(), predictor=Walk(), action_encoder=Push())
    solver = of_planner(model, CEMPlanner, CEM)
    found = configured(solver, 2)(dict(info))
    assert solver.way == "dynamics"
    assert model.encoder.frames == 4 + 2
    for b in range(2):
        entries = {n: v[b : b + 1, None] for n, v in info.items() if isinstance(v, Tensor)}
        with torch.no_grad():
            cost = model.get_cost(entries, found["actions"][b : b + 1, None])[0, 0]
        assert found["costs"][b] == pytest.approx(float(cost), abs=1e-6)
        assert cost < 0.01 * (0.2**2 + 0.08**2)


def test_a_model_is_given_what_their_solver_gives_it() -> None:
    """Entry by entry: shape, dtype, and whether it is a tensor."""
    info, seen = problems(2), []
    for kind in ("theirs", "ours"):
        model = Seen(lewm())
        if kind == "theirs":
            solver = swm.solver.CEMSolver(model, n_steps=2, num_samples=20, topk=5)
        else:
            solver = of_planner(model, CEMPlanner, CEMConfig(hold=1, samples=20, iterations=2))
        configured(solver, 2)(dict(info))
        seen.append(model.calls)
    first, second = seen
    assert first[0] == second[0]
    assert {call[1:3] for call in first} == {call[1:3] for call in second}


class Looks(Eye):
    """The same as a vision model that has logits, not tokens."""

    def forward(self, pixels: Tensor, interpolate_pos_encoding: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(pixels).last_hidden_state[:, 0])


class Entry(nn.Module):
    emb_dim = 2

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, value: Tensor) -> Tensor:
        return self.step(value)


class Moves(nn.Module):
    """Latents `(rows, frames, place 2 + proprio 2 + action 2)`: both places move."""

    def forward(self, latents: Tensor) -> Tensor:
        place, own, action = latents.split(2, -1)
        return torch.cat((place + action, own + action, action), -1)


def test_a_model_that_keeps_what_it_encoded_is_planned_by_its_cost() -> None:
    """Their PreJEPA keeps the candidates' latents by environment and step, with their number."""
    info = problems(2)
    info["goal_proprio"] = info["proprio"] + torch.tensor([8.0, 20.0])  # as far as the image says
    plans = []
    for ours in (False, True):
        encoders = nn.ModuleDict({"proprio": Entry(nn.Identity()), "action": Entry(Push())})
        encoders["proprio"].step = nn.Linear(2, 2, bias=False)
        nn.init.eye_(encoders["proprio"].step.weight).data.mul_(0.01)
        model = PreJEPA(Looks(), Moves(), encoders, history_size=1)
        if ours:
            solver: Any = of_planner(model, CEMPlanner, CEM)
            assert solver.way == "cost"
        else:
            solver = swm.solver.CEMSolver(model, n_steps=30, num_samples=300, topk=30)
        plans.append(configured(solver, 2)(dict(info)))
        assert model.backbone.frames == 4, "a frame and a goal of each"
    theirs, ours = (plan["costs"] for plan in plans)
    assert max(ours) <= max(theirs) + 1e-6


def test_episodes_may_begin_anew(dataset: Any) -> None:
    """Their episodic evaluation: rooms that are entered anew plan alone."""
    batches: list[int] = []

    class Counted(StableWorldModelSolver):
        def solve(self, info_dict: Any, init_action: Tensor | None = None) -> dict[str, Any]:
            batches.append(len(info_dict["pixels"]))
            assert init_action is None or bool(torch.isfinite(init_action).all())
            return super().solve(info_dict, init_action)

    class Goals(swm.policy.WorldModelPolicy):
        def get_action(self, info_dict: dict[str, Any], **kwargs: Any) -> np.ndarray:
            goal = np.roll(info_dict["pixels"], (6, 0), (2, 3))
            return super().get_action({**info_dict, "goal": goal}, **kwargs)

    looks = v2.ToDtype(torch.float32, scale=True)
    rooms = swm.World("swm/TwoRoom-v1", num_envs=3, image_shape=(SIZE, SIZE), max_episode_steps=8)
    solver = Counted(lewm(), CEMPlanner, CEMConfig(hold=1, samples=20, iterations=2))
    config = plan_config(receding_horizon=2)
    rooms.set_policy(
        Goals(solver=solver, config=config, transform={"pixels": looks, "goal": looks})
    )
    found = rooms.evaluate(episodes=5, seed=0)
    rooms.close()
    assert len(found["episode_successes"]) == 5
    assert set(batches) <= {1, 2, 3}
    assert len(batches) >= 2
