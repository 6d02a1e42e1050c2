from __future__ import annotations

import numpy as np
import pytest
from grasp_planner.tasks.geometry import Rectangle, Roadmap, crosses, inside

BAR = Rectangle(-1, 0, -0.5, 0.5)
ROOM = Rectangle(-2, 2, -2, 2)


def test_segments_may_touch_but_not_cross() -> None:
    start = np.array([[-0.5, -1], [-2, 0.5], [-2, 0.4], [0.5, -1], [-0.5, 0], [0.2, -0.7]])
    end = np.array([[-0.5, 1], [2, 0.5], [2, 0.4], [0.5, 1], [-0.4, 0.1], [-0.2, -0.51]])
    assert crosses((BAR,), start, end).tolist() == [True, False, True, False, True, False]
    assert crosses((BAR,), end, start).tolist() == [True, False, True, False, True, False]


def test_crossing_agrees_with_sampling_the_segment() -> None:
    generator = np.random.default_rng(0)
    start, end = generator.uniform(-2, 2, (2, 500, 2))
    fraction = np.linspace(0, 1, 2001)[:, None, None]
    sampled = inside((BAR,), start + fraction * (end - start)).any(0)
    assert (sampled == crosses((BAR,), start, end)).mean() > 0.99  # grazes fall between samples


def test_shortest_paths_bend_at_corners() -> None:
    start, end = np.array([[-1, 1.0]]), np.array([[-1, -1.0]])
    room = Rectangle(-1.1, 2, -2, 2)
    walls = (BAR, Rectangle(-2, -0.9, -0.5, 0.5))  # no way round on the left
    roads = Roadmap(walls, room)
    assert roads.distance(start, end)[0] == pytest.approx(2 * np.hypot(1, 0.5) + 1)
    assert roads.path(start[0], end[0]).tolist() == [[-1, 1], [0, 0.5], [0, -0.5], [-1, -1]]
    assert roads.path(start[0], start[0] + 0.1).shape == (2, 2)
    assert Roadmap(walls, room, "chebyshev").distance(start, end)[0] == pytest.approx(3.0)


def test_no_way_is_infinitely_long() -> None:
    roads = Roadmap((Rectangle(-3, 3, -0.5, 0.5), BAR), ROOM)
    start, end = np.array([[0, 1.0]]), np.array([[0, -1.0]])
    assert np.isinf(roads.distance(start, end)[0])
    with pytest.raises(ValueError, match="no free path"):
        roads.path(start[0], end[0])
