"""What every planner refuses, by name: arguments, settings and world models that are wrong."""

from __future__ import annotations

from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import Planner
from planner_cases import arithmetic

every_planner = pytest.mark.parametrize("kind", cases.KINDS)


@every_planner
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", torch.zeros(2, 3, 4)),
        ("start", torch.full((2, 4), torch.nan)),
        ("goal", torch.zeros(2, 5)),
        ("goal", [0.0]),
        ("actions", torch.zeros(2, 6, 2)),
        ("actions", torch.zeros(2, 7, 2, dtype=torch.float64)),
        ("plan_ids", torch.tensor([-1, 0])),
        ("plan_ids", torch.tensor([0, 2**63 - 1])),
    ],
)
def test_a_bad_argument_is_named(kind: str, name: str, value: Any) -> None:
    start, goal = cases.problems(2)
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
        cases.planner(kind, arithmetic).plan(**{"start": start, "goal": goal, name: value})


@every_planner
def test_settings_that_do_not_fit_the_problem_are_named(kind: str) -> None:
    for changes, name in (
        ({"action_features": None}, "action_features"),
        ({"state_scale": (1.0, 1.0)}, "state_scale"),
        ({"goal_feature_weight": (1.0,) * 5}, "goal_feature_weight"),
    ):
        with pytest.raises(ValueError, match=name):
            cases.planner(kind, arithmetic, **changes).plan(*cases.problems(2))


@every_planner
def test_a_world_model_that_cannot_be_called_and_a_config_of_another_type(kind: str) -> None:
    make, settings, _ = cases.KINDS[kind]
    with pytest.raises(TypeError, match="world_model must be callable, got str"):
        make("model", settings())
    name = type(settings()).__name__
    others = [{"horizon": 5}, type(settings()), 5]
    others += [other() for _, other, _ in cases.KINDS.values() if type(other()).__name__ != name]
    for other in others:
        with pytest.raises(TypeError, match=f"config must be a {name}, got {type(other).__name__}"):
            make(arithmetic, other)
    assert make(arithmetic).config == make.config_type()
    assert issubclass(make, Planner)


WRONG_MODELS = {
    "shape": (lambda s, a: s[:, :3] + a[:, :1], ValueError, "world_model must return"),
    "nothing": (lambda s, a: None, TypeError, "world_model must return a tensor.*NoneType"),
    "in place": (lambda s, a: s.add_(a.repeat(1, 2)), ValueError, "world_model .*in ?place"),
    "fails": (lambda s, a: s @ torch.ones(5, 4), RuntimeError, r"world_model failed .*\(\d+, 4\)"),
}
BLIND_MODELS = {
    "detached": lambda s, a: s + 0.3 * a.detach().repeat(1, 2),
    "numpy": lambda s, a: torch.from_numpy(s.detach().numpy() + a.detach().numpy().repeat(2, 1)),
}


@every_planner
@pytest.mark.parametrize("wrong", WRONG_MODELS)
def test_a_wrong_model_is_named(kind: str, wrong: str) -> None:
    model, error, message = WRONG_MODELS[wrong]
    with pytest.raises((error, RuntimeError), match=message):
        cases.planner(kind, model).plan(*cases.problems(2))


@every_planner
@pytest.mark.parametrize("blind", BLIND_MODELS)
def test_a_model_without_gradient_serves_those_that_need_none(kind: str, blind: str) -> None:
    planner = cases.planner(kind, BLIND_MODELS[blind])
    if kind in ("cem", "icem", "mppi"):
        assert planner.plan(*cases.problems(2)).finite.all()
    elif not kind.endswith("matrix-free"):
        with pytest.raises(ValueError, match="detached"):
            planner.plan(*cases.problems(2))
