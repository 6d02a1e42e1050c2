"""Every option: documented with its default and its range, which are the ones it has; and what is
no value of it is refused by its name. Likewise every argument of `plan`, of `MPC` and of goals.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import planner_cases as cases
import pytest
import torch
from grasp_bench.options_table import choices, documented
from grasp_planner import (
    MPC,
    Alternatives,
    Ball,
    CEMConfig,
    Constraint,
    GradientConfig,
    GraspConfig,
    GraspPlanner,
    ICEMConfig,
    LatCoConfig,
    LiftedNewtonConfig,
    MPPIConfig,
    Planner,
    PlannerConfig,
    Region,
    Schedule,
    Subset,
    Waypoints,
)
from grasp_planner.presets import PLANNERS
from planner_cases import arithmetic

CONFIGS: list[type[PlannerConfig]] = [
    PlannerConfig,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    GradientConfig,
    LatCoConfig,
    LiftedNewtonConfig,
    GraspConfig,
]
by_class = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
NAN, INF = math.nan, math.inf
#: What else must be small where an option is at the lower end of its range, or give way at the top.
BESIDE: dict[str, dict[str, Any]] = {
    "CEMConfig.samples": {"elites": 1},
    "ICEMConfig.samples": {"least_samples": 1, "elites": 1},
    "ICEMConfig.least_samples": {"elites": 1},
    "LiftedNewtonConfig.samples": {"candidates": 1},
    "LiftedNewtonConfig.resamples": {"candidates": 1},
    "LiftedNewtonConfig.elite_share": {"crossover_share": 0.0},
    "LiftedNewtonConfig.crossover_share": {"elite_share": 0.0},
}


def test_every_planner_is_looked_at() -> None:
    assert {planner.config_type for planner, _ in PLANNERS.values()} == set(CONFIGS[1:])


# --------------------------------------------------------------------------- documented as they are


@by_class
def test_every_setting_is_documented_with_its_default(config: type[PlannerConfig]) -> None:
    options = documented(config)
    assert set(options) == {field.name for field in fields(config)}
    for field in fields(config):
        assert field.default is not MISSING
        option, default = options[field.name], getattr(config(), field.name)
        if isinstance(default, Schedule):
            default = default.start
        if field.name == "hold" and config is not PlannerConfig and default != 1:
            assert f"`hold` is {default} here" in (inspect.getdoc(config) or "")
        elif isinstance(default, bool | str):
            assert f'"{default}"' in option.said, field.name
        elif isinstance(default, int | float):
            numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", option.default)]
            # The defaults of several that share an entry stand in their order, or once for all.
            position = min(option.names.index(field.name), len(numbers) - 1)
            assert numbers[position] == default, field.name
        elif default is None:
            assert "None" in option.said, field.name


@by_class
def test_every_number_is_documented_with_its_range(config: type[PlannerConfig]) -> None:
    """And the range is the one that is checked: its ends are accepted, what is beyond is not."""
    options = documented(config)
    for field in fields(config):
        allowed = options[field.name].range
        if field.name in ("action_low", "action_high") or is_no_number(str(field.type)):
            assert allowed == ""
            continue
        assert allowed, field.name
        beside = BESIDE.get(f"{config.__name__}.{field.name}", {})
        for value in inside(str(field.type), allowed):
            config(**{**beside, field.name: value})
        for value in outside(config, str(field.type), allowed):
            with pytest.raises(ValueError, match=rf"\b{field.name}\b"):
                config(**{field.name: value})


def is_no_number(annotation: str) -> bool:
    return annotation == "str" or "Callable" in annotation or "Constraint" in annotation


def ends(allowed: str) -> tuple[bool, float, str]:
    """Whether a range has its lower end, which that is, and the upper one, a number or names."""
    if allowed.startswith(">"):
        return allowed.startswith(">="), float(allowed.split()[1]), "inf"
    low, high = allowed.split(" to ")
    return True, float(low), high.replace("2**64 - 1", str(2**64 - 1))


def inside(annotation: str, allowed: str) -> Iterator[Any]:
    """Values at the ends of a range."""
    closed, low, high = ends(allowed)
    whole = annotation.startswith("int")
    found = [low if closed else 1e-9]
    if high[0].isdigit():
        found.append(int(high) if whole else float(high))
    for value in found:
        number = int(value) if whole else value
        yield (number, number) if "tuple" in annotation else number
        if "Schedule" in annotation:
            yield Schedule(number, number, "linear")
    if "None" in annotation:
        yield None


def outside(config: type[PlannerConfig], annotation: str, allowed: str) -> Iterator[Any]:
    """Values just beyond a range, and what is no value of any."""
    closed, low, high = ends(allowed)
    whole = annotation.startswith("int")
    step = 1 if whole else 1e-6
    found: list[Any] = [low - step if closed else low, -INF, NAN]
    if high[0] == "`":  # as many as there are of another
        found.append(min(getattr(config(), name) for name in re.findall(r"[a-z_]+", high[:40])[:1]))
        found[-1] += 1
    elif high != "inf":
        found.append(int(high) + 1 if whole else float(high) + step)
    else:
        found.append(INF)
    for value in found:
        if whole and not (isinstance(value, int) or value.is_integer()):
            continue
        number = int(value) if whole else value
        yield (1.0, number) if "tuple" in annotation else number
    if "Schedule" in annotation and not closed:
        yield Schedule(low)
        yield Schedule(1.0, low, "linear")
    if "Schedule" in annotation and high[0].isdigit():
        yield Schedule(low, float(high) + step, "linear")


WRONG_TYPES: list[tuple[Callable[[str], bool], list[Any]]] = [
    (lambda a: a.startswith("int"), [1.5, "3", True, (1,), object(), torch.ones(2)]),
    (lambda a: a.startswith("float") and "tuple" not in a, ["0.1", True, (0.1,), object(), [1.0]]),
    (lambda a: a.startswith("float") and "tuple" in a, ["left", True, ("a",), object(), "12"]),
    (lambda a: a.startswith("tuple[float"), [2.0, True, ("a",), "12", object(), (True,), (None,)]),
    (lambda a: a == "str", ["other", 3, None, True, object(), ("adam",), ""]),
    (lambda a: "Callable" in a and "Constraint" not in a, [3, "cost", ()]),
    (lambda a: "Constraint" in a, [3, "keep out", (3,), None, print]),
]


@by_class
def test_a_wrong_type_is_refused_by_name(config: type[PlannerConfig]) -> None:
    for field in fields(config):
        annotation = str(field.type)
        wrong = [values for fits, values in WRONG_TYPES if fits(annotation)]
        assert len(wrong) == 1, annotation
        values = wrong[0] + ([] if "None" in annotation or None in wrong[0] else [None])
        for value in values:
            with pytest.raises((TypeError, ValueError), match=rf"\b{field.name}\b"):
                config(**{field.name: value})


@by_class
def test_every_choice_is_documented(config: type[PlannerConfig]) -> None:
    """The words that are named are the words that are accepted."""
    for name, option in documented(config).items():
        if isinstance(getattr(config(), name), str):
            for word in choices(option.said):
                config(**{name: word})
            with pytest.raises(ValueError, match=name) as refused:
                config(**{name: "other"})
            accepted = re.findall(r"'([a-z0-9-]+)'", str(refused.value).split(", got")[0])
            assert set(accepted) == set(choices(option.said)), name


# --------------------------------------------------------------------------- the arguments of plan

FIVE = torch.zeros(2, 5)
BAD_ARGUMENTS: dict[str, list[Any]] = {
    "start": [[[0.0] * 4] * 2, torch.zeros(2, 3, 4), torch.full((2, 4), NAN)],
    "goal": [None, 3.0, FIVE, torch.zeros(3, 4), torch.zeros(2, 4).double()],
    "actions": [[0.0], torch.zeros(2, 6, 2), torch.full((2, 7, 2), INF)],
    "plan_ids": [[0, 1], torch.zeros(2), torch.tensor([-1, 0]), torch.tensor([0])],
    "past_actions": [[0.0], torch.zeros(2, 0, 2)],  # this model has no history
    "context": [3, {"a": 3}, torch.zeros(3), torch.tensor(1.0)],
    "time_budget_ms": [0, -1.0, NAN, True, "soon"],
    "progress": [3, "yes"],
    "callback": [3, "print"],
    "callback_at": [0, True, 1.5, (), (0,), "often"],
    "checkpoint": [3, True],
    "checkpoint_every": [0, 1.5, True, "often"],
    "snapshots": [5, (-1,), (13,), ("a",), None],
}


def test_every_argument_of_plan_is_documented() -> None:
    parameters = inspect.signature(Planner.plan).parameters
    entries = dict(
        re.findall(r"^    ([a-z_]+): ((?:.|\n        )+)", inspect.getdoc(Planner.plan) or "", re.M)
    )
    assert set(parameters) - {"self"} == set(BAD_ARGUMENTS)
    for name in BAD_ARGUMENTS:  # by an entry of its own, or in another's
        assert name in entries or any(f"`{name}`" in words for words in entries.values()), name
    assert f"(>= 1; {parameters['checkpoint_every'].default})" in entries["checkpoint"]


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_a_bad_argument_of_plan_is_refused_by_name(name: str) -> None:
    start, goal = cases.problems(2)
    for value in BAD_ARGUMENTS[name]:
        given = {"start": start, "goal": goal, "callback": print, name: value}
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            GraspPlanner(arithmetic, cases.config()).plan(**given)


# -------------------------------------------------------------------------- MPC, schedules, goals

BAD_CONTROL: dict[str, list[Any]] = {
    "planner": [None, 3, arithmetic, GraspPlanner],
    "execute": [0, 8, -1, 1.5, True, "1", None],
    "repeat": [0, -1, 1.5, True, "1", None],
    "tail": ["best", 3, None, ("hold",)],
    "time_budget_ms": [0, -1.0, NAN, True, "soon"],
    "environment_ids": [3, "ab", [0.5], [-1], [2**20], [1, 1], [[0, 1]], ["a"], [True], object()],
}


def test_every_argument_of_mpc_is_documented() -> None:
    parameters = inspect.signature(MPC).parameters
    text = (inspect.getdoc(MPC) or "").split("Args:")[1].split("Raises:")[0]
    entries = dict(re.findall(r"^    ([a-z_]+): ((?:.|\n        )+)", text, re.M))
    assert set(entries) == set(parameters) == set(BAD_CONTROL)
    for name, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert str(parameter.default) in entries[name], name


@pytest.mark.parametrize("name", BAD_CONTROL)
def test_a_bad_argument_of_mpc_is_refused_by_name(name: str) -> None:
    planner = cases.planner("cem", arithmetic)
    for value in BAD_CONTROL[name]:
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            MPC(**{"planner": planner, name: value})


BAD_SCHEDULES: list[tuple[dict[str, Any], str]] = [
    *(({"start": bad}, "start") for bad in (-1.0, NAN, INF, "1", None, True, (1.0,))),
    *(({"end": bad, "kind": "linear"}, "end") for bad in (-1.0, NAN, INF, "1", None, True)),
    *(({"kind": bad}, "kind") for bad in ("square", 3, None)),
    ({"end": 1.0}, "end"),
]


@pytest.mark.parametrize(("given", "name"), BAD_SCHEDULES)
def test_a_bad_part_of_a_schedule_is_refused_by_name(given: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        Schedule(**{"start": 1.0, **given})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *(({"function": bad}, "function") for bad in (3, None, "keep out")),
        *(({"kind": bad}, "kind") for bad in ("less", 3, None)),
    ],
)
def test_a_bad_part_of_a_constraint_is_refused_by_name(given: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        Constraint(**{"function": print, **given})


STATE = torch.zeros(4)
BAD_STATES = [None, [0.0] * 4, FIVE, torch.zeros(3, 4), torch.zeros(4).double(), STATE * NAN]
GOALS: dict[type, dict[str, Any]] = {
    Subset: {"state": STATE, "features": (0, 1)},
    Region: {"low": STATE, "high": STATE + 1},
    Ball: {"centre": STATE, "radius": 1.0},
    Alternatives: {"states": torch.zeros(2, 4)},
    Waypoints: {"states": torch.zeros(3, 4), "steps": (1, 4), "weight": 1.0},
}
BAD_PARTS: dict[type, dict[str, list[Any]]] = {
    Subset: {
        "state": BAD_STATES,
        "features": [3, None, (), (4,), (-1,), (0.5,), ("a",), "01", (True,)],
    },
    Region: {"low": [*BAD_STATES, STATE + 2], "high": [*BAD_STATES, STATE - 1]},
    Ball: {
        "centre": BAD_STATES,
        "radius": [-1.0, NAN, "1", None, True, torch.ones(3), torch.ones(2, 1), [1.0, 2.0]],
    },
    Alternatives: {"states": [*BAD_STATES[:3], torch.zeros(0, 4), torch.zeros(3, 2, 4), STATE]},
    Waypoints: {
        "states": [*BAD_STATES[:3], torch.zeros(0, 4), torch.zeros(3, 2, 4)],
        "steps": [3, (1,), (4, 1), (1, 1), (0, 2), (1, 7), (1.5, 2), ("a", "b"), "12", (True, 2)],
        "weight": [-1.0, NAN, INF, "1", None, True, torch.ones(2)],
    },
}


@pytest.mark.parametrize("kind", GOALS, ids=lambda kind: kind.__name__)
def test_a_bad_part_of_a_goal_is_refused_by_name(kind: type) -> None:
    start, _ = cases.problems(2)
    planner = cases.planner("cem", arithmetic)
    assert planner.plan(start, kind(**GOALS[kind])).finite.all()
    assert set(BAD_PARTS[kind]) == {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name, values in BAD_PARTS[kind].items():
        assert re.search(rf"\b{name}\b.*: ", inspect.getdoc(kind) or "")
        for value in values:
            goal = kind(**{**GOALS[kind], name: value})
            with pytest.raises((TypeError, ValueError), match=rf"goal\.{name}\b"):
                planner.plan(start, goal)


def test_numbers_of_numpy_are_numbers_here_too() -> None:
    start, _ = cases.problems(2)
    goal = Waypoints(torch.zeros(2, 4), steps=np.array([3]), weight=np.float32(2.0))
    planner = cases.planner("cem", arithmetic)
    plan = planner.plan(start, goal, checkpoint_every=np.int64(3))
    again = planner.plan(start, Waypoints(torch.zeros(2, 4), steps=(3,), weight=2.0))
    assert cases.same_plans(plan, again)
    planner.plan(start, Subset(STATE, features=np.arange(2)))
    planner.plan(start, Ball(STATE, np.float64(0.5)))
