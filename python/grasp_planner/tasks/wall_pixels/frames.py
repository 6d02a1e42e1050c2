"""The camera: 64 x 64 grey frames of the room, its wall, and the agent as a bright dot.

The view is a little wider than the room, so that the dot is always whole. Its edge is antialiased:
moved by a hundredth of a pixel, it changes the grey of the pixels on its rim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grasp_planner.tasks.wall_single.environment import WALLS

SIZE = 64
DOT_RADIUS = 0.08
"""In map units; about two pixels."""
_VIEW = 1.1
_SCALE = SIZE / (2 * _VIEW)  # pixels per map unit
_WALL_GREY = 0.5
_WINDOW = 8  # pixels that the dot can touch, along each axis


def _covered(low: float, high: float) -> np.ndarray:
    """(SIZE,): the share of each pixel that lies between two coordinates, first pixel lowest."""
    edges = np.linspace(-_VIEW, _VIEW, SIZE + 1)
    overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.asarray(np.clip(overlap, 0, None) * _SCALE)


def _empty_room() -> Tensor:
    room = sum(
        np.outer(_covered(wall.y_min, wall.y_max)[::-1], _covered(wall.x_min, wall.x_max))
        for wall in WALLS
    )
    return torch.from_numpy(np.asarray(room)).float() * _WALL_GREY


_ROOM = _empty_room()


def render(positions: Tensor) -> Tensor:
    """(B, 2) in map units, on the CPU -> (B, 64, 64) uint8; the first row is the top, y = 1.1."""
    column = (positions[:, 0] + _VIEW) * _SCALE
    row = (_VIEW - positions[:, 1]) * _SCALE
    centre = torch.stack((row, column), dim=1)
    first = (centre - _WINDOW / 2).round().long().clamp(0, SIZE - _WINDOW)
    pixels = first[:, :, None] + torch.arange(_WINDOW)
    offset = (pixels + 0.5 - centre[:, :, None]).square()
    distance = (offset[:, 0, :, None] + offset[:, 1, None, :]).sqrt()
    dot = (DOT_RADIUS * _SCALE + 0.5 - distance).clamp(0, 1).flatten(1)
    index = (pixels[:, 0, :, None] * SIZE + pixels[:, 1, None, :]).flatten(1)
    behind = _ROOM.flatten()[index]
    frames = _grey(_ROOM).flatten().repeat(len(positions), 1)
    frames.scatter_(1, index, _grey(behind + (1 - behind) * dot))
    return frames.reshape(-1, SIZE, SIZE)


def _grey(brightness: Tensor) -> Tensor:
    return (brightness * 255).round().to(torch.uint8)
