"""A report in sentences: what was found here, part by part."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from grasp_planner.diagnostics.numbers import (
    FLAT,
    array,
    condition,
    downward,
    middle,
    percent,
    quartiles,
    shown,
)

Report = dict[str, Any]

OBJECTIVES = ("shooting", "lifted")
BRITTLE = 0.25  # of the honest way: a state step that is shorter fakes success
DETOUR = 0.05  # of the distance at the start: a rise above it is no noise


def findings(report: Report) -> dict[str, str]:
    """Part -> what it says here, of the parts that were made, in the report's own order."""
    return {part: say(report) for part, say in SAY.items() if part in report}


def plans(report: Report) -> str:
    """How the plans did."""
    count, real = report["problems"], report["success_environment"]
    model = round(report["success_model"] * count)
    words = (
        f"{report['planner']} planned {count} problems over T = {report['horizon']} steps: {model} "
        f"of {count} plans arrive under the world model"
    )
    if real is None:
        return f"{words}. They were not executed: {report['no_environment']}"
    return f"{words}, {round(real * count)} of {count} when executed in the real environment."


def _conditioning(report: Report) -> str:
    def row(objective: str, horizon: int, point: str = "solution") -> Report:
        return next(
            r
            for r in report["conditioning"]
            if (r["objective"], r["horizon"], r["point"]) == (objective, horizon, point)
        )

    horizons = sorted({r["horizon"] for r in report["conditioning"]})
    first, last = horizons[0], horizons[-1]

    def grows(objective: str, name: str) -> str:
        rows = [row(objective, steps) for steps in dict.fromkeys((first, last))]
        flat = [r["largest"] is not None and r["largest"] <= FLAT for r in rows]
        values = [shown(condition(r, name), 3) for r in rows]
        return " to ".join("flat" if f else v for f, v in zip(flat, values, strict=True))

    span = f"From T = {first} to T = {last}" if last > first else f"At T = {last}"
    words = (
        f"{span} the condition number at the plan is {grows('shooting', 'condition')} for "
        f"shooting, and {grows('lifted', 'condition')} for lifting; with each variable in its own "
        f"unit, {grows('shooting', 'condition_scaled')} and {grows('lifted', 'condition_scaled')}. "
    )
    ends = [condition(row(objective, last), "condition_scaled") for objective in OBJECTIVES]
    if np.isfinite(ends).all():
        better = "shooting" if ends[0] < ends[1] else "lifting"
        factor = shown(max(ends) / min(ends))
        words += f"In these units {better} is the better conditioned, by a factor of {factor}. "
    starts = [row(objective, last, "search start") for objective in OBJECTIVES]
    down = [downward(one) for one in starts]
    flattest = starts[0]["hessian_largest"]
    if flattest is not None and flattest < FLAT:
        return words + (
            "Where a search begins, shooting is flat, to the digits of a computer: idle actions do "
            "not touch what the goal is about. Lifting's steepest downward curvature is "
            f"{percent(down[1])} of its steepest upward one."
        )
    return words + (
        f"Where a search begins, the steepest downward curvature is {percent(down[0])} of the "
        f"steepest upward one for shooting, and {percent(down[1])} for lifting."
    )


def _gradients(report: Report) -> str:
    shooting = array(report["gradients"]["shooting_actions"])[1]
    lifted = array(report["gradients"]["lifted_actions"])[1]

    def spread(norms: np.ndarray) -> str:
        finite = norms[np.isfinite(norms)]
        if not finite.size:
            return "is not finite"
        if finite.max() < FLAT:
            return f"vanishes at every step (at most {shown(float(finite.max()))})"
        least = max(float(finite.min()), 1e-300)
        return f"spans a factor of {shown(float(finite.max()) / least)} over the steps"

    words = f"In the median over problems, shooting's gradient {spread(shooting)}"
    if np.isfinite(shooting).all() and shooting.max() >= FLAT and shooting[-1] > 0:
        ratio = shown(float(shooting[0] / shooting[-1]))
        words += f": the first action's is {ratio} times the last one's"
    return f"{words}. Lifting's {spread(lifted)}."


def _adversarial(report: Report) -> str:
    found = report["adversarial"]
    honest = np.array(found["honest"], dtype=bool)
    way, steps = array(found["honest_step"])[~honest], array(found["state_step"])[~honest]
    if not way.size:
        return "Every state looked at is one step from its goal: there is nothing to fake."
    ratio = steps / way  # NaN where none was found
    none = int((~np.isfinite(ratio)).sum())
    arrives = int(np.array(found["action_arrives"], dtype=bool)[~honest].sum())
    left = middle(array(found["action_left"])[~honest])
    if none == way.size:
        return f"At none of {way.size} states was a change found that fakes success."
    typical, finite = middle(ratio), ratio[np.isfinite(ratio)]
    one_step = middle(steps / array(found["one_step"])[~honest])
    words = (
        f"At {way.size} states along plans, the smallest change of the state that fakes success is "
        f"in the median {percent(typical)} of the honest way to the goal "
        f"({percent(float(finite.min()))} to {percent(float(finite.max()))}), "
        f"{shown(one_step)} times what one step of the model changes"
    )
    words += f"; none was found at {none}. " if none else ". "
    words += (
        f"Actions within their bounds fake it at {arrives} of {way.size}; the best of them leaves "
        f"{percent(left)} of the distance. "
    )
    if typical < BRITTLE:
        return words + (
            "So the state input is brittle here, and the action input is not: a planner that moves "
            "virtual states by the model's gradient can deceive itself."
        )
    return words + (
        "So the state input is not brittle here in the way the paper shows: to make this model "
        "believe in success, a state has to go most of the way."
    )


def _landscape(report: Report) -> str:
    parts = []
    for one in report["landscape"]:
        name = "lifting" if one["objective"] == "lifted" else one["objective"]
        lines, minima = array(one["lines"]), one["minima"]
        rise = middle(lines.max(axis=1) - lines[:, lines.shape[1] // 2])
        several = sum(count > 1 for count in minima)
        broken = f", {one['non_finite']} values not finite" if one["non_finite"] else ""
        parts.append(
            f"for {name}, {several} of {len(minima)} random lines have more than one minimum, and "
            f"the cost rises by up to {shown(rise)} in the median{broken}"
        )
    reach = shown(array(report["landscape"][0]["offsets"])[-1])
    return f"Around the plan, up to an rms change of {reach}: " + "; ".join(parts) + "."


def _distance(report: Report) -> str:
    place = "environment" if report["distance"]["environment"] is not None else "model"
    profile = report["distance"][place]
    distances, detour = array(profile["distances"]), array(profile["detour"])
    arrived = distances[:, -1] <= report["success_radius"]
    where = "in the real environment" if place == "environment" else "under the model"
    if not arrived.any():
        return f"No plan arrives {where}."
    away = int((detour[arrived] > DETOUR).sum())
    words = (
        f"Of {int(arrived.sum())} plans that arrive {where}, {away} first move away from the goal"
    )
    if away:
        most = float(detour[arrived].max())
        words += (
            f", by up to {percent(most)} of the distance at the start: a search that wants the "
            "distance to fall at every step does not find them"
        )
    return words + "."


def _residuals(report: Report) -> str:
    found, radius, unit = report["residuals"], report["success_radius"], report["unit"]
    one_step = middle(found["one_step_in_unit"])
    typical = quartiles(found["open_loop_in_unit"])[1]
    outside = np.flatnonzero(~(typical <= radius))
    words = (
        f"One step ahead the model errs by {shown(one_step)} {unit} in the median; over the whole "
        f"plan, on its own predictions, by {shown(float(typical[-1]))} {unit} at the end. The "
        f"success radius is {shown(radius)} {unit}"
    )
    if outside.size:
        return f"{words}: from step {int(outside[0])} on, a typical plan is off by more than that."
    return f"{words}: a typical plan stays within it."


def _failures(report: Report) -> str:
    counts = Counter(one["verdict"] for one in report["failures"])
    arrived = counts.pop("arrived", 0)
    if not counts:
        return f"All {arrived} plans arrived."
    causes = ", ".join(f"{name}: {count}" for name, count in counts.most_common())
    return f"{arrived} of {len(report['failures'])} plans arrived; the others by cause: {causes}."


SAY = {
    "conditioning": _conditioning,
    "gradients": _gradients,
    "adversarial": _adversarial,
    "landscape": _landscape,
    "distance": _distance,
    "residuals": _residuals,
    "failures": _failures,
}
