"""The jepa-wms adapter, on a stand-in with the published signatures."""

from __future__ import annotations

from typing import Any

import jepa_wms_stand_in as jepa
import pytest
import torch
from grasp_planner.adapters.jepa_wms import JepaPlanner, PlanningResult
from torch import Tensor, nn

#: jepa-wms' own `cfg.planner`, which is passed on as it is.
PUBLISHED = {
    "planner_name": "cem",
    "iterations": 30,
    "num_samples": 300,
    "num_elites": 10,
    "horizon": 6,
    "var_scale": 1.0,
    "num_act_stepped": 4,
    "repeat_actskip": False,
    "decode_each_iteration": False,
    "distribute_planner": False,
    "planning_objective": {"objective_type": "repr_dist", "alpha": 0.1},
}
QUICK: dict[str, dict[str, Any]] = {
    "cem": {"samples": 24, "iterations": 4, "elites": 6, "hold": 1},
    "gradient": {"restarts": 2, "iterations": 8, "hold": 1},
    "grasp": {
        "iterations": 6,
        "candidates": 2,
        "sync_every": 3,
        "sync_steps": 2,
        "final_sync_steps": 6,
    },
}
every_planner = pytest.mark.parametrize("kind", QUICK)


def agent(kind: str = "cem", window: int = 2, proprio: bool = True, **changes: Any) -> jepa.GCAgent:
    torch.manual_seed(0)
    made = jepa.GCAgent(jepa.EncPredWM(jepa.VideoWM(proprio), ctxt_window=window))
    given = {"planner": kind, "settings": QUICK[kind], **PUBLISHED, **changes}
    made.planner = JepaPlanner(
        made.model.unroll,
        action_dim=made.model.action_dim,
        action_masks=None,
        decode_unroll=made.model.decode_unroll,
        **given,
    )
    return made


def published_cost(agent: jepa.GCAgent, actions: Tensor, proprio: bool = True) -> float:
    """What jepa-wms itself makes of `actions (T, A)`: encode, `unroll`, objective."""
    obs = jepa._unsqueezed(jepa.observation(1, proprio))
    with torch.no_grad():
        encodings = agent.model.unroll(agent.model.encode(obs), actions[:, None])
        return float(agent.objective(encodings, actions[:, None]))


@every_planner
@pytest.mark.parametrize("proprio", [True, False], ids=["dict", "tensor"])
def test_an_episode(kind: str, proprio: bool) -> None:
    """The agent encodes once per observation; plans reach further than standing still."""
    made = agent(kind, proprio=proprio, num_act_stepped=None)
    made.set_goal(jepa.observation(2, proprio))
    actions = made.act(jepa.observation(1, proprio), steps_left=9)
    assert made.model.model.encoder.calls == 2
    assert actions.shape == (6, jepa.ACTION)
    assert actions.dtype == torch.float32
    loss = published_cost(made, actions, proprio)
    assert loss < published_cost(made, torch.zeros_like(actions), proprio)
    assert float(made._prev_losses[-1]) == pytest.approx(loss, rel=1e-4)


def test_latents_may_be_tensordicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """tensordict's own in place of the stand-in's dict."""
    real = pytest.importorskip("tensordict").TensorDict
    monkeypatch.setattr(jepa, "TensorDict", real)
    made = agent("grasp", num_act_stepped=None, decode_each_iteration=True)
    made.set_goal(jepa.observation(2), sum_all_diffs=True)
    actions = made.act(jepa.observation(1))
    loss = published_cost(made, actions)
    assert float(made._prev_losses[-1]) == pytest.approx(loss, rel=1e-4)
    assert isinstance(made._predicted_best_encs_over_iterations[0], real)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_states_are_those_of_the_models_own_unroll(window: int) -> None:
    """Windows grow from one frame to `ctxt_window`: what was planned is what `unroll` gives."""
    made = agent("grasp", window, num_act_stepped=None, horizon=5)
    made.set_goal(jepa.observation(2), sum_all_diffs=True)
    actions = made.act(jepa.observation(1))
    assert set(made.model.model.lengths) == set(range(1, window + 1))
    loss = published_cost(made, actions)
    assert float(made._prev_losses[-1]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "objective",
    [{"of": torch.abs}, {"sum_all_diffs": True}, {"kind": jepa.RepresentationCosine}],
    ids=["L1", "all frames", "cosine"],
)
@pytest.mark.parametrize("kind", ["cem", "grasp"])
def test_objectives_are_minimised_as_they_are(kind: str, objective: dict[str, Any]) -> None:
    made = agent(kind, num_act_stepped=None, horizon=4)
    made.set_goal(jepa.observation(2), **objective)
    actions = made.act(jepa.observation(1))
    loss = published_cost(made, actions)
    assert float(made._prev_losses[-1]) == pytest.approx(loss, rel=1e-4)
    assert loss < published_cost(made, torch.zeros_like(actions))


def test_the_result_has_the_published_fields() -> None:
    assert PlanningResult._fields == jepa.PlanningResult._fields
    made = agent(result_type=jepa.PlanningResult, decode_each_iteration=True)
    made.set_goal(jepa.observation(2))
    z = made.model.encode(jepa._unsqueezed(jepa.observation(1)))
    result = made.planner.plan(z, 6)
    assert type(result) is jepa.PlanningResult
    assert result.actions.shape == (4, jepa.ACTION)  # num_act_stepped
    assert result.losses.shape == result.prev_elite_losses_mean.shape == (4, 1)
    assert (result.losses.diff(dim=0) <= 0).all()
    assert torch.equal(result.prev_elite_losses_std, torch.zeros(4, 1))
    assert len(result.pred_frames_over_iterations) == 4
    assert result.pred_frames_over_iterations[0].shape == (7, 2, 2)
    encodings = result.predicted_best_encs_over_iterations
    assert len(encodings) == 4
    assert encodings[-1]["visual"].shape == (7, 1, 1, 2, 2, 6)
    last = made.objective(encodings[-1], None)
    torch.testing.assert_close(last, result.losses[-1])
    plain = agent()
    plain.set_goal(jepa.observation(2))
    result = plain.planner.plan(z)
    assert type(result) is PlanningResult
    assert result.pred_frames_over_iterations is None
    assert len(result.predicted_best_encs_over_iterations) == 1


def test_what_an_objective_says_of_actions_counts() -> None:
    """A distance to the goal that has such a term is no distance alone."""
    made = agent("grasp", num_act_stepped=None)
    made.set_goal(jepa.observation(2))
    distance = made.objective

    class Gentle:
        target_enc = distance.target_enc

        def __call__(self, encodings: Any, actions: Tensor) -> Tensor:
            return distance(encodings, actions) + 100.0 * actions.square().sum((0, 2))

    made.objective = Gentle()
    made.planner.set_objective(made.objective)
    actions = made.act(jepa.observation(1))
    assert float(made._prev_losses[-1]) == pytest.approx(published_cost(made, actions), rel=1e-4)
    assert actions.abs().max() < 0.1


def test_steps_left_shorten_plans_and_bounds_hold() -> None:
    made = agent(max_norms=[0.2, 0.5], max_norm_dims=[[0, 1], [2]])
    made.set_goal(jepa.observation(2))
    actions = made.act(jepa.observation(1), steps_left=3)
    assert actions.shape == (3, jepa.ACTION)
    assert actions[:, :2].abs().max() <= 0.2
    assert actions[:, 2].abs().max() <= 0.5
    assert actions.abs().max() > 0.2


def test_the_model_is_left_as_it_was_found() -> None:
    made = agent("gradient")
    made.set_goal(jepa.observation(2))
    made.model.train()
    made.act(jepa.observation(1))
    assert all(part.training for part in made.model.modules())
    assert all(p.requires_grad and p.grad is None for p in made.model.parameters())


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"num_act_stepped": 0}, "num_act_stepped must be at least 1, got 0"),
        ({"distribute_planner": True}, "distribute_planner must be False"),
        ({"planner": "adam"}, "planner must be one of .*grasp.*, got 'adam'"),
        ({"max_norms": 1.0}, "max_norms must be numbers, got 1.0"),
        ({"max_norms": [-1.0]}, "max_norms must be finite and from 0 to inf, got -1.0"),
        (
            {"max_norms": [1.0], "max_norm_dims": [[3]]},
            "max_norm_dims must be from 0 to 2, got 3",
        ),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        agent(**changes)


def test_models_and_objectives_are_checked() -> None:
    with pytest.raises(TypeError, match="unroll must be the method of an EncPredWM"):
        JepaPlanner(lambda z, act_suffix: z, 3)
    with pytest.raises(TypeError, match="unroll must be the method of an EncPredWM"):
        JepaPlanner(nn.Identity().forward, 3)
    made = agent()
    made.model.proprio_mode = "compute_new_pose"
    with pytest.raises(ValueError, match="proprio_mode must be 'predict_proprio', got 'comp"):
        JepaPlanner(made.model.unroll, 3)
    z = made.model.encode(jepa._unsqueezed(jepa.observation(1)))
    with pytest.raises(ValueError, match="objective must be set before plan"):
        made.planner.plan(z)
    with pytest.raises(TypeError, match="objective must have a target_enc"):
        made.planner.set_objective(lambda encodings, actions: actions)
    with pytest.raises(TypeError, match="objective must be callable, got int"):
        made.planner.set_objective(3)
    made.set_goal(jepa.observation(2))
    two = jepa.TensorDict({name: value.repeat_interleave(2, 1) for name, value in z.items()})
    with pytest.raises(ValueError, match=r"z_init\['visual'\] must be one frame .* got \(1, 2"):
        made.planner.plan(two)
    with pytest.raises(ValueError, match="steps_left must be at least 1, got 0"):
        made.planner.plan(z, 0)
