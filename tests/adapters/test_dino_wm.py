"""The dino_wm adapter, on a stand-in with the published signatures."""

from __future__ import annotations

from typing import Any

import dino_wm_stand_in as dino
import numpy as np
import pytest
import torch
from grasp_planner.adapters.dino_wm import DinoWMPlanner
from grasp_planner.adapters.frames import FramePlanner, GrowingWindow, squared_distance_weights
from grasp_planner.presets import PLANNERS
from torch import Tensor

#: Little work for every planner.
QUICK: dict[str, dict[str, Any]] = {
    "lifted-newton": {
        "rounds": 1,
        "samples": 12,
        "resamples": 8,
        "pool": 8,
        "cost_steps": 3,
        "score_rollouts": 2,
    },
    "cem": {"samples": 12, "iterations": 3, "elites": 4, "hold": 1},
    "icem": {"samples": 12, "least_samples": 8, "iterations": 3, "elites": 4},
    "mppi": {"samples": 12, "iterations": 3, "hold": 1},
    "gradient": {"restarts": 2, "iterations": 5},
    "latco": {"restarts": 2, "iterations": 8},
    "grasp": {
        "iterations": 6,
        "candidates": 2,
        "sync_every": 3,
        "sync_steps": 2,
        "final_sync_steps": 5,
    },
    "grasp-paper": {"iterations": 4, "sync_every": 2, "sync_steps": 2},
}


def planner(wm: dino.VWorldModel, **changes: Any) -> DinoWMPlanner:
    """As `hydra.utils.instantiate` makes one: all by name, with what is not ours."""
    kind = changes.get("planner", "cem")
    given: dict[str, Any] = {
        "horizon": 5,
        "wm": wm,
        "env": None,
        "action_dim": dino.ACTION,
        "objective_fn": dino.create_objective_fn(alpha=0.5, base=2),
        "preprocessor": dino.Preprocessor(),
        "evaluator": None,
        "wandb_run": dino.WandbRun(),
        "log_filename": None,
        "name": "ours",
        "planner": kind,
        "settings": QUICK.get(kind),
        **changes,
    }
    return DinoWMPlanner(**given)


def model(**changes: Any) -> dino.VWorldModel:
    torch.manual_seed(0)
    return dino.VWorldModel(**changes).eval()


def published_cost(wm: dino.VWorldModel, ours: DinoWMPlanner, actions: Tensor) -> Tensor:
    """What dino_wm itself makes of a plan: encode, `rollout`, objective."""
    with torch.no_grad():
        start = ours.preprocessor.transform_obs(dino.observation(3, 1))
        goal = wm.encode_obs(ours.preprocessor.transform_obs(dino.observation(3, 2)))
        cost: Tensor = ours.objective_fn(wm.rollout(start, actions)[0], goal)
    return cost


@pytest.mark.parametrize("concat_dim", [0, 1])
@pytest.mark.parametrize("history", [1, 3])
def test_states_are_those_of_the_models_own_rollout(concat_dim: int, history: int) -> None:
    """Windows grow from one frame to `num_hist`, actions are where they belong, and tiles of the
    proprioception go their own ways."""
    wm = model(num_hist=history, concat_dim=concat_dim)
    ours = planner(wm)
    found: list[Any] = []
    plan_of = FramePlanner.plan

    def kept(self: FramePlanner, *args: Any, **kwargs: Any) -> Any:
        found.append(plan_of(self, *args, **kwargs))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FramePlanner, "plan", kept)
        actions, _ = ours.plan(dino.observation(3, 1), dino.observation(3, 2))
    states = ours._planner.model.unpack(found[0].states)
    start = ours.preprocessor.transform_obs(dino.observation(3, 1))
    with torch.no_grad():
        expected, _ = wm.rollout(start, actions)
    for name in ("visual", "proprio"):
        assert states[name].shape == expected[name].shape
        torch.testing.assert_close(states[name], expected[name])
    torch.testing.assert_close(found[0].cost, published_cost(wm, ours, actions))


@pytest.mark.parametrize("kind", PLANNERS)
def test_every_planner_does_better_than_no_action_and_encodes_once(kind: str) -> None:
    wm = model()
    ours = planner(wm, planner=kind)
    actions, lengths = ours.plan(dino.observation(3, 1), dino.observation(3, 2))
    assert actions.shape == (3, 5, dino.ACTION)
    assert actions.dtype == torch.float32
    assert isinstance(lengths, np.ndarray)
    assert np.isinf(lengths).all()
    assert wm.encoder.calls == 2  # the start and the goal
    assert wm.encoder.images == 6
    rest = published_cost(wm, ours, torch.zeros_like(actions))
    assert (published_cost(wm, ours, actions) < rest).all()


def test_an_objective_of_all_frames_is_minimised_as_it_is() -> None:
    wm = model()
    ours = planner(wm, objective_fn=dino.create_objective_fn(alpha=0.5, base=2, mode="all"))
    actions, _ = ours.plan(dino.observation(3, 1), dino.observation(3, 2))
    run: dino.WandbRun = ours.wandb_run
    cost = published_cost(wm, ours, actions)
    assert run.logged[-1]["plan_0/loss"] == pytest.approx(float(cost.mean()), rel=1e-5)
    assert (cost < published_cost(wm, ours, torch.zeros_like(actions))).all()


def test_the_models_receding_horizon_loop() -> None:
    """`MPCPlanner` sets horizon and prefix, and hands on what is left of the last plan."""
    wm = model()
    ours = planner(wm)
    ours.horizon = 4
    memo, run = None, ours.wandb_run
    for turn in range(3):
        ours.logging_prefix = f"plan_{turn}"
        actions, _ = ours.plan(
            obs_0=dino.observation(3, 1), obs_g=dino.observation(3, 2), actions=memo
        )
        assert actions.shape == (3, 4, dino.ACTION)
        if memo is not None:  # never worse than its warm start, which ends in no action
            warm = torch.cat([memo, torch.zeros(3, 1, dino.ACTION)], 1)
            before = published_cost(wm, ours, warm)
            assert (published_cost(wm, ours, actions) <= before * (1 + 1e-5)).all()
        memo = actions.detach()[:, 1:]
    last = [log for log in run.logged if "plan_2/loss" in log]
    assert [log["step"] for log in last] == list(range(1, len(last) + 1))


def test_the_model_is_left_as_it_was_found() -> None:
    wm = model().train()
    before = {name: value.clone() for name, value in wm.state_dict().items()}
    planner(wm, planner="gradient").plan(dino.observation(3, 1), dino.observation(3, 2))
    assert all(part.training for part in wm.modules())
    assert all(p.requires_grad and p.grad is None for p in wm.parameters())
    assert all(torch.equal(value, before[name]) for name, value in wm.state_dict().items())


def test_another_goal_is_for_the_same_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are measured beside every goal; a horizon or a weight that is another counts."""
    made: list[Any] = []
    make = FramePlanner._made

    def counted(self: FramePlanner, *given: Any) -> Any:
        made.append(given[-1])
        return make(self, *given)

    monkeypatch.setattr(FramePlanner, "_made", counted)
    ours = planner(model())
    for seed in range(2, 12):
        ours.plan(dino.observation(1, 1), dino.observation(1, seed))
    assert len(made) == 1
    ours.horizon = 4
    ours.plan(dino.observation(1, 1), dino.observation(1, 2))
    ours.objective_fn = dino.create_objective_fn(alpha=0.4, base=2)
    ours.plan(dino.observation(1, 1), dino.observation(1, 2))
    assert len(made) == 3
    assert made[-1] == pytest.approx({"visual": 1 / 24, "proprio": 0.4 / 4, "tiles": 0.0})


def test_calls_have_noise_of_their_own_and_planners_repeat() -> None:
    observations = dino.observation(3, 1), dino.observation(3, 2)
    ours = planner(model())
    first, second = ours.plan(*observations)[0], ours.plan(*observations)[0]
    assert not torch.equal(first, second)
    assert torch.equal(planner(model()).plan(*observations)[0], first)


# ---------------------------------------------------------------------- what the adapters share


def test_a_window_never_sees_a_frame_that_is_not_there() -> None:
    """Rows of all lengths in one call, as lifted passes have them, and their gradients."""
    seen: list[int] = []

    def step(frames: dict[str, Tensor], actions: Tensor) -> dict[str, Tensor]:
        seen.append(frames["x"].shape[1])
        return {"x": frames["x"].sum(1) + actions.sum((1, 2))[:, None]}

    window = GrowingWindow(torch.nn.Identity(), step, 3)
    frames = torch.tensor([[9.0, 9, 1], [1, 2, 3], [9, 1, 2], [9, 9, 4]])[..., None]
    nothing = torch.finfo(torch.float32).min
    actions = torch.tensor([[nothing, nothing, 1], [1, 1, 1], [nothing, 1, 1], [nothing] * 2 + [5]])
    actions = actions[..., None].requires_grad_()
    found = window({"x": frames}, actions)["x"]
    assert found.flatten().tolist() == [2.0, 9.0, 5.0, 9.0]
    assert seen == [1, 2, 3]
    (gradient,) = torch.autograd.grad(found.sum(), actions)
    assert torch.equal(gradient, (actions != nothing).float())


def test_lifted_passes_see_growing_windows_too() -> None:
    wm = model()
    wm.predictor.lengths.clear()
    planner(wm, planner="grasp").plan(dino.observation(3, 1), dino.observation(3, 2))
    assert set(wm.predictor.lengths) == {1, 2, 3}


def test_which_objectives_are_squared_distances() -> None:
    goal = {"visual": torch.randn(1, 1, 4, 6), "proprio": torch.randn(1, 1, 4)}

    def weights(objective: Any) -> dict[str, float] | None:
        return squared_distance_weights(lambda f, a, g: objective(f, g), goal, 2)

    found = weights(dino.create_objective_fn(alpha=0.5, base=2))
    assert found == pytest.approx({"visual": 1 / 24, "proprio": 0.5 / 4}, rel=1e-5)
    assert (
        squared_distance_weights(
            lambda f, a, g: dino.create_objective_fn(0.5, 2)(f, g) + a.square().sum((1, 2)), goal, 2
        )
        is None
    )
    found = weights(dino.create_objective_fn(alpha=0.0, base=2))
    assert found == pytest.approx({"visual": 1 / 24, "proprio": 0.0}, rel=1e-5)
    assert weights(dino.create_objective_fn(alpha=0.5, base=2, mode="all")) is None
    assert weights(lambda f, g: (f["visual"][:, -1:] - g["visual"]).abs().mean((1, 2, 3))) is None
    assert weights(lambda f, g: -(f["visual"][:, -1:] * g["visual"]).sum((1, 2, 3))) is None


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wm": lambda x: x}, "wm must be a torch.nn.Module, got function"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"action_dim": 2.0}, "action_dim must be an int, got float"),
        ({"objective_fn": 1}, "objective_fn must be callable, got int"),
        ({"planner": "adam", "settings": {}}, "planner must be one of .*grasp.*, got 'adam'"),
        ({"settings": {"horizon": 3}}, "horizon: no setting of CEMConfig to be given here"),
        ({"settings": {"topk": 3}}, "topk: no setting of CEMConfig to be given here"),
        ({"settings": 5}, "settings must be a mapping, got int"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        planner(**{"wm": model(), **changes})


def test_other_names_of_latents_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wm = model()
    latent = {"visual_tokens": torch.zeros(3, 1, 4, 6), "proprio": torch.zeros(3, 1, 4)}
    monkeypatch.setattr(wm, "encode_obs", lambda obs: latent)
    with pytest.raises(TypeError, match=r"'visual' and 'proprio', got .*visual_tokens"):
        planner(wm).plan(dino.observation(3, 1), dino.observation(3, 2))


def test_observations_and_warm_starts_are_checked() -> None:
    ours, start, goal = planner(model()), dino.observation(3, 1), dino.observation(3, 2)
    two = {name: np.concatenate([value, value], 1) for name, value in goal.items()}
    with pytest.raises(ValueError, match=r"obs_g must have one frame .*, got \(3, 2\)"):
        ours.plan(start, two)
    with pytest.raises(ValueError, match=r"actions must be .* \(3, up to 5, 2\), got \(3, 6, 2\)"):
        ours.plan(start, goal, torch.zeros(3, 6, 2))
    with pytest.raises(ValueError, match=r"obs_0 must have one frame .*, b >= 1, got \(0, 1\)"):
        ours.plan(dino.observation(0, 1), dino.observation(0, 2))
    with pytest.raises(ValueError, match=r"actions must be .* \(3, up to 5, 2\), got \(3, 2\)"):
        ours.plan(start, goal, torch.zeros(3, 2))
    with pytest.raises(TypeError, match=r"actions must be a tensor \(b, t, A\), got ndarray"):
        ours.plan(start, goal, np.zeros((3, 5, 2)))  # type: ignore[arg-type]
    wrong = planner(model(), objective_fn=lambda frames, goals: frames["visual"])
    with pytest.raises(ValueError, match=r"objective must return a number per plan, \(1,\), got"):
        wrong.plan(start, goal)
    wrong = planner(model(), objective_fn=lambda frames, goals: 1.0)
    with pytest.raises(TypeError, match="objective must return a Tensor, got float"):
        wrong.plan(start, goal)


def test_observations_may_be_of_another_size_in_every_call() -> None:
    ours = planner(model())
    for count in (3, 1, 2):
        actions, _ = ours.plan(dino.observation(count, 1), dino.observation(count, 2))
        assert actions.shape == (count, 5, dino.ACTION)
