"""Bad input to the MLP calls: an error that names the argument, and everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlp_cases as cases
import pytest
import torch
from test_bad_arguments import NAN, meta, refused

from grasp_kernels import MLPDynamics, mlp_lifted_plan_, mlp_rollout, mlp_sync_

PLANS, STEPS, FEATURES, ACTIONS = 2, 3, 4, 2
INF = float("inf")
BOOL = {"dtype": torch.bool}
WIDE = {"dtype": torch.float64}
NARROW = {"dtype": torch.bfloat16}


def overlapping(*shape: int) -> torch.Tensor:
    return torch.zeros(1, *shape[1:]).expand(*shape)


def in_a_graph(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, requires_grad=True) * 1.0


def tensors() -> dict[str, Any]:
    trajectory, actions, goal = cases.plan_tensors(PLANS, STEPS, FEATURES, ACTIONS)
    dynamics = cases.model(FEATURES, ACTIONS, (8,))
    return {"dynamics": dynamics, "trajectory": trajectory, "actions": actions, "goal": goal}


def lifted_arguments() -> dict[str, Any]:
    return {
        **tensors(),
        "state": {},
        "schedule": cases.schedule(3),
        "first_iteration": 1,
        "state_lr": 0.1,
        "action_lr": 0.1,
        "seed": 0,
        "sound": torch.ones(PLANS, dtype=torch.bool),
    }


def sync_arguments() -> dict[str, Any]:
    best = cases.bests(PLANS, STEPS, FEATURES, ACTIONS, torch.float32)
    return {
        **tensors(),
        **dict(zip(("best_cost", "best_actions", "best_states"), best, strict=True)),
        "start": torch.zeros(PLANS, FEATURES),
        "steps": 2,
        "lr": 0.1,
        "sound": torch.ones(PLANS, dtype=torch.bool),
    }


def rollout_arguments() -> dict[str, Any]:
    arguments = tensors()
    return {
        "dynamics": arguments["dynamics"],
        "start": arguments["goal"],
        "actions": arguments["actions"],
    }


def wrong_tensors(name: str, *shape: int) -> list[tuple[str, Any]]:
    """What no float32 tensor argument accepts in place of one of this shape."""
    return [
        (name, None),
        (name, 1.0),
        (name, torch.zeros(*shape[:-1], shape[-1] + 1)),
        (name, torch.zeros(shape[0] + 1, *shape[1:])),
        (name, torch.zeros(1, *shape)),
        (name, torch.zeros(*shape, **WIDE)),
        (name, torch.zeros(*shape, **NARROW)),
        (name, torch.zeros(*shape, dtype=torch.int64)),
        (name, meta(*shape)),
    ]


WRITTEN = {
    "trajectory": (PLANS, STEPS + 1, FEATURES),
    "actions": (PLANS, STEPS, ACTIONS),
    "best_cost": (PLANS,),
    "best_actions": (PLANS, STEPS, ACTIONS),
    "best_states": (PLANS, STEPS + 1, FEATURES),
}
COMMON = [
    *(("dynamics", other) for other in (None, lambda state, action: state, torch.nn.Linear(6, 4))),
    *wrong_tensors("trajectory", *WRITTEN["trajectory"]),
    *wrong_tensors("actions", *WRITTEN["actions"])[:3],  # N is that of the actions
    *wrong_tensors("actions", *WRITTEN["actions"])[4:],
    *wrong_tensors("goal", PLANS, FEATURES),
    *((name, overlapping(*WRITTEN[name])) for name in ("trajectory", "actions")),
    *((name, in_a_graph(*WRITTEN[name])) for name in ("trajectory", "actions")),
    ("sound", [True, True]),
    ("sound", torch.ones(PLANS + 1, **BOOL)),
    ("sound", torch.ones(PLANS)),
    ("sound", torch.ones(PLANS, dtype=torch.uint8)),
    ("sound", meta(PLANS, **BOOL)),
    ("sound", torch.ones(1, **BOOL).expand(PLANS)),
    ("low", torch.zeros(ACTIONS + 1)),
    ("low", "left"),
    ("low", meta(ACTIONS)),
    ("high", torch.zeros(PLANS, STEPS, ACTIONS)),
    ("high", torch.zeros(ACTIONS, dtype=torch.int64)),
    ("terminal", "loose"),
    ("optimizer", "momentum"),
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, NAN)),
    ("betas", 0.9),
    ("epsilon", 0.0),
    ("epsilon", INF),
]
LIFTED = [
    ("schedule", None),
    ("schedule", torch.zeros(3)),
    ("schedule", torch.zeros(3, 3)),
    ("schedule", torch.zeros(3, 2, **WIDE)),
    ("schedule", meta(3, 2)),
    ("state", None),
    ("state_lr", torch.zeros(PLANS + 1)),
    ("state_lr", "fast"),
    ("action_lr", torch.zeros(PLANS, dtype=torch.int64)),
    ("action_lr", None),
    ("noise_factor", meta(PLANS)),
    ("noise_factor", True),
    ("feature_weight", torch.zeros(FEATURES + 1)),
    ("feature_weight", torch.zeros(FEATURES, dtype=torch.int64)),
    ("feature_weight", meta(FEATURES)),
    ("feature_weight", 1.0),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 1.5),
    ("plan_ids", torch.zeros(PLANS + 1, dtype=torch.int64)),
    ("plan_ids", torch.zeros(PLANS, dtype=torch.int32)),
    ("plan_ids", [0, 1]),
    ("plan_ids", meta(PLANS, dtype=torch.int64)),
    ("noise", "pink"),
    ("modes", 0),
    ("modes", 65),
    ("first_iteration", -1),
    ("first_iteration", 1.0),
    ("first_iteration", 2**32),
]
SYNC = [
    *wrong_tensors("start", PLANS, FEATURES),
    *wrong_tensors("best_actions", *WRITTEN["best_actions"]),
    *wrong_tensors("best_states", *WRITTEN["best_states"]),
    ("best_cost", torch.zeros(PLANS + 1)),
    ("best_cost", torch.zeros(PLANS, **WIDE)),
    ("best_cost", meta(PLANS)),
    *((n, overlapping(*WRITTEN[n])) for n in ("best_actions", "best_states")),
    ("steps", -1),
    ("steps", 2.0),
    ("steps", True),
    ("lr", torch.zeros(PLANS + 1)),
    ("lr", None),
    ("cost_weight", torch.zeros(FEATURES + 1)),
    ("cost_weight", meta(FEATURES)),
    ("blend", -0.1),
    ("blend", 1.1),
    ("blend", NAN),
    ("blend", "all"),
    ("stop_cost", "low"),
]
ROLLOUT = [
    ("dynamics", None),
    *wrong_tensors("start", PLANS, FEATURES)[:3],
    *wrong_tensors("start", PLANS, FEATURES)[4:],
    *wrong_tensors("actions", *WRITTEN["actions"]),
]


@pytest.mark.parametrize(("name", "value"), COMMON + LIFTED)
def test_lifted_plan(name: str, value: Any) -> None:
    refused(mlp_lifted_plan_, {**lifted_arguments(), name: value}, name)


@pytest.mark.parametrize(("name", "value"), COMMON + SYNC)
def test_sync(name: str, value: Any) -> None:
    refused(mlp_sync_, {**sync_arguments(), name: value}, name)


@pytest.mark.parametrize(("name", "value"), ROLLOUT)
def test_rollout(name: str, value: Any) -> None:
    refused(mlp_rollout, {**rollout_arguments(), name: value}, name)


def test_costs_that_share_their_memory() -> None:
    arguments = {**sync_arguments(), "best_cost": torch.zeros(1).expand(PLANS)}
    with pytest.raises(ValueError, match="best_cost is written in place, but its elements overlap"):
        mlp_sync_(**arguments)


CALLS: list[tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = [
    (mlp_lifted_plan_, lifted_arguments),
    (mlp_sync_, sync_arguments),
]


@pytest.mark.parametrize(("call", "arguments"), CALLS)
def test_plans_without_a_step(call: Callable[..., Any], arguments: Callable[[], Any]) -> None:
    changed = {**arguments(), "trajectory": torch.zeros(PLANS, 1, FEATURES)}
    for name, shape in (("actions", (PLANS, 0, ACTIONS)), ("best_actions", (PLANS, 0, ACTIONS))):
        changed |= {name: torch.zeros(shape)} if name in changed else {}
    if "best_states" in changed:
        changed["best_states"] = torch.zeros(PLANS, 1, FEATURES)
    refused(call, changed, "actions")


@pytest.mark.parametrize(("call", "arguments"), CALLS)
@pytest.mark.parametrize(
    ("low", "high"), [(1.0, -1.0), (torch.tensor([0.0, 1.0]), 0.5), (0.5, torch.full((2,), 0.25))]
)
def test_bounds_that_cross(
    call: Callable[..., Any], arguments: Callable[[], Any], low: Any, high: Any
) -> None:
    refused(call, {**arguments(), "low": low, "high": high}, "low")


@pytest.mark.parametrize(("call", "arguments"), CALLS)
def test_states_of_another_precision_than_the_model(
    call: Callable[..., Any], arguments: Callable[[], Any]
) -> None:
    """float64 weights take float64 states, and all others float32."""
    given = arguments()
    dynamics: MLPDynamics = given["dynamics"]
    refused(call, {**given, "dynamics": dynamics.to(torch.float64)}, "trajectory")
    wide = {
        name: value.double()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in given.items()
    }
    for dtype in (torch.float32, torch.bfloat16):
        refused(call, {**wide, "dynamics": dynamics.to(dtype)}, "trajectory")
    call(**{**wide, "dynamics": dynamics.to(torch.float64)})


@pytest.mark.parametrize("step", [None, 1.0, torch.tensor(1)])
def test_a_memory_without_its_step(step: Any) -> None:
    moments = dict.fromkeys(("first_moment", "second_moment"), torch.zeros(PLANS, STEPS, ACTIONS))
    for state in ({**moments, "step": step}, moments, {"step": 1}):
        refused(mlp_lifted_plan_, {**lifted_arguments(), "state": state}, "state")


@pytest.mark.parametrize("name", ["first_moment", "second_moment"])
@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(PLANS, STEPS, ACTIONS + 1),
        torch.zeros(1, STEPS, ACTIONS),
        torch.zeros(PLANS, STEPS, ACTIONS, **WIDE),
        meta(PLANS, STEPS, ACTIONS),
        None,
    ],
)
def test_moments_of_another_plan(name: str, wrong: Any) -> None:
    """They would be read as if they were right, or broadcast."""
    state: dict[str, Any] = {"step": 1}
    for moment in ("first_moment", "second_moment"):
        state[moment] = torch.zeros(PLANS, STEPS, ACTIONS)
    refused(mlp_lifted_plan_, {**lifted_arguments(), "state": {**state, name: wrong}}, name)


@pytest.mark.parametrize(("name", "value"), COMMON[3:] + LIFTED)
def test_a_refused_call_is_not_counted(name: str, value: Any) -> None:
    """Adam's memory is as before: its step too."""
    arguments = lifted_arguments()
    moments = [torch.zeros(PLANS, STEPS, ACTIONS) for _ in range(2)]
    arguments["state"] = {"step": 5, "first_moment": moments[0], "second_moment": moments[1]}
    refused(mlp_lifted_plan_, {**arguments, name: value}, name)
