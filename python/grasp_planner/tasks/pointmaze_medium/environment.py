"""PointMaze-Medium: a maze of 6 x 6 cells with loops and dead ends; see `tasks/pointmaze.py`."""

from __future__ import annotations

from itertools import groupby

from grasp_planner.tasks.geometry import Rectangle
from grasp_planner.tasks.pointmaze import Map

_HALF = 4.0  # of the whole map, m
_CELLS = (
    "########",
    "#..##..#",
    "#..#...#",
    "##...###",
    "#..#...#",
    "#.#..#.#",
    "#...#..#",
    "########",
)


def _walls() -> tuple[Rectangle, ...]:
    """Each run of wall cells in a row is one rectangle."""
    walls = []
    for row, cells in enumerate(_CELLS):
        top, column = _HALF - row, 0
        for cell, run in groupby(cells):
            width = len(list(run))
            if cell == "#":
                left = column - _HALF
                walls.append(Rectangle(left, left + width, top - 1, top))
            column += width
    return tuple(walls)


def _bends() -> tuple[tuple[float, float], ...]:
    """Where one of four cells that meet is wall, or two opposite ones are."""
    found = []
    for row in range(1, len(_CELLS)):
        for column in range(1, len(_CELLS)):
            four = "".join(_CELLS[r][column - 1 : column + 1] for r in (row - 1, row))
            if four.count("#") == 1 or four in ("#..#", ".##."):
                found.append((column - _HALF, _HALF - row))
    return tuple(found)


MEDIUM = Map(
    environment_id="PointMaze_Medium-v3",
    task="pointmaze-medium",
    walls=_walls(),
    half_width=_HALF - 1,
    bends=_bends(),
)
