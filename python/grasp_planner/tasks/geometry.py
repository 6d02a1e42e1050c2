"""Plane geometry of mazes: walls are axis-aligned rectangles, shortest paths bend at corners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_EDGE = 1e-6  # a path may touch a wall, only its inside is forbidden; above float32 rounding


@dataclass(frozen=True)
class Rectangle:
    """An axis-aligned rectangle in map units."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def inflated(self, margin: float) -> Rectangle:
        return Rectangle(
            self.x_min - margin, self.x_max + margin, self.y_min - margin, self.y_max + margin
        )

    @property
    def corners(self) -> Array:
        """(4, 2)."""
        return np.array(
            [(x, y) for x in (self.x_min, self.x_max) for y in (self.y_min, self.y_max)]
        )

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """(..., 2) -> (...): strictly inside."""
        x, y = points[..., 0], points[..., 1]
        inside = (x > self.x_min + _EDGE) & (x < self.x_max - _EDGE)
        inside &= (y > self.y_min + _EDGE) & (y < self.y_max - _EDGE)
        return np.asarray(inside)

    def crossed_by(self, start: Array, end: Array) -> NDArray[np.bool_]:
        """(..., 2), (..., 2) -> (...): the open segment meets the inside (slab test)."""
        enter, leave = np.zeros(start.shape[:-1]), np.ones(start.shape[:-1])
        apart = np.zeros(start.shape[:-1], dtype=bool)
        for axis, low, high in ((0, self.x_min, self.x_max), (1, self.y_min, self.y_max)):
            origin, step = start[..., axis], end[..., axis] - start[..., axis]
            still = np.abs(step) < _EDGE
            safe = np.where(still, 1.0, step)
            first, second = (low + _EDGE - origin) / safe, (high - _EDGE - origin) / safe
            enter = np.where(still, enter, np.maximum(enter, np.minimum(first, second)))
            leave = np.where(still, leave, np.minimum(leave, np.maximum(first, second)))
            apart |= still & ((origin <= low + _EDGE) | (origin >= high - _EDGE))
        return np.asarray(~apart & (enter < leave - _EDGE))


def crosses(walls: tuple[Rectangle, ...], start: Array, end: Array) -> NDArray[np.bool_]:
    """(..., 2), (..., 2) -> (...): the straight segment runs through at least one wall."""
    start, end = np.broadcast_arrays(start, end)
    blocked = np.zeros(start.shape[:-1], dtype=bool)
    for wall in walls:
        blocked |= wall.crossed_by(start, end)
    return blocked


def inside(walls: tuple[Rectangle, ...], points: Array) -> NDArray[np.bool_]:
    """(..., 2) -> (...): the point lies in at least one wall."""
    blocked = np.zeros(points.shape[:-1], dtype=bool)
    for wall in walls:
        blocked |= wall.contains(points)
    return blocked


class Roadmap:
    """Exact shortest paths among rectangles by their visibility graph.

    Walls without a gap between them must overlap: a path may run along a shared edge.

    `norm` is "euclidean", or "chebyshev" where each axis has its own speed limit and a straight
    segment takes as long as its longer side.
    """

    def __init__(
        self,
        walls: tuple[Rectangle, ...],
        extent: Rectangle,
        norm: Literal["euclidean", "chebyshev"] = "euclidean",
    ) -> None:
        self.walls = walls
        self.norm = norm
        corners = np.concatenate([wall.corners for wall in walls])
        outside = Rectangle.contains(extent, corners) & ~inside(walls, corners)
        self.nodes = corners[outside]
        lengths = self._visible_lengths(self.nodes[:, None], self.nodes[None, :])
        np.fill_diagonal(lengths, 0.0)
        self._next = np.tile(np.arange(len(lengths)), (len(lengths), 1))
        for middle in range(len(lengths)):  # Floyd-Warshall; a maze has a handful of corners
            through = lengths[:, middle, None] + lengths[None, middle, :]
            shorter = through < lengths
            self._next = np.where(shorter, self._next[:, middle, None], self._next)
            lengths = np.where(shorter, through, lengths)
        self._lengths = lengths

    def _visible_lengths(self, start: Array, end: Array) -> Array:
        offset = np.abs(end - start)
        length = offset.max(-1) if self.norm == "chebyshev" else np.sqrt((offset**2).sum(-1))
        return np.where(crosses(self.walls, start, end), np.inf, length)

    def _via(self, start: Array, end: Array) -> Array:
        """(B, 2), (B, 2) -> (B, nodes, nodes): length through a first and a last corner."""
        first = self._visible_lengths(start[:, None], self.nodes)
        last = self._visible_lengths(self.nodes, end[:, None])
        return np.asarray(first[:, :, None] + self._lengths + last[:, None, :])

    def distance(self, start: Array, end: Array) -> Array:
        """(B, 2), (B, 2) -> (B,); infinite where there is no way."""
        direct = self._visible_lengths(start, end)
        return np.minimum(direct, self._via(start, end).min(axis=(1, 2)))

    def path(self, start: Array, end: Array) -> Array:
        """(2,), (2,) -> (P, 2): the corners of the shortest path, both ends included."""
        if np.isfinite(self._visible_lengths(start, end)):
            return np.stack((start, end))
        via = self._via(start[None], end[None])[0]
        node, last = np.unravel_index(int(np.argmin(via)), via.shape)
        if not np.isfinite(via[node, last]):
            raise ValueError(f"no free path from {start.tolist()} to {end.tolist()}")
        points = [start, self.nodes[node]]
        while node != last:
            node = self._next[node, last]
            points.append(self.nodes[node])
        return np.stack((*points, end))
