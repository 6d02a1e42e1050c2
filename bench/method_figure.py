"""The figure of docs/method.md: one problem, shot and lifted.

    python bench/method_figure.py docs/lifting.svg

Points and arrows are those of a small world model, evaluated; nothing is placed by hand but words.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

Points = NDArray[np.float64]

STEPS = 6
START, GOAL = np.array([0.0, 0.0]), np.array([5.2, 1.6])
STATE, CALL, GAP, BACK = "#1f3b73", "#5b8def", "#d1495b", "#b8860b"


def model(state: Points, action: Points) -> Points:
    """Adds the action and a current that turns with the place: any shape `(..., 2)`."""
    x, y = state[..., 0], state[..., 1]
    return state + action + 0.35 * np.stack([np.sin(y), np.cos(1.3 * x)], -1)


def at(point: Points) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def arrow(axes: Axes, begin: Points, end: Points, **style: object) -> None:
    look = {"arrowstyle": "-|>", "shrinkA": 4, "shrinkB": 4, "lw": 1.6, **style}
    axes.annotate("", at(end), at(begin), arrowprops=look)


def ends(axes: Axes) -> None:
    axes.plot(*START, "o", color=STATE, ms=9)
    axes.plot(*GOAL, "*", color=BACK, ms=17)
    axes.annotate("start", at(START), (0, -20), textcoords="offset points", ha="center")
    axes.annotate("goal", at(GOAL), (14, -4), textcoords="offset points", ha="left")


def shooting(axes: Axes, actions: Points) -> None:
    """The rollout, and the way that the error at its end goes back."""
    states = [START]
    for action in actions:
        states.append(model(states[-1], action))
    for begin, end in pairwise(states):
        arrow(axes, begin, end, color=CALL)
        arrow(axes, end, begin, color=BACK, ls="--", lw=1, connectionstyle="arc3,rad=0.45")
    axes.plot(*np.transpose(states[1:]), "o", color=STATE, ms=5)
    axes.plot(*np.transpose([states[-1], GOAL]), ":", color=GAP, lw=2.5)
    axes.set_title("Shooting: one call after another", fontsize=11)


def lifting(axes: Axes, actions: Points) -> None:
    """Virtual states between start and goal, and what the model says of each of them."""
    states = np.linspace(START, GOAL, STEPS + 1)
    states[1:-1] += np.random.default_rng(3).normal(0, 0.16, (STEPS - 1, 2))
    predictions = model(states[:-1], actions)
    for begin, end, following in zip(states, predictions, states[1:], strict=False):
        arrow(axes, begin, end, color=CALL)
        axes.plot(*np.transpose([end, following]), ":", color=GAP, lw=2.5)
    axes.plot(*states[1:-1].T, "o", color="white", mec=STATE, mew=1.8, ms=8)
    axes.set_title("Lifting: all calls at once", fontsize=11)


def draw(file: Path) -> None:
    actions = np.tile([0.6, -0.1], (STEPS, 1))
    with plt.rc_context({"svg.hashsalt": "grasp", "font.size": 10}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.9), sharex=True, sharey=True)
        shooting(left, actions)
        lifting(right, actions)
        for axes in (left, right):
            ends(axes)
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.margins(0.08, 0.18)
        for colour, style, name in (
            (CALL, "-", "call of the model"),
            (BACK, "--", "its gradient for the state"),
            (GAP, ":", "what is to be made small"),
        ):
            left.plot([], [], color=colour, ls=style, lw=2, label=name)
        figure.legend(loc="lower center", ncols=3, frameon=False)
        figure.subplots_adjust(0.01, 0.14, 0.99, 0.9, 0.04)
        figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
