"""An evaluation as one HTML page that needs nothing else and explains itself."""

from __future__ import annotations

import base64
import html
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grasp_planner.evaluation import figures
from grasp_planner.evaluation.summary import OURS, Result, Row, cells, comparisons
from grasp_planner.evaluation.units import Unit
from grasp_planner.profiling.page import STYLE as HOUSE
from grasp_planner.profiling.page import rows_of
from grasp_planner.tasks import Problems, Task

STYLE = (
    HOUSE
    + """
body { max-width: 74rem; } p, li { max-width: 50rem; } p.image { max-width: none; }
h2 { border-top: 1px solid #d5d9de; padding-top: 1.2rem; font-size: 1.25rem; }
h3 { margin-top: 1.6rem; }
table { font-size: 13.5px; } .wide { overflow-x: auto; } tr.ours td { background: #fff4ec; }
td.yes { color: #1a7f37; } td.no { color: #a40000; } .red { color: #a40000; }
img { max-width: 100%; height: auto; } nav a { margin-right: 1rem; } pre { white-space: pre-wrap; }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .45rem; }
.track { position: relative; width: 9rem; height: .8rem; background: #eef0f2; border-radius: 3px; }
.track span { position: absolute; top: 0; bottom: 0; background: #9db4d0; border-radius: 3px; }
.track i { position: absolute; top: -.1rem; bottom: -.1rem; width: 3px; margin-left: -1px;
  background: #1c2024; }
"""
)

# The same words stand in docs/results.md.
PLANNERS = {
    "lifted-newton": "this project's: a random population, second-order steps on virtual states",
    "cem": "the cross-entropy method: sample, keep the best, fit a normal distribution",
    "icem": "CEM with coloured noise and kept elites",
    "mppi": "path integrals: samples weighted by their costs",
    "gradient": "gradient descent on actions through the rollout, from several starts",
    "latco": "latent collocation: states and actions as variables, multipliers on the dynamics",
    "grasp": "the paper's lifted planner with this project's settings",
    "grasp-paper": "the paper's algorithm to the letter, step sizes for states of variance 1",
}
FOOTING = (
    "Every planner gets the same problems, world model, bounds and cost, and the same native "
    "rollout kernel where the world model is an MLP, so that differences are those of the "
    "algorithms.",
    "A problem is planned alone, by one worker process with the threads named below. All planners "
    "take turns on a problem, beginning with another one each time.",
    "Time is wall clock from start and goal to the plan. A plan before the first is not counted; "
    "nor is the time to copy the best plans on the way, which the curves need.",
    "A plan is executed open loop: all its actions, without looking. It succeeds if, at the end of "
    "the horizon, the distance to the goal is within the task's radius.",
    "Settings of a planner are the same for all problems of a task, and were not chosen on these "
    "problems (bench/tune.py draws others).",
    "lifted-newton stops early where its robust cost says that a plan arrives; the baselines make "
    "all their iterations, as published. Time to success: how soon each had a plan that works.",
    "Intervals are Wilson's, 95 %, over problems. Two planners whose intervals overlap may still "
    "differ, as the problems are the same.",
)
COLUMNS = {
    "planner": "",
    "environment": "share of plans that reach the goal when executed in the real environment",
    "95 % interval": "the bar; the mark is the share",
    "model": "share of plans that reach the goal according to the world model",
    "ms per plan": "mean",
    "median": "ms",
    "90 %": "nine of ten plans took at most so many ms",
    "ms to success": "median time to the first moment from which the best plan succeeds when "
    "executed, over the plans that succeed",
    "model calls": "evaluations of the model, or of its gradient, that wait for one another",
    "distance": "to the goal at the end, in the environment, median",
    "failed": "plans that could not be made",
}

LEFT = ("planner", "95 % interval", "task and horizon")

Cell = tuple[str, int]


def pictures(
    rows: Sequence[Row],
    results: Mapping[Unit, Result],
    loaded: Mapping[str, Task],
    problems: Mapping[Cell, Problems],
) -> dict[Cell | None, list[bytes]]:
    """PNGs for the page: of each task and horizon, and under None of them all."""
    found: dict[Cell | None, list[bytes]] = {None: [figures.overview(rows)]}
    for cell in cells(rows):
        key = cell[0]["task"], cell[0]["horizon"]
        drawn = figures.plans(cell, results, loaded[key[0]], problems[key])
        found[key] = [figures.race(cell), drawn]
    return found


def page(
    rows: Sequence[Row],
    description: Mapping[str, Any],
    loaded: Mapping[str, Task],
    images: Mapping[Cell | None, Sequence[bytes]],
) -> str:
    """The whole document; without `images` it has tables only."""
    links = "".join(
        f'<a href="#{_text(name)}">{_text(task.name)}</a>' for name, task in loaded.items()
    )
    parts = [
        "<h1>Planners side by side</h1>",
        f"<p>{_text(asked(rows))}</p>",
        f"<nav>{links}<a href='#footing'>footing</a></nav>",
        *_failures(rows),
        "<h2>In short</h2>",
        _image(images.get(None), 0, "success in the environment over time per plan"),
        "<p>One panel per task and horizon T (steps). Up is better, left is faster, on a "
        "logarithmic scale; faint lines are 95 % intervals.</p>",
        *_comparison(rows),
        "<h3>The planners</h3>",
        rows_of((name, PLANNERS.get(name, "")) for name in dict.fromkeys(_names(rows))),
    ]
    for name, task in loaded.items():
        parts += _task(name, task, [row for row in rows if row["task"] == name], images)
    parts += [
        "<h2 id=footing>Footing</h2>",
        "<ul>" + "".join(f"<li>{_text(words)}</li>" for words in FOOTING) + "</ul>",
        rows_of(iter(machine(rows))),
        *(_settings(name, found) for name, found in description["planner_settings"].items()),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>grasp eval</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )


def asked(rows: Sequence[Row]) -> str:
    """What was compared, in a sentence or two."""
    names = list(dict.fromkeys(row["task_name"] for row in rows))
    horizons = sorted({row["horizon"] for row in rows})
    return (
        f"{len(set(_names(rows)))} planners, {len(names)} tasks ({', '.join(names)}), horizons of "
        f"{' and '.join(map(str, horizons))} steps, {rows[0]['problems']} problems each. Every "
        "planner searched, through the task's learned world model, for actions that lead from the "
        "start to the goal; the actions were then executed in the real environment, which the "
        "planner never sees. Success there is what counts."
    )


def machine(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What ran where."""
    first = rows[0]

    def all_of(name: str) -> str:
        return "; ".join(dict.fromkeys(row[name] for row in rows if row[name]))

    return [
        ("processor", first["processor"]),
        ("CPU threads per worker", str(first["threads"])),
        ("torch", first["torch"]),
        ("kernels", all_of("backend")),
        ("paths taken by world models", all_of("path")),
        ("seed of problems and noise", str(first["seed"])),
    ]


def percent(share: float) -> str:
    return f"{share:.0%}"


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, never in powers of ten; "" where there is none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def verdict(comparison: Mapping[str, Any]) -> tuple[str, str]:
    """In words: how success compares, and time."""
    if comparison["at_least"]:
        success = "at least"
    else:
        success = "within the interval" if comparison["within"] else "below"
    return success, "yes" if comparison["fast"] else "no"


def _text(value: object) -> str:
    return html.escape(str(value))


def _names(rows: Sequence[Row]) -> Iterable[str]:
    return (row["planner"] for row in rows)


def _image(images: Sequence[bytes] | None, index: int, words: str) -> str:
    return "" if images is None else image(images[index], words)


def image(png: bytes, words: str) -> str:
    """A picture inside the page itself, and in words for those who do not see it."""
    data = base64.b64encode(png).decode()
    return f'<p class=image><img alt="{_text(words)}" src="data:image/png;base64,{data}"></p>'


def _table(head: Mapping[str, str], rows: Iterable[str]) -> str:
    """`rows` are whole `<tr>`s."""
    names = "".join(
        f'<th class="{"" if name in LEFT else "number"}" title="{_text(words)}">{_text(name)}</th>'
        for name, words in head.items()
    )
    return f"<div class=wide><table><tr>{names}</tr>{''.join(rows)}</table></div>"


def _task(
    name: str,
    task: Task,
    rows: Sequence[Row],
    images: Mapping[Cell | None, Sequence[bytes]],
) -> list[str]:
    words = (inspect.getdoc(inspect.getmodule(type(task))) or "").split("\n\n")[0]
    parts = [f'<h2 id="{_text(name)}">{_text(task.name)}</h2>', f"<p>{_text(words)}</p>"]
    parts.append(
        f"<p class=none>{task.state_features} state features, {task.action_features} action "
        f"features; success is a distance of at most {task.success_radius:g} {_text(task.unit)}"
        ".</p>"
    )
    for cell in cells(rows):
        horizon = cell[0]["horizon"]
        own = images.get((name, horizon))
        parts += [
            f"<h3>{_text(task.name)}, T = {horizon}</h3>",
            _table(COLUMNS, map(_row, cell)),
            _image(own, 0, "success over time, and time per plan"),
            _image(own, 1, "best and worst plans"),
        ]
        if own is not None:
            parts.append(
                "<p class=none>The curves: at any time the best plan by then, according to the "
                "model, is executed; they fall where the model errs. The small pictures: each "
                "planner's best and worst plan in the environment. Green: start; amber: goal; "
                "blue, dashed: what the world model expected; orange: what happened, dark red "
                "where the goal was missed.</p>"
            )
    return parts


def _row(row: Row) -> str:
    low, high = row["success_environment_interval"]
    colour, _ = figures.STYLES.get(row["planner"], figures.OTHER)
    bar = (
        f"<div class=track title='{100 * low:.0f} to {100 * high:.0f} %'>"
        f"<span style='left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%'></span>"
        f"<i style='left:{100 * row['success_environment']:.1f}%'></i></div>"
    )
    numbers = (
        percent(row["success_model"]),
        number(row["milliseconds_per_plan"]),
        number(row["milliseconds_median"]),
        number(row["milliseconds_p90"]),
        number(row["milliseconds_to_success"]),
        number(row["model_calls"], 4),
        f"{number(row['goal_distance_environment'])} {_text(row['unit'])}",
        str(row["errors"] or ""),
    )
    return (
        f"<tr{' class=ours' if row['planner'] == OURS else ''}>"
        f"<td><span class=dot style='background:{colour}'></span>{_text(row['planner'])}</td>"
        f"<td class=number><b>{percent(row['success_environment'])}</b></td><td>{bar}</td>"
        + "".join(f"<td class=number>{value}</td>" for value in numbers)
        + "</tr>"
    )


def _comparison(rows: Sequence[Row]) -> list[str]:
    found = comparisons(rows)
    if not found:
        return []
    head = {
        "task and horizon": "",
        OURS: "success in the environment, its 95 % interval",
        "best baseline": "of cem, icem, mppi, gradient and latco the one that succeeds most; of "
        "equals the fastest",
        "its success": "in the environment",
        "success at least that": "within the interval: the baseline's share lies in that of "
        f"{OURS}",
        "ms": OURS,
        "baseline's ms": "mean",
        "time ratio": "",
        "at most 1/3": "",
    }
    lines = []
    for one in found:
        ours, best = one["ours"], one["best"]
        success, fast = verdict(one)
        low, high = ours["success_environment_interval"]
        values = (
            (f"{percent(ours['success_environment'])} ({100 * low:.0f}-{100 * high:.0f})", ""),
            (_text(best["planner"]), ""),
            (percent(best["success_environment"]), ""),
            (success, "yes" if one["within"] else "no"),
            (number(ours["milliseconds_per_plan"]), ""),
            (number(best["milliseconds_per_plan"]), ""),
            (f"{one['ratio']:.2f}", ""),
            (fast, fast),
        )
        lines.append(
            f"<tr><td>{_text(ours['task_name'])}, T = {ours['horizon']}</td>"
            + "".join(f'<td class="number {kind}">{value}</td>' for value, kind in values)
            + "</tr>"
        )
    met = sum(one["met"] for one in found)
    return [
        f"<h3>{_text(OURS)} beside the best baseline</h3>",
        f"<p>Asked for: success no lower than that of the best baseline, up to the interval, in at "
        f"most a third of its time. Met in {met} of {len(found)} cells.</p>",
        _table(head, lines),
    ]


def _failures(rows: Sequence[Row]) -> list[str]:
    failed = [row for row in rows if row["errors"]]
    if not failed:
        return []
    items = "".join(
        f"<li>{_text(row['task'])}, T = {row['horizon']}, {_text(row['planner'])}: "
        f"{row['errors']} of {row['problems']}: {_text(row['error'])}</li>"
        for row in failed
    )
    return [
        "<h2 class=red>Plans that could not be made</h2>",
        f"<p>They count as plans that failed.</p><ul class=red>{items}</ul>",
    ]


def _settings(name: str, by_cell: Mapping[str, Mapping[str, Any]]) -> str:
    """A planner's settings: what is the same everywhere, then what is not, where."""
    every = list(by_cell.values())
    lines = []
    for field in every[0]:
        values = [settings[field] for settings in every]
        if all(value == values[0] for value in values):
            lines.append((field, _plain(values[0])))
        else:
            lines += [(f"{field}, {cell}", _plain(found[field])) for cell, found in by_cell.items()]
    return f"<details><summary>settings of {_text(name)}</summary>{rows_of(iter(lines))}</details>"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return str(value)
