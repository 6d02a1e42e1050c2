"""Settings: every error names its field; schedules are what their formulas say."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
from grasp_planner import GraspConfig, Schedule

NAN, INF = math.nan, math.inf
BAD = [
    *((name, bad) for name in ("horizon", "candidates", "noise_modes") for bad in (0, -1, 2.0)),
    *(
        (name, bad)
        for name in ("iterations", "sync_every", "sync_steps", "final_sync_steps", "seed")
        for bad in (-1, 1.5, "3", None, True)
    ),
    *((name, bad) for name in ("max_rows", "action_features") for bad in (0, -4, 2.5)),
    *(
        (name, bad)
        for name in ("state_lr", "action_lr", "sync_lr", "initial_noise_scale")
        for bad in (-0.1, NAN, INF, "0.1", None, True)
    ),
    *((name, 0.0) for name in ("state_lr",)),
    ("initial_actions_scale", -1.0),
    *(
        (name, bad)
        for name in ("state_gradient_scale", "sync_blend")
        for bad in (-0.1, 1.1, NAN, "all")
    ),
    *((name, bad) for name in ("goal_weight", "noise_scale") for bad in (-1.0, NAN, "1", None)),
    *(
        (name, "other")
        for name in (
            "noise",
            "state_optimizer",
            "action_optimizer",
            "sync_optimizer",
            "initialization",
            "terminal",
        )
    ),
    ("state_scale", (1.0, 0.0)),
    ("state_scale", (1.0, -1.0)),
    ("state_scale", (NAN,)),
    ("state_scale", 2.0),
    *(("hold", bad) for bad in (0, -1, 2.0, None)),
    ("feature_weight", (-1.0,)),
    ("feature_weight", (INF,)),
    ("goal_feature_weight", (-1.0, 1.0)),
    ("action_low", NAN),
    ("action_high", (0.0, NAN)),
    ("action_low", "left"),
    ("stop_cost", -1.0),
    ("stop_cost", NAN),
    ("stop_cost", "small"),
    ("noise_modes", 65),
    ("seed", 2**64),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_refused_by_name(name, value) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        GraspConfig(**{name: value})


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, -1.0), ((0.0, 2.0), 1.0), ((0.0, 0.0), (1.0, 1.0, 1.0))]
)
def test_bounds_that_cross_or_disagree(low, high) -> None:
    with pytest.raises(ValueError, match=r"action_low.*action_high"):
        GraspConfig(action_low=low, action_high=high)


def test_good_settings_at_their_limits() -> None:
    GraspConfig(
        horizon=1,
        iterations=0,
        candidates=1,
        noise_modes=64,
        sync_every=0,
        sync_steps=0,
        final_sync_steps=0,
        seed=2**64 - 1,
        max_rows=1,
        state_gradient_scale=1.0,
        sync_blend=0.0,
        goal_weight=0,
        noise_scale=0.0,
        action_low=-INF,
        action_high=(1.0, INF),
        stop_cost=0.0,
        state_scale=[1, 2],
    )


def test_frozen_and_hashable() -> None:
    settings = GraspConfig(state_scale=[1.0, 2.0])
    with pytest.raises(FrozenInstanceError):
        settings.horizon = 3
    assert hash(settings) == hash(GraspConfig(state_scale=(1.0, 2.0)))


def test_schedules() -> None:
    constant, linear = Schedule(0.3), Schedule(1.0, 0.5, "linear")
    cosine = Schedule(2.0, 0.0, "cosine")
    assert {constant(k, 5) for k in range(1, 6)} == {0.3}
    assert [linear(k, 6) for k in range(1, 7)] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    half = math.sqrt(0.5)
    assert [cosine(k, 5) for k in range(1, 6)] == pytest.approx([2.0, 1 + half, 1.0, 1 - half, 0.0])
    for schedule in (linear, cosine):
        assert schedule(1, 1) == schedule.start  # one iteration: no division by zero


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((1.0, 0.0, "square"), "kind"),
        ((1.0, None, "linear"), "end"),
        ((1.0, 0.5), "end"),
        ((-1.0,), "start"),
        ((NAN,), "start"),
        ((1.0, INF, "cosine"), "end"),
        (("1",), "start"),
    ],
)
def test_bad_schedules(arguments, name) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        Schedule(*arguments)
