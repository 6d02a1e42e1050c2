"""Rows for eval.json: what the plans of one planner, on one task and horizon, come to.

Every field that depends on the clock begins with "milliseconds"; all others are the same in every
run of the same settings, interrupted or not.
"""

from __future__ import annotations

import csv
import io
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grasp_planner import tasks
from grasp_planner.evaluation.statistics import quantile, wilson
from grasp_planner.evaluation.units import Settings, Unit

Row = dict[str, Any]
Result = dict[str, Any]

OURS = "lifted-newton"
BASELINES = ("cem", "icem", "mppi", "gradient", "latco")
TIME_RATIO = 1 / 3  # of the best baseline's time: what is asked of our planner
CURVE_POINTS = 40


def summarise(
    settings: Settings, results: Mapping[Unit, Result], description: Mapping[str, Any]
) -> list[Row]:
    """A row per task, horizon and planner, in the order they were asked for."""
    return [
        row(
            [results[Unit(task, horizon, planner, k)] for k in range(settings.problems)],
            settings,
            description,
        )
        for task, horizon in settings.cells()
        for planner in settings.planners
    ]


def row(results: Sequence[Result], settings: Settings, description: Mapping[str, Any]) -> Row:
    """Of the units of one planner, task and horizon; a unit that failed is a plan that did."""
    first, count = results[0], len(results)
    sound = [result for result in results if result["error"] is None]
    model, real = (
        sum(r[f"success_{where}"] for r in results) for where in ("model", "environment")
    )
    times = [result["milliseconds"] for result in sound]

    def mean(name: str) -> float | None:
        values = [result[name] for result in sound if result[name] is not None]
        return statistics.fmean(values) if values else None

    def median(name: str) -> float | None:
        return quantile([r[name] for r in sound if r[name] is not None], 0.5)

    successes = [time for result in sound if (time := time_to_success(result)) is not None]
    return {
        "task": first["task"],
        "task_name": tasks.canonical(first["task"]),
        "horizon": first["horizon"],
        "planner": first["planner"],
        "problems": count,
        "success_model": model / count,
        "success_model_interval": wilson(model, count),
        "success_environment": real / count,
        "success_environment_interval": wilson(real, count),
        "milliseconds_per_plan": mean("milliseconds"),
        "milliseconds_median": median("milliseconds"),
        "milliseconds_p90": quantile(times, 0.9),
        "milliseconds_to_success": quantile(successes, 0.5),
        "milliseconds_curve": curve(results),
        "model_calls": mean("model_calls"),
        "goal_distance_model": median("goal_distance_model"),
        "goal_distance_environment": median("goal_distance_environment"),
        "unit": tasks.task_class(first["task"]).unit,
        "errors": count - len(sound),
        "error": distinct(result["error"] for result in results),
        "warnings": sum(bool(result["warnings"]) for result in sound),
        "seed": settings.seed,
        "threads": settings.threads,
        "backend": distinct(result["backend"] for result in sound),
        "path": distinct(result["path"] for result in sound),
        "torch": description["torch"],
        "processor": description["processor"],
    }


def distinct(texts: Iterator[str | None]) -> str | None:
    """Each once; None of none."""
    return "; ".join(sorted({text for text in texts if text is not None})) or None


def time_to_success(result: Result) -> float | None:
    """Milliseconds to the first moment from which on the best plan succeeds when executed."""
    since = None
    for moment in result["moments"]:
        if not moment["success_environment"]:
            since = None
        elif since is None:
            since = moment["milliseconds"]
    return since


def curve(results: Sequence[Result]) -> list[tuple[float, float]]:
    """(milliseconds, share of problems whose best plan by then succeeds in the environment).

    Ends when the last plan does.
    """
    ways = [result["moments"] for result in results if result["error"] is None]
    times = sorted(moment["milliseconds"] for way in ways for moment in way)
    if not times:
        return []
    step = max(1, -(-len(times) // CURVE_POINTS))
    shown = [*times[:-1:step], times[-1]]
    clocks = [[moment["milliseconds"] for moment in way] for way in ways]
    points = []
    for time in shown:
        # Before its first moment a planner has no plan.
        latest = [bisect_right(clock, time) - 1 for clock in clocks]
        good = sum(
            way[k]["success_environment"] for way, k in zip(ways, latest, strict=True) if k >= 0
        )
        points.append((time, good / len(results)))
    return points


def comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per task and horizon, our planner beside the best baseline by success in the environment.

    Of equally good baselines, the fastest.
    """
    found = []
    for cell in cells(rows):
        by_name = {row["planner"]: row for row in cell if row["milliseconds_per_plan"] is not None}
        baselines = [by_name[name] for name in BASELINES if name in by_name]
        if OURS not in by_name or not baselines:
            continue
        ours = by_name[OURS]
        best = min(baselines, key=lambda r: (-r["success_environment"], r["milliseconds_per_plan"]))
        ratio = ours["milliseconds_per_plan"] / best["milliseconds_per_plan"]
        within = best["success_environment"] <= ours["success_environment_interval"][1]
        found.append(
            {
                "ours": ours,
                "best": best,
                "ratio": ratio,
                "at_least": ours["success_environment"] >= best["success_environment"],
                "within": within,
                "fast": ratio <= TIME_RATIO,
                "met": within and ratio <= TIME_RATIO,
            }
        )
    return found


def cells(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by task and horizon, in order."""
    found: dict[tuple[str, int], list[Row]] = {}
    for one in rows:
        found.setdefault((one["task"], one["horizon"]), []).append(one)
    return list(found.values())


def flat(rows: Sequence[Row]) -> str:
    """The same as CSV: intervals in two columns, no curves."""
    lines = []
    for one in rows:
        line: dict[str, Any] = {}
        for name, value in one.items():
            if name.endswith("_interval"):
                stem = name.removesuffix("_interval")
                line[f"{stem}_low"], line[f"{stem}_high"] = value
            elif name != "milliseconds_curve":
                line[name] = value
        lines.append(line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
