"""Results made up for tests: what `grasp eval` would have measured."""

from __future__ import annotations

from typing import Any

from grasp_planner.evaluation.units import Settings, Unit
from grasp_planner.evaluation.worker import failure

PLANNERS = ("lifted-newton", "cem", "icem")
SETTINGS = Settings(("wall",), (50,), PLANNERS, problems=4, seed=0, threads=1)
DESCRIPTION = {
    "torch": "2.0",
    "processor": "an abacus",
    "planner_settings": {name: {"wall T=50": {"horizon": 50, "hold": 5}} for name in PLANNERS},
}


def result(unit: Unit, milliseconds: float, way: str) -> dict[str, Any]:
    """`way`: whether the best plan succeeds ("+") or not ("-") at moments as far apart."""
    moments = [
        {
            "milliseconds": milliseconds * (k + 1) / len(way),
            "model_calls": 50 * (k + 1),
            "success_model": True,
            "success_environment": sign == "+",
        }
        for k, sign in enumerate(way)
    ]
    return {
        **unit._asdict(),
        "error": None,
        "success_model": True,
        "success_environment": way.endswith("+"),
        "goal_distance_model": 0.01,
        "goal_distance_environment": 0.05,
        "milliseconds": milliseconds,
        "model_calls": 50 * len(way),
        "cost": 0.1,
        "backend": "native",
        "path": "MLP kernels",
        "warnings": [],
        "moments": moments,
        "actions": [[0.0, 0.0]] * 50,
    }


def results() -> dict[Unit, dict[str, Any]]:
    """lifted-newton: 3 of 4 in 100 ms; cem 3 of 4 in 400 ms; icem 3 of 4 in 900, one of which
    could not be made."""
    found = {}
    for name, milliseconds in (("lifted-newton", 100.0), ("cem", 400.0), ("icem", 900.0)):
        for k, way in enumerate(("-+", "++", "+-+", "--")):
            unit = Unit("wall", 50, name, k)
            found[unit] = result(unit, milliseconds, way)
    broken = Unit("wall", 50, "icem", 3)
    found[broken] = failure(broken, "ValueError: <no> way")
    return found
