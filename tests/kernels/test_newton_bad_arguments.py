"""Bad input to `mlp_jacobians` and `lifted_newton_step_`: the argument is named, nothing moves."""

from __future__ import annotations

from typing import Any

import mlp_cases
import newton_cases as cases
import pytest
import torch
from test_bad_arguments import NAN, meta, refused
from test_mlp_bad_arguments import in_a_graph, overlapping, wrong_tensors

from grasp_kernels import lifted_newton_step_, mlp_jacobians

PLANS, STEPS, FEATURES, ACTIONS = 2, 3, 4, 2
SHAPES = {
    "trajectory": (PLANS, STEPS + 1, FEATURES),
    "actions": (PLANS, STEPS, ACTIONS),
    "prediction": (PLANS, STEPS, FEATURES),
    "state_jacobian": (PLANS, STEPS, FEATURES, FEATURES),
    "action_jacobian": (PLANS, STEPS, FEATURES, ACTIONS),
    "goal": (PLANS, FEATURES),
}


def step_arguments() -> dict[str, Any]:
    return cases.arguments(PLANS, STEPS, FEATURES, ACTIONS)


def jacobians_arguments() -> dict[str, Any]:
    dynamics = mlp_cases.model(FEATURES, ACTIONS, (8,))
    return {
        "dynamics": dynamics,
        "state": torch.zeros(PLANS, STEPS, FEATURES),
        "action": torch.zeros(PLANS, STEPS, ACTIONS),
    }


STEP = [
    *(c for name in list(SHAPES)[2:] for c in wrong_tensors(name, *SHAPES[name])),
    *wrong_tensors("trajectory", *SHAPES["trajectory"])[:2],  # D is that of the trajectory
    *wrong_tensors("trajectory", *SHAPES["trajectory"])[3:],
    ("actions", None),
    ("actions", torch.zeros(PLANS, ACTIONS)),
    ("actions", torch.zeros(PLANS, 0, ACTIONS)),
    ("actions", torch.zeros(PLANS, STEPS, ACTIONS, dtype=torch.bfloat16)),
    ("actions", torch.zeros(PLANS, STEPS, ACTIONS, dtype=torch.int64)),
    *((name, overlapping(*SHAPES[name])) for name in ("trajectory", "actions")),
    *((name, in_a_graph(*SHAPES[name])) for name in ("trajectory", "actions")),
    ("damping", -0.1),
    ("damping", torch.tensor([0.1, -0.1])),
    ("damping", torch.zeros(PLANS + 1)),
    ("damping", torch.zeros(PLANS, dtype=torch.int64)),
    ("damping", meta(PLANS)),
    ("damping", None),
    ("goal_weight", torch.zeros(FEATURES + 1)),
    ("goal_weight", torch.tensor([1.0, 1.0, 1.0, -1e-3])),
    ("goal_weight", torch.zeros(FEATURES, dtype=torch.int64)),
    ("goal_weight", meta(FEATURES)),
    ("goal_weight", 1.0),
    ("hold", 0),
    ("hold", 1.0),
    ("hold", True),
    ("solves", 0),
    ("solves", 65),
    ("solves", 2.0),
    *(
        (name, value)
        for name in ("max_action_step", "max_state_step")
        for value in (-1.0, NAN, None, True, torch.ones(PLANS))
    ),
    ("low", torch.zeros(ACTIONS + 1)),
    ("low", "left"),
    ("low", meta(ACTIONS)),
    ("low", 0.8),  # above `high`
    ("high", torch.zeros(PLANS, STEPS, ACTIONS)),
    ("high", torch.zeros(ACTIONS, dtype=torch.int64)),
]
JACOBIANS = [
    ("dynamics", None),
    ("dynamics", lambda state, action: state),
    ("state", None),
    ("state", torch.zeros(PLANS, STEPS, FEATURES + 1)),
    ("state", torch.zeros(())),
    ("state", torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.float64)),
    ("state", torch.zeros(PLANS, STEPS, FEATURES, dtype=torch.bfloat16)),
    ("state", meta(PLANS, STEPS, FEATURES)),
    *wrong_tensors("action", PLANS, STEPS, ACTIONS),
]


@pytest.mark.parametrize(("name", "value"), STEP)
def test_step(name: str, value: Any) -> None:
    refused(lifted_newton_step_, {**step_arguments(), name: value}, name)


@pytest.mark.parametrize(("name", "value"), JACOBIANS)
def test_jacobians(name: str, value: Any) -> None:
    refused(mlp_jacobians, {**jacobians_arguments(), name: value}, name)


@pytest.mark.parametrize(("features", "width"), [(0, ACTIONS), (FEATURES, 0)])
def test_nothing_to_plan(features: int, width: int) -> None:
    arguments = step_arguments()
    for name in ("trajectory", "prediction", "state_jacobian", "action_jacobian", "goal"):
        arguments[name] = arguments[name][..., :features]
    arguments["actions"] = arguments["actions"][..., :width]
    with pytest.raises(ValueError, match=f"got A = {width}, D = {features}"):
        lifted_newton_step_(**arguments)


def test_values_are_not_read_unless_asked() -> None:
    """A loop that has checked its own: the sign of weights and damping, and crossing bounds."""
    arguments = step_arguments() | {"low": 0.8, "high": 0.7, "compare_bounds": False}
    lifted_newton_step_(**arguments)
    high = torch.tensor(0.7)
    assert (arguments["actions"] == high).all()  # as torch.clamp: the upper one wins
