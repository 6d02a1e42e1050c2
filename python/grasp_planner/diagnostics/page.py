"""A report as one HTML page that needs nothing else, and no knowledge of the paper."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from grasp_planner.diagnostics.numbers import shown
from grasp_planner.diagnostics.verdict import VERDICTS
from grasp_planner.diagnostics.words import findings, plans
from grasp_planner.evaluation.page import STYLE, image
from grasp_planner.profiling.page import rows_of

Report = dict[str, Any]

INTRODUCTION = (
    "A world model predicts what an action leads to. To plan is to search, through that model, for "
    "actions that lead from a start to a goal. There are two ways to put the search. "
    "<b>Shooting</b> changes actions only, and looks where the whole chain of predictions ends. "
    "<b>Lifting</b> (GRASP) makes the states in between variables too: every step is then a small "
    "problem of its own, and the penalty is on steps that do not fit together. This page measures, "
    "on this task, what makes either of them hard, and says of each plan that failed why it did."
)
#: Part -> title, what is shown, how to read it.
SECTIONS = {
    "failures": (
        "Why plans failed",
        "Every plan that did not arrive was tried again: gradient descent went on from where it "
        "ended; larger searches, searches with wider bounds and searches with more time started "
        "afresh. What helped is the cause.",
        "Below the picture, each plan's verdict with its evidence. “Arrives” means: at the end of "
        "the horizon, within the success radius of the goal.",
    ),
    "distance": (
        "Distance to the goal along the plans",
        "How far the goal is at every step of each plan; on the left as the world model has it, on "
        "the right as it happened.",
        "Curves that rise before they fall are detours: the plan has to move away first. A method "
        "that accepts only steps towards the goal cannot find such a plan.",
    ),
    "residuals": (
        "Errors of the world model",
        "The executed plans, compared with what the model predicts: one step ahead from the real "
        "state (left), and open loop, from its own predictions alone (right), as planners use it.",
        "Where the right curve crosses the dotted line, a plan that arrives under the model may "
        "miss in truth. The scale is logarithmic: a grid line is a factor of ten.",
    ),
    "conditioning": (
        "How well conditioned the search is",
        "At a good plan the cost curves upwards more in some directions than in others. The "
        "condition number is the ratio of the steepest to the shallowest of these curvatures. "
        "Left: actions and scaled states as they are. Middle: with each variable in a unit of its "
        "own, which is what step sizes per variable, or Adam, amount to. Directions along which "
        "nothing changes at all are left out: many plans arrive, for shooting as for lifting. "
        "Right: where a search begins (idle actions, states on a straight line), how strongly the "
        "cost curves downwards.",
        "A condition number of 1 is a round bowl, which gradient descent solves in a step; of "
        "10,000, a narrow valley, which takes it thousands. What grows with the horizon makes long "
        "plans hard. A model in which small changes grow or die out makes shooting's number grow "
        "exponentially, and lifting's hardly; without that, shooting's may be the lower one. "
        "Points are missing where an objective is flat: there the actions do not yet touch what "
        "the goal is about. Downward curvature is where Newton's method needs care.",
    ),
    "gradients": (
        "The gradient, step by step",
        "How strongly the cost reacts to each action, and each state, where a search begins: "
        "median over the problems, with the band that holds half of them.",
        "A steep slope means that some steps of the plan are learned much faster than others; a "
        "curve near zero means that the search is blind there. Lifting's last step carries the "
        "distance to the goal, the others the misfit of a straight line.",
    ),
    "adversarial": (
        "How small a change of the state fakes success",
        "At states along plans that are still far from the goal: the smallest change of the state "
        "after which the model's very next prediction is at the goal. Left: what is left of the "
        "distance after the best change of a given size. Right: the smallest size that succeeds. "
        "This is what Figure 3 of the GRASP paper is about.",
        "An honest model has to be moved all the way, up to the success radius (dotted). Points "
        "far below it are states that look like success and are not: then a planner must not "
        "follow the model's gradient into its virtual states. The dashed line is the best that an "
        "action inside its bounds can do.",
    ),
    "landscape": (
        "The landscape around a plan",
        "The cost along straight lines and on a plane through one good plan, in random directions "
        "and along the gradient; above for shooting, below for lifting. The cross is the plan.",
        "Smooth bowls are easy. Cliffs and several valleys are where a gradient leads astray. The "
        "horizontal axis is the root mean square change of a variable: the same for both.",
    ),
}
VERDICT_HEAD = ("plan", "verdict", "evidence")


def page(report: Report, images: Mapping[str, bytes]) -> str:
    """The whole document."""
    said = findings(report)
    parts = [
        f"<h1>What makes planning hard: {_text(report['task'])}</h1>",
        f"<p>{INTRODUCTION}</p>",
        f"<p>{_text(plans(report))}</p>",
        "<h2>In short</h2>",
        "<ul>" + "".join(_short(part, said) for part in SECTIONS if part in said) + "</ul>",
        *_not_made(report),
    ]
    for part, (title, shows, reads) in SECTIONS.items():
        if part not in report:
            continue
        parts += [
            f'<h2 id="{part}">{_text(title)}</h2>',
            f"<p><b>What is shown.</b> {_text(shows)}</p>",
            f"<p><b>How to read it.</b> {_text(reads)}</p>",
            image(images[part], title) if part in images else "",
            f"<p><b>Here.</b> {_text(said[part])}</p>",
            *(TABLES[part](report) if part in TABLES else ()),
        ]
    parts += ["<h2>Footing</h2>", rows_of(_footing(report))]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>grasp diagnose {_text(report['task'])}</title><style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(part for part in parts if part) + "</body></html>\n"
    )


def _short(part: str, said: Mapping[str, str]) -> str:
    title = SECTIONS[part][0]
    return f'<li><a href="#{part}">{_text(title)}</a>. {_text(said[part])}</li>'


def _not_made(report: Report) -> list[str]:
    items = "".join(
        f"<li>{_text(SECTIONS[part][0])}: {_text(reason)}</li>"
        for part, reason in report["not_made"].items()
    )
    return [f"<p class=red>Not measured:</p><ul class=red>{items}</ul>"] if items else []


def _verdicts(report: Report) -> Iterator[str]:
    found = report["failures"]
    met = [name for name in VERDICTS if any(one["verdict"] == name for one in found)]
    yield rows_of((name, VERDICTS[name]) for name in met)
    rows = [
        (str(number), one["verdict"], one["because"])
        for number, one in enumerate(found)
        if one["verdict"] != "arrived"
    ]
    if rows:
        yield "<h3>Plan by plan</h3>"
        yield _table(VERDICT_HEAD, rows)


def _spectra(report: Report) -> Iterator[str]:
    head = (
        "T", "objective", "where", "variables", "free", "largest", "smallest", "condition",
        "own units", "Hessian, largest", "Hessian, least", "by",
    )  # fmt: skip
    rows = [
        (
            str(r["horizon"]),
            r["objective"],
            r["point"],
            str(r["variables"]),
            str(r["free_directions"]),
            *(
                shown(r[name], 3)
                for name in (
                    "largest", "smallest", "condition", "condition_scaled", "hessian_largest",
                    "hessian_least",
                )
            ),
            r["method"],
        )
        for r in report["conditioning"]
    ]  # fmt: skip
    yield f"<details><summary>all eigenvalues</summary>{_table(head, rows)}"
    yield (
        "<p class=none>Largest, smallest and condition are of Gauss-Newton's matrix 2 J J^T "
        "without its zeros, J being the Jacobian of the residuals; free counts the directions left "
        "out. The ends of the whole Hessian are by Lanczos, to a ten-thousandth of the largest. "
        "“Solution” is the shown plan's first T steps, with the state they end in as the "
        "goal.</p></details>"
    )


TABLES = {"failures": _verdicts, "conditioning": _spectra}


def _footing(report: Report) -> Iterator[tuple[str, str]]:
    yield (
        "task",
        f"{report['task']}, {report['state_features']} state features, "
        + (f"{report['action_features']} action features"),
    )
    yield "success", f"within {report['success_radius']:g} {report['unit']} of the goal at the end"
    yield "problems", f"{report['problems']}, T = {report['horizon']}, seed {report['seed']}"
    yield "planner", f"{report['planner']}, its default settings for the task"
    arrives = "arrives" if report["shown_arrives"] else "does not arrive"
    yield (
        "the plan of conditioning and landscape",
        f"plan {report['shown_problem']}, the longest way; under the model it {arrives}",
    )
    precision = report["precision"]
    if report["precision_reason"]:
        precision += f": {report['precision_reason']}"
    yield "computed in", precision
    yield "states", "in units of their spread in the task's data; distances in the task's own unit"
    seconds = ", ".join(f"{part} {value:.1f} s" for part, value in report["seconds"].items())
    yield "time", seconds
    yield "machine", f"{report['processor']}, {report['threads']} threads, torch {report['torch']}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<div class=wide><table><tr>{names}</tr>{body}</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))
